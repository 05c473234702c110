"""The index of a large sweep: as the folders are now, always; and worth nothing when it is damaged, old or young."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsweep.errors import StoreError
from pointsweep.results import record_index as index
from pointsweep.results.agreement import packed
from pointsweep.results.record_index import read_records, sound_records
from pointsweep.results.records import Record, from_json, sealed
from pointsweep.storage.base import FileStore
from tests.reporting.test_tables import record

COUNT = 40
KEYS = [f"{i:016x}" for i in range(COUNT)]


def made(i: int, **changes: object) -> Record:
    config = {"seed": i % 3, "dataset": {"name": "synthetic", "fold": i % 2}, "method": {"name": "lora", "rank": i}}
    right = i % 30
    correct = {"last": packed(np.arange(30) < right)}
    return record(KEYS[i], right / 30, config=config, correct=correct, seconds={"total": 0.1 * i}, **changes)


def path(store: FileStore, key: str) -> Path:
    return store.path(f"trials/{key}/record.json")


@pytest.fixture
def store(tmp_path: Path, monkeypatch) -> FileStore:
    monkeypatch.setattr(index, "FEW", 10)
    monkeypatch.setattr(index, "MIN_AGE_NS", -(10**12))  # nothing is too young
    found = FileStore(tmp_path)
    found.write("sweeps/t/plan.json", b"{}")
    for i, key in enumerate(KEYS):
        found.write(f"trials/{key}/record.json", made(i).to_json().encode())
    return found


def truth(store: FileStore) -> dict[str, Record]:
    return {key: from_json(path(store, key).read_text()) for key in KEYS if path(store, key).is_file()}


def opened(store: FileStore, monkeypatch) -> list[str]:
    """The keys whose files a reading opens."""
    seen: list[str] = []
    real = index._bytes
    monkeypatch.setattr(index, "_bytes", lambda path: seen.append(Path(path).parent.name) or real(path))
    assert read_records(store, "t", KEYS) == truth(store)
    monkeypatch.setattr(index, "_bytes", real)
    return seen


def test_the_second_reading_opens_no_record(store: FileStore, monkeypatch):
    assert opened(store, monkeypatch) == KEYS
    assert opened(store, monkeypatch) == []
    assert list(read_records(store, "t", KEYS[::-1])) == KEYS[::-1], "in the order asked for"


def test_many_are_read_by_several_threads_and_one_that_goes_meanwhile_is_left_out(store: FileStore, monkeypatch):
    monkeypatch.setattr(index, "MANY", 16)
    expected = truth(store)
    gone, real = KEYS[7], index._bytes
    monkeypatch.setattr(index, "_bytes", lambda path: None if gone in path else real(path))
    found = read_records(store, "t", KEYS)
    assert found == {key: value for key, value in expected.items() if key != gone}
    assert list(found) == [key for key in KEYS if key != gone]
    monkeypatch.setattr(index, "_bytes", real)
    path(store, KEYS[3]).write_text("{")
    with pytest.raises(StoreError, match=f"trials/{KEYS[3]}/record.json"):
        read_records(store, "t", KEYS)


def test_values_that_python_takes_for_equal_stay_apart(store: FileStore):
    odd = (1, 1.0, True, 0, -0.0, False, None, 2**53 + 1, -(2**53), 5e-324, 0.1 + 0.2, [1, {"a": 2.0}], "1")
    for key, value in zip(KEYS, odd, strict=False):
        config = {"seed": 3, "x": value, "dataset": {"a": value}}
        number = value if type(value) in (int, float) else 0.25  # elsewhere a record holds numbers alone
        metrics = {"last": {"x": number, "y": 0.1}, "none": {}}
        changed = replace(made(0), key=key, config=config, metrics=metrics, clouds_per_s=number)
        store.write(f"trials/{key}/record.json", changed.to_json().encode())
    read_records(store, "t", KEYS)
    found = read_records(store, "t", KEYS)
    for key, value in zip(KEYS, odd, strict=False):
        one = found[key]
        number = value if type(value) in (int, float) else 0.25
        assert repr([one.config["x"], one.config["dataset"]["a"]]) == repr([value] * 2)
        assert repr([one.metrics["last"]["x"], one.clouds_per_s]) == repr([number] * 2)
        assert list(one.metrics) == ["last", "none"]


def test_every_field_comes_back_as_it_was(store: FileStore):
    odd = replace(made(0), marks=("a", "b"), config={"seed": 5, "x": [1, {"y": 0.1 + 0.2}]}, attempts=3, metrics={})
    bare = {"key": KEYS[1], "schema": 2, "config": {}, "metrics": {}, "parameters": {}, "dataset": {}, "weights_origin": ""}
    store.write(f"trials/{KEYS[0]}/record.json", odd.to_json().encode())
    store.write(f"trials/{KEYS[1]}/record.json", json.dumps(sealed(bare)).encode())
    read_records(store, "t", KEYS)
    assert store.exists("sweeps/t/records.index")
    assert read_records(store, "t", KEYS) == truth(store)
    assert read_records(store, "t", KEYS)[KEYS[0]] == odd


def in_place(store: FileStore, key: str, text: str) -> None:
    file = path(store, key)
    before = file.stat().st_ctime_ns
    while file.stat().st_ctime_ns == before:  # a file system's clock ticks every few milliseconds
        file.write_text(text)


def anew(store: FileStore, key: str, text: str) -> None:
    store.write(f"trials/{key}/record.json", text.encode())


def with_its_old_times(store: FileStore, key: str, text: str) -> None:
    before = path(store, key).stat()
    anew(store, key, text)
    os.utime(path(store, key), ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [in_place, anew, with_its_old_times])
def test_the_index_hides_no_edit(store: FileStore, change):
    read_records(store, "t", KEYS)
    text = path(store, KEYS[7]).read_text()
    change(store, KEYS[7], text.replace("0.233", "0.933"))
    for _ in range(2):
        records, damaged = sound_records(store, "t", KEYS)
        assert list(damaged) == [KEYS[7]] and "its checksum does not match" in damaged[KEYS[7]]
        assert list(records) == [key for key in KEYS if key != KEYS[7]]


@pytest.mark.parametrize("change", [in_place, anew, with_its_old_times])
def test_a_changed_record_is_seen_at_once_even_of_the_same_size(store: FileStore, monkeypatch, change):
    read_records(store, "t", KEYS)
    text = path(store, KEYS[7]).read_text()
    before = from_json(text)
    metrics = {**before.metrics, "last": {**before.metrics["last"], "test/accuracy": 8 / 30}}
    other = replace(before, metrics=metrics, correct={"last": packed(np.arange(30) < 8)}).to_json()
    assert len(other) == len(text) and other != text
    change(store, KEYS[7], other)
    assert opened(store, monkeypatch) == [KEYS[7]]
    assert read_records(store, "t", KEYS)[KEYS[7]].metrics["last"]["test/accuracy"] == 8 / 30


def test_deleted_and_new_records_are_seen_at_once(store: FileStore):
    later = path(store, KEYS[3]).read_bytes()
    path(store, KEYS[3]).unlink()
    read_records(store, "t", KEYS)
    store.write(f"trials/{KEYS[3]}/record.json", later)
    shutil.rmtree(path(store, KEYS[5]).parent)
    found = read_records(store, "t", KEYS)
    assert found == truth(store)
    assert KEYS[3] in found and KEYS[5] not in found


def test_what_is_young_is_not_entered(store: FileStore, monkeypatch):
    """Within one tick of the file system's clock a second write could leave the same stamp."""
    monkeypatch.setattr(index, "MIN_AGE_NS", 3600 * 10**9)
    assert opened(store, monkeypatch) == KEYS
    assert opened(store, monkeypatch) == KEYS


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 4))
def test_a_damaged_index_is_as_good_as_none(tmp_path_factory, share, kind):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "FEW", 1)
        patch.setattr(index, "MIN_AGE_NS", -(10**12))
        store = FileStore(tmp_path_factory.mktemp("damaged"))
        store.write("sweeps/t/plan.json", b"{}")
        for i in range(4):
            store.write(f"trials/{KEYS[i]}/record.json", made(i).to_json().encode())
        read_records(store, "t", KEYS[:4])
        whole = store.read("sweeps/t/records.index")
        place = int(share * len(whole))
        broken = [whole[:place], whole[:place] + b"7" + whole[place + 1 :], whole[place:], b"", b"[]\n[]"]
        store.write("sweeps/t/records.index", broken[kind])
        assert read_records(store, "t", KEYS[:4]) == {KEYS[i]: made(i) for i in range(4)}


def test_an_index_of_other_fields_is_not_believed(store: FileStore, monkeypatch):
    read_records(store, "t", KEYS)
    monkeypatch.setattr(index, "FIELDS", index.FIELDS[:-1])
    assert opened(store, monkeypatch) == KEYS


def test_a_few_new_records_do_not_write_it_anew(store: FileStore, monkeypatch):
    monkeypatch.setattr(index, "REWRITE_SHARE", 0.5)
    read_records(store, "t", KEYS)
    before = store.read("sweeps/t/records.index")
    for i in range(5):
        store.write(f"trials/{KEYS[i]}/record.json", made(i, attempts=9).to_json().encode())
    assert opened(store, monkeypatch) == KEYS[:5]
    assert store.read("sweeps/t/records.index") == before


def test_a_small_sweep_and_a_store_that_cannot_be_written_have_none(store: FileStore, monkeypatch):
    assert read_records(store, "t", KEYS[:10]) == {key: made(i) for i, key in enumerate(KEYS[:10])}
    assert store.list("sweeps/t") == ["plan.json"]
    assert read_records(store, "nowhere", KEYS) == truth(store), "a folder that is not there, as one that is not ours, takes no index"
    assert store.list("sweeps") == ["t/"]


def test_a_record_that_is_none_is_named(store: FileStore):
    read_records(store, "t", KEYS)
    store.write(f"trials/{KEYS[2]}/record.json", b"{}")
    with pytest.raises(StoreError, match=f"trials/{KEYS[2]}/record.json: not a record: no schema number"):
        read_records(store, "t", KEYS)


def test_a_key_that_leads_out_of_the_store_is_refused(store: FileStore):
    with pytest.raises(ValueError, match="bad name"):
        read_records(store, "t", [*KEYS, "../../x"])
