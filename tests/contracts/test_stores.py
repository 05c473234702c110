"""What every store must hold: a folder, every scheme that is registered, and a store that only the tests know."""

from __future__ import annotations

import pickle
import threading

import pytest

from pointsweep.cli.gc import waste
from pointsweep.cli.run import main
from pointsweep.cli.verify import check_store
from pointsweep.errors import StoreError
from pointsweep.storage import remote_lease, staging, stores
from pointsweep.storage.base import FileStore, walk
from pointsweep.storage.lease import LeaseHeldError
from pointsweep.storage.remote_lease import remote_leased
from pointsweep.storage.stores import is_address, open_store, remote_of
from tests.end_to_end.test_command import SWEEP, table
from tests.support.s3 import served

PLACES = {"folder": "{}/store", "s3": "s3://bucket/{}", "shelf": "shelf://{}/shelf.sqlite"}


@pytest.fixture(scope="module")
def server():
    with served() as faults:
        yield faults


@pytest.fixture(params=sorted(PLACES))
def made(request, tmp_path, monkeypatch):
    monkeypatch.setitem(stores.SCHEMES, "shelf", "tests.support.shelf_store:ShelfStore")
    if request.param == "s3":
        request.getfixturevalue("server")
    return open_store(PLACES[request.param].format(tmp_path.name if request.param == "s3" else tmp_path))


@pytest.fixture
def remote(made):
    """The stores that lie on a server."""
    if isinstance(made, FileStore):
        pytest.skip("a folder has no versions")
    return remote_of(made)


def test_every_scheme_is_in_these_tests():
    assert set(stores.SCHEMES) < set(PLACES)


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


def test_sizes_are_those_of_the_files_directly_below_a_folder(made):
    for name, size in (("t/a", 3), ("t/b", 0), ("t/c/d", 7)):
        made.write(name, b"x" * size)
    assert made.sizes("t") == {"a": 3, "b": 0}
    assert made.sizes("nothing") == {}
    assert sorted(walk(made, "")) == ["t/a", "t/b", "t/c/d"]


def test_of_several_conditional_writes_one_succeeds(remote):
    first = remote.write_if("x", b"one", None)
    assert first
    assert remote.write_if("x", b"two", None) is None
    second = remote.write_if("x", b"three", first)
    assert second
    assert remote.write_if("x", b"four", first) is None
    assert remote.read_version("x") == (b"three", second)


def test_ranges_are_those_of_one_version(remote):
    remote.write("x", bytes(range(200)))
    size, version, _ = remote.stat("x")
    assert size == 200
    assert remote.read_range("x", 50, 60, version) == bytes(range(50, 60))
    remote.write("x", b"other")
    with pytest.raises(StoreError):
        remote.read_range("x", 0, 1, version)
    with pytest.raises(FileNotFoundError):
        remote.stat("y")


def test_a_trial_is_held_by_one_process_over_all_nodes(remote, monkeypatch):
    monkeypatch.setattr(remote_lease, "POLL_S", 0.02)
    assert remote_lease.conditional(remote.url)
    with (
        remote_leased(remote, "trials/k/lease.json", 1.0),
        pytest.raises(LeaseHeldError),
        remote_leased(remote, "trials/k/lease.json", 0.1),
    ):
        pass
    with remote_leased(remote, "trials/k/lease.json", 0.0) as again:
        assert not again.lost


def test_data_on_a_server_are_staged_whole(remote, monkeypatch, tmp_path):
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(staging, "RANGE_BYTES", 1000)
    remote.write("data/a/x.bin", bytes(range(256)) * 20)
    assert is_address(remote.location("data"))
    assert (staging.staged(remote.url, "data") / "data/a/x.bin").read_bytes() == bytes(range(256)) * 20


def test_gc_finds_the_checkpoint_of_a_finished_trial_and_nothing_else(trained_in):
    store, _ = trained_in
    assert list(waste(store, 0.0)) == []
    key = store.list("trials")[0].rstrip("/")
    store.write(f"trials/{key}/checkpoint.safetensors", b"of an earlier version")
    [found] = waste(store, 0.0)
    assert found.name == f"trials/{key}/checkpoint.safetensors"
    assert found.remove() == ""
    assert list(waste(store, 0.0)) == []


@pytest.fixture
def trained_in(made, tmp_path, monkeypatch):
    """A store with the trials of a sweep, and the folder of the same sweep on a disk."""
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "cache"))
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP.replace("seeds: 2", "seeds: 1"))
    for place in (made.url, str(tmp_path / "plain")):
        assert main([str(sweep), "--inline", "--tracking-uri", "none", "--store", place]) == 0
    return made, tmp_path / "plain"


def test_a_sweep_trains_to_the_same_table_and_the_store_is_found_whole(trained_in, capsys):
    store, plain = trained_in
    expected = table(plain)
    assert {name: store.read(f"sweeps/tiny/{name}") for name in expected} == expected
    assert check_store(store.url) == 0, capsys.readouterr().out


def test_the_default_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("POINTSWEEP_STORE", str(tmp_path / "here"))
    assert open_store().url == str(tmp_path / "here")
    with pytest.raises(ValueError, match="gs:// is not a store this version knows; allowed: a folder's path, or s3://bucket/prefix"):
        open_store("gs://bucket/x")
