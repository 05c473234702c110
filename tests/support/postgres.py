"""An MLflow server on PostgreSQL, on loopback, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tests.support.ports import free_port


def binary(name: str) -> str | None:
    """A program of PostgreSQL; Debian keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


MISSING = "" if binary("initdb") and find_spec("psycopg2") else "no PostgreSQL, or no psycopg2 to reach it with"


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A fresh database; its URI. PostgreSQL refuses to run as root, so there it runs as nobody."""
    user = "nobody" if os.geteuid() == 0 else None
    folder, port = Path(tempfile.mkdtemp(prefix="pg")), free_port()
    if user:
        shutil.chown(folder, user)
    subprocess.run(
        [binary("initdb"), "-D", folder / "data", "-A", "trust", "-U", "mlflow"], user=user, check=True, capture_output=True
    )
    settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": folder, "fsync": "on"}
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    server = subprocess.Popen([binary("postgres"), "-D", folder / "data", *options], user=user, stderr=subprocess.DEVNULL)
    try:
        ready = [binary("pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
        wait(lambda: subprocess.run(ready, capture_output=True).returncode == 0, "PostgreSQL")
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # a fast shutdown
        server.wait(60)
        shutil.rmtree(folder)


@contextlib.contextmanager
def mlflow_server(database: str, folder: Path, workers: int = 2) -> Iterator[str]:
    """MLflow on a database, artifacts through it; its URI."""
    port = free_port()
    line = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "mlflow.log").open("w") as log:
        server = subprocess.Popen(
            [*line, "--workers", str(workers), "--artifacts-destination", str(folder / "artifacts")],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    uri = f"http://127.0.0.1:{port}"

    def up() -> bool:
        assert server.poll() is None, (folder / "mlflow.log").read_text()[-2000:]
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{uri}/health", timeout=5).status == 200
        return False

    try:
        wait(up, "MLflow")
        yield uri
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait(met, what: str) -> None:
    deadline = time.monotonic() + 180
    while not met():
        assert time.monotonic() < deadline, f"{what} does not come up"
        time.sleep(0.2)
