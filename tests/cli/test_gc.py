"""What the garbage collection finds, leaves, and deletes when told to; and that it does so in a store alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pointsweep.cli.gc import main
from pointsweep.results.records import Record
from pointsweep.storage.base import MARKER, FileStore, establish
from pointsweep.storage.lease import leased
from pointsweep.storage.s3 import S3Store
from tests.support.s3 import BUCKET, served

DONE, OPEN = "d" * 16, "0" * 16
KEPT = [
    f"trials/{DONE}/record.json",
    f"trials/{DONE}/weights.safetensors",
    f"trials/{OPEN}/checkpoint.safetensors",
    "sweeps/s/table.txt",
    MARKER,
]
RECORD = Record(DONE, {}, {"last": {"test/accuracy": 0.5}}, {}, {}, "random").to_json().encode()
DAY_S = 86_400


@pytest.fixture(params=["folder", "s3"])
def made(request, tmp_path):
    if request.param == "folder":
        store = FileStore(tmp_path / "store")
        establish(store)
        yield store
        return
    with served():
        store = S3Store(f"s3://{BUCKET}/{tmp_path.name}")
        establish(store)
        yield store


@pytest.fixture
def store(tmp_path) -> FileStore:
    found = FileStore(tmp_path / "store")
    establish(found)
    return found


def make_old(path: Path, days: float = 40) -> None:
    """Sets the times of a file, or of a folder and all that it holds, back."""
    for each in (*path.rglob("*"), path):
        os.utime(each, (time.time() - days * DAY_S,) * 2, follow_symlinks=False)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def test_checkpoints_of_finished_trials_go_and_only_when_told_to(made, capsys):
    for name in KEPT[1:-1]:
        made.write(name, b"x")
    made.write(KEPT[0], RECORD)
    made.write(f"trials/{DONE}/checkpoint.safetensors", b"x")
    assert main([made.url]) == 0
    assert f"would delete: trials/{DONE}/checkpoint.safetensors" in capsys.readouterr().out
    assert made.exists(f"trials/{DONE}/checkpoint.safetensors")
    assert main([made.url, "--delete"]) == 0
    assert "1 deleted" in capsys.readouterr().out
    assert not made.exists(f"trials/{DONE}/checkpoint.safetensors")
    assert all(made.exists(name) for name in KEPT)


@pytest.mark.parametrize("record", [b"", b"{}", RECORD.replace(b"0.5", b"0.9"), RECORD[:50]])
def test_the_checkpoint_beside_a_damaged_record_stays(made, record):
    made.write(f"trials/{DONE}/record.json", record)
    made.write(f"trials/{DONE}/checkpoint.safetensors", b"x")
    assert main([made.url, "--delete"]) == 0
    assert made.exists(f"trials/{DONE}/checkpoint.safetensors")


def test_the_files_of_a_trial_that_is_worked_on_stay(store, capsys):
    store.write(f"trials/{DONE}/record.json", RECORD)
    store.write(f"trials/{DONE}/checkpoint.safetensors", b"x")
    store.write("launches/0123456789ab/0000", b"x")
    make_old(store.path("launches"), days=400)
    with leased(store.path(f"trials/{DONE}"), 0.0):
        assert main([store.url, "--delete"]) == 0
        assert "left: trials/" in capsys.readouterr().out
        assert store.exists(f"trials/{DONE}/checkpoint.safetensors")
        assert store.exists("launches/0123456789ab/0000"), "its launch may be the one that is under way"
    assert main([store.url, "--delete"]) == 0
    assert not store.exists(f"trials/{DONE}/checkpoint.safetensors")
    assert store.list("launches") == []


def test_half_written_files_go_once_they_are_old(store):
    folder = store.path(f"trials/{OPEN}")
    folder.mkdir(parents=True)
    names = [".record.json.0a1b2c3d.tmp", f".lease.{'0' * 32}.tmp", f".lease.{'0' * 32}.claim.tmp"]
    foreign = [".notes.tmp", "record.json.0a1b2c3d.tmp", ".record.json.0a1b2c3d.TMP"]
    for name in (*names, *foreign):
        (folder / name).write_bytes(b"x")
        make_old(folder / name)
    (folder / ".young.json.0a1b2c3d.tmp").write_bytes(b"x")
    main([store.url, "--delete"])
    left = {path.name for path in folder.iterdir()} - {"lock"}
    assert left == {*foreign, ".young.json.0a1b2c3d.tmp"}


def test_what_killed_launches_left_goes_once_it_is_old(store):
    for name in ("ray/aaaaaaaaaaaa/a/b", "ray/bbbbbbbbbbbb/a/b", "launches/bbbbbbbbbbbb/mark", "ray/project/thesis.txt"):
        store.write(name, b"x")
    make_old(store.path("ray/aaaaaaaaaaaa"), days=2)
    for name in ("ray/bbbbbbbbbbbb", "launches/bbbbbbbbbbbb", "ray/project"):
        make_old(store.path(name))
    main([store.url, "--delete"])
    assert (store.list("ray"), store.list("launches")) == (["aaaaaaaaaaaa/", "project/"], [])


def test_a_home_folder_is_no_store(tmp_path, capsys):
    """Found in use: `gc FOLDER --delete` removed a thesis, as its folder was called as one of a store's."""
    home = tmp_path / "home"
    for name in ("ray/project/thesis.txt", "launches/rocket/plan.txt", "docs/.notes.tmp", "trials/a/record.json"):
        path = home / name
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    make_old(home)
    before = files_in(home)
    for arguments in ([str(home)], [str(home), "--delete"], [str(home), "--delete", "--age-hours", "0"]):
        assert main(arguments) == 2
        assert f"{home} is no store of pointsweep: it has no readable {MARKER}" in capsys.readouterr().err
    assert files_in(home) == before


def spoil_nothing_there(path: Path) -> None:
    """Nothing at all is at the path."""


def spoil_file(path: Path) -> None:
    path.write_text("")


def spoil_empty(path: Path) -> None:
    path.mkdir()


def spoil_marker_of_another(path: Path) -> None:
    path.mkdir()
    (path / MARKER).write_text('{"kind": "a web shop", "format": 1}')


def spoil_marker_cut_off(path: Path) -> None:
    path.mkdir()
    (path / MARKER).write_text('{"kind": "poin')


def spoil_marker_folder(path: Path) -> None:
    (path / MARKER).mkdir(parents=True)


def spoil_marker_later(path: Path) -> None:
    path.mkdir()
    (path / MARKER).write_text('{"kind": "pointsweep store", "format": 99}')


def spoil_dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("spoil", [value for name, value in sorted(globals().items()) if name.startswith("spoil_")])
def test_what_is_no_store_is_refused_in_one_line(tmp_path, capsys, spoil):
    path = tmp_path / "store"
    spoil(path)
    assert main([str(path), "--delete"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("store: ") and len(said.err.splitlines()) == 1


def test_a_mistyped_bucket_is_refused(capsys):
    with served():
        assert main([f"s3://{BUCKET}/no/such/prefix", "--delete"]) == 2
        assert "is no store of pointsweep" in capsys.readouterr().err


def test_links_are_neither_followed_nor_deleted(store, tmp_path):
    outside = tmp_path / "outside"
    for name in ("trials/x/.record.json.0a1b2c3d.tmp", "ray/bbbbbbbbbbbb/a", "checkpoint.safetensors"):
        path = outside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    make_old(outside, days=400)
    store.write(f"trials/{DONE}/record.json", RECORD)
    store.path(f"trials/{DONE}/checkpoint.safetensors").symlink_to(outside / "checkpoint.safetensors")
    store.path(f"trials/{DONE}/.record.json.0a1b2c3d.tmp").symlink_to(outside / "checkpoint.safetensors")
    store.path(f"trials/{OPEN}").symlink_to(outside / "trials" / "x")
    store.path("ray").mkdir()
    store.path("ray/cccccccccccc").symlink_to(outside / "ray" / "bbbbbbbbbbbb")
    store.path("launches").symlink_to(outside / "ray")
    inner = store.path("ray/dddddddddddd")
    inner.mkdir()
    (inner / "link").symlink_to(outside)
    make_old(inner, days=400)
    before = files_in(outside)
    assert main([store.url, "--delete", "--age-hours", "0"]) == 0
    assert files_in(outside) == before
    assert not inner.exists(), "the folder of a launch goes, what a link in it leads to stays"
    assert store.path(f"trials/{DONE}/checkpoint.safetensors").is_symlink()
    assert store.path(f"trials/{OPEN}").is_symlink()


def test_a_negative_age_is_refused(store, capsys):
    assert main([store.url, "--delete", "--age-hours", "-1"]) == 2
    assert main([store.url, "--delete", "--age-hours", "nan"]) == 2
    assert "--age-hours" in capsys.readouterr().err


def test_uploads_that_were_never_completed_go_once_they_are_old(tmp_path, capsys):
    with served():
        store = S3Store(f"s3://{BUCKET}/{tmp_path.name}")
        establish(store)
        store.client.create_multipart_upload(Bucket=BUCKET, Key=store.key(f"trials/{OPEN}/weights.safetensors"))
        # The server dates every upload in 2010.
        main([store.url, "--delete", "--age-hours", "1e6"])
        assert len(store.uploads()) == 1
        main([store.url, "--delete"])
        assert store.uploads() == []


def test_a_store_that_cannot_be_read_ends_with_2(capsys):
    assert main(["gs://x"]) == 2
