"""The documents of a sweep -> its rows, columns and cells, each cell a checked trial; all problems
collected, each with its line.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pointsweep.config import scalars
from pointsweep.config.plugins import Source, plugin_of
from pointsweep.config.schema import PARTS, TrialConfig, dataset_of_seed, with_seed
from pointsweep.config.validation import KnownParts, check_trial, sound_parts
from pointsweep.errors import ConfigError, Problem, unknown
from pointsweep.results import metrics
from pointsweep.results.metrics import DEFAULT, of_dataset, table_metrics
from pointsweep.results.records import Published
from pointsweep.sweep import conditions, labels, overrides, profiles
from pointsweep.sweep import search_arms as arms
from pointsweep.sweep import search_section as search_file
from pointsweep.sweep.ablation import read_rows
from pointsweep.sweep.axes import (
    Axis,
    Entry,
    complain,
    factors_of,
    lay_entries,
    location_of,
    read_key,
    read_when,
    refuse_set_twice,
)
from pointsweep.sweep.conditions import PARTS_OF_A_TRIAL
from pointsweep.sweep.overlay import Conditional, Location, Settings, keys_of, rank
from pointsweep.sweep.plugin_section import read_plugins
from pointsweep.sweep.published import BUILT_IN, COLUMNS, find, read_file
from pointsweep.sweep.resources import misfits, read_resources
from pointsweep.sweep.search_space import WARMUP, Arm, Search
from pointsweep.sweep.seeds import read_adaptive, read_seeds
from pointsweep.sweep.yaml_document import Document, drop_misshapen

KEYS = (
    "name", "title", "base", "settings", "rows", "columns", "axes", "exclude", "seeds", "metric",
    "protocol", "published", "cite",
    "resources", "profiles", "search", "per_arm", "plugins",
)  # fmt: skip
PROTOCOLS = ("last", "best_val", "best_test")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,80}")  # of a sweep: a folder's name


def imported(source: Source) -> str:
    """Return what is said of a plug-in that was imported."""
    if source.is_installed:
        return f"it imports {source.name}, an installed package"

    return f"it imports {Path(source.folder, source.shown)} (digest {source.digest})"


@dataclass(frozen=True)
class Cell:
    """One cell of the table. `trials` has one config a seed; `excluded` says why there are none;
    `arm` is still to be tuned.
    """

    row: int
    column: int
    trials: tuple[TrialConfig, ...]
    excluded: str | None = None
    published: Published | None = None
    arm: Arm | None = None


@dataclass(frozen=True)
class ReadableCell:
    """Readable parts of a cell, even if it or another one has problems: its sound parts, and
    its first trial.
    """

    name: str
    parts: Mapping[str, Any]
    trial: TrialConfig | None = None


def labels_of(row: Sequence[Entry]) -> tuple[str, ...]:
    """Return the labels of a row, one an axis."""
    return tuple(entry.label for entry in row)


def published_once(
    cells: Sequence[Cell], rows: Sequence[Sequence[Entry]]
) -> list[Cell]:
    """Return the cells with each published number in one of the rows that an axis nests under the
    row that names it: the first one that is run.

    The number is one of the paper's: repeated, each setting of the axis would seem to have been
    printed, and would be judged by it.
    """
    cells_with_own: list[Cell] = []
    seen: set[tuple[int, ...]] = set()

    for cell in cells:
        outer_ids: list[int] = []
        owner: tuple[int, ...] | None = None
        for entry in rows[cell.row]:
            outer_ids.append(id(entry))
            if entry.published is not None:
                owner = (cell.column, *outer_ids)

        if cell.published is not None and owner is not None:
            if owner in seen:
                cell = replace(cell, published=None)

            seen.add(owner)

        cells_with_own.append(cell)

    return cells_with_own


WARMUP_PROBES = 20  # random points of an arm's space that its warm-up is looked for in


class Reader:
    """Reader that turns the documents of one sweep into the parts of a Sweep, collecting
    problems.
    """

    def __init__(self, documents: Sequence[Document], source: str) -> None:
        self.documents = documents
        self.document = documents[-1]
        self.source = source
        self.data = self.document.data  # overrides change it
        self.late: list[
            overrides.Override
        ] = []  # of settings: they win over all others
        self.notes: list[str] = []
        self.profile = ""
        self.audit = labels.LabelAudit(self)
        self.own: list[Problem] = []
        self.readable: list[ReadableCell] = []
        self.column_labels: tuple[str, ...] = ()
        self.entries: list[Entry] = []  # of all axes
        # of a file of the sweep's own
        self.published_lines: tuple[dict[str, str], ...] | None = None
        self.published_file = BUILT_IN
        self.cite = ""  # the source of numbers whose line names none
        self.search: Search | None = None
        self.known_parts: KnownParts = {}  # cells share what is equal in them
        self.plugins: tuple[Source, ...] = ()

    @property
    def problems(self) -> list[Problem]:
        """Everything found so far; problems of a parent file name it."""
        of_parents = []
        for parent in self.documents[:-1]:
            file = Path(parent.source).name
            for problem in parent.problems:
                of_parents.append(replace(problem, path=f"{file}: {problem.path}"))

        return [*of_parents, *self.document.problems, *self.own]

    def complain(self, path: tuple[Any, ...], message: str) -> None:
        self.own.append(
            Problem(self.document.where(*path), message, self.document.line(path))
        )

    # Overrides

    def choose_profile(self, name: str) -> None:
        """Take a profile. What it makes smaller in the file's sections, overrides may set again."""
        self.profile = name
        # a profile may take the section away
        read_resources(self.data.get("resources") or {}, self.complain)
        profiles.shrink(name, self.data)

    def override(self, text: str, key: str, delete: bool, value: Any) -> None:
        """Set or delete a key: in every cell, above all else, if it is a trial's; else in the
        file.
        """
        part = key.partition(".")[0]
        if part in PARTS_OF_A_TRIAL:
            self.late.append(overrides.Override(text, key, value, delete))
        elif key == "profile":
            pass  # chosen before all other overrides
        elif part not in KEYS:
            allowed = [*KEYS, "profile", *PARTS_OF_A_TRIAL]
            self.own.append(Problem(text, unknown("key", part, allowed, "Allowed")))
        else:
            self._override_file(text, key, delete, value)

    def _override_file(self, text: str, key: str, delete: bool, value: Any) -> None:
        if key == "base.from":
            reason = "what a file inherits from is read before overrides; change it in the file"
            self.own.append(Problem(text, reason))
            return

        try:
            if delete:
                path = overrides.remove(self.data, key)
            else:
                path = overrides.assign(self.data, key, value)
        except ValueError as error:
            self.own.append(Problem(text, str(error)))
            return

        self.document.override(path)

    # The file

    def import_plugins(self, allowed: bool) -> None:
        """Import what the file lists under `plugins:` and names by import paths. Raises ConfigError
        with all problems so far.
        """
        try:
            self.plugins = read_plugins(
                self.documents, self.late, Path(self.source).parent, allowed
            )
        except ConfigError as error:
            raise ConfigError(self.source, [*self.problems, *error.problems]) from error

    def parts(self) -> dict[str, Any]:
        """The fields of a Sweep; worth something only if there are no problems after it."""
        for path, text in drop_misshapen(self.data):  # after the overrides
            self.complain(path, text)

        for key in self.data:
            if key not in KEYS:
                self.complain((key,), self._unknown(key))

        self._read_published_file()
        base = self._base()
        row_axes, column_axis = self._axes()
        self.column_labels = labels_of(column_axis.entries)
        self.entries = []

        for axis in (*row_axes, column_axis):
            self.entries += axis.entries

        name = self._name()
        seeds = read_seeds(self.data, self.complain)
        metric = self._choice("metric", table_metrics(), offered=metrics.offered())
        protocol = self._choice("protocol", PROTOCOLS)
        resources = read_resources(self.data.get("resources") or {}, self.complain)
        self._refuse_unknown_profile()
        self.search = None

        if "search" in self.data or "per_arm" in self.data:
            self.search = search_file.SearchReader(self).read()

        self.check_conditions()

        rows = list(itertools.product(*(axis.entries for axis in row_axes)))
        cells = []

        for row, column in itertools.product(
            enumerate(rows), enumerate(column_axis.entries)
        ):
            cells.append(self._cell(base, row, column, seeds=seeds, protocol=protocol))

        cells = published_once(cells, rows)
        configs = [cell.trials[0] for cell in cells if cell.trials]
        for key, text in misfits(resources, configs, self.search is not None):
            self.complain(("resources", key), text)

        self.audit.conclude(base)
        if self.profile:
            name = f"{name}-{self.profile}"
            self.notes = [*self.audit.profile_notes(), *self.notes]

        title = self._title(name)
        adaptive = None
        if not self.problems:
            adaptive = read_adaptive(self.document, self.data, rows, self.complain)

        search = self._after_warmup(cells)  # may add a note
        notes = dict.fromkeys(self.notes)
        notes.pop(f"override profile={self.profile}", None)

        return {
            "name": name,
            "title": title,
            "row_headers": tuple(axis.header for axis in row_axes),
            "rows": tuple(map(labels_of, rows)),
            "columns": self.column_labels,
            "cells": tuple(cells),
            "metric": metric,
            "protocol": protocol,
            "resources": resources,
            "factors": factors_of(rows),
            "adaptive": adaptive,
            "search": search,
            "remarks": (*map(imported, self.plugins), *self.audit.remarks),
            "plugins": self.plugins,
            "dropped": tuple(self.audit.dropped),
            "notes": tuple(notes),
        }

    def _refuse_unknown_profile(self) -> None:
        known = profiles.names(self.documents)
        if self.profile and self.profile not in known:
            text = unknown("profile", self.profile, known, "Known")
            self.own.append(Problem(f"profile={self.profile}", text))
            self.profile = ""

    def _after_warmup(self, cells: Sequence[Cell]) -> Search | None:
        """The search; its scheduler judges nobody before the longest warm-up of its trials is
        over.
        """
        search = self.search
        if search is None or not search.schedule or self.problems:
            return search

        longest, epochs = 0, 0
        for cell in cells:
            if cell.arm is None:
                continue

            for drawn in cell.arm.probes(WARMUP_PROBES):
                config = cell.arm.config(drawn)
                if config is not None:
                    longest = max(longest, config.train.full_rate_after)
                    epochs = max(epochs, config.train.epochs)

        if longest >= epochs:
            self.notes.append(
                f"{search.scheduler} stops no trial: the warm-up of {longest} epochs lasts as long"
                f" as the training of {epochs}; set train.warmup_fraction (say 0.1), or fewer"
                " warmup_epochs"
            )

        if longest:
            return replace(search, schedule={**search.schedule, WARMUP: longest})

        return search

    def _unknown(self, key: str) -> str:
        """Return what to say of a key that no file has; of one that holds an anchor where anchors
        belong.
        """
        text = unknown("key", key, KEYS, "Keys")
        anchored = any(path[:1] == (key,) for path in self.document.anchored)

        if anchored:
            return (
                f"{text}. An anchor (&) needs no key of its own: set it where its value stands"
                " first"
            )

        return text

    def _base(self) -> Settings:
        settings = Settings()
        for document in self.documents:
            base = self._data_of(document).get("base")
            if base is not None and not isinstance(base, Mapping):
                self.complain(("base",), f"must be a mapping of settings, got {base!r}")
                continue

            own: dict[str, Any] = {}
            for key, value in (base or {}).items():
                part = str(key).partition(".")[0]
                if key == "from":
                    continue

                if part not in PARTS_OF_A_TRIAL:
                    text = unknown("key", part, [*PARTS_OF_A_TRIAL, "from"], "Allowed")
                    complain(document, ("base", key), text)
                else:
                    own[str(key)] = value

            refuse_set_twice(document, ("base",), own)
            settings.overlay(own, partial(location_of, document, ("base",)))

        return settings

    def _data_of(self, document: Document) -> Mapping[str, Any]:
        """Return the data of a document, of the sweep's own file those with the overrides."""
        return self.data if document is self.document else document.data

    def _axes(self) -> tuple[list[Axis], Axis]:
        """The axes that are nested down the table, and the one across it."""
        down: list[Axis] = []
        if "rows" in self.data:
            down.append(read_rows(self.document, ("rows",), self.data["rows"]))

        further = self.data.get("axes") or {}
        if not isinstance(further, Mapping):
            self.complain(
                ("axes",),
                "must be a mapping {key: [values]}, with zip for keys that vary together",
            )
            further = {}

        axes = []
        for key, values in further.items():
            axes.append(read_key(self.document, ("axes",), str(key), values))

        if "columns" in self.data:
            across = read_rows(self.document, ("columns",), self.data["columns"])
        elif axes:
            across = axes.pop()
        else:
            across = Axis("", (Entry("all", {}, self.document, ("rows",)),))

        down += axes
        if not down:
            down.append(Axis("", (Entry("all", {}, self.document, ("base",)),)))

        return down, across

    def _name(self) -> str:
        name = self.data.get("name", Path(self.source).stem)
        if isinstance(name, (int, float)) and not isinstance(name, bool):
            name = self.document.text_of(("name",), name)

        if not isinstance(name, str) or not NAME.fullmatch(name):
            text = f"must be lower-case letters, digits, _ and -, got {name!r}"
            self.complain(("name",), text)

        return str(name)

    def _title(self, name: str) -> str:
        title = self.data.get("title")
        if title is None:
            return name

        return self.document.text_of(("title",), title)

    def _choice(
        self, key: str, allowed: Sequence[str], offered: Sequence[str] = ()
    ) -> str:
        value = self.data.get(key, allowed[0])
        if value not in allowed:
            self.complain((key,), unknown(key, value, offered or allowed, "Allowed"))

        return str(value)

    # Cells

    def _cell(
        self,
        base: Settings,
        row: tuple[int, Sequence[Entry]],
        column: tuple[int, Entry],
        seeds: Sequence[int],
        protocol: str,
    ) -> Cell:
        row_number, row_entries = row
        column_number, column_entry = column
        labelled = [*row_entries, column_entry]
        entries = [column_entry, *reversed(row_entries)]

        for entry in entries:
            if entry.because is not None:
                published = self._published_of_cell(labelled, row_entries)
                return Cell(row_number, column_number, (), entry.because, published)

        settings = self.settings(entries, base)
        because = self._excluded(settings, entries)
        if because is not None:
            return Cell(row_number, column_number, (), because)

        name = " / ".join(entry.label for entry in labelled)
        self.audit.observe(name, entries, settings)
        published = self._published_of_cell(labelled, row_entries)

        if self.search is not None:
            arm = arms.make_arm(
                self, self.search, base=base, entries=entries, seeds=seeds
            )
            return Cell(row_number, column_number, (), published=published, arm=arm)

        composed = settings.copy()
        config, problems = self.compose(composed)
        self.own += problems
        self.audit.observe_conditional(name, composed)
        first_seed = next(iter(seeds), 0)

        if config is None or problems:
            parts = sound_parts(composed.data)
            if "dataset" in parts:
                parts["dataset"] = dataset_of_seed(parts["dataset"], first_seed)

            self.readable.append(ReadableCell(name, parts))
            return Cell(row_number, column_number, ())

        self._refuse_unlisted(config)
        trials = tuple(with_seed(config, seed) for seed in seeds)
        first = trials[0] if trials else with_seed(config, first_seed)
        self.readable.append(ReadableCell(name, {"dataset": first.dataset}, first))
        self.audit.compare(entries, settings, config)
        self._refuse_unmeasured(config, protocol)

        return Cell(row_number, column_number, trials, published=published)

    def _published_of_cell(
        self, entries: Sequence[Entry], row: Sequence[Entry]
    ) -> Published | None:
        """Return the paper's number for a cell; None under a profile, whose trials are others."""
        if self.profile:
            return None

        return self._published(entries, row)

    def _refuse_unmeasured(self, config: TrialConfig, protocol: str) -> None:
        """Complain of a protocol or metric that the cell's data set cannot give."""
        metric = str(self.data.get("metric", DEFAULT))
        dataset = config.dataset

        for key, value in (("protocol", protocol), ("metric", metric)):
            needs_validation = value.startswith(("best_val", "val/"))
            if needs_validation and not dataset.has_validation:
                text = f"{value} needs a validation split: set dataset.val_fraction above 0"
                self.complain((key,), text)

        recorded = dataset.metrics
        known = of_dataset(recorded)
        if metric in table_metrics() and metric.partition("/")[2] not in known:
            available = f"of each split: {', '.join(recorded)}"
            of_predictions = [f"test/{name}" for name in known if name not in recorded]
            if of_predictions:
                available += f"; from predictions: {', '.join(of_predictions)}"

            text = f"{dataset.name} has no {metric}; it has, {available}"
            self.complain(("metric",), text)

    def _refuse_unlisted(self, config: TrialConfig) -> None:
        """Complain of a component of a plug-in that another file has brought into this process:
        alone this file would not know it.
        """
        listed = {source.name for source in self.plugins}
        for part, kind in PARTS.items():
            component = getattr(config, part)
            if component is None:
                continue

            source = plugin_of(kind, component.name)
            if source is not None and source.name not in listed:
                text = (
                    f"{component.name} comes from the plug-in {source.shown}, which this file does"
                    " not list; add it to plugins:"
                )
                self.own.append(Problem(part, text))

    def compose(self, settings: Settings) -> tuple[TrialConfig | None, list[Problem]]:
        """The trial of a cell's settings, with the profile and the overrides above them, and what
        is wrong with it.
        """
        if self.profile:
            profiles.apply(self.profile, settings, self.documents)

        self._apply_overrides(settings)
        config, messages = check_trial(settings.data, self.known_parts)
        problems = []

        for path, message in messages:
            location = settings.location(path)
            problems.append(Problem(location.path, message, location.line))

        return config, problems

    def _apply_overrides(self, settings: Settings) -> None:
        for override in self.late:
            if override.delete:
                settings.drop(override.key)
            else:
                location = Location(f"override {override.text}", None)
                settings.set(override.key, override.value, location)

    def settings(self, entries: Iterable[Entry], base: Settings) -> Settings:
        """Return base < conditional settings < rows, columns and axes < overrides; a profile comes
        above, in `compose`.

        A condition looks at the cell as it is named, with what conditional settings above it in the
        file have set.
        """
        entries = list(entries)
        settings = base.copy()
        final = self._named(settings, entries)
        decided = []

        for document, path, when, rest in self._conditional():
            holds = conditions.matches(final.data, when)
            decided.append((document, path, when, holds))
            if holds:
                self.audit.held(document, path)
                self._lay_conditional(
                    settings,
                    rest,
                    final,
                    location=partial(location_of, document, path),
                    source=document.source,
                )

                final = self._named(settings, entries)

        for document, path, when, holds in decided:
            if conditions.matches(final.data, when) != holds:
                self.audit.decided_too_early(document, path, when, holds, final)

        return final

    def _named(self, settings: Settings, entries: Sequence[Entry]) -> Settings:
        """Lay the entries of a cell, then the overrides, over a copy of settings."""
        final = settings.copy()
        lay_entries(final, entries)
        self._apply_overrides(final)

        return final

    def _conditional(
        self,
    ) -> Iterator[
        tuple[Document, tuple[Any, ...], Mapping[str, Any], Mapping[str, Any]]
    ]:
        """Yield the conditional settings of all documents: document, path, condition and what they
        set.
        """
        for document in self.documents:
            for i, item in enumerate(self._data_of(document).get("settings") or []):
                when = item.get("when") if isinstance(item, Mapping) else None
                if isinstance(when, Mapping):
                    rest = {key: value for key, value in item.items() if key != "when"}
                    yield document, ("settings", i), when, rest

    def check_conditions(self) -> None:
        """Complain of conditions that can never hold, and of conditional settings that no trial can
        have.
        """
        for document in self.documents:
            for i, item in enumerate(self._data_of(document).get("settings") or []):
                when = item.get("when") if isinstance(item, Mapping) else None
                if not isinstance(when, Mapping):
                    text = "needs `when:`, a mapping of keys to values"
                    complain(document, ("settings", i), text)

        for document, path, when, rest in self._conditional():
            read_when(document, (*path, "when"), when)
            refuse_set_twice(document, path, rest)
            for key, message in conditions.setting_problems(rest, when):
                complain(document, (*path, key), message)

        for i, item in enumerate(self.data.get("exclude") or []):
            exclusion = item if isinstance(item, Mapping) else {}
            when = exclusion.get("when")
            if isinstance(when, Mapping) and exclusion.get("because"):
                read_when(self.document, ("exclude", i, "when"), when)
            else:
                text = "needs `when:`, a mapping of keys to values, and `because:`, the reason"
                self.complain(("exclude", i), text)

    def _lay_conditional(
        self,
        settings: Settings,
        rest: Mapping[str, Any],
        final: Settings,
        location: Callable[[str], Location],
        source: str,
    ) -> None:
        """Conditional settings may speak of a component that only a row names: it is named before
        they are laid.
        """
        for key in sorted(rest, key=lambda key: rank(key, rest[key])):
            part = key.partition(".")[0]
            component = final.data.get(part)
            if isinstance(component, dict) and "name" in component:
                name = component["name"]
                if settings.name(part) != final.name(part):
                    settings.set(part, name, final.location(part))

            settings.set(key, rest[key], location(key))
            for leaf in keys_of(key, rest[key]):
                value = conditions.lookup(settings.data, leaf)
                leaf_location = settings.location(leaf)
                settings.conditional.append(
                    Conditional(leaf, value, leaf_location, source)
                )

    def _excluded(self, settings: Settings, entries: Iterable[Entry]) -> str | None:
        """Return why a cell is left out; None if it is not."""
        because = None
        for entry in entries:
            if entry.when is None:
                continue
            if conditions.matches(settings.data, entry.when):
                self.audit.held(entry.document, (*entry.path, "when"))
            elif because is None:
                because = (
                    f"{entry.label} is for {conditions.condition_text(entry.when)} only"
                )

        for i, item in enumerate(self.data.get("exclude") or []):
            when = item.get("when") if isinstance(item, Mapping) else None
            if isinstance(when, Mapping) and conditions.matches(settings.data, when):
                self.audit.held(self.document, ("exclude", i))
                because = because or str(item.get("because"))

        return because

    def _published(
        self, entries: Sequence[Entry], row: Sequence[Entry]
    ) -> Published | None:
        """The paper's number: given here (a number, or numbers by column), or selected from
        published.csv.
        """
        selectors: dict[str, Any] = dict(self.data.get("published") or {})
        selectors.pop("file", None)
        is_requested = False

        for entry in entries:
            value = entry.published
            if isinstance(value, Mapping) and not set(value) & set(COLUMNS):
                value = self._by_column(entry, value, entries[-1].label)

            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if not 0 <= value <= 100:
                    location = entry.location("published")
                    text = (
                        f"a published number is in percent, from 0 to 100, got {value}"
                    )
                    self.own.append(Problem(location.path, text, location.line))

                    return None

                source = self.cite or Path(self.source).name
                return Published(float(value), None, source)

            if value is None:
                continue

            if isinstance(value, Mapping):
                selectors.update(value)
            else:
                selectors["row"] = str(value)

            is_requested = is_requested or entry in row

        if not is_requested:
            return None

        try:
            return find(selectors, self.published_lines, self.published_file, self.cite)
        except ValueError as error:
            entry = next(entry for entry in row if entry.published is not None)
            location = entry.location("published")
            self.own.append(Problem(location.path, str(error), location.line))
            return None

    def _read_published_file(self) -> None:
        """Read the file of published numbers that the sweep names, and check the other keys beside
        it.
        """
        section = self.data.get("published") or {}
        name = section.get("file")

        if isinstance(name, str):
            try:
                self.published_lines = read_file(Path(self.source).parent / name)
                self.published_file = name
            except ValueError as error:
                self.complain(("published", "file"), str(error))
        elif "file" in section:
            self.complain(
                ("published", "file"),
                f"must be the name of a csv file beside this one, got {name!r}",
            )

        allowed = [*COLUMNS, "file"]
        for key in section:
            if key not in allowed:
                kind = f"column of {self.published_file}"
                text = unknown(kind, key, allowed, "Columns")
                self.complain(("published", key), text)

        cite = self.data.get("cite", "")
        if isinstance(cite, str):
            self.cite = cite
        else:
            self.complain(
                ("cite",),
                f"must be a text, the source of the published numbers; got {cite!r}",
            )

    def _by_column(self, entry: Entry, numbers: Mapping[str, Any], column: str) -> Any:
        """The number that a row gives for a column of the table."""
        published = None
        for label, number in numbers.items():
            # A column of values is labelled with them: 0.001, however the file writes it.
            labels = {label, scalars.respelled(label)}
            if labels.isdisjoint(self.column_labels):
                location = entry.location("published")
                columns = [*self.column_labels, *COLUMNS]
                heading = "Columns of the table and of published.csv"
                text = unknown("column", label, columns, heading)
                self.own.append(Problem(location.path, text, location.line))

            if column in labels:
                published = number

        return published
