"""The command ls: list the sweeps of a store, and how many trials of each are done, failed and
open.
"""

from __future__ import annotations

import sys

from pointsweep.cli.command import Program, StoreOption, Version
from pointsweep.errors import StoreError
from pointsweep.reporting.standing import standing, sweep_names
from pointsweep.storage.base import Store
from pointsweep.storage.stores import open_store
from pointsweep.utils.cli_exit import INVALID
from pointsweep.utils.console import columns_of, left, one_line, right, shortened, width

HEADINGS = ("sweep", "done", "failed", "open", "title")


def ls(store: StoreOption = None, version: Version = False) -> int:
    """List the sweeps of a store: how many trials of each are done, failed and open.

    exit codes: 0 listed, 2 there is no such store. What is running counts as open.
    """
    return show(store)


main = Program("ls", ls, examples=("", "--store s3://bucket/prefix"))


def show(url: str | None) -> int:
    """Print a line for every sweep of a store; return the exit code."""
    try:
        store = open_store(url)
        names = sweep_names(store)
    except StoreError as error:
        print(error, file=sys.stderr)
        return INVALID

    if not names:
        print(f"{store.url}: no sweeps yet")
        return 0

    lines = [HEADINGS]
    lines += [_line(store, name) for name in names]
    # The titles, which stand last, are not aligned.
    *aligned, _ = zip(*lines, strict=True)
    name_width, *count_widths = [max(map(width, column)) for column in aligned]
    columns = columns_of(sys.stdout)

    for name, *counts, title in lines:
        cells = [left(name, name_width), *map(right, counts, count_widths), title]
        text = "  ".join(cells)
        if columns:
            text = shortened(text, columns)

        print(text.rstrip())

    return 0


def _line(store: Store, name: str) -> tuple[str, str, str, str, str]:
    """Return the name, the counts and the title of a sweep; in place of a title, what is wrong with
    it.
    """
    if not store.exists(f"sweeps/{name}/plan.json"):
        return name, "-", "-", "-", "no table yet: a search that has not ended"

    try:
        sweep = standing(store, name)
    except ValueError as error:
        return name, "-", "-", "-", one_line(str(error))

    still_open = sweep.count("open") + sweep.count("running")
    return (
        name,
        str(sweep.count("finished")),
        str(sweep.count("failed")),
        str(still_open),
        one_line(sweep.title),
    )
