"""Text without the secrets in it: user, password and query of addresses, and what secret variables
of the environment hold.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

USER = re.compile(r"(?<=//)[^/\s]*@")
# The path of an address with its query, as libraries print it without the host.
QUERY = re.compile(r"""\?[^\s'"<>()?]*=[^\s'"<>()]*""")
ADDRESS = re.compile(r"""(?P<scheme>[A-Za-z][\w+.-]*)://(?P<rest>[^\s'"<>]*)""")
PATHS = ("sqlite", "file")  # schemes of paths, in which ? and # are ordinary characters

SECRET_NAMES = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY|NOTIFY"
)
ADDRESS_NAMES = (
    "MLFLOW_TRACKING_URI",
    "RAY_ADDRESS",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "POINTSWEEP_STORE",
)
SHORTEST = 4  # characters; shorter values would be found in ordinary words


def masked(text: str) -> str:
    """Return `text` with the user, password, query and fragment of every address in it replaced by
    ***.
    """
    text = USER.sub("***@", text)
    text = ADDRESS.sub(_without_query, text)

    return QUERY.sub("?***", text)


def scrubbed(text: str, *addresses: str) -> str:
    """Return `text`, such as an error's, masked; and without the values of secret variables and of
    these addresses.

    Libraries print parts of an address, decoded or encoded anew.
    """
    text = masked(text)
    for secret in sorted(_secrets(addresses), key=len, reverse=True):
        text = text.replace(secret, "***")

    return text


def _without_query(match: re.Match[str]) -> str:
    if match["scheme"].lower().startswith(PATHS):
        return match[0]

    rest = re.sub(r"([?#]).+", r"\1***", match["rest"])
    return f"{match['scheme']}://{rest}"


def _secrets(addresses: tuple[str, ...]) -> set[str]:
    secrets: set[str] = set()
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name.upper()):
            secrets.update((value, *value.split()))

    of_environment = [os.environ.get(name, "") for name in ADDRESS_NAMES]
    for address in (*addresses, *of_environment):
        secrets.update(secrets_in(address))

    return {secret for secret in secrets if len(secret) >= SHORTEST}


def secrets_in(address: str) -> list[str]:
    """Return the password and the values of the query of an address, as they stand and decoded.

    A user without a password counts as one: services take tokens so.
    """
    scheme, _, rest = address.partition("://")
    if not rest or scheme.lower().startswith(PATHS):
        return []

    secrets = []
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        user, _, password = authority.rpartition("@")[0].partition(":")
        secrets.append(password or user)

    query = rest.partition("?")[2].partition("#")[0]
    for pair in query.split("&"):
        secrets.append(pair.partition("=")[2] or pair)

    texts = []
    for secret in filter(None, secrets):
        texts += [secret, unquote(secret)]

    return texts
