"""Audit of labels that would make a table untrue, collected over the cells of one sweep file: each
is a problem, or a remark.

A key that two of row, column, axis, search space, profile and command line set; a condition that
holds nowhere, or that was looked at too early; a setting of the base that goes with its component
in some arms and stays in others.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pointsweep.config import scalars
from pointsweep.config.schema import PARTS, TrialConfig
from pointsweep.config.validation import component_problems
from pointsweep.errors import Problem
from pointsweep.sweep import conditions, profiles
from pointsweep.sweep.axes import Entry, complain
from pointsweep.sweep.overlay import Conditional, Dropped, Location, Settings, clashes
from pointsweep.sweep.yaml_document import Document

if TYPE_CHECKING:
    from pointsweep.sweep.parser import Reader

Path = tuple[Any, ...]
MOST_PLACES = 3  # that one message names


@dataclass
class LostSetting:
    """One dropped setting over all cells: where it stayed, and where its key now has another value
    or is no key.
    """

    setting: Dropped
    cells: list[str] = field(default_factory=list)  # in which it stayed
    # cell, component, value there
    differs: list[tuple[str, Any, Any]] = field(default_factory=list)
    # components that have no such field
    without: list[Any] = field(default_factory=list)


@dataclass
class OverriddenSetting:
    """One conditional setting over all cells: what took its place where, and whether it stayed
    anywhere.
    """

    setting: Conditional
    winners: list[Location] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)
    kept: bool = False


class _CellNames:
    """Memory of every cell that was looked at. Sweeps have a hundred thousand of them, so
    nested data are kept of those cells alone that `conclude` needs them of.
    """

    def __init__(self) -> None:
        # a cell, and where each of its leaves was set
        self.locations: list[tuple[str, dict[str, Location]]] = []
        self.with_dropped: list[tuple[str, Settings]] = []
        self._of_components: dict[tuple[Any, ...], Settings] = {}

    def add(self, name: str, settings: Settings) -> None:
        """Take in one cell."""
        self.locations.append((name, settings.locations))
        if settings.dropped:
            self.with_dropped.append((name, settings))

        names = tuple(scalars.spelled(settings.name(part)) for part in PARTS)
        self._of_components.setdefault(names, settings)

    @property
    def of_components(self) -> Iterable[Settings]:
        """The first cell of every combination of components, by their names."""
        return self._of_components.values()


class LabelAudit:
    """Audit that looks at every cell while a file is read; `conclude` reports to the reader."""

    def __init__(self, reader: Reader) -> None:
        # The reader owns its audit. A reference back would keep a large sweep's cells in memory
        # until Python looks for garbage.
        self.reader: Reader = weakref.proxy(reader)
        self.remarks: list[str] = []  # said at the plan and at the launch
        # settings that a part of the cells has, or none: said at the plan
        self.dropped: list[str] = []
        self._cells = _CellNames()
        self._held: set[tuple[str, Path]] = set()
        self._compared: set[tuple[int, int]] = set()
        self._entries: dict[int, Entry] = {}  # kept, so that their ids stay theirs
        self._clashes: dict[tuple[Location, str, str], list[Location]] = {}
        self._replaced: dict[str, None] = {}
        self._conditional: dict[tuple[str, Location], OverriddenSetting] = {}
        self._space: list[Entry] | None = None

    # While cells are read

    def observe(self, name: str, entries: Sequence[Entry], settings: Settings) -> None:
        """Look at a cell that will run: its rows and columns (`entries`), and its settings without
        the profile.
        """
        if self.reader.search is None:
            self._cells.add(name, settings)

        for entry in entries:
            if id(entry) in self._entries:
                continue

            self._entries[id(entry)] = entry
            self._against_command_line_and_profile(entry)

        searched = self._searched()
        inner_first = list(reversed(entries))
        for i, one in enumerate(inner_first):
            for other in inner_first[i + 1 :]:
                self._pair(one, other, "a key belongs to one of rows, columns and axes")
            for parameter in searched:
                self._pair(parameter, one, "it is searched; take one of the two away")

    def observe_suggestion(self, name: str, settings: Settings) -> None:
        """Look at a point of a search."""
        self._cells.add(name, settings)

    def observe_conditional(self, name: str, settings: Settings) -> None:
        """Look at what became of conditional settings in a cell, with everything laid over them."""
        sources = {setting.location: setting.source for setting in settings.conditional}
        for setting in settings.conditional:
            winner = settings.locations.get(setting.key)
            if winner is None or winner.path.startswith(profiles.SMOKE.path):
                continue
            if sources.get(winner, setting.source) != setting.source:
                # an heir may set again what its parent sets
                continue

            seen = self._conditional.setdefault(
                (setting.key, setting.location), OverriddenSetting(setting)
            )
            if conditions.lookup(settings.data, setting.key) == setting.value:
                seen.kept = True
                continue

            if winner not in seen.winners:
                seen.winners.append(winner)

            if name not in seen.cells:
                seen.cells.append(name)

    def observe_constraints(self, path: Path, config: TrialConfig) -> None:
        """Note which constraints of a search apply to a suggestion."""
        assert self.reader.search is not None
        for i, constraint in enumerate(self.reader.search.constraints):
            if constraint.applies(config.to_dict()):
                self.held(self.reader.document, (*path, i))

    def held(self, document: Document, path: Path) -> None:
        """Note that the condition at a path held in a cell."""
        self._held.add((document.source, path))

    def decided_too_early(
        self,
        document: Document,
        path: Path,
        when: Mapping[str, Any],
        holds: bool,
        final: Settings,
    ) -> None:
        """Complain of a condition whose outcome a conditional setting below it turned round."""
        self.held(document, path)
        for key, value in conditions.opened(when).items():
            value_now = conditions.lookup(final.data, key)
            if (value_now in conditions.alternatives(key, value)) == holds:
                continue

            location = final.location(f"{key}.name" if key in PARTS else key)
            text = (
                f"{_described(location)} sets {key} to {value_now} after this condition was looked"
                " at; write it above this, or into base"
            )

            complain(document, (*path, "when", key), text)

            return

    def compare(
        self, entries: Sequence[Entry], settings: Settings, config: TrialConfig
    ) -> None:
        """Compare what a cell's labels say with the trial that was made of it."""
        stated = []
        parts = {"network"}

        for entry in entries:
            for key, value in conditions.flat(entry.settings).items():
                stated.append((entry, key, value))
                parts.add(key.partition(".")[0])

        data = config.to_dict(only=parts)
        for entry, key, value in stated:
            value_of_trial = conditions.lookup(data, key)
            if value_of_trial == _as_plain_data(value):
                continue

            if self.reader.profile == "smoke":
                self._replaced[key.removesuffix(".name")] = None
                continue

            location = entry.location(key)
            if not self._is_clash(location):
                text = f"says {value!r}, the trial would have {value_of_trial!r}"
                self._report(location, text)

    # Keys that are set twice

    def _searched(self) -> list[Entry]:
        """The parameters of a search as entries, one for every choice."""
        if self._space is not None:
            return self._space

        self._space = []
        search = self.reader.search
        if search is None:
            return self._space

        path: Path = ("search", "space")
        if search.then_seeds:
            path = ("per_arm", *path)

        for parameter in search.space:
            for choice in parameter.choices or (0,):
                self._space.append(
                    Entry(
                        label=parameter.key,
                        settings={parameter.key: choice},
                        document=self.reader.document,
                        path=path,
                        when=parameter.when,
                    )
                )

        for entry in self._space:
            self._against_command_line_and_profile(entry)

        for one, other in itertools.combinations(self._space, 2):
            are_exclusive = _are_exclusive(one, other) or _are_exclusive(other, one)
            if one.label != other.label and not are_exclusive:
                self._pair(other, one, "a key is searched once")

        return self._space

    def _pair(self, one: Entry, other: Entry, advice: str) -> None:
        if (id(one), id(other)) in self._compared:
            return

        self._compared.add((id(one), id(other)))
        for leaf, key, other_key in clashes(one.settings, other.settings):
            parts = {key.partition(".")[0], other_key.partition(".")[0]}
            text = advice
            if "network" in parts and len(parts) > 1:
                text = (
                    "a network takes the place of that, so such columns or rows say nothing of it:"
                    " give it a table of its own"
                )

            self._clash(one.location(key), leaf, text, other.location(other_key))

    def _against_command_line_and_profile(self, entry: Entry) -> None:
        is_searched = any(entry is other for other in self._space or ())
        for override in self.reader.late:
            overridden = {override.key: None if override.delete else override.value}
            for leaf, key, _ in clashes(entry.settings, overridden):
                if is_searched:
                    text = "is searched, and set on the command line; take one of the two away"
                    self._report(entry.location(key), text)
                else:
                    advice = "take the override away, or choose cells with --only"
                    location = Location(override.text, None)
                    self._clash(location, leaf, advice, entry.location(key))

        profile = self.reader.profile
        added = profiles.own_settings(profile, self.reader.documents)
        for document, profile_key, value in added:
            location = profiles.location_of(document, profile, profile_key)
            for leaf, key, _ in clashes(entry.settings, {profile_key: value}):
                advice = "a profile may set what no label names"
                self._clash(location, leaf, advice, entry.location(key))

    def _clash(
        self, location: Location, leaf: str, advice: str, other: Location
    ) -> None:
        self._clashes.setdefault((location, leaf, advice), []).append(other)

    def _is_clash(self, location: Location) -> bool:
        """Return whether a clash is known of what is set there, around it or below it."""
        path = location.path
        for (one, _, _), others in self._clashes.items():
            for other in (one, *others):
                if path.startswith(other.path) or other.path.startswith(path):
                    return True

        return False

    def _report(self, location: Location, message: str) -> None:
        self.reader.own.append(Problem(location.path, message, location.line))

    # When all cells were read

    def conclude(self, base: Settings) -> None:
        """Report what was found over all cells."""
        for (location, leaf, advice), others in self._clashes.items():
            text = (
                f"sets {leaf}, which is set by {_listed(others)} as well: a label would stand over"
                f" a value that never ran; {advice}"
            )
            self._report(location, text)

        self._conditions_on_the_space()
        if self._cells.locations or not self.reader.problems:
            self._vacuous()

        self._constraints()
        self._dropped()
        self._outdone()
        self._unused(base)

    def profile_notes(self) -> list[str]:
        """The notes under the table of a profile: what its labels do not say."""
        profile = self.reader.profile
        notes = [f"profile={profile}: published numbers do not apply"]

        if self._replaced:
            keys = ", ".join(self._replaced)
            notes.append(f"profile={profile}: stands in for what labels say of {keys}")

        return notes

    def _conditions_on_the_space(self) -> None:
        """A cell is left out before anything is drawn: its condition cannot look at what is
        searched.
        """
        if self.reader.search is None:
            return

        searched = {parameter.key for parameter in self.reader.search.space}
        of_cells: list[tuple[Document, Path, Mapping[str, Any]]] = []

        for i, item in enumerate(self.reader.data.get("exclude") or []):
            when = item.get("when") if isinstance(item, Mapping) else None
            if isinstance(when, Mapping):
                of_cells.append((self.reader.document, ("exclude", i, "when"), when))

        for entry in self._entries.values():
            if entry.when is not None:
                of_cells.append((entry.document, (*entry.path, "when"), entry.when))

        for document, path, when in of_cells:
            for key in searched.intersection(conditions.opened(when)):
                text = "is searched: cells are left out before it is chosen"
                complain(document, (*path, key), text)

    def _vacuous(self) -> None:
        """A condition of the file that holds in no cell."""
        document = self.reader.document
        reported = {problem.path for problem in self.reader.problems}

        for path, when, kind in self._conditions():
            where = document.where(*path)
            if (document.source, path) in self._held:
                continue
            if any(reported_path.startswith(where) for reported_path in reported):
                continue

            text = f"holds in no cell ({conditions.condition_text(when)})"
            is_optional = kind == "settings" and (
                self.reader.search is not None or not self._has_components(when)
            )

            if self.reader.notes:  # an override made it so
                self.remarks.append(f"{where}: {text}")
            elif is_optional:
                self.dropped.append(f"{where}: {text}")
            else:
                complain(document, path, f"{text}; correct it or take it away")

    def _has_components(self, when: Mapping[str, Any]) -> bool:
        """Return whether some cell has all components that a condition names."""
        components = {}
        for key, value in conditions.opened(when).items():
            if key in PARTS:
                components[key] = value

        if not components:
            return True

        for settings in self._cells.of_components:
            if conditions.matches(settings.data, components):
                return True

        return False

    def _constraints(self) -> None:
        """Complain of constraints whose keys no suggestion has."""
        search = self.reader.search
        if search is None or self.reader.problems:
            return

        path: Path = ("search", "constraints")
        if search.then_seeds:
            path = ("per_arm", *path)

        document = self.reader.document
        for i, constraint in enumerate(search.constraints):
            if (document.source, (*path, i)) not in self._held:
                text = (
                    f"{constraint.text} applies to no point: none has all of its keys; correct it"
                    " or take it away"
                )
                complain(document, (*path, i), text)

    def _conditions(self) -> Iterator[tuple[Path, Mapping[str, Any], str]]:
        """The conditions of the file itself; those of a file that it inherits from may be for
        others of its heirs.
        """
        for kind in ("settings", "exclude"):
            for i, item in enumerate(self.reader.data.get(kind) or []):
                when = item.get("when") if isinstance(item, Mapping) else None
                if isinstance(when, Mapping):
                    yield (kind, i), when, kind

        for entry in self.reader.entries:
            if entry.when is not None:
                yield (*entry.path, "when"), entry.when, "entry"

    def _dropped(self) -> None:
        """Settings that went with their component: refused where some arms keep them, else said at
        the plan.
        """
        lost_settings: dict[tuple[str, Location], LostSetting] = {}
        for name, settings in self._cells.with_dropped:
            for setting in settings.dropped:
                # set again, by who named the other component
                if setting.key in settings.locations:
                    continue

                lost = lost_settings.setdefault(
                    (setting.key, setting.location), LostSetting(setting)
                )
                part, _, rest = setting.key.partition(".")
                component = settings.name(part)
                owners = conditions.owners(setting.key, {part: component})
                value = conditions.lookup(settings.data, setting.key)

                if not any(rest in conditions.field_names(owner) for owner in owners):
                    lost.without.append(component)
                elif value != _as_plain_data(setting.value):
                    lost.differs.append((name, component, value))

        for lost in lost_settings.values():
            for name, locations in self._cells.locations:
                if locations.get(lost.setting.key) == lost.setting.location:
                    lost.cells.append(name)

            self._report_lost(lost)

    def _outdone(self) -> None:
        """Say which conditional settings give way to a row, a column, a later condition, the
        profile or the command line.
        """
        for seen in self._conditional.values():
            if not seen.winners:
                continue

            setting = seen.setting
            where = "wherever its condition holds"
            if seen.kept:
                where = f"in {_some(seen.cells)}"

            text = f"{scalars.spelled(setting.value)} gives way to {_listed(seen.winners)} {where}"
            self.dropped.append(f"{_described(setting.location)}: {text}")

    def _report_lost(self, lost: LostSetting) -> None:
        setting, location = lost.setting, lost.setting.location
        part, _, rest = setting.key.partition(".")
        if lost.differs and lost.cells:
            cell, component, value = lost.differs[0]
            text = (
                f"{setting.value} goes with {setting.owner}: {_some(lost.cells)} has it, {cell}"
                f" ({component}) would have {value}. Say it of every {part}: leave the name out of"
                f" base ({part}: {{{rest}: {setting.value}}}) and name it in the rows, or set"
                f" {setting.key} in each row"
            )

            self._report(location, text)

            return

        components = [str(component) for component in lost.without]
        for _, component, _ in lost.differs:
            components.append(str(component))

        others = ", ".join(dict.fromkeys(components))
        where = "in no cell"
        if lost.cells:
            where = f"with it alone, not where {part} is {others}"

        if others:
            text = f"{setting.value} is a setting of {setting.owner}, used {where}"
            self.dropped.append(f"{location.path}: {text}")

    def _unused(self, base: Settings) -> None:
        """Return what is wrong with the base, also where every row puts something else in its
        place.
        """
        problems = list(conditions.setting_problems(base.data, {}))
        for part in PARTS:
            name = base.name(part)
            used_names = [settings.name(part) for settings in self._cells.of_components]
            if name is not None and name not in used_names:
                problems += component_problems(part, base.data[part])

        for key, message in problems:
            self._report(base.location(key), message)


def _are_exclusive(choice: Entry, parameter: Entry) -> bool:
    """Return whether a parameter is chosen only with other components than a choice names."""
    condition = conditions.opened(parameter.when or {})
    for key, value in conditions.flat(choice.settings).items():
        if not key.endswith(".name"):
            continue

        part = key.removesuffix(".name")
        allowed = condition.get(part)
        if allowed is None:
            continue
        if value not in conditions.alternatives(part, allowed):
            return True

    return False


def _as_plain_data(value: Any) -> Any:
    """Return a value as a trial's plain data have it: lists in place of tuples."""
    return list(value) if isinstance(value, tuple) else value


def _described(location: Location) -> str:
    if location.line:
        return f"{location.path} (line {location.line})"
    return location.path


def _listed(locations: Sequence[Location]) -> str:
    distinct = list(dict.fromkeys(locations))
    shown = ", ".join(map(_described, distinct[:MOST_PLACES]))
    if len(distinct) > MOST_PLACES:
        return f"{shown} and {len(distinct) - MOST_PLACES} more"

    return shown


def _some(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{names[0]} and {len(names) - 1} more"
