"""The numbers that papers print, with the sources they were taken from: published.csv, one line a number.

The command published checks them (published_checks.py).

Any2Point (arXiv 2404.07989), Point-PEFT (arXiv 2310.03059) and the tables in the read-me files of the programs they build on.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Mapping
from importlib import resources
from typing import Any

from pointsweep.errors import unknown
from pointsweep.results.records import Published

COLUMNS = ("paper", "table", "row", "setting", "backbone", "modality", "dataset", "split", "metric", "note")


@functools.cache
def lines() -> tuple[dict[str, str], ...]:
    """All lines of published.csv."""
    text = resources.files("pointsweep.sweep").joinpath("published.csv").read_text(encoding="utf-8")
    return read_lines(text)


def read_lines(text: str) -> tuple[dict[str, str], ...]:
    """The lines of a file of published numbers. Raises ValueError if columns are missing."""
    reader = csv.DictReader(io.StringIO(text))
    absent = sorted({*COLUMNS, "value", "params_m"} - set(reader.fieldnames or ()))
    if absent:
        raise ValueError(f"no columns {', '.join(absent)}")
    return tuple(reader)


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
        line["dataset"],
        line["split"],
    )


def about(dataset: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a trial's plain data set configuration is in the words of published.csv: data set and split."""
    name = str(dataset.get("name"))
    variant = str(dataset.get("variant", "")).upper()
    corruption = f"{dataset.get('corruption')} {dataset.get('severity')}"
    known = {
        "modelnet40": ("ModelNet40", "test"),
        "modelnet40_c": ("ModelNet40-C", corruption),
        "modelnet40_fewshot": ("ModelNet40-fewshot", f"{dataset.get('way')}way{dataset.get('shot')}shot"),
        "scanobjectnn": ("ScanObjectNN", variant),
        "scanobjectnn_c": ("ScanObjectNN-C", corruption),
    }
    return known.get(name, (name, "test"))


def mismatch(published: Published, dataset: Mapping[str, Any]) -> str:
    """Return how a published number is about other data than a trial's; empty if it is not, or does not say."""
    if not published.dataset:
        return ""
    name, split = about(dataset)
    if (name, split) == (published.dataset, published.split):
        return ""
    return f"the number is about {published.dataset} {published.split}, the trials are on {name} {split}"
