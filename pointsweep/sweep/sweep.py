"""Sweep file + overrides -> Sweep: every cell of the table with its trials, checked.

docs/sweeps.md describes the language. All problems of a file are found before any is reported.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from pointsweep.config.plugins import Source
from pointsweep.config.schema import TrialConfig
from pointsweep.errors import ConfigError, Problem, unknown
from pointsweep.results.records import Adaptive, CellLayout, Layout
from pointsweep.sweep import overrides, profiles
from pointsweep.sweep.parser import Cell, ReadableCell, Reader
from pointsweep.sweep.resources import Resources
from pointsweep.sweep.search_space import Search
from pointsweep.sweep.yaml_document import Document, family, found_file, is_shipped


@dataclass(frozen=True)
class Trial:
    """A trial of the sweep and the first cell that it fills."""

    cell: Cell
    config: TrialConfig


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file."""

    name: str
    title: str
    source: str
    text: str
    row_headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    metric: str
    protocol: str
    resources: Resources
    notes: tuple[str, ...]
    # one a row, where any row names its components
    factors: tuple[Mapping[str, bool] | None, ...] = ()
    adaptive: Adaptive | None = None  # then a cell's trials are those of the most seeds
    search: Search | None = (
        None  # then cells have an arm to be tuned in place of trials
    )
    remarks: tuple[str, ...] = ()  # for the plan and the launch
    # settings that are used in a part of the cells, or nowhere: for the plan
    dropped: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()  # those that make it the table it is
    full_sweep: Sweep | None = None  # of a part of a file's table, that table
    plugins: tuple[Source, ...] = ()  # the code of others that it was read with

    @property
    def stored(self) -> Sweep:
        """The sweep whose table is kept under this name: itself, or the one that it is a part
        of.
        """
        return self.full_sweep or self

    def trials(self) -> list[Trial]:
        """All distinct trials, in the order of the table."""
        by_key: dict[str, Trial] = {}
        for cell in self.cells:
            for config in cell.trials:
                by_key.setdefault(config.key(), Trial(cell, config))

        return list(by_key.values())

    def probe(self) -> Sweep:
        """Return, of a search, the sweep of some points of every arm, to see what they need and
        whether they can be built; else itself.
        """
        if self.search is None:
            return self

        cells = []
        for cell in self.cells:
            # A dict in place of a set keeps the order of the probes.
            configs: dict[TrialConfig, None] = {}
            if cell.arm is not None:
                for drawn in cell.arm.probes(0):
                    config = cell.arm.config(drawn)
                    if config is not None:
                        configs[config] = None

            cells.append(replace(cell, trials=tuple(configs)))

        return replace(self, cells=tuple(cells), search=None)

    def searched(self) -> str:
        """Return a search in one line: "search of 20 trials by tpe for each of 4 arms"."""
        assert self.search is not None
        budget = f"{self.search.trials} trials"

        if self.search.hours is not None:
            budget = f"at most {budget} and {self.search.hours:g} hours of training"

        description = f"search of {budget} by {self.search.sampler}"
        if self.search.then_seeds is not None:
            num_arms = sum(cell.arm is not None for cell in self.cells)
            num_seeds = self.search.then_seeds
            description += f" for each of {num_arms} arms, then {num_seeds} fresh seeds"

        return description

    def layout(self) -> Layout:
        """Return what a table needs to know."""
        cells = []
        for cell in self.cells:
            keys = tuple((config.seed, config.key()) for config in cell.trials)
            cells.append(
                CellLayout(
                    cell.row,
                    cell.column,
                    keys,
                    published=cell.published,
                    excluded=cell.excluded,
                )
            )

        notes = list(self.notes)
        for names in self.identical_cells():
            notes.append(f"the same trials: {names}")

        return Layout(
            name=self.name,
            title=self.title,
            row_headers=self.row_headers,
            rows=self.rows,
            columns=self.columns,
            cells=tuple(cells),
            metric=self.metric,
            protocol=self.protocol,
            notes=tuple(notes),
            factors=self.factors,
            adaptive=self.adaptive,
            per_hour=self.resources.budget.per_hour,
        )

    def row_column_seed(self, trial: Trial) -> tuple[str, str, int]:
        """Return the names of a trial's row and column, and its seed."""
        return (
            " / ".join(self.rows[trial.cell.row]),
            self.columns[trial.cell.column],
            trial.config.seed,
        )

    def cell_name(self, cell: Cell) -> str:
        """Return its row and column, as messages name it."""
        return f"{' / '.join(self.rows[cell.row])} / {self.columns[cell.column]}"

    def identical_cells(self) -> list[str]:
        """Return a line for each group of cells that hold the same trials: "plus / all, int /
        all".
        """
        groups: dict[tuple[str, ...], list[str]] = {}
        for cell in self.cells:
            keys = tuple(config.key() for config in cell.trials)
            if keys:
                groups.setdefault(keys, []).append(self.cell_name(cell))

        return [", ".join(names) for names in groups.values() if len(names) > 1]

    def resolved(self) -> str:
        """Every cell's configuration as it will run, as YAML; the seeds stand beside it."""
        documents = []
        for cell in self.cells:
            head = f"# {self.cell_name(cell)}"
            if not cell.trials:
                documents.append(f"{head}: not run: {cell.excluded or 'searched'}\n")
                continue

            settings = {}
            for name, value in cell.trials[0].to_dict().items():
                if value is not None and name != "seed":
                    settings[name] = value

            seeds = [config.seed for config in cell.trials]
            text = yaml.safe_dump(settings, sort_keys=False)
            documents.append(f"{head}, seeds {seeds}\n{text}")

        return "---\n".join(documents)


def load(
    file: str | Path,
    override: Sequence[str] = (),
    only: Sequence[str] = (),
    allow_plugins: bool = False,
) -> Sweep:
    """Read, compose and check a sweep file. Raises ConfigError with everything that is wrong.

    What is asked for may be a part of the file's table: then it has the file's name, and
    `full_sweep` is that table. `allow_plugins`: the Python code that the file names may be
    imported, whatever the user's environment says.
    """
    file = found_file(str(file))
    selected, profile_only = _read(file, override, allow_plugins)
    full_sweep = selected
    seeds = [text for text in override if overrides.changes_seeds(text)]

    if seeds and selected.search is None:
        full_sweep = _without_seeds(file, override, allow_plugins) or selected

    if profile_only:  # a part that the profile keeps is the profile's table
        full_sweep = _select(full_sweep, profile_only, str(file))

    if only or profile_only:
        selected = _select(selected, only or profile_only, str(file))

    if selected is full_sweep and not seeds:
        return selected

    if selected.search is None and _is_part(selected, full_sweep):
        if selected.layout() == full_sweep.layout():
            return selected
        return replace(
            selected,
            name=full_sweep.name,
            overrides=full_sweep.overrides,
            full_sweep=full_sweep,
        )

    further = [f"only={pattern}" for pattern in only] + seeds
    if overrides.names_the_sweep(override) or not further:
        return selected

    return replace(
        selected,
        name=overrides.view_name(selected.name, further),
        overrides=(*selected.overrides, *further),
    )


def _read(
    file: str | Path, override: Sequence[str], allow_plugins: bool
) -> tuple[Sweep, list[str]]:
    """The sweep of a file with overrides, and the part of it that its profile keeps, as patterns of
    --only.
    """
    documents = family(Path(file))
    reader = Reader(documents, str(file))
    _override(reader, override)
    reader.import_plugins(allow_plugins)
    parts = reader.parts()

    if reader.problems:
        raise ConfigError(str(file), list(dict.fromkeys(reader.problems)))

    parts["remarks"] = (*_inherited(documents), *parts["remarks"])
    changing = [text for text in override if overrides.changes_the_table(text)]
    if not overrides.names_the_sweep(override):
        parts["name"] = overrides.view_name(parts["name"], changing)

    sweep = Sweep(
        source=str(file), text=documents[-1].text, overrides=tuple(changing), **parts
    )
    return sweep, profiles.only(reader.profile, documents)


def _inherited(documents: Sequence[Document]) -> list[str]:
    """Return a line for the sweep of the package's that a file of somebody else's inherits from, if
    there is one.
    """
    shipped = [document.source for document in documents if is_shipped(document.source)]
    if not shipped or is_shipped(documents[-1].source):
        return []

    return [f"it inherits from {shipped[-1]}, which comes with pointsweep"]


def _without_seeds(
    file: str | Path, override: Sequence[str], allow_plugins: bool
) -> Sweep | None:
    """The table that the file's own seeds fill; None if these are wrong."""
    others = [text for text in override if not overrides.changes_seeds(text)]
    try:
        sweep, _ = _read(file, others, allow_plugins)
    except ConfigError:
        return None

    return sweep


def _is_part(part: Sweep, full_sweep: Sweep) -> bool:
    """Return whether all trials of a sweep belong to the same cells of another, printed alike."""
    for name in ("metric", "protocol", "title"):
        if getattr(part, name) != getattr(full_sweep, name):
            return False

    keys_of: dict[str, set[str]] = {}
    for cell in full_sweep.cells:
        keys_of[full_sweep.cell_name(cell)] = {config.key() for config in cell.trials}

    for cell in part.cells:
        keys = {config.key() for config in cell.trials}
        if not keys <= keys_of.get(part.cell_name(cell), set()):
            return False

    return True


def readable_cells(
    file: str | Path, override: Sequence[str] = (), allow_plugins: bool = False
) -> list[ReadableCell]:
    """Return what of a file with problems can be looked at all the same; nothing of one that is no
    YAML.
    """
    try:
        file = found_file(str(file))
        reader = Reader(family(Path(file)), str(file))
        _override(reader, override)
        reader.import_plugins(allow_plugins)
        reader.parts()
    except ConfigError:
        return []

    return reader.readable


def _override(reader: Reader, texts: Sequence[str]) -> None:
    """Apply overrides; what is none is a problem of the reader's."""
    parsed = []
    for text in texts:
        try:
            override = overrides.parse(text)
        except ValueError as error:
            reader.own.append(Problem(text, str(error)))
            continue

        parsed.append((text, override))

    for _, override in parsed:
        if override.key == "profile":
            reader.choose_profile(str(override.value))

    for text, override in parsed:
        reader.override(text, override.key, override.delete, override.value)
        reader.notes.append(f"override {text}")


def _select(sweep: Sweep, only: Sequence[str], source: str) -> Sweep:
    """The part of a sweep that --only names; patterns of one kind add up, kinds narrow one
    another.
    """
    seeds: set[str] = set()
    for cell in sweep.cells:
        seeds.update(str(config.seed) for config in cell.trials)

    row_labels = [" / ".join(row) for row in sweep.rows]
    labels = {"row": row_labels, "column": sweep.columns, "seed": sorted(seeds)}
    selected = _selected_labels(labels, only, source)

    # the number of every row and column that stays -> the one that it gets
    rows = _renumbered(row_labels, selected["row"])
    columns = _renumbered(sweep.columns, selected["column"])
    cells = []

    for cell in sweep.cells:
        if cell.row not in rows or cell.column not in columns:
            continue

        trials = []
        for config in cell.trials:
            if str(config.seed) in selected["seed"]:
                trials.append(config)

        row, column = rows[cell.row], columns[cell.column]
        cells.append(replace(cell, row=row, column=column, trials=tuple(trials)))

    adaptive = sweep.adaptive
    if any(_kind_of(pattern, row_labels)[0] == "seed" for pattern in only):
        adaptive = None

    if adaptive is not None:
        if adaptive.against not in rows:
            text = (
                f"leaves out {row_labels[adaptive.against]}, with which adaptive seeds compare"
                " every row"
            )
            raise ConfigError(
                source, [Problem(f"--only {' --only '.join(only)}", text)]
            )

        adaptive = replace(adaptive, against=rows[adaptive.against])

    factors = sweep.factors
    if factors:
        factors = tuple(factors[i] for i in rows)

    return replace(
        sweep,
        rows=tuple(sweep.rows[i] for i in rows),
        columns=tuple(sweep.columns[j] for j in columns),
        cells=tuple(cells),
        notes=(*sweep.notes, f"only {', '.join(only)}"),
        factors=factors,
        adaptive=adaptive,
    )


def _renumbered(labels: Sequence[str], selected: set[str]) -> dict[int, int]:
    """Return the new number of every selected label by its old one, in order."""
    numbers: dict[int, int] = {}
    for number, label in enumerate(labels):
        if label in selected:
            numbers[number] = len(numbers)

    return numbers


def _selected_labels(
    labels: Mapping[str, Sequence[str]], only: Sequence[str], source: str
) -> dict[str, set[str]]:
    """Return by kind (row, column, seed) the labels that the patterns leave: all of a kind that no
    pattern is about. Raises ConfigError for patterns that match nothing.
    """
    matches: dict[str, set[str]] = {}
    problems = []

    for pattern in only:
        kind, value = _kind_of(pattern, labels["row"])
        matched = _named(labels[kind], value)
        matches.setdefault(kind, set()).update(matched)

        if not matched:
            text = unknown(kind, value, labels[kind], "Known")
            others = []
            for other_kind, other_labels in labels.items():
                if _named(other_labels, value):
                    others.append(f"{other_kind}={value}")

            if others:
                text += f". It is {' and '.join(others)}"

            problems.append(Problem(f"--only {pattern}", text))

    if problems:
        raise ConfigError(source, problems)

    return {kind: matches.get(kind, set(names)) for kind, names in labels.items()}


def _kind_of(pattern: str, rows: Sequence[str]) -> tuple[str, str]:
    """Return what a pattern of --only is about, and the pattern itself; a row's whole label always
    names that row.
    """
    kind, separator, value = pattern.partition("=")
    if pattern not in rows and separator and kind in ("row", "column", "seed"):
        return kind, value

    return "row", pattern


def _named(names: Sequence[str], pattern: str) -> list[str]:
    """Return the names that a pattern names: the one that it equals, whatever signs are in it, else
    all that it matches.
    """
    if pattern in names:
        return [pattern]

    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]
