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
Fields = tuple[str, ...]  # some of a line
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

    usual = USUAL.get(given.get("method", ""), {})
    full = {"voting": "false", "aug": "default", **usual, **given}
    if full.get("guided_adapter") == "false":  # what is inside the adapter is not there
        full.pop("local_aggregation", None)
        full.pop("ensemble", None)

    return full


def same_setting(line: Line) -> tuple[str, ...]:
    """Return what two lines share that must print the same number. Papers that call a method by its
    name mean it as they set it up.
    """
    settings = setting(line)
    name = line["row"] if settings.get("method") in (COMPARISON, None) else ""
    shared = [name, line["backbone"], line["dataset"], line["split"], line["metric"]]

    for key in sorted(settings):
        shared.append(f"{key}={settings[key]}")

    return tuple(shared)


def check(
    lines: Sequence[Line], counts: Mapping[int, Sequence[int]] | None = None
) -> list[Fault]:
    """Every inconsistency. `counts`: by line number, what the built model trains (without the head,
    with it).
    """
    numbered = list(enumerate(lines, start=2))
    faults = [
        *_values(numbered),
        *_agreement(numbered),
        *_twins(numbered),
        *_gains(numbered),
        *_counts(numbered, counts or {}),
    ]

    return sorted(faults, key=lambda fault: (fault.kind, fault.lines))


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
        value = line["value"]
        objects = NUM_TEST.get((line["dataset"], line["split"]))
        if line["metric"] != "OA" or not objects or printable(value, objects):
            continue

        near = round(float(value) * objects / 100)
        shares = []
        for k in (near - 1, near, near + 1):
            if 0 <= k <= objects:
                shares.append(f"{k}/{objects} = {100 * k / objects:.3f}")

        text = (
            f"{_named(number, line)}: no share of {objects} objects is printed {value}"
            f" ({', '.join(shares)})"
        )

        yield Fault("value", text, (number,))


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

    pairs = itertools.combinations(first, 2)
    if all(agree(one, other) for one, other in pairs):
        return

    unit = "M" if key == "params_m" else ""
    numbers, shown = [], []
    for number, line in first.values():
        numbers.append(number)
        shown.append(f"{_named(number, line)} {line[key]}{unit}")

    text = f"one setting, another {what}: {'; '.join(shown)}"
    yield Fault(kind, text, tuple(numbers))


def _twins(lines: Sequence[tuple[int, Line]]) -> Iterator[Fault]:
    """Rows of one paper whose settings differ and whose numbers are the same on every backbone they
    share: one model, printed twice.
    """
    rows: dict[Fields, dict[Fields, tuple[int, Line]]] = {}
    for number, line in lines:
        if setting(line).get("method") == COMPARISON:
            continue

        row = line["paper"], line["table"], line["row"]
        cell: Fields = (
            line["backbone"],
            line["dataset"],
            line["split"],
            line["metric"],
        )

        rows.setdefault(row, {})[cell] = (number, line)

    for (one_row, one), (other_row, other) in itertools.combinations(rows.items(), 2):
        one_paper, other_paper = one_row[0], other_row[0]
        shared_cells = [cell for cell in one if cell in other]
        if one_paper != other_paper or len(shared_cells) < 2:
            continue

        if not all(_are_twins(one[cell][1], other[cell][1]) for cell in shared_cells):
            continue

        numbers: list[int] = []
        values: list[str] = []
        for cell in shared_cells:
            number, line = one[cell]
            other_number, _ = other[cell]
            numbers += (number, other_number)
            values.append(line["value"])

        first = shared_cells[0]
        text = (
            f"{_named(*one[first])} and {_named(*other[first])}: other settings,"
            f" the same values ({', '.join(values)}) and size"
        )

        yield Fault("other setting", text, tuple(numbers))


def _are_twins(one: Line, other: Line) -> bool:
    if same_setting(one) == same_setting(other) or one["value"] != other["value"]:
        return False

    return _same_count(one, other)


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
        printed = line["params_m"]
        if number not in counts or not printed:
            continue
        if any(_counts_as(printed, count) for count in counts[number]):
            continue

        shown = " or ".join(f"{count:,}" for count in counts[number])
        text = f"{_named(number, line)}: {printed}M printed, the built model trains {shown}"
        yield Fault("count", text, (number,))


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

        expected = (published["source"], published["value"], published["params_m"])
        for number, line in enumerate(lines, start=2):
            source = f"{line['paper']}, {line['table']}"
            value, params_m = _number(line["value"]), _number(line["params_m"])
            if (source, value, params_m) == expected:
                counts[number] = [built["trainable_without_head"], built["trainable"]]

    return counts


def _number(text: str) -> float | None:
    return float(text) if text else None


def _named(number: int, line: Line) -> str:
    return (
        f"line {number} ({line['paper']}, {line['table']}, {line['row']}, {line['backbone']},"
        f" {line['split']})"
    )
