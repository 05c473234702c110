"""The numbers that papers print, with the sources they were taken from: published.csv, one line a
number.

The command published checks them (published_checks.py).

Any2Point (arXiv 2404.07989), Point-PEFT (arXiv 2310.03059) and the tables in the read-me files of
the programs they build on.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pointsweep.errors import unknown
from pointsweep.results.records import Published

BUILT_IN = "published.csv"
NUMBERS = ("value", "params_m")  # in percent, in millions
NEEDED = ("row", "value")  # of a file of one's own
COLUMNS = (
    "paper",
    "table",
    "row",
    "setting",
    "backbone",
    "modality",
    "dataset",
    "split",
    "metric",
    "note",
)


@functools.cache
def lines() -> tuple[dict[str, str], ...]:
    """All lines of published.csv."""
    text = (
        resources.files("pointsweep.sweep")
        .joinpath("published.csv")
        .read_text(encoding="utf-8")
    )
    return read_lines(text)


def read_lines(text: str) -> tuple[dict[str, str], ...]:
    """The lines of a file of published numbers. Raises ValueError if columns are missing."""
    reader = csv.DictReader(io.StringIO(text))
    absent = sorted({*COLUMNS, "value", "params_m"} - set(reader.fieldnames or ()))

    if absent:
        raise ValueError(f"no columns {', '.join(absent)}")

    return tuple(reader)


def read_file(path: Path) -> tuple[dict[str, str], ...]:
    """Read a file of one's own: the columns `row` and `value` (percent), and any of the others of
    published.csv.

    Raises ValueError naming the file, the line and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error

    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    names = [str(name).strip() for name in reader.fieldnames or ()]
    reader.fieldnames = names

    allowed = (*COLUMNS, *NUMBERS)

    for name in names:
        if name not in allowed:
            text = unknown("column", name, allowed, "Columns")
            raise ValueError(f"{path}, line 1: {text}")

    absent = [name for name in NEEDED if name not in names]
    if absent:
        raise ValueError(
            f"{path}, line 1: no column {', '.join(absent)}; columns: {', '.join(names) or 'none'}"
        )

    entries = []
    for line in reader:
        if None in line or None in line.values():
            raise ValueError(
                f"{path}, line {reader.line_num}: not {len(names)} fields, as line 1 has names"
            )

        entry = dict.fromkeys(allowed, "")
        for name, value in line.items():
            entry[name] = value.strip()

        _require_numbers(entry, f"{path}, line {reader.line_num}")
        entries.append(entry)

    if not entries:
        raise ValueError(f"{path}: holds no line below the names of its columns")

    return tuple(entries)


def _require_numbers(line: Mapping[str, str], where: str) -> None:
    for name, most in (("value", 100.0), ("params_m", float("inf"))):
        text = line[name]
        try:
            is_good = not text or 0 <= float(text) <= most
        except ValueError:
            is_good = False

        if not is_good:
            allowed = "a number of millions"
            if name == "value":
                allowed = "a number in percent, from 0 to 100"

            raise ValueError(
                f"{where}: {name} must be {allowed}, or empty; found {text!r}"
            )


def find(
    selectors: Mapping[str, str],
    own: tuple[dict[str, str], ...] | None = None,
    file: str = BUILT_IN,
    cite: str = "",
) -> Published:
    """Return the one number whose line has all these values. Raises ValueError if there is none, or
    more than one.

    `own` are the lines of `file`, of the sweep's own; `cite` is the source to print where a line
    names none.
    """
    candidates = list(lines() if own is None else own)
    for column, value in selectors.items():
        if column not in COLUMNS:
            raise ValueError(unknown(f"column of {file}", column, COLUMNS, "Columns"))

        matching = [line for line in candidates if line[column] == str(value)]
        if not matching:
            values = {line[column] for line in candidates}
            raise ValueError(unknown(f"{column} in {file}", value, values, "Known"))

        candidates = matching

    if len(candidates) > 1:
        differing = []
        for column in COLUMNS:
            values = {line[column] for line in candidates}
            if column not in selectors and len(values) > 1:
                differing.append(column)

        raise ValueError(
            f"{len(candidates)} lines of {file} fit {dict(selectors)}; say which by:"
            f" {', '.join(differing)}"
        )

    line = candidates[0]
    sources = [text for text in (line["paper"], line["table"]) if text]
    return Published(
        value=_number(line["value"]),
        params_m=_number(line["params_m"]),
        source=", ".join(sources) or cite or file,
        dataset=line["dataset"],
        split=line["split"],
    )


def _number(text: str) -> float | None:
    """Return the number of a field; None of an empty one."""
    return float(text) if text else None


def about(dataset: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a trial's plain data set configuration is in the words of published.csv: data set
    and split.
    """
    name = str(dataset.get("name"))
    variant = str(dataset.get("variant", "")).upper()
    corruption = f"{dataset.get('corruption')} {dataset.get('severity')}"
    episode = f"{dataset.get('way')}way{dataset.get('shot')}shot"
    known = {
        "modelnet40": ("ModelNet40", "test"),
        "modelnet40_c": ("ModelNet40-C", corruption),
        "modelnet40_fewshot": ("ModelNet40-fewshot", episode),
        "scanobjectnn": ("ScanObjectNN", variant),
        "scanobjectnn_c": ("ScanObjectNN-C", corruption),
    }

    return known.get(name, (name, "test"))


def mismatch(published: Published, dataset: Mapping[str, Any]) -> str:
    """Return how a published number is about other data than a trial's; empty if it is not, or does
    not say.
    """
    if not published.dataset:
        return ""
    if dataset.get("name") == "files":
        return ""  # a folder does not say by which name papers know it

    name, split = about(dataset)
    if (name, split) == (published.dataset, published.split):
        return ""

    return (
        f"the number is about {published.dataset} {published.split}, the trials are on {name}"
        f" {split}"
    )


def paper_epochs(published: Published) -> int:
    """Return for how many epochs the trials behind a number of published.csv were trained; 0 where
    it is not from there.

    300 in Any2Point, Point-PEFT and the programs they build on; 150 in few-shot learning
    (Point-MAE, section 4.2).
    """
    if not published.dataset:
        return 0

    return 150 if published.dataset == "ModelNet40-fewshot" else 300
