"""The axes of a table: rows, columns and further axes, each a list of labelled settings.

An axis is written as a list of mappings (each with a label), as one key with its values
({method.rank: [4, 8]}), or as several keys that vary together ({zip: {label: [...], backbone:
[...], method.bottleneck: [...]}}); ablation.py generates others.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pointsweep.config import scalars
from pointsweep.errors import Problem, unknown
from pointsweep.sweep import conditions
from pointsweep.sweep.overlay import Location, Settings, rank, set_twice
from pointsweep.sweep.yaml_document import Document

DIGITS = 12  # numbers of one axis that are equal when written with so many were meant to be one
# What a row or column may say beside its settings.
OWN_KEYS = ("label", "when", "published", "factors", "because")
LABEL_HINT = (
    "rows with a label each, or a zip with label:, give equal names of their own"
)


@dataclass(frozen=True)
class Entry:
    """One row or column: what it sets, for which cells (`when`), what the paper calls it
    (`published`), and of one that cannot be run why (`because`).
    """

    label: str
    settings: Mapping[str, Any]
    document: Document
    path: tuple[Any, ...]
    when: Mapping[str, Any] | None = None
    published: Any = None
    factors: Mapping[str, bool] | None = (
        None  # of a factorial: which components the row has
    )
    # settings that stand elsewhere than at `path`
    within: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    because: str | None = None

    def location(self, key: str) -> Location:
        """Return where a key of the settings stands."""
        return location_of(self.document, self.within.get(key, self.path), key)


@dataclass(frozen=True)
class Axis:
    """A header and its entries.

    The header is the key that varies; of several that vary together "label" where entries have
    labels of their own, else all of the keys, as their values make the label.
    """

    header: str
    entries: tuple[Entry, ...]


def location_of(document: Document, path: tuple[Any, ...], key: str) -> Location:
    """Return where `key` of the mapping at `path` stands; in a zip or a list of values, the value's
    own place.
    """
    parent = path[-2] if len(path) > 1 else None
    if parent == "zip":
        inner = (*path[:-1], key, path[-1])
    elif parent == key and isinstance(path[-1], int):
        inner = path
    else:
        inner = (*path, key)

    shown = f"{document.shown}{document.where(*inner)}"
    return Location(shown, document.line(inner))


def read_axis(document: Document, path: tuple[Any, ...], value: Any) -> Axis:
    """One axis. What is wrong with it is added to the document's problems."""
    if isinstance(value, list):
        entries = []
        for i, item in enumerate(value):
            entry = _entry(document, (*path, i), item)
            if entry is not None:
                entries.append(entry)

        axis = Axis("", tuple(entries))
        refuse_twins(document, path, [entry.label for entry in entries])
        refuse_close(document, path, axis.entries)
    elif isinstance(value, Mapping) and len(value) == 1:
        key, values = next(iter(value.items()))
        axis = read_key(document, path, key, values)
    else:
        complain(
            document,
            path,
            "must be a list of labelled settings, {key: [values]}, {zip: {key: [values], ...}} or"
            " {ablate: ...}",
        )
        return Axis("", ())

    if not axis.entries:
        complain(document, path, "has no entries")

    return axis


def refuse_twins(
    document: Document, path: tuple[Any, ...], labels: Sequence[str]
) -> None:
    """Refuse two rows of one label, which could not be told apart."""
    occurrences = Counter(labels)
    for label in sorted(occurrences):
        if occurrences[label] > 1:
            complain(document, path, f"the label {label!r} stands twice")


def refuse_equal(
    document: Document,
    path: tuple[Any, ...],
    entries: Sequence[Entry],
    labelled: bool = False,
) -> None:
    """Complain of entries that could not be told apart, by their labels or, however they are
    written, by their values.
    """
    labels: set[str] = set()
    owners: dict[Any, Entry] = {}
    refuse_close(document, path, entries)

    for entry in entries:
        first = owners.setdefault(comparable(entry.settings), entry)
        is_repeated = first is not entry
        if entry.label in labels:
            text = f"the label {entry.label!r} stands twice"
            if not labelled and not is_repeated:
                text += f"; {LABEL_HINT}"

            complain(document, path, text)
        elif is_repeated:
            text = f"{first.label} and {entry.label} are the same value"
            complain(document, path, text)

        labels.add(entry.label)


def refuse_close(
    document: Document, path: tuple[Any, ...], entries: Sequence[Entry]
) -> None:
    """Complain of entries that differ in nothing but the last digits of a number: of 0.3 and
    0.30000000000000004.
    """
    owners: dict[Any, Entry] = {}
    for entry in entries:
        first = owners.setdefault(comparable(entry.settings, DIGITS), entry)
        key = _differing_key(first, entry)
        if key is None:
            continue

        location, other_location = first.location(key), entry.location(key)
        line = f" (line {location.line})" if location.line else ""
        one = scalars.spelled(first.settings[key])
        other = scalars.spelled(entry.settings[key])
        text = f"{other} is the {one} of {location.path}{line} but for rounding: write both alike"
        document.problems.append(
            Problem(other_location.path, text, other_location.line)
        )


def _differing_key(first: Entry, second: Entry) -> str | None:
    """Return the first key of which two entries of the same keys have different values; None if
    there is none.
    """
    for key, value in second.settings.items():
        if comparable(first.settings[key]) != comparable(value):
            return key

    return None


def comparable(value: Any, digits: int | None = None) -> Any:
    """Return what is equal for equal values: 1, 1.0 and true are, and so are 0.0 and -0.0.

    With `digits`, floats that are equal when written with so many digits are equal too.
    """
    if isinstance(value, Mapping):
        items = [(str(key), comparable(item, digits)) for key, item in value.items()]
        return tuple(sorted(items))

    if isinstance(value, (list, tuple)):
        return ("list", *(comparable(item, digits) for item in value))
    if isinstance(value, float) and digits is not None:
        return float(f"{value:.{digits}g}")
    if isinstance(value, (bool, int, float)):
        return value

    return f"text {scalars.spelled(value)}"


def read_key(document: Document, path: tuple[Any, ...], key: str, values: Any) -> Axis:
    """The axis of one key and its values, or of a zip."""
    if key == "zip":
        return _read_zip(document, (*path, "zip"), values)

    if not isinstance(values, list):
        complain(document, (*path, key), f"must be a list of values, got {values!r}")
        return Axis(str(key), ())

    if not known(document, (*path, key), key):
        return Axis(str(key), ())

    entries = []
    for i, value in enumerate(values):
        entries.append(Entry(_label(value), {key: value}, document, (*path, key, i)))

    refuse_equal(document, (*path, key), entries)
    return Axis(key.rpartition(".")[2], tuple(entries))


def _read_zip(document: Document, path: tuple[Any, ...], values: Any) -> Axis:
    lists = values if isinstance(values, Mapping) else {}
    lengths = {}
    for key, item in lists.items():
        if isinstance(item, list):
            lengths[key] = len(item)

    is_rectangular = len(lengths) == len(lists) and len(set(lengths.values())) == 1
    if not is_rectangular:
        complain(
            document, path, f"needs lists of one length, got {lengths or values!r}"
        )
        return Axis("", ())

    if "because" in lists:
        complain(
            document, (*path, "because"), "stands in rows that are written out alone"
        )

    settings = [key for key in lists if key not in OWN_KEYS]
    unknown_keys = [key for key in settings if not known(document, (*path, key), key)]
    if unknown_keys:
        return Axis("", ())

    (num_entries,) = set(lengths.values())
    if num_entries:
        first_values = {key: lists[key][0] for key in settings}
        refuse_set_twice(document, path, first_values)

    entries = [_zip_entry(document, path, lists, i) for i in range(num_entries)]

    if "published" in lists or "when" in lists:
        refuse_twins(document, path, [entry.label for entry in entries])
        refuse_close(document, path, entries)
    else:
        refuse_equal(document, path, entries, labelled="label" in lists)

    header = ", ".join(key.rpartition(".")[2] for key in settings)
    if "label" in lists and len(settings) > 1:
        header = "label"

    return Axis(header, tuple(entries))


def _zip_entry(
    document: Document,
    path: tuple[Any, ...],
    lists: Mapping[str, Sequence[Any]],
    i: int,
) -> Entry:
    """Return the entry that the i-th items of a zip's lists make."""
    items = {key: values[i] for key, values in lists.items()}
    settings = {key: item for key, item in items.items() if key not in OWN_KEYS}

    if "label" in items:
        label = read_label(document, (*path, "label", i), items["label"])
    else:
        label = ", ".join(map(_label, settings.values()))

    factors = _factors(document, path, items)
    when = read_when(document, (*path, "when", i), items.get("when"))

    return Entry(
        label=label,
        settings=settings,
        document=document,
        path=(*path, i),
        when=when,
        published=items.get("published"),
        factors=factors,
    )


def _entry(document: Document, path: tuple[Any, ...], item: Any) -> Entry | None:
    if not isinstance(item, Mapping) or "label" not in item:
        complain(document, path, "must be a mapping with a label")
        return None

    label = read_label(document, (*path, "label"), item["label"])
    settings = {key: value for key, value in item.items() if key not in OWN_KEYS}
    when = read_when(document, (*path, "when"), item.get("when"))
    unknown_keys = [key for key in settings if not known(document, (*path, key), key)]

    if unknown_keys:
        return None

    refuse_set_twice(document, path, settings)
    because = item.get("because")
    if because is not None:
        because = document.text_of((*path, "because"), because)
        if settings:
            listed = ", ".join(settings)
            text = (
                f"has because: and is not run, so it sets nothing; leave out {listed}"
            )
            complain(document, path, text)

    return Entry(
        label=label,
        settings=settings,
        document=document,
        path=path,
        when=when,
        published=item.get("published"),
        factors=_factors(document, path, item),
        because=because,
    )


def read_label(document: Document, path: tuple[Any, ...], value: Any) -> str:
    """Return a label as the file writes it: 2026-01-01, 0x1F. What is no text or number is a
    problem of the document.
    """
    if value is None:
        complain(
            document,
            path,
            "a label is a text, found null; put it in quotes if it is meant",
        )
    elif isinstance(value, (Mapping, list)):
        kind = "a mapping" if isinstance(value, Mapping) else "a list"
        complain(document, path, f"a label is a text, found {kind}: {value!r}")
    elif value == "":
        complain(document, path, "a label is a text, found an empty one")

    return document.text_of(path, value)


def lay_entries(settings: Settings, entries: Iterable[Entry]) -> None:
    """Lay the entries of a cell over settings: components that any of them names first, then the
    fields.
    """
    ranked = []
    for entry in entries:
        for key, value in entry.settings.items():
            ranked.append((rank(key, value), key, value, entry))

    ranked.sort(key=operator.itemgetter(0))  # stable: within a rank as they are listed
    for _, key, value, entry in ranked:
        settings.set(key, value, entry.location(key))


def read_when(
    document: Document, path: tuple[Any, ...], when: Any
) -> Mapping[str, Any] | None:
    """Return a condition; None where there is none. One that can never hold is a problem of the
    document's.
    """
    if when is None:
        return None

    if not isinstance(when, Mapping):
        complain(document, path, f"must be a mapping of keys to values, got {when!r}")
        return None

    for key, message in conditions.problems(when):
        complain(document, (*path, key) if key else path, message)

    return when


def refuse_set_twice(
    document: Document, path: tuple[Any, ...], settings: Mapping[str, Any]
) -> None:
    """Complain of every key that one mapping of settings sets twice."""
    for leaf, first, second in set_twice(settings):
        location = location_of(document, path, first)
        line = f" (line {location.line})" if location.line else ""
        complain(
            document,
            (*path, second),
            f"sets {leaf}, which {first}{line} beside it sets too",
        )


def factors_of(
    rows: Sequence[Sequence[Entry]],
) -> tuple[Mapping[str, bool] | None, ...]:
    """The components of every row of the table, of all its axes together; empty where no row names
    any.
    """
    merged: list[dict[str, bool]] = []
    for row in rows:
        factors: dict[str, bool] = {}
        for entry in row:
            factors.update(entry.factors or {})

        merged.append(factors)

    if any(merged):
        return tuple(factors or None for factors in merged)

    return ()


def _factors(
    document: Document, path: tuple[Any, ...], item: Mapping[str, Any]
) -> Mapping[str, bool] | None:
    factors = item.get("factors")
    if factors is None:
        return None

    is_mapping = isinstance(factors, Mapping) and len(factors) > 0
    if not is_mapping or not all(isinstance(v, bool) for v in factors.values()):
        complain(
            document,
            (*path, "factors"),
            f"must be a mapping of components to true or false, got {factors!r}",
        )
        return None

    return {str(name): present for name, present in factors.items()}


def known(document: Document, path: tuple[Any, ...], key: str) -> bool:
    """Return whether a settings key begins with a part of a trial."""
    part = str(key).partition(".")[0]
    if part in conditions.PARTS_OF_A_TRIAL:
        return True

    allowed = [*conditions.PARTS_OF_A_TRIAL, *OWN_KEYS]
    complain(document, path, unknown("key", part, allowed, "Allowed"))
    return False


def _label(value: Any) -> str:
    if not isinstance(value, Mapping):
        return scalars.spelled(value)
    if "name" in value:
        return str(value["name"])

    return ", ".join(f"{key}={item}" for key, item in value.items())


def complain(document: Document, path: tuple[Any, ...], message: str) -> None:
    """Add what is wrong at a path to the document's problems."""
    document.problems.append(
        Problem(document.where(*path), message, document.line(path))
    )
