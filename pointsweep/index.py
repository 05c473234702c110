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
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any

from pointsweep.errors import BadStore
from pointsweep.records import Record, from_json
from pointsweep.store import FileStore, Store

FEW = 500  # records: up to as many are as fast read one by one
STALE = 0.02  # share of the records that are not in the index, from which on it is written anew
YOUNG_NS = 2 * 10**9  # the coarsest clock of a file system ticks every two seconds
FORMAT = 1
FIELDS = [field.name for field in fields(Record)]
SHARED = ("config", "parameters", "dataset", "weights_origin", "marks", "origin")  # the same for many: each value is kept once

Stamp = tuple[int, int, int, int]  # inode, size, modified, changed (ns)
Entries = dict[str, tuple[Stamp, Record]]


def read_record(store: Store, key: str) -> Record:
    """The record of a finished trial. Raises BadStore naming the file, FileNotFoundError."""
    name = f"trials/{key}/record.json"
    try:
        return from_json(store.read(name).decode())
    except (BadStore, UnicodeDecodeError) as error:
        raise BadStore(f"{store.url}, {name}: {error}") from error


def read_records(store: Store, sweep: str, keys: Sequence[str]) -> dict[str, Record]:
    """The records of those trials that have one, as their folders hold them now. Raises BadStore naming a file that is none."""
    if not isinstance(store, FileStore) or len(keys) <= FEW:
        return {key: read_record(store, key) for key in keys if store.exists(f"trials/{key}/record.json")}
    stamps, known = _stamps(store, keys), _load(store, sweep)
    stale = [key for key, stamp in stamps.items() if key not in known or known[key][0] != stamp]
    # Before the files are looked at once more: what is written from here on is younger.
    now = _clock(store, sweep) if len(stale) > STALE * len(stamps) else None
    if now is not None:
        fresh = _stamps(store, stale)
        stamps = {key: stamp for key, stamp in stamps.items() if key not in set(stale)} | fresh
    found = {key: known[key][1] for key in stamps.keys() - set(stale)}
    with _uncollected():
        for key in stale:
            with suppress(FileNotFoundError):  # deleted just now
                found[key] = read_record(store, key)
    if now is not None:
        settled = {key: (stamps[key], found[key]) for key in found if key in stamps and stamps[key][3] < now - YOUNG_NS}
        with suppress(OSError):
            store.write(_name(sweep), _dump(settled))
    return {key: found[key] for key in keys if key in found}


def _name(sweep: str) -> str:
    return f"sweeps/{sweep}/records.index"


def _stamps(store: FileStore, keys: Iterable[str]) -> dict[str, Stamp]:
    """Of every record that there is."""
    folder, found = str(store.path("trials")), {}
    for key in keys:
        # Of ten thousand names each is put together by hand; one that could lead out of the store is for `path` to refuse.
        path = f"{folder}/{key}/record.json" if key.isalnum() else str(store.path(f"trials/{key}/record.json"))
        with suppress(FileNotFoundError):
            seen = os.stat(path)  # noqa: PTH116 - half the time of pathlib's
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
    rows = [vars(record) | {"seed": record.config.get("seed")} for _, record in entries.values()]
    for row in rows:
        row["config"] = {name: value for name, value in row["config"].items() if name != "seed"}
    for name in (*FIELDS, "seed"):
        values = [row[name] for row in rows]
        columns[f"field.{name}"] = _shared(values) if name in SHARED else values
    body = json.dumps(columns, separators=(",", ":"), allow_nan=False).encode()
    head = {"format": FORMAT, "fields": FIELDS, "crc": zlib.crc32(body)}
    return json.dumps(head).encode() + b"\n" + body


def _shared(values: Sequence[Any]) -> dict[str, list[Any]]:
    """Each value once, and for every record which one it has."""
    numbers: dict[str, int] = {}
    codes = [numbers.setdefault(json.dumps(value), len(numbers)) for value in values]
    return {"values": [json.loads(text) for text in numbers], "codes": codes}


def _load(store: Store, sweep: str) -> Entries:
    """What the index holds; nothing if it is none, damaged, or of another version."""
    with _uncollected():
        return _parsed(store, sweep)


@contextmanager
def _uncollected() -> Iterator[None]:
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
        if about != {"format": FORMAT, "fields": FIELDS, "crc": zlib.crc32(body)}:
            return {}
        columns = json.loads(body)
    except (FileNotFoundError, ValueError):
        return {}
    for name in SHARED:
        column = columns[f"field.{name}"]
        if name == "marks":
            column["values"] = [tuple(value) for value in column["values"]]
        columns[f"field.{name}"] = [column["values"][code] for code in column["codes"]]
    pairs = zip(columns["field.config"], columns["field.seed"], strict=True)
    columns["field.config"] = [{**config, "seed": seed} if seed is not None else config for config, seed in pairs]
    records = map(Record, *(columns[f"field.{name}"] for name in FIELDS))
    stamps = map(tuple, columns["stamp"])
    return dict(zip(columns["key"], zip(stamps, records, strict=True), strict=True))
