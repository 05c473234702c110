"""The code of others that a trial runs, as a part of its record's origin: `plugin.NAME` with the
digest of its source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pointsweep.config import plugins
from pointsweep.config.base import NamedConfig
from pointsweep.config.schema import PARTS, TrialConfig

PREFIX = "plugin."
SHOWN_DIGITS = 12


def plugin_origin(config: TrialConfig) -> dict[str, str]:
    """Return what the origin of a trial's record says of the plug-ins that it runs; nothing where
    there are none.
    """
    components = []
    for field, kind in PARTS.items():
        value = getattr(config, field)
        if isinstance(value, NamedConfig):
            components.append((kind, value.name))

    digests = plugins.digests(components)
    return {f"{PREFIX}{name}": digest for name, digest in digests.items()}


def digests_of(configs: Iterable[TrialConfig]) -> dict[str, str]:
    """Return the digest of every plug-in that some trials run, by the name in an origin."""
    digests: dict[str, str] = {}
    for config in configs:
        digests |= plugin_origin(config)

    return digests


def runs_plugins(origin: Mapping[str, str]) -> list[str]:
    """Return the names of the plug-ins in a record's origin."""
    return [name.removeprefix(PREFIX) for name in origin if name.startswith(PREFIX)]


def plugins_differ(origin: Mapping[str, str], current: Mapping[str, str]) -> str:
    """Return how the plug-ins of a record differ from those that are here; empty if they do not.

    Nothing is said of one that is not here.
    """
    for name, before in origin.items():
        now = current.get(name)
        if name.startswith(PREFIX) and now is not None and now != before:
            shown = name.removeprefix(PREFIX)
            return (
                f"plug-in changed since: {shown} was {before[:SHOWN_DIGITS]}, here it is"
                f" {now[:SHOWN_DIGITS]}"
            )

    return ""
