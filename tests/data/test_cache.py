"""The data cache: keyed by content, never believed without a look, made again when damaged, and done without when it must."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from pointsweep.cli.data import SOUND, WRONG, main
from pointsweep.utils import array_cache as cache
from pointsweep.utils.array_cache import cached_arrays, content_digest, find_entry, open_entry, signature
from tests.data.made import clouds, dataset, write_h5, write_modelnet

ARRAYS = {"train_points": clouds(40, 30), "train_labels": np.arange(40), "empty": np.zeros((0, 3), np.float32)}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache's folder, this test's own."""
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Makes ARRAYS and counts how often."""

    def __init__(self, arrays=ARRAYS):
        self.arrays, self.count = arrays, 0

    def __call__(self):
        self.count += 1
        return self.arrays


def same(found, expected=ARRAYS) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


def test_an_entry_is_made_once_and_cannot_be_written(folder):
    make = Maker()
    for _ in range(3):
        arrays, digest = cached_arrays("made", make)
        assert same(arrays)
        assert digest == content_digest(ARRAYS)
    assert make.count == 1
    assert sorted(path.name for path in folder.iterdir()) == ["locks", "made"]
    with pytest.raises(ValueError, match="read-only"):
        arrays["train_points"][0] = 0


def _replace(path: Path, make) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


DAMAGE = {
    "zeros": lambda entry: np.save(entry / "train_points.npy", np.load(entry / "train_points.npy") * 0),
    "one value": lambda entry: _set(entry / "train_points.npy", -4, b"\x7f"),
    "first byte": lambda entry: _set(entry / "train_points.npy", 0, b"\0"),
    "type in the header": lambda entry: np.save(entry / "train_labels.npy", np.arange(40).astype(np.uint64)),
    "random bytes": lambda entry: (entry / "train_points.npy").write_bytes(os.urandom((entry / "train_points.npy").stat().st_size)),
    "truncated": lambda entry: os.truncate(entry / "train_points.npy", 500),
    "empty": lambda entry: os.truncate(entry / "train_labels.npy", 0),
    "longer": lambda entry: (entry / "train_labels.npy").open("ab").write(b"\0") and None,
    "gone": lambda entry: (entry / "train_points.npy").unlink(),
    "a folder for a file": lambda entry: _replace(entry / "train_points.npy", Path.mkdir),
    "a pipe for a file": lambda entry: _replace(entry / "train_points.npy", os.mkfifo),
    "no manifest": lambda entry: (entry / "manifest.json").unlink(),
    "empty manifest": lambda entry: (entry / "manifest.json").write_text(""),
    "manifest of something else": lambda entry: (entry / "manifest.json").write_text("[1]"),
    "manifest without arrays": lambda entry: (entry / "manifest.json").write_text('{"version": 2, "digest": "x"}'),
    "another version": lambda entry: _version(entry, 99),
    "an empty folder": lambda entry: _replace(entry, Path.mkdir),
    "a file": lambda entry: _replace(entry, Path.touch),
    "a link that leads nowhere": lambda entry: _replace(entry, lambda path: path.symlink_to("nowhere")),
    "nothing": shutil.rmtree,
}


def _set(path: Path, offset: int, value: bytes) -> None:
    """Changes a byte and puts the times back, as a failing disk does."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[offset] = value[0]
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _version(entry: Path, version: int) -> None:
    manifest = json.loads((entry / "manifest.json").read_text())
    (entry / "manifest.json").write_text(json.dumps(manifest | {"version": version}))


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_made_again(folder, damage):
    make = Maker()
    cached_arrays("made", make)
    DAMAGE[damage](folder / "made")
    arrays, digest = cached_arrays("made", make)
    assert same(arrays)
    assert digest == content_digest(ARRAYS)
    assert make.count == 2
    cached_arrays("made", make)
    assert make.count == 2
    assert not list(folder.glob("*.tmp"))


def test_a_damaged_entry_is_named_with_the_file(folder, caplog):
    cached_arrays("made", Maker())
    os.truncate(folder / "made" / "train_points.npy", 500)
    with caplog.at_level(logging.WARNING):
        cached_arrays("made", Maker())
    size = 128 + ARRAYS["train_points"].nbytes
    assert f"{folder / 'made' / 'train_points.npy'}: 500 bytes, expected {size}; it is made again" in caplog.text


def test_damage_after_a_write_is_found_wherever_it_is(folder, monkeypatch):
    """A file of 2,000 blocks: a sample alone would miss one of them 249 times in 250."""
    monkeypatch.setattr(cache, "BLOCK_BYTES", 64)
    arrays = {"points": np.arange(16_000, dtype=np.float64)}
    make = Maker(arrays)
    cached_arrays("made", make)
    path = folder / "made" / "points.npy"
    for offset in (128, 70_003, -1):
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)
        assert same(cached_arrays("made", make)[0], arrays)
    assert make.count == 4


def test_damage_by_the_disk_is_found_in_full_on_request_and_removed(folder, monkeypatch, capsys):
    """The file's times are as they were, so that opening looks at a sample; --verify looks at all."""
    monkeypatch.setattr(cache, "BLOCK_BYTES", 64)
    arrays = {"points": np.arange(16_000, dtype=np.float64)}
    cached_arrays("made", Maker(arrays))
    cached_arrays("other", Maker())
    assert main(["--verify"]) == SOUND
    path = folder / "made" / "points.npy"
    data = bytearray(path.read_bytes())
    data[70_003] ^= 1
    path.write_bytes(data)
    # What the disk would have left alone: the times that the entry was last checked with.
    stamps = {"points": cache._stamp(path)}
    (folder / "made" / "stamps.json").write_text(json.dumps(stamps))
    assert main(["--verify"]) == WRONG
    out = capsys.readouterr().out
    assert f"damaged, removed: {path}: damaged from byte 69952 on" in out
    assert f"{folder}: 1 entries whole, 1 damaged" in out
    assert main(["--verify"]) == SOUND
    make = Maker(arrays)
    assert same(cached_arrays("made", make)[0], arrays)
    assert make.count == 1


def test_an_untouched_large_file_is_looked_at_in_part(folder, monkeypatch):
    monkeypatch.setattr(cache, "BLOCK_BYTES", 64)
    cached_arrays("made", Maker({"points": np.arange(16_000, dtype=np.float64)}))
    read = []
    digests = cache._block_digests
    monkeypatch.setattr(cache, "_block_digests", lambda path, numbers=None: (read.extend(numbers), digests(path, numbers))[1])
    open_entry(folder / "made")
    assert len(read) == cache.SAMPLED_BLOCKS < 2000
    assert {0, 2001} <= set(read)


def test_a_copied_entry_is_looked_at_in_full_once(folder, monkeypatch):
    """A cache that was copied to another machine."""
    monkeypatch.setattr(cache, "BLOCK_BYTES", 64)
    arrays = {"points": np.arange(16_000, dtype=np.float64)}
    cached_arrays("made", Maker(arrays))
    shutil.copytree(folder / "made", folder / "copy")
    path = folder / "copy" / "points.npy"
    data = bytearray(path.read_bytes())
    data[70_003] ^= 1
    path.write_bytes(data)
    with pytest.raises(cache.CacheError, match=r"copy/points\.npy: damaged from byte"):
        open_entry(folder / "copy")


def test_an_older_programs_entry_is_replaced(folder):
    (folder / "made").mkdir(parents=True)
    np.save(folder / "made" / "train_points.npy", ARRAYS["train_points"] * 0)
    (folder / "made" / "digest.txt").write_text("0" * 64)
    assert same(cached_arrays("made", Maker())[0])


def test_remains_of_a_process_that_died_are_cleared(folder):
    (folder / "made.0123abcd.tmp").mkdir(parents=True)
    (folder / "made.0123abcd.tmp" / "train_points.npy").write_bytes(b"half")
    cached_arrays("made", Maker())
    assert not list(folder.glob("*.tmp"))


def test_a_cache_that_is_a_file_is_done_without(folder, caplog):
    folder.write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        arrays, digest = cached_arrays("made", Maker())
    assert same(arrays)
    assert digest == content_digest(ARRAYS)
    assert f"the data cache {folder} cannot be used" in caplog.text
    with pytest.raises(ValueError, match="read-only"):
        arrays["train_points"][0] = 0


def test_a_full_disk_is_done_without(folder, caplog):
    """The size limit of this process's files stands for a disk that is full after 2,000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with caplog.at_level(logging.WARNING):
            arrays, _ = cached_arrays("made", Maker())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(arrays)
    assert "cannot be used" in caplog.text
    assert [path.name for path in folder.iterdir()] == ["locks"]


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="needs a user who is not root")
def test_a_cache_that_cannot_be_written_is_read_and_else_done_without(folder, tmp_path):
    cached_arrays("made", Maker())
    entry = folder / "made"
    code = (
        "import numpy as np; from pointsweep.utils.array_cache import cached_arrays\n"
        "def fail(): raise AssertionError('made again')\n"
        "print(len(cached_arrays('made', fail)[0]), len(cached_arrays('new', lambda: {'a': np.arange(3)})[0]))"
    )
    command = [sys.executable, "-c", code]
    if os.geteuid() == 0:
        without_rights = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
        if subprocess.run([*without_rights, "true"], capture_output=True).returncode != 0:
            pytest.skip("root cannot lay down its rights here")
        command = [*without_rights, *command]
    for path in (*tmp_path.rglob("*"), tmp_path):
        path.chmod(0o555 if path.is_dir() else 0o444)
    found = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={"POINTSWEEP_CACHE": str(folder), "PATH": os.environ["PATH"]}
    )
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755)
    assert found.stdout == "3 1\n", found.stderr
    assert f"the data cache {folder} cannot be used" in found.stderr
    assert entry.is_dir()


def test_many_builders_make_one_entry(folder):
    """Threads, whose locks on files count as those of processes do."""
    make, results = Maker(), []
    threads = [threading.Thread(target=lambda: results.append(cached_arrays("made", make)[1])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [content_digest(ARRAYS)] * 8
    assert make.count == 1


def test_what_making_raises_is_raised_and_nothing_stays(folder):
    def fail():
        raise ValueError("FILE: cloud 5")

    with pytest.raises(ValueError, match="FILE: cloud 5"):
        cached_arrays("made", fail)
    assert not (folder / "made").exists()
    assert same(cached_arrays("made", Maker())[0])


def test_files_follow_the_umask(folder):
    before = os.umask(0o002)
    try:
        cached_arrays("made", Maker())
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (folder / "made").iterdir()}
    assert (modes, (folder / "made").stat().st_mode & 0o777) == ({0o664}, 0o775)


def test_the_key_is_the_content_in_its_order_and_not_the_place(folder, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("first")
        (tmp_path / name / "b.txt").write_text("second")
    one, two = ([tmp_path / name / file for file in ("a.txt", "b.txt")] for name in ("one", "two"))
    assert signature(one) == signature(two)
    assert signature(one) != signature(one[::-1])
    assert signature(one, "more") != signature(one)
    stat = two[1].stat()
    two[1].write_text("secone")
    os.utime(two[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert signature(one) != signature(two)


def test_a_source_that_is_changed_and_dated_back_is_read_again(folder, tmp_path, monkeypatch):
    """Size, time and inode are as they were; only the inode's own time tells."""
    path = tmp_path / "a.txt"
    path.write_text("first")
    monkeypatch.setattr(cache, "SETTLED_NS", 0)
    before = signature([path])
    assert list((folder / "sources").iterdir())
    stat = path.stat()
    while path.stat().st_ctime_ns == stat.st_ctime_ns:
        path.write_text("other")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert signature([path]) != before
    path.write_text("first")
    assert signature([path]) == before


def test_a_settled_source_is_not_read_again(folder, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("first")
    monkeypatch.setattr(cache, "SETTLED_NS", 0)
    before = signature([path])
    monkeypatch.setattr(cache.hashlib, "file_digest", None)
    assert signature([path]) == before


def test_a_fresh_source_is_always_read_again(folder, tmp_path):
    """Two writes within a tick of the clock leave one time."""
    path = tmp_path / "a.txt"
    for number in range(20):
        path.write_text(f"{number:02d}")
        assert signature([path]) != signature([tmp_path / "a.txt"], "more")
        digests = cache.file_digests([path])
        path.write_text(f"{number + 50:02d}")
        assert cache.file_digests([path]) != digests


def test_two_roots_share_an_entry_only_for_the_same_content(folder, tmp_path, monkeypatch):
    for name in ("one", "two"):
        write_modelnet(tmp_path / name / "modelnet40_ply_hdf5_2048", 1, 1, 12)
    found = []
    for name in ("one", "two"):
        monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path / name))
        found.append(dataset("modelnet40").digest)
    assert found[0] == found[1]
    assert len(list(folder.glob("modelnet40-*"))) == 1
    write_h5(tmp_path / "two" / "modelnet40_ply_hdf5_2048" / "ply_data_test0.h5", clouds(40, 12, 9), np.arange(40))
    assert dataset("modelnet40").digest != found[0]
    assert len(list(folder.glob("modelnet40-*"))) == 2


def test_the_order_of_the_listed_files_counts(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    made = write_modelnet(tmp_path / "modelnet40_ply_hdf5_2048", 1, 1, 12)
    write_h5(made / "ply_data_train1.h5", clouds(40, 12, 9), np.arange(40))
    digests = set()
    for names in ("ply_data_train0.h5\nply_data_train1.h5", "ply_data_train1.h5\nply_data_train0.h5", "ply_data_train1.h5"):
        (made / "train_files.txt").write_text(names)
        digests.add(dataset("modelnet40").digest)
    assert len(digests) == 3


def test_an_edited_cloud_of_the_text_layout_is_read_again(folder, tmp_path, monkeypatch):
    from tests.data.test_text import write_text_layout

    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    write_text_layout(tmp_path / "text")
    before = dataset("modelnet40", folder="text").digest
    path = tmp_path / "text" / "chair" / "chair_0001.txt"
    text = path.read_text()
    path.write_text(text.replace("1", "2"))
    assert dataset("modelnet40", folder="text").digest != before


def test_damaged_samples_of_evaluation_are_made_again(folder):
    fields = {"num_points": 32, "presample": 64, "source_points": 64, "train_per_class": 2, "test_per_class": 2}
    rows = np.arange(4)
    data = dataset("synthetic", **fields)
    expected = data.eval_batch(data.test, rows)[0]
    (path,) = folder.glob("samples-*/points.npy")
    np.save(path, np.load(path) * 0)
    again = dataset("synthetic", **fields)
    assert np.array_equal(again.eval_batch(again.test, rows)[0], expected)


def test_an_entry_is_found_by_its_digest_unless_it_is_damaged(folder):
    digest = cached_arrays("made", Maker())[1]
    cached_arrays("other", Maker({"a": np.arange(3)}))
    assert same(find_entry(digest))
    assert find_entry("0" * 64) is None
    os.truncate(folder / "made" / "train_points.npy", 500)
    assert find_entry(digest) is None
