"""Makes the MLflow user that sweeps log as, or gives it the password of the environment. Repeated,
it changes nothing.

The server's administrator asks for it: MLFLOW_TRACKING_URI, MLFLOW_AUTH_ADMIN_PASSWORD, and for the
user SWEEPS_USERNAME and SWEEPS_PASSWORD. The user may make experiments, and change those that it
made; others it may read.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request

PATIENCE_S = 300.0  # for a server that is being started
PAUSE_S = 3.0


def ask(method: str, call: str, fields: dict[str, str], timeout_s: float = 30.0) -> str:
    """Send a call to the server as its administrator. Return "" or the code of its error."""
    address = (
        f"{os.environ['MLFLOW_TRACKING_URI'].rstrip('/')}/api/2.0/mlflow/users/{call}"
    )
    login = f"admin:{os.environ['MLFLOW_AUTH_ADMIN_PASSWORD']}".encode()
    headers = {
        "Authorization": f"Basic {base64.b64encode(login).decode()}",
        "Content-Type": "application/json",
    }
    body = json.dumps(fields).encode()
    request = urllib.request.Request(address, data=body, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):
            return ""
    except urllib.error.HTTPError as error:
        if error.code == 401:
            return "the administrator's password is refused"
        try:
            return str(json.load(error)["error_code"])
        except (ValueError, KeyError):
            return f"HTTP status {error.code}"


def main() -> int:
    name, password = os.environ["SWEEPS_USERNAME"], os.environ["SWEEPS_PASSWORD"]
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            problem = ask("POST", "create", {"username": name, "password": password})
            break
        except OSError as error:
            if time.monotonic() > deadline:
                print(f"users: no MLflow server answers: {error}", file=sys.stderr)
                return 1
            time.sleep(PAUSE_S)
    if problem == "RESOURCE_ALREADY_EXISTS":
        problem = ask(
            "PATCH", "update-password", {"username": name, "password": password}
        )
    if problem:
        print(
            f"users: MLflow does not make the user {name}: {problem}", file=sys.stderr
        )
        return 1
    print(f"users: sweeps log as {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
