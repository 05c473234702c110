"""The scripts of cluster/mlflow: the user that sweeps log as, and what the server refuses to start with."""

from __future__ import annotations

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "cluster" / "mlflow"
ADMIN = "Basic " + base64.b64encode(b"admin:administrators").decode()


class Users(http.server.BaseHTTPRequestHandler):
    """MLflow's calls for users, as its basic-auth app answers them."""

    passwords: dict[str, str]

    def do_POST(self) -> None:
        sent = self.sent()
        if self.headers["Authorization"] != ADMIN:
            self.answer(401, None)
        elif sent["username"] in self.passwords:
            self.answer(400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "it exists"})
        elif len(sent["password"]) < 12:
            self.answer(400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "too short"})
        else:
            self.passwords[sent["username"]] = sent["password"]
            self.answer(200, {"user": {}})

    def do_PATCH(self) -> None:
        sent = self.sent()
        self.passwords[sent["username"]] = sent["password"]
        self.answer(200, {})

    def sent(self) -> dict:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, status: int, value: dict | None) -> None:
        body = b"no" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server():
    handler = type("One", (Users,), {"passwords": {}})
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}", handler.passwords
    made.shutdown()
    made.server_close()


def make_user(uri: str, password: str, admin: str = "administrators") -> subprocess.CompletedProcess:
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin,
        "SWEEPS_USERNAME": "sweeps",
        "SWEEPS_PASSWORD": password,
    }
    line = [sys.executable, str(FOLDER / "users.py")]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


def test_the_user_of_sweeps_is_made_once_and_gets_the_password_of_the_environment(server):
    uri, passwords = server
    for password in ("first-password", "first-password", "second-password"):
        done = make_user(uri, password)
        assert done.returncode == 0, done.stderr
        assert passwords == {"sweeps": password}
        assert password not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("password", "admin", "said"),
    [
        ("long-enough-password", "wrong", "administrator's password is refused"),
        ("short", "administrators", "INVALID_PARAMETER_VALUE"),
    ],
)
def test_a_refusal_is_said_and_fails(server, password: str, admin: str, said: str):
    done = make_user(server[0], password, admin)
    assert done.returncode == 1
    assert said in done.stderr and "Traceback" not in done.stderr


def test_the_server_does_not_start_where_its_user_cannot_write_artifacts(tmp_path):
    (tmp_path / "mlflow").write_text("#!/bin/sh\necho started\n")
    (tmp_path / "mlflow").chmod(0o755)
    (tmp_path / "artifacts").mkdir()
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "POSTGRES_PASSWORD": "x",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "x",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "x",
        "TMPDIR": str(tmp_path),
    }
    line = ["sh", str(FOLDER / "start.sh")]

    def start(artifacts: str) -> subprocess.CompletedProcess:
        own = environment | {"ARTIFACTS": artifacts}
        return subprocess.run(line, env=own, capture_output=True, text=True, check=False)

    refused = start(str(tmp_path / "missing"))
    assert refused.returncode == 2 and "cannot be written by uid" in refused.stderr
    assert "started" not in refused.stdout
    for artifacts in (str(tmp_path / "artifacts"), "s3://bucket/artifacts"):
        assert start(artifacts).stdout == "started\n"
    assert list((tmp_path / "artifacts").iterdir()) == []
    [settings, _] = sorted(tmp_path.glob("tmp.*/auth.ini"))
    assert settings.stat().st_mode & 0o077 == 0, "it holds the database's password"
