"""The numbers that papers print, with the sources they were taken from: published.csv, one line a number.

Any2Point (arXiv 2404.07989), Point-PEFT (arXiv 2310.03059) and the tables in the read-me files of the programs they build on.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from importlib import resources

from pointsweep.errors import unknown
from pointsweep.records import Published

COLUMNS = ("paper", "table", "row", "setting", "backbone", "modality", "dataset", "split", "metric", "note")


@functools.cache
def lines() -> tuple[dict[str, str], ...]:
    """All lines of published.csv."""
    text = resources.files("pointsweep").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def find(selectors: Mapping[str, str]) -> Published:
    """The one number whose line has all these values. Raises ValueError if there is none, or more than one."""
    left = list(lines())
    for column, value in selectors.items():
        if column not in COLUMNS:
            raise ValueError(unknown("column of published.csv", column, COLUMNS, "Columns"))
        kept = [line for line in left if line[column] == str(value)]
        if not kept:
            raise ValueError(unknown(f"{column} in published.csv", value, {line[column] for line in left}, "Known"))
        left = kept
    if len(left) > 1:
        differing = [c for c in COLUMNS if c not in selectors and len({line[c] for line in left}) > 1]
        raise ValueError(f"{len(left)} lines of published.csv fit {dict(selectors)}; say which by: {', '.join(differing)}")
    line = left[0]
    return Published(
        float(line["value"]) if line["value"] else None,
        float(line["params_m"]) if line["params_m"] else None,
        f"{line['paper']}, {line['table']}",
    )
