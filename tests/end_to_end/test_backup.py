"""cluster/mlflow/backup.sh on a real PostgreSQL: what was written, destroyed and put back is what was there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.postgres import binary, postgres

SCRIPT = Path(__file__).parents[2] / "cluster" / "mlflow" / "backup.sh"
TOOLS = ("initdb", "psql", "pg_dump", "pg_restore")
pytestmark = pytest.mark.skipif(not all(binary(name) for name in TOOLS), reason="no PostgreSQL with its clients")


class Server:
    """A PostgreSQL with the server's two databases, and a folder of artifacts."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.artifacts, self.backups = folder / "artifacts", folder / "backups"
        self.artifacts.mkdir()
        self.backups.mkdir()
        # The clients of the release of the server: pg_dump refuses a newer one.
        tools = str(Path(binary("initdb")).resolve().parent)
        where = urlsplit(uri)
        self.environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(where.port),
            "PGUSER": "mlflow",
            "ARTIFACTS": str(self.artifacts),
            "BACKUP_FOLDER": str(self.backups),
        }
        for name in ("mlflow", "mlflow_auth"):
            self.sql("postgres", f"CREATE DATABASE {name}")

    def sql(self, database: str, text: str) -> str:
        line = ["psql", "-v", "ON_ERROR_STOP=1", "-qtA", "-d", database, "-c", text]
        done = subprocess.run(line, env=self.environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def backup(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(SCRIPT), *words],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )


def test_a_server_is_put_back_from_its_backup(tmp_path):
    with postgres() as uri:
        server = Server(uri, tmp_path)
        server.sql("mlflow", "CREATE TABLE runs (id text PRIMARY KEY, accuracy float)")
        server.sql("mlflow", "INSERT INTO runs VALUES ('a', 0.5), ('b', 0.75)")
        server.sql("mlflow_auth", "CREATE TABLE users (name text PRIMARY KEY)")
        server.sql("mlflow_auth", "INSERT INTO users VALUES ('sweeps')")
        artifact = server.artifacts / "1" / "a" / "table.txt"
        artifact.parent.mkdir(parents=True)
        artifact.write_text("0.5\n")

        written = server.backup()
        assert written.returncode == 0, written.stderr
        [kept] = list(server.backups.iterdir())
        assert str(kept) in written.stdout

        server.sql("mlflow", "DROP TABLE runs")
        server.sql("mlflow_auth", "DELETE FROM users")
        shutil.rmtree(server.artifacts / "1")
        (server.artifacts / "later.txt").write_text("made after the backup")

        restored = server.backup(str(kept))
        assert restored.returncode == 0, restored.stderr
        assert server.sql("mlflow", "SELECT * FROM runs ORDER BY id") == "a|0.5\nb|0.75"
        assert server.sql("mlflow_auth", "SELECT name FROM users") == "sweeps"
        assert artifact.read_text() == "0.5\n"
        assert not (server.artifacts / "later.txt").exists()

        # A backup that was damaged changes nothing.
        (kept / "artifacts.tar").write_bytes(b"damaged")
        refused = server.backup(str(kept))
        assert refused.returncode != 0
        assert artifact.read_text() == "0.5\n"
        assert server.sql("mlflow", "SELECT count(*) FROM runs") == "2"


def test_a_backup_that_fails_leaves_nothing_that_looks_like_one(tmp_path):
    with postgres() as uri:
        server = Server(uri, tmp_path)
        server.sql("postgres", "DROP DATABASE mlflow_auth")
        assert server.backup().returncode != 0
        assert [path for path in server.backups.iterdir() if not path.name.startswith(".")] == []
