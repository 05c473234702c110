"""The records of a sweep, read fast: sweeps/<name>/records.index holds those of a large sweep in
one file of columns.

The index is only a copy; the trials' folders are the truth. Of each record it keeps the stamp of
the file that it was read from (inode, size, times), every file is looked at again, and what differs
is read from its folder. So a table never shows what a folder no longer holds. As in git's index, a
file so young that a later write could leave its stamp the same is not entered. An index that is
missing, damaged, of other fields, or cannot be written costs time, nothing else.
"""

from __future__ import annotations

import base64
import binascii
import errno
import gc
import json
import marshal
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pointsweep.errors import NewerRecordError, NotAFileError, RecordError, StoreError
from pointsweep.results.agreement import unsealed_problem
from pointsweep.results.events import unfinished_status
from pointsweep.results.records import FIELDS, Record, files_problem, from_json
from pointsweep.storage.base import FileStore, Store, reading
from pointsweep.storage.stores import folder_of

FEW = 500  # records: up to as many are as fast read one by one
# files: more are read by several threads, for a disk has its answers ready side by side
MANY = 200
CHUNK = MANY // 8  # files that a thread reads in a row
THREADS = 16
# of the records: where more are not in the index it is written anew
REWRITE_SHARE = 0.02
REMEDY = "the sweep's command, run again, sets it aside and trains the trial again"
# of a file that is entered: the coarsest clock of a file system ticks every two seconds
MIN_AGE_NS = 2 * 10**9
FORMAT = 4
# the same for many: each value is kept once
SHARED = ("parameters", "dataset", "weights_origin", "marks", "origin")
# as arrays, which are read faster than text
NUMBERS = ("metrics", "seconds", "clouds_per_s", "energy_j")


class Stamp(NamedTuple):
    """Stamp of a file by its file system; it changes whenever the file does."""

    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


Entries = dict[str, tuple[Stamp, Record]]
Shape = str | tuple[tuple[str, "Shape"], ...]


def read_record(store: Store, key: str) -> Record:
    """The record of a finished trial. Raises StoreError naming the file, RecordError if it is not
    whole, FileNotFoundError.
    """
    name = f"trials/{key}/record.json"
    try:
        data = store.read(name)
    except NotAFileError as error:
        raise RecordError(f"{store.url}, {name}: no file is in its place") from error

    return _record(store, key, data)


def sound_record(store: Store, key: str) -> Record | None:
    """The record of a finished trial; None if there is none, or none that can be believed."""
    try:
        return read_record(store, key)
    except (FileNotFoundError, RecordError):
        return None


def trial_status(store: Store, key: str) -> str:
    """finished, damaged (it has a record that cannot be believed), resumable, failed or new."""
    try:
        read_record(store, key)
        return "finished"
    except FileNotFoundError:
        return unfinished_status(store, key)
    except RecordError:
        return "damaged"


def _record(store: Store, key: str, data: bytes) -> Record:
    def read(name: str) -> bytes:
        return store.read(f"trials/{key}/{name}")

    try:
        record = from_json(data, key)
        problem = files_problem(record, _sizes_in(store, key))
        problem = problem or unsealed_problem(record, read)

        if problem:
            raise RecordError(problem)
    except StoreError as error:
        # the class stays: a record of a later version is not a damaged one
        raise type(error)(f"{store.url}, trials/{key}/record.json: {error}") from error

    return record


def _sizes_in(store: Store, key: str) -> Callable[[str], int | None]:
    """Return how many bytes a file of a trial has; None if it is not there."""
    disk = folder_of(store)
    if disk is None:
        return store.sizes(f"trials/{key}").get

    folder = _path(disk, key).removesuffix("record.json")

    def size(name: str) -> int | None:
        try:
            status = os.stat(folder + name)  # noqa: PTH116 - half the time of pathlib's
        except OSError:
            return None

        return status.st_size if stat.S_ISREG(status.st_mode) else None

    return size


def read_records(store: Store, sweep: str, keys: Sequence[str]) -> dict[str, Record]:
    """The records of those trials that have one, as their folders hold them now. Raises StoreError
    naming a file that is none.
    """
    records, damaged = sound_records(store, sweep, keys)
    for problem in damaged.values():
        raise RecordError(problem)

    return records


def sound_records(
    store: Store, sweep: str, keys: Sequence[str], keep_index: bool = True
) -> tuple[dict[str, Record], dict[str, str]]:
    """Return the valid records by key, and what is wrong with damaged ones by key; a trial without
    a record is in neither.

    Of a large sweep on a disk a file is read again only if its stamp is not the one in the index,
    and the index is written anew where many were (without `keep_index` nothing is). Raises
    StoreError for a file that may not be read.
    """
    disk = folder_of(store)
    if disk is None or len(keys) <= FEW:
        return _read_singly(store, keys)

    stamps = _stamps(disk, keys)
    records: dict[str, Record] = {}
    for key, (stamp, record) in _load(store, sweep).items():
        if stamps.get(key) == stamp:
            records[key] = record

    damaged = _file_problems(disk, records)
    changed = [key for key in stamps if key not in records]
    rewrite = keep_index and len(changed) > REWRITE_SHARE * len(stamps)
    # The time is taken, and the stamps are, before the files are read: a file that changes while
    # it is read has a stamp of its own then, or is too young to be entered.
    now_ns = _clock(disk, sweep) if rewrite else None

    if now_ns is not None:
        for key in changed:
            del stamps[key]
        stamps |= _stamps(disk, changed)

    read, unreadable = _read_all(disk, changed)
    records |= read
    damaged |= unreadable

    if now_ns is not None:
        entries = {}
        for key, record in records.items():
            if key in stamps and stamps[key].changed_ns < now_ns - MIN_AGE_NS:
                entries[key] = (stamps[key], record)

        with suppress(OSError):
            store.write(_name(sweep), _dump(entries))

    valid = {key: records[key] for key in keys if key in records and key not in damaged}
    return valid, damaged


def _read_singly(
    store: Store, keys: Sequence[str]
) -> tuple[dict[str, Record], dict[str, str]]:
    records: dict[str, Record] = {}
    damaged: dict[str, str] = {}
    for key in keys:
        try:
            records[key] = read_record(store, key)
        except FileNotFoundError:
            continue
        except (RecordError, NewerRecordError) as error:
            damaged[key] = _with_remedy(error)

    return records, damaged


def _with_remedy(error: StoreError) -> str:
    """Return what is wrong with a record, and what mends it: of a later version's record its own
    words say it.
    """
    return f"{error}; {REMEDY}" if isinstance(error, RecordError) else str(error)


def _file_problems(store: FileStore, records: Mapping[str, Record]) -> dict[str, str]:
    """Return what is wrong beside records that have not changed since they were read: the files
    that they name may have.
    """
    problems = {}
    for key, record in records.items():
        problem = files_problem(record, _sizes_in(store, key)) if record.files else ""
        if problem:
            name = f"trials/{key}/record.json"
            problems[key] = f"{store.url}, {name}: {problem}; {REMEDY}"

    return problems


def _read_all(
    store: FileStore, keys: Sequence[str]
) -> tuple[dict[str, Record], dict[str, str]]:
    """The records that are there, one may have been deleted just now, and what is wrong with
    damaged ones.
    """

    def read(chunk: Sequence[str]) -> list[bytes | RecordError | None]:
        return [_bytes_or_problem(store, key) for key in chunk]

    if len(keys) <= MANY:
        contents = read(keys)
    else:
        chunks = [keys[start : start + CHUNK] for start in range(0, len(keys), CHUNK)]
        with ThreadPoolExecutor(THREADS) as pool:
            contents = list(chain.from_iterable(pool.map(read, chunks)))

    records: dict[str, Record] = {}
    damaged: dict[str, str] = {}
    for key, content in zip(keys, contents, strict=True):
        if isinstance(content, RecordError):
            damaged[key] = _with_remedy(content)
        elif content is not None:
            try:
                records[key] = _record(store, key, content)
            except (RecordError, NewerRecordError) as error:
                damaged[key] = _with_remedy(error)

    return records, damaged


def _bytes_or_problem(store: FileStore, key: str) -> bytes | RecordError | None:
    path = _path(store, key)
    try:
        with reading(Path(path)):
            return _bytes(path)
    except NotAFileError:
        return RecordError(
            f"{store.url}, trials/{key}/record.json: no file is in its place"
        )


def _path(store: FileStore, key: str) -> str:
    """Return the path of a record. Ten thousand are put together by hand; one that could lead out
    is for `path` to refuse.
    """
    if key.isalnum():
        return f"{store.root}/trials/{key}/record.json"

    return str(store.path(f"trials/{key}/record.json"))


def _bytes(path: str) -> bytes | None:
    try:
        # Without waiting: whoever opens a pipe to read it waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None

    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise NotAFileError(path)
        return file.read()


def _name(sweep: str) -> str:
    return f"sweeps/{sweep}/records.index"


def _stamps(store: FileStore, keys: Iterable[str]) -> dict[str, Stamp]:
    """Return the stamp of every record that there is."""
    stamps = {}
    for key in keys:
        try:
            status = os.stat(_path(store, key))  # noqa: PTH116 - half the time of pathlib's
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise StoreError(
                    f"the store cannot be read: {error.strerror}: {_path(store, key)}"
                ) from error

            # a link to itself: the reading that follows says so
            stamps[key] = Stamp(inode=0, size_bytes=0, modified_ns=0, changed_ns=0)
            continue

        stamps[key] = Stamp(
            status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )

    return stamps


def _clock(store: FileStore, sweep: str) -> int | None:
    """The time (ns) by the clock that stamps the files: a file server's may be another than ours.
    None if nothing can be written.
    """
    with (
        suppress(OSError),
        tempfile.TemporaryFile(dir=store.path(f"sweeps/{sweep}")) as file,
    ):
        return os.fstat(file.fileno()).st_ctime_ns

    return None


# The file: a line with a checksum, then one line of columns


def _dump(entries: Mapping[str, tuple[Stamp, Record]]) -> bytes:
    records = [record for _, record in entries.values()]
    stamps = [stamp for stamp, _ in entries.values()]
    columns: dict[str, Any] = {
        "key": list(entries),
        "stamp": list(zip(*stamps, strict=True)),
    }

    for name in FIELDS:
        values = [getattr(record, name) for record in records]
        columns[f"field.{name}"] = _column(name, values)

    body = json.dumps(columns, separators=(",", ":"), allow_nan=False).encode()
    head = {"format": FORMAT, "fields": list(FIELDS), "crc": zlib.crc32(body)}
    return json.dumps(head).encode() + b"\n" + body


def _column(name: str, values: list[Any]) -> Any:
    """Return the values of one field of all records in the form in which the file has them."""
    if name in SHARED:
        return _shared(values)
    if name in NUMBERS:
        return _numbers(values)
    if name == "config":
        return _configs(values)

    return values


def _shared(values: Sequence[Any]) -> dict[str, list[Any]]:
    """Each value once, and for every record which one it has."""
    numbers: dict[bytes, int] = {}
    distinct: list[Any] = []
    codes = [_code(numbers, distinct, value) for value in values]

    return {"values": distinct, "codes": codes}


def _code(numbers: dict[bytes, int], distinct: list[Any], value: Any) -> int:
    # Tells 1, 1.0 and True apart, in a tenth of the time of JSON. Nothing is ever read back from
    # it.
    number = numbers.setdefault(marshal.dumps(value, 2), len(distinct))
    if number == len(distinct):
        distinct.append(value)

    return number


def _configs(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the configurations of trials that differ in few parts: each part once, each
    combination of parts once.
    """
    numbers: dict[bytes, int] = {}
    parts: list[Any] = []
    combinations = []
    seeds = []

    for config in configs:
        codes = {}
        for name, part in config.items():
            if name != "seed" or part is None:
                codes[name] = _code(numbers, parts, part)

        combinations.append(codes)
        seeds.append(config.get("seed"))

    return {"parts": parts, **_shared(combinations), "seeds": seeds}


def _joined(column: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """The inverse of `_configs`. Records that share a part share one object."""
    parts = column["parts"]
    combinations = []

    for codes in column["values"]:
        combinations.append({name: parts[code] for name, code in codes.items()})

    configs = []
    for code, seed in zip(column["codes"], column["seeds"], strict=True):
        config = combinations[code]
        configs.append(config if seed is None else {**config, "seed": seed})

    return configs


def _numbers(values: Sequence[Any]) -> dict[str, list[Any]]:
    """Mappings of numbers, or numbers: each shape once, and the numbers of all values of a shape as
    one array.
    """
    rows: dict[Shape, list[list[Any]]] = {}
    shapes = []

    for value in values:
        numbers: list[Any] = []
        shapes.append(_shape(value, numbers))
        rows.setdefault(shapes[-1], []).append(numbers)

    if not all(map(_exact, rows.values())):
        return {"plain": list(values)}

    arrays = []
    for rows_of_shape in rows.values():
        array = np.array(rows_of_shape, "<f8").T  # (numbers of a value, values)
        arrays.append(base64.b64encode(array.tobytes()).decode())

    codes = {shape: code for code, shape in enumerate(rows)}
    return {
        "shapes": list(rows),
        "codes": [codes[shape] for shape in shapes],
        "arrays": arrays,
    }


def _shape(value: Any, numbers: list[Any]) -> Shape:
    """Return what a value is without its numbers, which go to `numbers`: the type of a number, or
    names with what each of them is.
    """
    if isinstance(value, dict):
        return tuple([(name, _shape(part, numbers)) for name, part in value.items()])

    numbers.append(value)
    return type(value).__name__


def _exact(rows: Sequence[Sequence[Any]]) -> bool:
    """Return whether floats hold all of the numbers to the last bit, and nothing else is among
    them.
    """
    for row in rows:
        for number in row:
            if type(number) is float:
                continue
            if type(number) is not int or abs(number) >= 2**53:
                return False

    return True


def _numbered(column: Mapping[str, list[Any]]) -> list[Any]:
    """The inverse of `_numbers`."""
    if "plain" in column:
        return column["plain"]

    by_code = []
    shapes = zip(column["shapes"], column["arrays"], strict=True)
    for code, (shape, array) in enumerate(shapes):
        count = column["codes"].count(code)
        numbers = np.frombuffer(binascii.a2b_base64(array), "<f8")
        by_position = numbers.reshape(-1, count)  # (numbers of a value, values)
        by_code.append(iter(_filled(shape, iter(by_position), count)))

    return [next(by_code[code]) for code in column["codes"]]


def _filled(shape: Any, numbers: Iterator[np.ndarray], count: int) -> list[Any]:
    """The values of one shape; `numbers` (count,) of each of its positions."""
    if isinstance(shape, str):
        values: list[float] = next(numbers).astype(shape).tolist()
        return values

    if not shape:
        return [{} for _ in range(count)]

    names = [name for name, _ in shape]
    columns = [_filled(part, numbers, count) for _, part in shape]
    rows = zip(*columns, strict=True)

    # dict(zip(names, row)) of every row, without a step of Python for each
    return list(map(dict, map(zip, repeat(names), rows)))


@contextmanager
def uncollected() -> Iterator[None]:
    """Work without Python's search for cycles, which takes as long as reading a hundred thousand
    plain values.
    """
    enabled = gc.isenabled()
    gc.disable()

    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _load(store: Store, sweep: str) -> Entries:
    """Return what the index holds; nothing if it is none, damaged, or of another version."""
    try:
        data = store.read(_name(sweep))
        end = data.find(b"\n")
        body = memoryview(data)[end + 1 :]  # no copy of so many megabytes
        head = {"format": FORMAT, "fields": list(FIELDS), "crc": zlib.crc32(body)}

        if json.loads(data[: max(end, 0)]) != head:
            return {}

        columns = json.loads(str(body, "ascii"))  # four times as fast as UTF-8
    except (FileNotFoundError, ValueError, RecursionError):
        # StoreError among them: a folder, or not to be read
        return {}

    for name in SHARED:
        column = columns[f"field.{name}"]
        if name == "marks":
            column["values"] = [tuple(value) for value in column["values"]]

        columns[f"field.{name}"] = [column["values"][code] for code in column["codes"]]

    for name in NUMBERS:
        columns[f"field.{name}"] = _numbered(columns[f"field.{name}"])

    columns["field.config"] = _joined(columns["field.config"])
    fields = [columns[f"field.{name}"] for name in FIELDS]
    records = map(Record, *fields)
    stamps = map(Stamp._make, zip(*columns["stamp"], strict=True))
    entries = zip(stamps, records, strict=True)

    return dict(zip(columns["key"], entries, strict=True))
