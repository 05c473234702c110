"""A store in the middle of a sweep, made by hand: no trial of it was trained."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

from pointsweep.cli.tables import html
from pointsweep.results.events import to_line
from pointsweep.results.records import CellLayout, Layout, plan_json
from pointsweep.serving import watch
from pointsweep.serving.watch import StoreWatch, SweepWatch
from pointsweep.storage.base import FileStore, Store
from pointsweep.storage.lease import Holder, machine
from tests.reporting.test_tables import record

EPOCHS = 4
# by row and seed
KEYS = {(row, seed): f"{row[0] * 8}{seed:08x}".replace("l", "1").replace("p", "2") for row in ("lora", "prompt") for seed in range(2)}


def layout(name: str = "made", **changes: object) -> Layout:
    rows = (("lora",), ("prompt",))
    cells = tuple(CellLayout(i, 0, tuple((seed, KEYS[row, seed]) for seed in range(2))) for i, (row,) in enumerate(rows))
    return replace(Layout(name, f"The sweep {name}", ("method",), rows, ("tiny",), cells), **changes)


def plan(store: Store, name: str = "made", **changes: object) -> None:
    store.write(f"sweeps/{name}/plan.json", plan_json(layout(name, **changes)))


def begin(store: Store, key: str, epochs: int = 0) -> None:
    """A history of a start and of so many epochs, of 10 s each; the accuracy is a tenth of the epoch."""
    lines = [to_line({"type": "start", "attempt": 1, "config": {"train": {"epochs": EPOCHS}}, "time": 0.0})]
    for number in range(1, epochs + 1):
        metrics = {"test/accuracy": number / 10, "test/loss": 1.0}
        lines.append(to_line({"type": "epoch", "epoch": number, "metrics": metrics, "seconds": 10.0, "lr": 0.1}))
    store.write(f"trials/{key}/history.jsonl", b"".join(lines))


def append(store: FileStore, key: str, event: dict) -> None:
    with store.path(f"trials/{key}/history.jsonl").open("ab") as file:
        file.write(to_line(event))


def hold(store: Store, key: str) -> None:
    """A lease of this process."""
    holder = Holder("owner", socket.gethostname(), machine(), os.getpid(), time.time() + 60)
    store.write(f"trials/{key}/lease.json", holder.encode())


def finish(store: Store, key: str, value: float = 0.5, **changes: object) -> None:
    begin(store, key, EPOCHS)
    store.delete(f"trials/{key}/lease.json")
    store.write(f"trials/{key}/record.json", record(key, value, **changes).to_json().encode())


def fail(store: FileStore, key: str, reason: str = "the loss is not finite") -> None:
    begin(store, key, 1)
    append(store, key, {"type": "failed", "class": "diverged", "reason": reason, "trace": "", "time": 1.0})


def watched(store: Store) -> StoreWatch:
    return StoreWatch(store, html)


def at_once(found: SweepWatch | StoreWatch) -> None:
    """The next look and the next report are not too early."""
    for name in ("_next_look", "_next_report", "_next_names", "_next_begun"):
        if hasattr(found, name):
            setattr(found, name, 0.0)


def look(found: StoreWatch, name: str = "made") -> watch.SweepState:
    """Look now, however short ago the last look was."""
    at_once(found)
    sweep = found.sweep(name)
    assert sweep is not None
    at_once(sweep)
    return sweep.look()


def damage(path: Path) -> None:
    """Change a number in a file that has a checksum."""
    data = json.loads(path.read_text())
    data["attempts"] = data.get("attempts", 0) + 1
    path.write_text(json.dumps(data))
