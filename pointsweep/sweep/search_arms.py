"""The arms that a search tunes: a cell's settings with the space on top, looked at before anything
is launched.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pointsweep.config import scalars
from pointsweep.config.schema import TrialConfig
from pointsweep.errors import Problem, unknown
from pointsweep.sweep.axes import Entry
from pointsweep.sweep.overlay import Settings
from pointsweep.sweep.search_space import Arm, Search

if TYPE_CHECKING:
    from pointsweep.sweep.parser import Reader

Path = tuple[Any, ...]
MOST_POINTS = 100_000  # of a grid
PROBES = 24  # random points at which a value must give a valid trial at least once


def make_arm(
    reader: Reader,
    search: Search,
    base: Settings,
    entries: Sequence[Entry],
    seeds: Sequence[int],
) -> Arm:
    """The arm of a cell: its settings with the space on top. Problems of the arm go to the
    reader.
    """
    path: Path = ("per_arm", "search") if search.then_seeds else ("search",)
    parameters = {parameter.key: parameter for parameter in search.space}

    def settings_of(drawn: Mapping[str, Any]) -> Settings:
        values = {key: parameters[key].value(item) for key, item in drawn.items()}
        suggested = Entry("", values, reader.document, (*path, "space"))
        return reader.settings([*entries, suggested], base)

    arm = Arm(
        parameters=search.space,
        constraints=search.constraints,
        enqueue=(),
        seeds=tuple(seeds),
        settings_of=settings_of,
        compose=reader.compose,
    )

    reader.own += dict.fromkeys(_problems(arm, search, reader, path, entries))
    points = list(_points(arm, search, reader, path))

    if search.sampler == "grid" and not reader.problems:
        points += itertools.islice(arm.points(), search.trials)

    return dataclasses.replace(arm, enqueue=tuple(points))


def _problems(
    arm: Arm, search: Search, reader: Reader, path: Path, entries: Sequence[Entry]
) -> Iterator[Problem]:
    """A value that gives no valid trial whatever the others are, no validation split, nothing to
    choose.
    """
    line = reader.document.line
    if not arm.parameters:
        return

    seen: dict[tuple[str, Any], list[Problem] | None] = {}
    parameters = {parameter.key: parameter for parameter in arm.parameters}
    extremes = {parameter.key: parameter.ends() for parameter in arm.parameters}
    feasible = applied = False

    for drawn in arm.probes(PROBES):
        settings = arm.settings_of(drawn)
        reader.audit.observe_suggestion(_named(entries, drawn), settings)
        composed = settings.copy()
        config, problems = arm.compose(composed)
        reader.audit.observe_conditional(_named(entries, {}) or "the search", composed)
        is_valid = config is not None and not problems

        if config is not None and not problems:
            values = {key: parameters[key].value(item) for key, item in drawn.items()}
            suggested = Entry("", values, reader.document, (*path, "space"))
            reader.audit.compare([*entries, suggested], settings, config)
            reader.audit.observe_constraints((*path, "constraints"), config)

        applied = applied or bool(drawn)
        feasible = feasible or arm.config(drawn) is not None
        if config is not None:
            message = _validation_problem(config, search)
            if message is not None:
                yield Problem(reader.document.where(*path), message, line(path))
                return

        for key, value in drawn.items():
            is_new = (key, value) not in seen
            if value in extremes[key] and (is_valid or is_new):
                seen[key, value] = None if is_valid else problems

    for problems_of_value in seen.values():
        yield from problems_of_value or ()

    if any(seen.values()):
        return

    name = _named(entries, {}) or "the search"
    if not applied:
        yield Problem(
            reader.document.where(*path, "space"),
            f"the range of {name} is empty: no key applies to it",
            line(path),
        )
    elif not feasible:
        where = reader.document.where(*path, "constraints")
        yield Problem(
            where,
            f"the range of {name} is empty: no point keeps the constraints",
            line((*path, "constraints")),
        )

    if search.then_seeds is None and feasible:
        chosen = {key for key, _ in seen}
        for parameter in arm.parameters:
            if parameter.key in chosen:
                continue

            own = (*path, "space", parameter.key)
            yield Problem(
                reader.document.where(*own),
                "is never chosen: no point meets its condition",
                line((*own, "when")),
            )

    if search.sampler == "grid":
        yield from _grid_problems(arm, reader, (*path, "space"))

    if not reader.profile:  # a profile may set what is chosen
        yield from _twin_problems(arm, reader, (*path, "space"))


def _validation_problem(config: TrialConfig, search: Search) -> str | None:
    """Return what the data set of an arm's trial lacks for a search; None if nothing."""
    if not config.dataset.has_validation:
        return "a search needs a validation split: set dataset.val_fraction above 0"

    if search.then_on == "train_and_val" and not config.dataset.val_fraction:
        return (
            "per_arm.then_on: train_and_val needs dataset.val_fraction; dataset.val is a split of"
            " its own; allowed: train"
        )

    return None


def _grid_problems(arm: Arm, reader: Reader, path: Path) -> Iterator[Problem]:
    total = 1
    for parameter in arm.parameters:
        size = parameter.size()
        own = (*path, parameter.key)
        if size is None:
            yield Problem(
                reader.document.where(*own),
                "a grid needs choices or a step",
                reader.document.line(own),
            )

        total *= size or 1

    if total > MOST_POINTS:
        text = (
            f"a grid of {total} points, at most {MOST_POINTS} are gone through; take larger steps"
            " or sampler: random"
        )
        yield Problem(reader.document.where(*path), text, reader.document.line(path))


def _twin_problems(arm: Arm, reader: Reader, path: Path) -> Iterator[Problem]:
    """Choices that give the same trial, whatever the other values are."""
    points = list(arm.probes(0))
    faulty = {problem.path for problem in reader.problems}

    for parameter in arm.parameters:
        key_path = (*path, parameter.key)
        where = reader.document.where(*key_path)
        start = next((point for point in points if parameter.key in point), None)

        if parameter.kind != "choice" or start is None or where in faulty:
            continue

        first_choice: dict[Any, str] = {}  # by the trial that it gives
        for label in parameter.labels:
            settings = arm.settings_of({**start, parameter.key: label})
            config, problems = arm.compose(settings)
            if config is None or problems:
                continue

            choice = scalars.spelled(label)
            first = first_choice.setdefault(config, choice)
            if first != choice:
                text = f"the choices {first} and {choice} give the same trial"
                yield Problem(where, text, reader.document.line(key_path))


def _named(entries: Sequence[Entry], drawn: Mapping[str, Any]) -> str:
    """An arm by its labels, and a point of it by what was drawn."""
    words = [entry.label for entry in reversed(entries) if entry.label != "all"]
    for key, value in drawn.items():
        words.append(f"{key}={value}")

    return " / ".join(words)


def _points(
    arm: Arm, search: Search, reader: Reader, path: Path
) -> Iterator[dict[str, Any]]:
    """The start points as drawn values."""
    parameters = {parameter.key: parameter for parameter in arm.parameters}
    for index, point in enumerate(search.enqueue):
        where = (*path, "enqueue", index)
        drawn: dict[str, Any] = {}

        for key, value in point.items():
            if key not in parameters:
                text = unknown("key", key, parameters, "In the space")
                reader.complain((*where, key), text)
                continue

            try:
                drawn[key] = parameters[key].drawn(value)
            except ValueError as error:
                reader.complain((*where, key), str(error))

        yield {key: drawn[key] for key in parameters if key in drawn}
