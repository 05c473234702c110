"""Checks of the numbers that papers print: published.csv against itself, arithmetic and built
models.

A line's `setting` is a list of key=value; what it leaves out has the method's usual value (USUAL),
so that the same setting is recognised in tables that name different keys. A note may state a gain,
"gain=+1.9 over Point-BERT". Values are in percent here.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

Line = Mapping[str, str]
# Test objects by data set and split (spec 6.1); a value that is a mean of several runs has another
# metric.
NUM_TEST = {
    ("ScanObjectNN", "PB_T50_RS"): 2882, ("ScanObjectNN", "OBJ_BG"): 581,
    ("ScanObjectNN", "OBJ_ONLY"): 581,
    ("ModelNet40", "test"): 2468,
}  # fmt: skip
USUAL: dict[str, dict[str, str]] = {
    "any2point": {
        "M": "6",
        "pe": "virtual",
        "guided_adapter": "true",
        "local_aggregation": "true",
        "ensemble": "adaptive",
    },
}
# the method of a row that is another paper's system: only its name tells which
COMPARISON = "comparison"


@dataclass(frozen=True)
class Fault:
    """One inconsistency: its kind, and a sentence that names the lines (numbered as in the file,
    the heading is line 1).
    """

    kind: str
    text: str
    lines: tuple[int, ...]


def setting(line: Line) -> dict[str, str]:
    """The setting as key -> value, with the method's usual values; what the transcriber added in
    brackets is dropped.
    """
    text = re.sub(r"\([^)]*\)", "", line["setting"])
    given = dict(part.partition("=")[::2] for part in text.split(";") if part)
    projection = given.pop("virtual_projection", "true")

    if projection == "false":
        # tokens without the virtual projection's encodings: Any2Point's Table 3 beside its Table 4
        given["pe"] = "none"

    full = (
        {"voting": "false", "aug": "default"}
        | USUAL.get(given.get("method", ""), {})
        | given
    )
    if full.get("guided_adapter") == "false":  # what is inside the adapter is not there
        full = {
            key: value
            for key, value in full.items()
            if key not in ("local_aggregation", "ensemble")
        }

    return full


def same_setting(line: Line) -> tuple[str, ...]:
    """Return what two lines share that must print the same number. Papers that call a method by its
    name mean it as they set it up.
    """
    settings = setting(line)
    name = line["row"] if settings.get("method") in (COMPARISON, None) else ""
    cell = [line[key] for key in ("backbone", "dataset", "split", "metric")]

    return (name, *cell, *(f"{key}={settings[key]}" for key in sorted(settings)))


def check(
    lines: Sequence[Line], counts: Mapping[int, Sequence[int]] | None = None
) -> list[Fault]:
    """Every inconsistency. `counts`: by line number, what the built model trains (without the head,
    with it).
    """
    numbered = list(enumerate(lines, start=2))
    checks = (
        _values(numbered),
        _agreement(numbered),
        _twins(numbered),
        _gains(numbered),
        _counts(numbered, counts or {}),
    )

    return sorted(
        (fault for faults in checks for fault in faults),
        key=lambda fault: (fault.kind, fault.lines),
    )


def places(number: str) -> int:
    """The decimals a number is printed with."""
    return max(0, -int(Decimal(number).as_tuple().exponent))


def agree(first: str, second: str) -> bool:
    """Return whether two printed numbers can be the same one, each rounded or cut off at its own
    last digit.
    """
    unit = [Decimal(1).scaleb(-places(number)) for number in (first, second)]
    one, two = Decimal(first), Decimal(second)

    # Rounded, a number lies half a unit to both sides; cut off, a whole unit above. Two of equal
    # precision must be equal.
    if unit[0] == unit[1]:
        return one == two

    return abs(one - two) <= max(unit)


def printable(value: str, objects: int) -> bool:
    """Return whether some k / objects is printed so, in percent, rounded or cut off at its last
    digit.
    """
    unit = Decimal(1).scaleb(-places(value))
    printed = Decimal(value)
    k = math.ceil((printed - unit / 2) * objects / 100)

    return 0 <= printed <= 100 and Decimal(100 * k) / objects < printed + unit


def _values(lines: Sequence[tuple[int, Line]]) -> Iterator[Fault]:
    for number, line in lines:
        objects = NUM_TEST.get((line["dataset"], line["split"]))
        if line["metric"] == "OA" and objects and not printable(line["value"], objects):
            near = round(float(line["value"]) * objects / 100)
            shares = ", ".join(
                f"{k}/{objects} = {100 * k / objects:.3f}"
                for k in (near - 1, near, near + 1)
                if 0 <= k <= objects
            )

            yield Fault(
                "value",
                f"{_named(number, line)}: no share of {objects} objects is printed {line['value']}"
                f" ({shares})",
                (number,),
            )


def _agreement(lines: Sequence[tuple[int, Line]]) -> Iterator[Fault]:
    """Lines of one setting that print different values, or different parameter counts."""
    groups: dict[tuple[str, ...], list[tuple[int, Line]]] = {}
    for number, line in lines:
        groups.setdefault(same_setting(line), []).append((number, line))

    for group in groups.values():
        yield from _clash(group, "value", "same setting", "value")
        yield from _clash(group, "params_m", "same model", "number of parameters")


def _clash(
    group: Sequence[tuple[int, Line]], key: str, kind: str, what: str
) -> Iterator[Fault]:
    first: dict[str, tuple[int, Line]] = {}
    for number, line in group:
        if line[key]:
            first.setdefault(line[key], (number, line))

    if any(not agree(one, other) for one, other in itertools.combinations(first, 2)):
        shown = "; ".join(
            f"{_named(number, line)} {line[key]}{'M' * (key == 'params_m')}"
            for number, line in first.values()
        )
        yield Fault(
            kind,
            f"one setting, another {what}: {shown}",
            tuple(number for number, _ in first.values()),
        )


def _twins(lines: Sequence[tuple[int, Line]]) -> Iterator[Fault]:
    """Rows of one paper whose settings differ and whose numbers are the same on every backbone they
    share: one model, printed twice.
    """
    rows: dict[tuple[str, str, str], dict[tuple[str, ...], tuple[int, Line]]] = {}
    for number, line in lines:
        if setting(line).get("method") != COMPARISON:
            row = line["paper"], line["table"], line["row"]
            cell = tuple(
                line[key] for key in ("backbone", "dataset", "split", "metric")
            )
            rows.setdefault(row, {})[cell] = (number, line)

    for (one_row, one), (other_row, other) in itertools.combinations(rows.items(), 2):
        same_paper = one_row[0] == other_row[0]
        pairs = [(one[cell], other[cell]) for cell in one if cell in other]
        if not same_paper or len(pairs) < 2:
            continue
        if not all(_twin(first, second) for (_, first), (_, second) in pairs):
            continue

        values = ", ".join(line["value"] for (_, line), _ in pairs)
        numbers = [number for pair in pairs for number, _ in pair]
        (first_number, first), (second_number, second) = pairs[0]
        text = (
            f"{_named(first_number, first)} and {_named(second_number, second)}: other settings,"
            f" the same values ({values}) and size"
        )

        yield Fault("other setting", text, tuple(numbers))


def _twin(one: Line, other: Line) -> bool:
    return (
        same_setting(one) != same_setting(other)
        and one["value"] == other["value"]
        and _same_count(one, other)
    )


def _same_count(one: Line, other: Line) -> bool:
    return (
        not one["params_m"]
        or not other["params_m"]
        or agree(one["params_m"], other["params_m"])
    )


GAIN = re.compile(r"gain=([+-]?\d+(?:\.\d+)?) over ([^;(]+)")


def _gains(lines: Sequence[tuple[int, Line]]) -> Iterator[Fault]:
    """Gains that are no differences of the values they name: off by more than the rounding of all
    three.
    """
    for number, line in lines:
        for gain, over in GAIN.findall(line["note"]):
            row = over.strip()
            compared = _line_of_row(lines, line, row)
            if compared is None:
                text = f"{_named(number, line)}: a gain over {row!r}, which has no line"
                yield Fault("gain", text, (number,))
                continue

            other_number, other = compared
            printed = (gain, line["value"], other["value"])
            difference = Decimal(line["value"]) - Decimal(other["value"])
            tolerance = Decimal(0)

            # Values of one precision are subtracted as printed, so there the gain is exact.
            if len(set(map(places, printed))) > 1:
                for text in printed:
                    tolerance += Decimal(1).scaleb(-places(text)) / 2

            if abs(difference - Decimal(gain)) > tolerance:
                text = (
                    f"{_named(number, line)}: gain {gain} over {row}, but {line['value']}"
                    f" - {other['value']} = {difference:+}"
                )
                yield Fault("gain", text, (number, other_number))


def _line_of_row(
    lines: Sequence[tuple[int, Line]], line: Line, row: str
) -> tuple[int, Line] | None:
    """Return the line of another row of the same cell: if possible of the same backbone, and of the
    same table.
    """
    cell = {key: line[key] for key in ("paper", "dataset", "split", "metric")}
    cell["row"] = row
    candidates = [item for item in lines if cell.items() <= item[1].items()]

    for key in ("backbone", "table"):
        same = [item for item in candidates if item[1][key] == line[key]]
        candidates = same or candidates

    return candidates[0] if candidates else None


def _counts(
    lines: Sequence[tuple[int, Line]], counts: Mapping[int, Sequence[int]]
) -> Iterator[Fault]:
    """Printed counts that are neither that of the built model without its head nor with it."""
    for number, line in lines:
        if (
            number in counts
            and line["params_m"]
            and not any(_counts_as(line["params_m"], count) for count in counts[number])
        ):
            shown = " or ".join(f"{count:,}" for count in counts[number])
            yield Fault(
                "count",
                f"{_named(number, line)}: {line['params_m']}M printed, the built model trains"
                f" {shown}",
                (number,),
            )


def _counts_as(printed: str, count: int) -> bool:
    unit = Decimal(1).scaleb(-places(printed))
    # rounded or cut off
    return -unit / 2 <= Decimal(count) / 1_000_000 - Decimal(printed) < unit


def counts_of(lines: Sequence[Line], table: str) -> dict[int, list[int]]:
    """The counts of a table that this package wrote as JSON (table.json), by the number of the
    published line they belong to.
    """
    counts: dict[int, list[int]] = {}
    for cell in json.loads(table)["cells"]:
        published, built = cell["published"], cell["parameters"]
        if not published or not built:
            continue

        for number, line in enumerate(lines, start=2):
            same = f"{line['paper']}, {line['table']}" == published["source"]
            if (
                same
                and _number(line["value"]) == published["value"]
                and _number(line["params_m"]) == published["params_m"]
            ):
                counts[number] = [built["trainable_without_head"], built["trainable"]]

    return counts


def _number(text: str) -> float | None:
    return float(text) if text else None


def _named(number: int, line: Line) -> str:
    return (
        f"line {number} ({line['paper']}, {line['table']}, {line['row']}, {line['backbone']},"
        f" {line['split']})"
    )
