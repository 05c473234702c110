"""Staging from S3: interrupted, in parallel, of replaced and damaged objects; data sets and weights that lie there."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pointsweep.config.backbones import MiniLMConfig
from pointsweep.data.dataset import data_folder
from pointsweep.errors import MissingDataError, MissingWeightsError, StoreError
from pointsweep.models.backbones.checkpoints import local_file
from pointsweep.storage import s3 as s3_store
from pointsweep.storage import staging
from pointsweep.storage.s3 import S3Store
from pointsweep.storage.staging import stage, staged, staged_file
from tests.support.s3 import BUCKET, served

CONTENT = random.Random(0).randbytes(1_000_000)


@pytest.fixture(scope="module")
def server():
    with served() as faults:
        yield faults


@pytest.fixture
def made(server, tmp_path, monkeypatch) -> S3Store:
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "node"))
    monkeypatch.setattr(s3_store, "PAUSE_S", (0.01, 0.05))
    monkeypatch.setattr(staging, "RANGE_BYTES", 50_000)
    store = S3Store(f"s3://{BUCKET}/{tmp_path.name}")
    store.write("data/a/x.bin", CONTENT)
    store.write("data/b/y.txt", b"other")
    return store


class Cut(BaseException):
    """Ends a transfer as a kill would."""


def test_a_transfer_interrupted_ten_times_goes_on_where_it_was(made, tmp_path, monkeypatch):
    read, asked = S3Store.read_range, []

    def counted(self, name, start, stop, version):
        asked.append(start)
        if len(asked) % 2 == 0 and len(asked) <= 20:
            raise Cut
        return read(self, name, start, stop, version)

    monkeypatch.setattr(S3Store, "read_range", counted)
    for _ in range(10):
        with pytest.raises(Cut):
            stage(made, "data/a/x.bin", tmp_path / "here")
        assert not (tmp_path / "here" / "files" / "data/a/x.bin").exists()
    assert stage(made, "data/a/x.bin", tmp_path / "here").read_bytes() == CONTENT
    assert len(asked) == 20 + 10  # every range arrived once


@pytest.mark.slow
def test_a_gibibyte_whose_transfer_is_killed_ten_times_arrives_whole(made, tmp_path, server):
    """Ten processes are killed in the middle, on a server that loses a tenth of the answers; 64 ranges of 16 MiB."""
    block = random.Random(1).randbytes(2**20)
    digest = hashlib.sha256()
    for number in range(1024):
        digest.update(number.to_bytes(4) + block[4:])
    made.write("big.bin", b"".join(number.to_bytes(4) + block[4:] for number in range(1024)))
    root = tmp_path / "here"
    code = (
        "import sys; from pathlib import Path; from pointsweep.storage.s3 import S3Store; from pointsweep.storage.staging import stage\n"
        f"print(stage(S3Store({made.url!r}, attempts=20), 'big.bin', Path({str(root)!r})))"
    )
    server.share, part = 0.1, root / "state" / "big.bin.part"
    before = 0
    for _ in range(10):
        worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        while worker.poll() is None and (part.stat().st_size if part.exists() else 0) < before + 3 * 2**24:
            time.sleep(0.01)
        worker.kill()
        assert worker.wait() == -9
        assert not (root / "files" / "big.bin").exists()
        before = part.stat().st_size
    subprocess.run([sys.executable, "-c", code], check=True)
    server.share = 0.0
    with (root / "files" / "big.bin").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest.hexdigest()


def test_what_is_here_is_not_fetched_again_until_it_changes(made, monkeypatch):
    path = staged_file(made.location("data/a/x.bin"))
    with monkeypatch.context() as patch:
        patch.setattr(S3Store, "read_range", None)
        assert staged_file(made.location("data/a/x.bin")) == path
    made.write("data/a/x.bin", b"new")
    assert staged_file(made.location("data/a/x.bin")).read_bytes() == b"new"


def test_a_part_of_an_older_version_is_dropped(made, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(staging, "_check", lambda *_: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            stage(made, "data/b/y.txt", tmp_path)
    made.write("data/b/y.txt", b"quite another")
    assert stage(made, "data/b/y.txt", tmp_path).read_bytes() == b"quite another"


def test_a_wrong_digest_is_refused_and_begun_anew(made, tmp_path):
    made.client.put_object(Bucket=BUCKET, Key=made.key("bad"), Body=b"x", Metadata={"sha256": "0" * 64})
    with pytest.raises(StoreError, match="what arrived has sha256 .*, expected 0000000000000000"):
        stage(made, "bad", tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_workers_of_a_node_share_one_transfer(made):
    code = f"from pointsweep.storage.staging import staged_file; print(staged_file({made.location('data/a/x.bin')!r}).stat().st_size)"
    workers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [int(worker.communicate()[0]) for worker in workers] == [len(CONTENT)] * 3


def test_only_the_folder_that_is_needed_is_staged(made, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", made.location("data"))
    folder = data_folder("made up", "b", "From nowhere.")
    assert [path.name for path in folder.iterdir()] == ["y.txt"]
    assert not (folder.parent / "a").exists()
    with pytest.raises(MissingDataError, match="no folder"):
        data_folder("made up", "c", "From nowhere.")


def test_weights_are_staged_and_a_path_stays_a_path(made, tmp_path):
    backbone = MiniLMConfig(weights=made.location("data/b/y.txt"))
    assert local_file(backbone).read_bytes() == b"other"
    missing = backbone.replace(weights=made.location("data/none"))
    with pytest.raises(MissingWeightsError, match="cannot be staged"):
        local_file(missing)
    assert staged(str(tmp_path)) == Path(tmp_path)
