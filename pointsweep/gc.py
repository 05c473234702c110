"""The command: python -m pointsweep.gc [STORE] [--delete]. What nobody needs any more, and, if told to, without it.

That is: checkpoints of trials that have a record, files that a killed process left half written, what a killed launch left of its
own state, and parts of uploads that were never completed. Records, histories, predictions and weights are never touched.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pointsweep.command import exit_code
from pointsweep.errors import BadStore
from pointsweep.s3_store import S3Store
from pointsweep.store import FileStore, Store, open_store

OF_LAUNCHES = ("ray", "launches")
LAUNCH_AGE = 30  # times as old as other waste: a launch may live for weeks
CHECKPOINTS = ("checkpoint.safetensors", "checkpoint.damaged")


@dataclass(frozen=True)
class Waste:
    """One thing to remove: what it is, where, and how."""

    kind: str
    name: str
    remove: Callable[[], None]


def waste(store: Store, age_s: float) -> Iterator[Waste]:
    """Everything to remove. What a living process may still be writing must be older than `age_s`."""
    for folder in store.list("trials"):
        files = store.list(f"trials/{folder.rstrip('/')}")
        for name in (f"trials/{folder}{file}" for file in CHECKPOINTS if file in files and "record.json" in files):
            yield Waste("checkpoint of a finished trial", name, lambda name=name: store.delete(name))  # type: ignore[misc]
    if isinstance(store, FileStore):
        for path in sorted(store.root.rglob(".*.tmp")):
            if path.is_file() and time.time() - path.stat().st_mtime > age_s:
                name = str(path.relative_to(store.root))
                yield Waste("half written file", name, lambda path=path: path.unlink(missing_ok=True))  # type: ignore[misc]
        for path in sorted(path for folder in OF_LAUNCHES for path in store.path(folder).glob("*")):
            if time.time() - max(each.stat().st_mtime for each in (path, *path.rglob("*"))) > LAUNCH_AGE * age_s:
                name = str(path.relative_to(store.root))
                yield Waste("state of a launch that was killed", name, lambda path=path: shutil.rmtree(path))  # type: ignore[misc]
    if isinstance(store, S3Store):
        for name, upload, begun in store.uploads():
            if time.time() - begun.timestamp() > age_s:
                yield Waste("upload never completed", name, lambda name=name, upload=upload: store.abort(name, upload))  # type: ignore[misc]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 if it could look at the store, 2 if not."""
    made = argparse.ArgumentParser("python -m pointsweep.gc", description="Lists what of a store nobody needs any more.")
    made.add_argument("store", nargs="?", help="folder or s3://bucket/prefix (default: $POINTSWEEP_STORE, else ~/pointsweep)")
    made.add_argument("--delete", action="store_true", help="delete it; without this nothing is changed")
    made.add_argument("--age-hours", type=float, default=24, help="half written files and uploads must be older (default: 24)")
    args = made.parse_args(arguments)
    count = 0
    try:
        for found in waste(open_store(args.store), 3600 * args.age_hours):
            print(f"{'deleted' if args.delete else 'would delete'}: {found.name}  ({found.kind})")
            count += 1
            if args.delete:
                found.remove()
    except BadStore as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{count} deleted" if args.delete else f"{count} to delete; nothing was changed, --delete does it")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
