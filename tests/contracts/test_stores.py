"""What every store must hold. A new one is added to STORES."""

from __future__ import annotations

import pickle
import threading

import pytest

from pointsweep.storage.base import FileStore, open_store
from pointsweep.storage.s3 import S3Store
from tests.support.s3 import served

STORES = {"folder": lambda tmp_path: FileStore(tmp_path / "store"), "s3": lambda tmp_path: S3Store(f"s3://bucket/{tmp_path.name}")}


@pytest.fixture(scope="module")
def server():
    with served() as faults:
        yield faults


@pytest.fixture(params=sorted(STORES))
def made(request, tmp_path):
    if request.param == "s3":
        request.getfixturevalue("server")
    return STORES[request.param](tmp_path)


def test_what_was_written_is_read(made):
    made.write("trials/k1/record.json", b"one")
    made.write("trials/k1/record.json", b"two")
    assert made.read("trials/k1/record.json") == b"two"
    assert made.exists("trials/k1/record.json")
    assert not made.exists("trials/k1")


def test_what_is_not_there_is_said_to_be_missing(made):
    assert not made.exists("a/b")
    assert made.list("a") == []
    with pytest.raises(FileNotFoundError):
        made.read("a/b")
    made.delete("a/b")


def test_names_are_listed_in_order_with_folders_marked(made):
    for name in ("t/b/x", "t/a/x", "t/c"):
        made.write(name, b"")
    assert made.list("t") == ["a/", "b/", "c"]
    made.delete("t/c")
    assert made.list("t") == ["a/", "b/"]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a//b", "a/../b", ".", "a\\b", "a/\0"])
def test_no_name_leads_out_of_the_store(made, name):
    with pytest.raises(ValueError, match="bad name"):
        made.write(name, b"")


def test_a_reader_never_sees_half_of_what_is_written(made):
    """Two writers replace a megabyte again and again; every read is one of the two, whole."""
    made.write("x", b"a" * 1_000_000)
    stop = threading.Event()

    def write(letter: bytes):
        while not stop.is_set():
            made.write("x", letter * 1_000_000)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    seen = {made.read("x") for _ in range(60)}
    stop.set()
    for writer in writers:
        writer.join()
    assert seen <= {b"a" * 1_000_000, b"b" * 1_000_000}
    assert made.list("") == ["x"]


def test_a_store_is_opened_again_by_its_url(made):
    made.write("x", b"1")
    assert open_store(made.url).read("x") == b"1"
    assert pickle.loads(pickle.dumps(made)).read("x") == b"1"


def test_the_default_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("POINTSWEEP_STORE", str(tmp_path / "here"))
    assert open_store().url == str(tmp_path / "here")
    with pytest.raises(ValueError, match="gs:// is not a store this version knows; allowed: a folder's path, or s3://bucket/prefix"):
        open_store("gs://bucket/x")
