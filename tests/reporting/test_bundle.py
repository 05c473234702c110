"""The file itself: the same bytes again, every flipped byte noticed, and clear words for what somebody else made."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import stat
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pointsweep.cli.tables import main
from pointsweep.cli.verify import main as verify
from pointsweep.reporting import bundle as made
from pointsweep.reporting.bundle import BundleError, arrays_of, pack, sealed, unpack
from pointsweep.results.agreement import ARRAY_BYTES
from tests.support.resealed import forget_files

FLIPS = 1000
MEMBERS = {"a.txt": b"hello\n", "trials/k/record.json": b"{}", "trials/k/predictions.npz": bytes(range(256)) * 8, "empty": b""}


@pytest.fixture(scope="module")
def file(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the trained sweep, by the command."""
    path = tmp_path_factory.mktemp("bundle") / "tiny.zip"
    assert main(["tiny", "--store", str(trained), "--bundle", str(path)]) == 0
    return path


def test_the_members_come_back():
    assert unpack(sealed(MEMBERS)) == MEMBERS | {"SHA256SUMS": made.sums(MEMBERS)}


def test_every_one_of_a_thousand_flipped_bytes_is_noticed(file: Path):
    data, generator = file.read_bytes(), random.Random(0)
    unpack(data)
    for _ in range(FLIPS):
        place, change = generator.randrange(len(data)), generator.randrange(1, 256)
        with pytest.raises(BundleError):
            unpack(data[:place] + bytes([data[place] ^ change]) + data[place + 1 :])


def test_every_byte_of_a_small_one_is_covered_and_every_bit():
    """Headers, times, attributes and the directory too, which no checksum of a zip covers."""
    data = sealed({"a": b"x", "b/c": b"yz"})
    for place in range(len(data)):
        for bit in range(8):
            with pytest.raises(BundleError):
                unpack(data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :])


def test_what_is_cut_off_inserted_or_appended_is_noticed():
    data, generator = sealed(MEMBERS), random.Random(1)
    for cut in (*range(0, len(data), 97), len(data) - 1):
        with pytest.raises(BundleError):
            unpack(data[:cut])
    for _ in range(200):
        place, noise = generator.randrange(len(data) + 1), generator.randbytes(generator.randrange(1, 40))
        with pytest.raises(BundleError):
            unpack(data[:place] + noise + data[place:])


def zipped(*members: tuple[zipfile.ZipInfo | str, bytes], form: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", form) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name twice
        for name, data in members:
            opened.writestr(name, data)
        opened.comment = comment
    return buffer.getvalue()


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("a", made.DATE)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a sound zip"),
        (b"PK\x03\x04" + b"\0" * 100, "not a sound zip"),
        (zipped(("../../evil", b"x")), "bad name '../../evil'"),
        (zipped(("/etc/passwd", b"x")), "bad name '/etc/passwd'"),
        (zipped(("a\\b", b"x")), "bad name"),
        (zipped(("trials/../x", b"x")), "bad name"),
        (zipped(("a", b"x"), ("a", b"y")), "not the bytes that its members"),
        (zipped((link(), b"/etc")), "not the bytes that its members"),
        (zipped(("a", b"x"), comment=b"by the way"), "not the bytes that its members"),
        (zipped(("a", bytes(10**6)), form=zipfile.ZIP_DEFLATED), "its members are not stored"),
        (pack({"a": b"x"}), "SHA256SUMS: does not match a"),
        (pack({"a": b"x", "SHA256SUMS": made.sums({"a": b"y"})}), "SHA256SUMS: does not match a"),
        (pack({"a": b"x", "SHA256SUMS": made.sums({"a": b"x", "b": b""})}), "SHA256SUMS: does not match"),
    ],
)
def test_what_somebody_else_made_is_refused_in_words(data, message):
    with pytest.raises(BundleError, match=message):
        unpack(data)


def test_arrays_hold_no_pickle_and_no_bomb():
    buffer = io.BytesIO()
    np.savez(buffer, last=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BundleError, match="no arrays: ValueError"):
        arrays_of(buffer.getvalue())
    bomb = zipped(("last.npy", bytes(ARRAY_BYTES + 1)), form=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    with pytest.raises(BundleError, match="larger than"):
        arrays_of(bomb)
    # A header that promises 8 exabytes.
    head = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    head += b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000000,), }".ljust(117) + b"\n"
    for data in (zipped(("last.npy", head)), b"", b"PK"):
        with pytest.raises(BundleError, match="no arrays"):
            arrays_of(data)


def test_the_same_store_gives_the_same_bytes_whenever_and_wherever(trained: Path, file: Path, tmp_path: Path, monkeypatch):
    other = tmp_path / "again.zip"
    environment = {"PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    command = [sys.executable, "-m", "pointsweep.tables", "tiny", "--store", str(trained), "--bundle", str(other)]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert other.read_bytes() == file.read_bytes()


def test_it_tells_nothing_of_the_machine_and_anybody_can_check_the_sums(file: Path, trained: Path):
    members = unpack(file.read_bytes())
    text = b"".join(members.values())
    assert str(trained).encode() not in text
    kept = [json.loads(data)["origin"] for name, data in members.items() if name.endswith("record.json")]
    assert len(kept) == 4
    assert all("tree" in origin and "host" not in origin for origin in kept)
    assert {f"table.{ending}" for ending in ("txt", "md", "tex", "html", "csv", "json")} <= members.keys()
    assert members["sweep.yaml"] == (trained / "sweeps/tiny/sweep.yaml").read_bytes()
    for line in members["SHA256SUMS"].decode().splitlines():  # as sha256sum reads it
        digest, name = line.split("  ")
        assert hashlib.sha256(members.pop(name)).hexdigest() == digest
    assert list(members) == ["SHA256SUMS"]


def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "store"))


def test_a_password_in_what_goes_in_is_refused(trained: Path, tmp_path: Path, capsys):
    store = copied(trained, tmp_path)
    with (store / "sweeps/tiny/sweep.yaml").open("a") as opened:
        opened.write("# mirrored to https://me:hunter2@mlflow.example\n")
    assert main(["tiny", "--store", str(store), "--bundle", str(tmp_path / "b.zip")]) == 2
    said = capsys.readouterr().err
    assert "sweep.yaml: holds an address with a password" in said
    assert "hunter2" not in said
    assert not (tmp_path / "b.zip").exists()


def without_labels(path: Path) -> None:
    with np.load(path) as arrays:
        np.savez(path, last=arrays["last"], best_test=arrays["best_test"])


def test_a_trial_of_older_code_gets_the_true_classes_of_the_others(trained: Path, tmp_path: Path, capsys):
    store = copied(trained, tmp_path)
    older = sorted((store / "trials").iterdir())[0]
    without_labels(older / "predictions.npz")
    forget_files(older / "record.json")
    assert main(["tiny", "--store", str(store), "--bundle", str(tmp_path / "b.zip")]) == 0
    assert verify([str(tmp_path / "b.zip")]) == 0


def test_trials_that_could_not_be_verified_are_named(trained: Path, tmp_path: Path, capsys):
    store = copied(trained, tmp_path)
    first, second, third, fourth = sorted((store / "trials").iterdir())
    for folder in (second, third, fourth):
        forget_files(folder / "record.json")
    (first / "predictions.npz").unlink()
    for folder in (second, fourth):
        without_labels(folder / "predictions.npz")
    damaged = (third / "predictions.npz").read_bytes()
    (third / "predictions.npz").write_bytes(damaged[:50])
    assert main(["tiny", "--store", str(store), "--bundle", str(tmp_path / "b.zip")]) == 2
    said = capsys.readouterr().err
    assert f"trial {first.name}: damaged record: {store}, trials/{first.name}/record.json: predictions.npz is missing" in said
    assert f"trial {second.name}: no true classes beside its predictions" in said
    assert f"trial {third.name}: no arrays: BadZipFile" in said
    assert main(["tiny", "--store", str(trained), "--bundle", str(tmp_path / "no" / "b.zip")]) == 0, "folders are made"
