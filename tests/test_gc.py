"""What the garbage collection finds, leaves, and deletes when told to."""

from __future__ import annotations

import os

import pytest

from pointsweep.gc import main
from pointsweep.s3_store import S3Store
from pointsweep.store import FileStore
from tests.s3 import BUCKET, served

KEPT = ["trials/done/record.json", "trials/done/weights.safetensors", "trials/open/checkpoint.safetensors", "sweeps/s/table.txt"]


@pytest.fixture(params=["folder", "s3"])
def made(request, tmp_path):
    if request.param == "folder":
        yield FileStore(tmp_path / "store")
        return
    with served():
        yield S3Store(f"s3://{BUCKET}/{tmp_path.name}")


def test_checkpoints_of_finished_trials_go_and_only_when_told_to(made, capsys):
    for name in [*KEPT, "trials/done/checkpoint.safetensors"]:
        made.write(name, b"x")
    assert main([made.url]) == 0
    assert "would delete: trials/done/checkpoint.safetensors" in capsys.readouterr().out
    assert made.exists("trials/done/checkpoint.safetensors")
    assert main([made.url, "--delete"]) == 0
    assert "1 deleted" in capsys.readouterr().out
    assert not made.exists("trials/done/checkpoint.safetensors")
    assert all(made.exists(name) for name in KEPT)


def test_half_written_files_go_once_they_are_old(tmp_path, capsys):
    store = FileStore(tmp_path)
    for name, age_s in (("young", 0), ("old", 100_000)):
        path = tmp_path / "trials" / "k" / f".{name}.tmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    main([store.url, "--delete"])
    assert sorted(path.name for path in (tmp_path / "trials/k").iterdir()) == [".young.tmp"]


def test_what_killed_launches_left_goes_once_it_is_old(tmp_path):
    store = FileStore(tmp_path)
    for name, age_s in (("ray/young/a/b", 100_000), ("ray/old/a/b", 3_000_000), ("launches/old/mark", 3_000_000)):
        store.write(name, b"x")
        for path in (store.path(name), *store.path(name).parents):
            os.utime(path, (path.stat().st_mtime - age_s,) * 2) if tmp_path in path.parents else None
    main([store.url, "--delete"])
    assert (store.list("ray"), store.list("launches")) == (["young/"], [])


def test_uploads_that_were_never_completed_go_once_they_are_old(tmp_path, capsys):
    with served():
        store = S3Store(f"s3://{BUCKET}/{tmp_path.name}")
        store.client.create_multipart_upload(Bucket=BUCKET, Key=store.key("trials/k/weights.safetensors"))
        # The server dates every upload in 2010.
        main([store.url, "--delete", "--age-hours", "1e6"])
        assert len(store.uploads()) == 1
        main([store.url, "--delete"])
        assert store.uploads() == []


def test_a_store_that_cannot_be_read_ends_with_2(capsys):
    assert main(["gs://x"]) == 2
