"""Notification at the end of a sweep: JSON to a URL by POST, or to a command's standard input.

Whether anybody listens never changes how a sweep has ended. A URL may hold a secret: of it only the
host is ever printed.
"""

from __future__ import annotations

import http.client
import json
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from urllib.parse import urlsplit

LIMIT_S = 30.0  # for an answer, or for the command to end
STATES = {0: "complete", 1: "failed", 4: "budget used up", 7: "held by another command"}


def announce(
    targets: Iterable[str], sweep: str, code: int, counts: str, table: str
) -> None:
    """Tell every target how a sweep has ended; who cannot be told is named on stderr.

    The message has `sweep`, `status` (of STATES), `exit_code`, `counts`, `table`, and `text` with
    all of it for chat services.
    """
    status = STATES[code]
    table = table.rstrip("\n")
    message = {
        "sweep": sweep,
        "status": status,
        "exit_code": code,
        "counts": counts,
        "table": table,
        "text": f"{sweep}: {status}, {counts}\n```\n{table}\n```",
    }

    body = json.dumps(message).encode()

    for target in targets:
        if target.startswith(("http://", "https://")):
            name = urlsplit(target).hostname
            problem = _post(target, body)
        else:
            name = shlex.split(target)[0]
            problem = _run(target, body)

        if problem:
            print(f"notify: {name} was not told: {problem}", file=sys.stderr)


def problem_of(target: str) -> str:
    """Return what is wrong with a target, before anything is launched; "" if nothing is."""
    if target.startswith(("http://", "https://")):
        try:
            host = urlsplit(target).hostname
        except ValueError:
            host = None

        return "" if host else "its URL names no host"

    try:
        if shlex.split(target):
            return ""
        return "it is empty; allowed: a URL, http:// or https://, or a command"
    except ValueError as error:
        return f"its command cannot be read: {error}"


def _post(url: str, body: bytes) -> str:
    headers = {"Content-Type": "application/json", "User-Agent": "pointsweep"}
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S):
            return ""
    except urllib.error.HTTPError as error:
        return f"it answered {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        # Its text may hold the URL.
        return type(getattr(error, "reason", error)).__name__


def _run(command: str, body: bytes) -> str:
    try:
        done = subprocess.run(
            shlex.split(command), input=body, stdout=subprocess.DEVNULL, timeout=LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__

    if done.returncode:
        return f"it ended with exit code {done.returncode}"

    return ""
