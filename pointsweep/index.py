"""The records of a sweep, read fast: sweeps/<name>/records.index holds those of a large sweep in one file of columns.

The index is only a copy; the trials' folders are the truth. Of each record it keeps the stamp of the file that it was read from
(inode, size, times), every file is looked at again, and what differs is read from its folder. So a table never shows what a folder no
longer holds. As in git's index, a file so young that a later write could leave its stamp the same is not entered. An index that is
missing, damaged, of other fields, or cannot be written costs time, nothing else.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from pointsweep.errors import BadStore
from pointsweep.records import FIELDS, Record, from_json
from pointsweep.store import FileStore, Store

FEW = 500  # records: up to as many are as fast read one by one
MANY = 200  # files: more are read by several threads, for a disk has its answers ready side by side
THREADS = 16
STALE = 0.02  # share of the records that are not in the index, from which on it is written anew
YOUNG_NS = 2 * 10**9  # the coarsest clock of a file system ticks every two seconds
FORMAT = 2
SHARED = ("parameters", "dataset", "weights_origin", "marks", "origin")  # the same for many: each value is kept once

Stamp = tuple[int, int, int, int]  # inode, size, modified, changed (ns)
Entries = dict[str, tuple[Stamp, Record]]


def read_record(store: Store, key: str) -> Record:
    """The record of a finished trial. Raises BadStore naming the file, FileNotFoundError."""
    return _record(store, key, store.read(f"trials/{key}/record.json"))


def _record(store: Store, key: str, data: bytes) -> Record:
    try:
        return from_json(data)
    except (BadStore, UnicodeDecodeError) as error:
        raise BadStore(f"{store.url}, trials/{key}/record.json: {error}") from error


def read_records(store: Store, sweep: str, keys: Sequence[str]) -> dict[str, Record]:
    """The records of those trials that have one, as their folders hold them now. Raises BadStore naming a file that is none."""
    if not isinstance(store, FileStore) or len(keys) <= FEW:
        return {key: read_record(store, key) for key in keys if store.exists(f"trials/{key}/record.json")}
    stamps, known = _stamps(store, keys), _load(store, sweep)
    stale = [key for key, stamp in stamps.items() if key not in known or known[key][0] != stamp]
    sound = stamps.keys() - set(stale)
    # Before the files are looked at once more: what is written from here on is younger.
    now = _clock(store, sweep) if len(stale) > STALE * len(stamps) else None
    if now is not None:
        stamps = {key: stamp for key, stamp in stamps.items() if key in sound} | _stamps(store, stale)
    found = {key: known[key][1] for key in sound}
    with uncollected():
        found |= _read_all(store, stale)
    if now is not None:
        settled = {key: (stamps[key], found[key]) for key in found if key in stamps and stamps[key][3] < now - YOUNG_NS}
        with suppress(OSError):
            store.write(_name(sweep), _dump(settled))
    return {key: found[key] for key in keys if key in found}


def _read_all(store: FileStore, keys: Sequence[str]) -> dict[str, Record]:
    """The records that are there: one may have been deleted just now."""

    def read(part: Sequence[str]) -> list[bytes | None]:
        return [_bytes(_path(store, key)) for key in part]

    if len(keys) <= MANY:
        data = read(keys)
    else:
        parts = [keys[at : at + MANY // 8] for at in range(0, len(keys), MANY // 8)]
        with ThreadPoolExecutor(THREADS) as pool:
            data = [each for part in pool.map(read, parts) for each in part]
    return {key: _record(store, key, each) for key, each in zip(keys, data, strict=True) if each is not None}


def _path(store: FileStore, key: str) -> str:
    """Of ten thousand names each is put together by hand; one that could lead out of the store is for `path` to refuse."""
    return f"{store.root}/trials/{key}/record.json" if key.isalnum() else str(store.path(f"trials/{key}/record.json"))


def _bytes(path: str) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - half the time of pathlib's
            return file.read()
    except FileNotFoundError:
        return None


def _name(sweep: str) -> str:
    return f"sweeps/{sweep}/records.index"


def _stamps(store: FileStore, keys: Iterable[str]) -> dict[str, Stamp]:
    """Of every record that there is."""
    found = {}
    for key in keys:
        try:
            seen = os.stat(_path(store, key))  # noqa: PTH116 - half the time of pathlib's
        except FileNotFoundError:
            continue
        found[key] = (seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
    return found


def _clock(store: FileStore, sweep: str) -> int | None:
    """The time (ns) by the clock that stamps the files: a file server's may be another than ours. None if nothing can be written."""
    with suppress(OSError), tempfile.TemporaryFile(dir=store.path(f"sweeps/{sweep}")) as file:
        return os.fstat(file.fileno()).st_ctime_ns
    return None


# The file: a line with a checksum, then one line of columns


def _dump(entries: Mapping[str, tuple[Stamp, Record]]) -> bytes:
    columns: dict[str, Any] = {"key": list(entries), "stamp": [stamp for stamp, _ in entries.values()]}
    records = [record for _, record in entries.values()]
    for name in FIELDS:
        values = [getattr(record, name) for record in records]
        columns[f"field.{name}"] = _shared(values) if name in SHARED else _configs(values) if name == "config" else values
    body = json.dumps(columns, separators=(",", ":"), allow_nan=False).encode()
    head = {"format": FORMAT, "fields": list(FIELDS), "crc": zlib.crc32(body)}
    return json.dumps(head).encode() + b"\n" + body


def _shared(values: Sequence[Any]) -> dict[str, list[Any]]:
    """Each value once, and for every record which one it has."""
    numbers: dict[str, int] = {}
    kept: list[Any] = []
    codes = [_code(numbers, kept, value) for value in values]
    return {"values": kept, "codes": codes}


def _code(numbers: dict[str, int], kept: list[Any], value: Any) -> int:
    text = repr(value)  # tells 1, 1.0 and True apart, and takes a fifth of the time of JSON
    number = numbers.setdefault(text, len(kept))
    if number == len(kept):
        kept.append(value)
    return number


def _configs(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Of trials that differ in a part or two, and in their seeds: each part once, each combination of parts once."""
    numbers: dict[str, int] = {}
    parts: list[Any] = []
    seedless = [
        {name: _code(numbers, parts, part) for name, part in config.items() if name != "seed" or part is None} for config in configs
    ]
    return {"parts": parts, **_shared(seedless), "seeds": [config.get("seed") for config in configs]}


def _joined(column: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """The inverse of `_configs`. Records that share a part share one object."""
    parts = column["parts"]
    whole = [{name: parts[number] for name, number in value.items()} for value in column["values"]]
    pairs = zip(column["codes"], column["seeds"], strict=True)
    return [whole[code] if seed is None else {**whole[code], "seed": seed} for code, seed in pairs]


def _load(store: Store, sweep: str) -> Entries:
    """What the index holds; nothing if it is none, damaged, or of another version."""
    with uncollected():
        return _parsed(store, sweep)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's search for cycles, which takes as long as the reading while a hundred thousand plain values come up."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parsed(store: Store, sweep: str) -> Entries:
    try:
        head, _, body = store.read(_name(sweep)).partition(b"\n")
        about = json.loads(head)
        if about != {"format": FORMAT, "fields": list(FIELDS), "crc": zlib.crc32(body)}:
            return {}
        columns = json.loads(body)
    except (FileNotFoundError, ValueError):
        return {}
    for name in SHARED:
        column = columns[f"field.{name}"]
        if name == "marks":
            column["values"] = [tuple(value) for value in column["values"]]
        columns[f"field.{name}"] = [column["values"][code] for code in column["codes"]]
    columns["field.config"] = _joined(columns["field.config"])
    records = map(Record, *(columns[f"field.{name}"] for name in FIELDS))
    stamps = map(tuple, columns["stamp"])
    return dict(zip(columns["key"], zip(stamps, records, strict=True), strict=True))
