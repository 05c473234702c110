"""The index of a sweep's records against SQLite and Parquet: the CPU time to read all records.

    python -m benchmarks.record_index [--records 10000] [--rounds 5]

SQLite has a row for every record, Parquet a column for every field, both with the fields as JSON.
The sides alternate, medians are printed. All three give equal records, or the command ends with an
error.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from benchmarks.tables import COLUMNS, NAME, SEEDS, config, record
from pointsweep.config.schema import with_seed
from pointsweep.results.record_index import Stamp, _dump, _load, _name, uncollected
from pointsweep.results.records import FIELDS, Record
from pointsweep.storage.base import FileStore

Entries = dict[str, tuple[Stamp, Record]]
TABLE = (
    "create table records(key text primary key, inode int, size int, modified int, changed int,"
    " record text) without rowid"
)


def made(count: int) -> Entries:
    """Return records of a large table, and stamps of their files."""
    generator = np.random.default_rng(0)
    entries: Entries = {}

    for row in range(count // (COLUMNS * SEEDS)):
        for column in range(COLUMNS):
            arm = config(row, column)
            for seed in range(SEEDS):
                one = record(with_seed(arm, seed), generator)
                stamp = Stamp(len(entries), 3000, 10**18 + len(entries), 10**18)
                entries[one.key] = (stamp, one)

    return entries


def write_sqlite(path: Path, entries: Entries) -> None:
    """Write a row for every record."""
    rows = []
    for key, (stamp, one) in entries.items():
        fields = json.dumps([getattr(one, name) for name in FIELDS])
        rows.append((key, *stamp, fields))

    with sqlite3.connect(path) as database:
        database.execute(TABLE)
        database.executemany("insert into records values(?, ?, ?, ?, ?, ?)", rows)


def read_sqlite(path: Path) -> Entries:
    """Return the records of a database."""
    entries: Entries = {}
    with sqlite3.connect(path) as database:
        for key, *stamp, fields in database.execute("select * from records"):
            entries[key] = (Stamp(*stamp), Record(*json.loads(fields)))

    return entries


def write_parquet(path: Path, entries: Entries) -> None:
    """Write a column for every field."""
    columns: dict[str, list[Any]] = {
        "stamp": [list(stamp) for stamp, _ in entries.values()]
    }
    for name in FIELDS:
        columns[name] = [json.dumps(getattr(one, name)) for _, one in entries.values()]

    parquet.write_table(pyarrow.table(columns), path, compression="zstd")


def read_parquet(path: Path) -> Entries:
    """Return the records of a file of columns."""
    table = parquet.read_table(path)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    fields = [list(map(json.loads, columns[name])) for name in FIELDS]
    entries: Entries = {}

    for stamp, *values in zip(columns["stamp"], *fields, strict=True):
        one = Record(*values)
        entries[one.key] = (Stamp(*stamp), one)

    return entries


def compared(entries: Entries) -> dict[str, str]:
    """Return the JSON of every record, by its key."""
    return {key: one.to_json() for key, (_, one) in entries.items()}


def main() -> None:
    """Write the three files, read each of them some times, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    entries = made(options.records)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        store = FileStore(folder)
        index = folder / _name(NAME)
        index.parent.mkdir(parents=True)
        index.write_bytes(_dump(entries))
        write_sqlite(folder / "index.db", entries)
        write_parquet(folder / "index.parquet", entries)
        sides: dict[str, tuple[Path, Callable[[], Entries]]] = {
            "ours": (index, lambda: _load(store, NAME)),
            "SQLite": (folder / "index.db", lambda: read_sqlite(folder / "index.db")),
            "Parquet": (
                folder / "index.parquet",
                lambda: read_parquet(folder / "index.parquet"),
            ),
        }

        expected = compared(entries)

        for name, (_, read) in sides.items():
            if compared(read()) != expected:
                raise SystemExit(f"{name} gives other records")

        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, (_, read) in sides.items():
                begun = time.process_time()
                with uncollected():
                    read()

                seconds[name].append(time.process_time() - begun)

        print(f"{len(entries)} records, load {os.getloadavg()[0]:.1f}")
        ours = statistics.median(seconds["ours"])
        for name, (path, _) in sides.items():
            median = statistics.median(seconds[name])
            size = path.stat().st_size / 1e6
            print(f"{name:8} {median:.3f} CPU-s ({median / ours:.1f}x), {size:.1f} MB")


if __name__ == "__main__":
    main()
