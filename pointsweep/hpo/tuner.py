"""Arms -> batches of ordinary trials -> what was found, as a Sweep that is trained and printed as
any other.

A search is nothing but a Sweep whose cells are not known beforehand. Its studies say which trials
come next; what these are, where their results lie and how they are continued is the same for a
suggestion as for a cell that somebody wrote down.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pointsweep.config import scalars
from pointsweep.errors import StoreError
from pointsweep.execution.budget import seconds_of
from pointsweep.hpo.batching import Batches
from pointsweep.hpo.pruners import Limits
from pointsweep.hpo.study import Found as Finished
from pointsweep.hpo.study import Study, require_sound
from pointsweep.hpo.suggestion import Suggestion
from pointsweep.hpo.warm_start import curve_of, known, values_of
from pointsweep.results.record_index import sound_record
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore, open_append, writing
from pointsweep.sweep.parser import Cell
from pointsweep.sweep.search_section import MOST_TRIALS
from pointsweep.sweep.search_space import Arm, Search
from pointsweep.sweep.sweep import Sweep
from pointsweep.utils.sqlite_files import set_aside_name, sqlite_uri

# trains every trial of a sweep that has no record; limits by key; calls the function with the key
# of each trial that has ended
Train = Callable[[Sweep, Mapping[str, Limits], Callable[[str], None]], None]
MISSING = "·"  # in a table: a key that its row does not have


@dataclass
class _OpenSuggestion:
    """A suggestion of the batch that trains: its study, and the keys of its trials that have not
    ended.
    """

    study: Study
    item: Suggestion
    keys: set[str]


class Tuning:
    """The searches of a sweep: one, or one for every cell."""

    def __init__(self, sweep: Sweep, store: FileStore) -> None:
        assert sweep.search is not None
        self.sweep = sweep
        self.search = sweep.search
        self.store = store
        self.cells = [cell for cell in sweep.cells if cell.arm is not None]
        # the page of a trial's run in MLflow, where there is one
        self.trial_page: Callable[[str], str] = lambda key: ""
        path = store.path(f"sweeps/{sweep.name}/study.db")

        if not self.search.storage:
            require_sound(path)

        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self.search.storage and not path.exists():
                # SQLite itself would leave a group's right to write out, whatever the umask
                open_append(path).close()

        self.url = self.search.storage or sqlite_uri(path)
        self.studies = []
        for cell in self.cells:
            name = study_name(sweep, cell)
            self.studies.append(Study(self.url, name, arm_of(cell), self.search))

    def run(self, train: Train, say: Callable[[str], None]) -> None:
        """Ask, train and tell, batch by batch, until every study has its number of finished trials,
        or its hours are spent.
        """
        for study in self.studies:
            if not study.started:
                study.start(self._starting_trials(study))

        batches = [Batches(study) for study in self.studies]
        while True:
            asked_batches = []
            for arm_batches in batches:
                asked_batches.append(arm_batches.ask(self._spent(arm_batches.study)))

            for note in {study.note for study in self.studies if study.note}:
                say(note)

            if not any(asked_batches):
                break

            self._train_batches(batches, asked_batches, train)
            say(self.progress())

        for study in self.studies:
            study.close()

    def _train_batches(
        self,
        batches: Sequence[Batches],
        asked_batches: Sequence[Sequence[Suggestion]],
        train: Train,
    ) -> None:
        """Train the batches of all arms in one launch, so that the cluster is full."""
        limits: dict[str, Limits] = {}
        open_suggestions = []

        for arm_batches, batch in zip(batches, asked_batches, strict=True):
            for item in batch:
                study = arm_batches.study
                keys = self._keys(study, item)
                limits |= dict.fromkeys(keys, arm_batches.limits(item))
                unfinished = set(self._without_record(keys))
                open_suggestions.append(_OpenSuggestion(study, item, unfinished))

        self._tell_ended(open_suggestions)
        on_end = partial(self._tell_ended, open_suggestions)
        train(self._batch(asked_batches), limits, on_end)

        # A trial that another process holds has no end in this launch.
        for study in self.studies:
            unended = []
            for suggestion in open_suggestions:
                if suggestion.study is study:
                    unended.append(suggestion.item)

            if unended:
                self._tell(study, unended)

    def _starting_trials(self, study: Study) -> list[Finished]:
        """Return the finished trials that a study begins with, and keep which they are.

        A study whose database was lost begins with the same ones. So it makes the same suggestions
        again, whose trials the store has, and nothing is trained twice.
        """
        if not self.search.use_finished:
            return []

        finished = list(known(study.arm, self.search, self.sweep.protocol, self.store))
        name = f"sweeps/{self.sweep.name}/told_first.json"
        key_lists = self._read_key_lists(name)

        if study.name in key_lists:
            by_keys = {}
            for drawn, values, keys, curve in finished:
                by_keys[" ".join(keys)] = (drawn, values, keys, curve)

            return [by_keys[keys] for keys in key_lists[study.name] if keys in by_keys]

        key_lists[study.name] = [" ".join(keys) for _, _, keys, _ in finished]
        self.store.write(name, json.dumps(key_lists, indent=1).encode())
        return finished

    def _read_key_lists(self, name: str) -> dict[str, list[str]]:
        if not self.store.exists(name):
            return {}

        key_lists = {}
        try:
            for study, lists in json.loads(self.store.read(name)).items():
                key_lists[str(study)] = list(map(str, lists))
        except (ValueError, AttributeError, TypeError) as error:
            path = self.store.path(name)
            raise StoreError(
                f"{path} is damaged: {error}; set it aside and the same command goes on: "
                f"mv {shlex.quote(str(path))} {shlex.quote(str(set_aside_name(path)))}"
            ) from error

        return key_lists

    def _tell_ended(
        self, open_suggestions: list[_OpenSuggestion], key: str = ""
    ) -> None:
        """Write a suggestion to its study as soon as the last of its trials has ended, and take it
        off the list. `key` is that of the trial that ended just now.

        The sampler hears of it with the rest of its batch (study.py), so who ends first changes no
        suggestion.
        """
        for open_suggestion in list(open_suggestions):
            open_suggestion.keys.discard(key)
            if not open_suggestion.keys:
                open_suggestions.remove(open_suggestion)
                self._tell(open_suggestion.study, [open_suggestion.item])

    def _tell(self, study: Study, batch: Sequence[Suggestion]) -> None:
        results = {}
        curves = {}
        stopped = []
        facts = {}

        for item in batch:
            keys = self._keys(study, item)
            values = values_of(keys, self.search, self.sweep.protocol, self.store)
            is_stopped = values is None and self._stopped(keys)
            results[item.number] = values
            facts[item.number] = self._facts(study, keys)

            if is_stopped:
                stopped.append(item.number)

            if self.search.has_curves and (values is not None or is_stopped):
                curves[item.number] = curve_of(keys, self.store)

        study.tell(results, curves, stopped, facts)

    def _facts(self, study: Study, keys: Sequence[str]) -> dict[str, Any]:
        """Return what Optuna's pages show of a suggestion beside its values: its cell, its time,
        and where MLflow has it.

        The keys of its trials stand there from its begin on.
        """
        names = {id(arm_study): name for name, arm_study in self.by_arm().items()}
        facts: dict[str, Any] = {
            "cell": names[id(study)],
            "seconds": math.fsum(seconds_of(key, self.store) for key in keys),
        }

        pages = []

        for key in keys:
            page = self.trial_page(key)
            if page:
                pages.append(page)

        if pages:
            facts["mlflow"] = pages

        return facts

    def _without_record(self, keys: Sequence[str]) -> list[str]:
        return [key for key in keys if sound_record(self.store, key) is None]

    def _stopped(self, keys: Sequence[str]) -> bool:
        """Return whether a scheduler has stopped a suggestion, and nothing else has ended a trial
        of it.
        """
        unfinished = self._without_record(keys)
        for key in unfinished:
            if TrialFolder(self.store.path(f"trials/{key}")).stopped() is None:
                return False

        return bool(unfinished)

    def progress(self) -> str:
        """One line: "5 of 12 suggestions finished, 3 waiting"."""
        num_suggestions = self.search.trials * len(self.studies)
        num_finished = sum(self._done(study) for study in self.studies)
        num_waiting = 0

        for study in self.studies:
            num_waiting += sum(item.waiting for item in study.suggestions())

        line = (
            f"{self.sweep.name}: {num_finished} of {num_suggestions} suggestions"
            " finished"
        )
        if num_waiting:
            line += f", {num_waiting} waiting"

        if self.search.hours is not None:
            line += f", {self._hours()}"

        return line

    def extent(self) -> tuple[int, int, float]:
        """Return how many trials of the whole search have ended, how many there are in all, and the
        used part of its hours.
        """
        ended = total = 0
        for study in self.studies:
            seeds = len(study.arm.seeds)
            ended += seeds * self._done(study)
            total += seeds * self.search.trials + (self.search.then_seeds or 0)

        if self.search.trials >= MOST_TRIALS:  # the hours alone end it
            total = 0

        used = 0.0
        if self.search.hours:
            used = max(map(self._hours_of, self.studies)) / self.search.hours

        return ended, total, used

    def _done(self, study: Study) -> int:
        """Return how many of a study's suggestions have ended, those aside that it began with."""
        searched = [item for item in study.suggestions() if not item.known]
        return sum(item.state != "running" for item in searched)

    def _spent(self, study: Study) -> bool:
        hours = self.search.hours
        return hours is not None and self._hours_of(study) >= hours

    def _hours_of(self, study: Study) -> float:
        """Hours of the trials that a study was told of."""
        seconds = []
        for item in study.suggestions():
            if not item.known and (item.state != "running" or item.curve):
                for key in self._keys(study, item):
                    seconds.append(seconds_of(key, self.store))

        return sum(seconds) / 3600

    def _hours(self) -> str:
        used = max(map(self._hours_of, self.studies))
        per_arm = " of each arm" if len(self.studies) > 1 else ""
        return f"{used:.2g} of {self.search.hours:g} hours{per_arm} spent"

    def everything(self) -> Sweep:
        """All suggestions so far as a sweep: what MLflow is to show."""
        return self._batch([study.suggestions() for study in self.studies])

    def _batch(self, batches: Sequence[Sequence[Suggestion]]) -> Sweep:
        rows: list[tuple[str, ...]] = []
        cells = []
        for cell, study, batch in zip(self.cells, self.studies, batches, strict=True):
            prefix = ""
            if self.search.then_seeds is not None:
                prefix = f"{self.sweep.cell_name(cell)} / "

            for item in batch:
                config = study.arm.config(item.drawn)
                if config is not None:
                    cells.append(Cell(len(rows), 0, tuple(study.arm.trials(config))))
                    rows.append((f"{prefix}trial {item.number}",))

        return replace(
            self.sweep,
            row_headers=("",),
            rows=tuple(rows),
            columns=("search",),
            cells=tuple(cells),
            search=None,
            metric="val/accuracy",
        )

    def by_arm(self) -> dict[str, Study]:
        """The studies by the names of their arms."""
        studies = {}
        for cell, study in zip(self.cells, self.studies, strict=True):
            name = self.sweep.name
            if self.search.then_seeds is not None:
                name = self.sweep.cell_name(cell)

            studies[name] = study

        return studies

    def failed(self) -> bool:
        """Return whether an arm has no finished suggestion at all."""
        return not all(map(_finished, self.studies))

    def _keys(self, study: Study, item: Suggestion) -> list[str]:
        config = study.arm.config(item.drawn)
        if config is not None:
            return [trial.key() for trial in study.arm.trials(config)]

        return []

    # The result

    def result(self) -> Sweep | None:
        """The sweep of the result: the best trials or the front; per arm the winners with fresh
        seeds. None if nothing finished.
        """
        finished = [_finished(study) for study in self.studies]
        if self.search.then_seeds is not None:
            return self._winners(finished)

        items = chosen(finished[0], self.search) if finished else []
        if not items:
            return None

        arm = self.studies[0].arm
        keys = [parameter.key for parameter in self.search.space]
        rows = []
        cells = []

        for row, item in enumerate(items):
            labels = [f"#{item.number}"]
            for key in keys:
                labels.append(short(item.drawn[key]) if key in item.drawn else MISSING)

            rows.append(tuple(labels))
            config = arm.config(item.drawn)
            trials = arm.trials(config) if config else ()
            cells.append(Cell(row, 0, tuple(trials)))

        return replace(
            self.sweep,
            row_headers=("trial", *headers(keys)),
            rows=tuple(rows),
            columns=("best trials" if self.search.single else "Pareto front",),
            cells=tuple(cells),
            search=None,
            metric="val/accuracy",
            notes=(*self.sweep.notes, *self._notes(items)),
        )

    def _notes(self, items: Sequence[Suggestion]) -> Iterator[str]:
        yield f"search: {self._budget()}; space: {space_text(self.search)}"
        objectives = self.search.objectives
        if self.search.single:
            yield f"chosen: trial #{items[0].number}: {drawn_text(items[0].drawn)}"
        else:
            aims = [f"{name} ({direction})" for name, direction in objectives.items()]
            yield f"the trials that no other one beats in {' and '.join(aims)}"

        num_known = 0
        for study in self.studies:
            num_known += sum(item.known for item in study.suggestions())

        if num_known:
            yield (
                f"{num_known} finished trials of the store lay in the space and were told to the"
                " search first"
            )

        yield from self._failures()

    def _budget(self) -> str:
        num_finished = max(map(self._done, self.studies))
        hours = "" if self.search.hours is None else f", {self._hours()}"
        objectives = ", ".join(self.search.objectives)
        protocol = f"protocol {self.sweep.protocol}"

        return (
            f"{num_finished} trials by {self.search.sampler}, sampler seed {self.search.seed},"
            f" aiming at {objectives} ({protocol}){hours}"
        )

    def _failures(self) -> Iterator[str]:
        for cell, study in zip(self.cells, self.studies, strict=True):
            prefix = ""
            if self.search.then_seeds is not None:
                prefix = f"{self.sweep.cell_name(cell)}: "

            counts = Counter(item.state for item in study.suggestions())
            if counts["stopped"]:
                yield (
                    f"{prefix}{counts['stopped']} suggestions were stopped early by"
                    f" {self.search.scheduler}; they count and are not ranked"
                )

            if counts["failed"]:
                yield (
                    f"{prefix}{counts['failed']} suggestions failed; they count in the budget and"
                    " are not ranked"
                )

    def _winners(self, finished: Sequence[Sequence[Suggestion]]) -> Sweep:
        assert self.search.then_seeds is not None
        first_seed = max(self.studies[0].arm.seeds) + 1 if self.studies else 0
        seeds = tuple(range(first_seed, first_seed + self.search.then_seeds))
        with_validation = self.search.then_on == "train_and_val"
        clouds = "on the training clouds"

        if with_validation:
            clouds = "on the training and the validation clouds"

        notes = [
            f"every row was tuned with the same budget: {self._budget()}; space:"
            f" {space_text(self.search)}",
            f"the winner of every row was then trained {clouds} with fresh seeds:"
            f" {', '.join(map(str, seeds))}",
        ]

        objective = next(iter(self.search.objectives))
        winners: dict[tuple[int, int], Cell] = {}

        for cell, study, items in zip(self.cells, self.studies, finished, strict=True):
            position = cell.row, cell.column
            best = next(iter(chosen(items, self.search)), None)
            config = study.arm.config(best.drawn) if best is not None else None

            if best is None or config is None:
                reason = f"all {self.search.trials} suggestions failed"
                winners[position] = replace(cell, arm=None, excluded=reason)
                continue

            if with_validation:
                dataset = config.dataset.replace(val_fraction=0.0)
                config = config.replace(dataset=dataset)

            trials = replace(study.arm, seeds=seeds).trials(config)
            winners[position] = replace(cell, trials=tuple(trials), arm=None)
            notes.append(
                f"{self.sweep.cell_name(cell)}: {drawn_text(best.drawn)} ({objective}"
                f" {best.values[0]:.4g}, trial {best.number})"
            )

        cells = []
        for cell in self.sweep.cells:
            cells.append(winners.get((cell.row, cell.column), cell))

        return replace(
            self.sweep,
            cells=tuple(cells),
            search=None,
            notes=(*self.sweep.notes, *notes, *self._failures()),
        )


def arm_of(cell: Cell) -> Arm:
    """The arm of a cell that has one."""
    assert cell.arm is not None
    return cell.arm


def study_name(sweep: Sweep, cell: Cell) -> str:
    """The sweep's name, that of the cell, and a digest of all that changes what is suggested or
    what comes of it.

    A changed space is another study. More trials or another batch size continue the one there is.
    """
    arm, search = arm_of(cell), sweep.search
    assert search is not None
    identity = [
        [parameter.identity() for parameter in search.space],
        [rule.text for rule in search.constraints],
        search.sampler,
        dict(search.options),
        search.scheduler,
        dict(search.schedule),
        search.seed,
        dict(search.objectives),
        [dict(point) for point in search.enqueue],
        arm.seeds,
        sweep.protocol,
        _example_key(arm),
    ]

    text = json.dumps(identity, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    cell_suffix = "" if search.then_seeds is None else f": {sweep.cell_name(cell)}"

    return f"{sweep.name}{cell_suffix} {digest}"


def _example_key(arm: Arm) -> str:
    """Return the key of one of an arm's trials, which stands for the settings that are not tuned;
    empty if no point of the space gives a trial.
    """
    for drawn in arm.probes(100):
        config = arm.config(drawn)
        if config is not None:
            return config.key()

    return ""


def _finished(study: Study) -> list[Suggestion]:
    """Return a study's suggestions of which every trial has finished."""
    return [item for item in study.suggestions() if item.state == "complete"]


def chosen(items: Sequence[Suggestion], search: Search) -> list[Suggestion]:
    """The best first, as many as the table has rows; of several objectives those that no other
    beats, the best of the first ahead.
    """
    signs = []
    for direction in search.objectives.values():
        signs.append(-1 if direction == "maximize" else 1)

    costs: dict[int, tuple[float, ...]] = {}
    for item in items:
        costs[item.number] = tuple(map(operator.mul, signs, item.values))

    ordered = sorted(items, key=lambda item: (costs[item.number], item.number))
    if search.single:
        return ordered[: search.top]

    front: list[Suggestion] = []
    front_costs: list[tuple[float, ...]] = []
    # In this order nothing later can beat what is on the front already.
    for item in ordered:
        cost = costs[item.number]
        if not any(_dominates(other_cost, cost) for other_cost in front_costs):
            front.append(item)
            front_costs.append(cost)

    return front


def _dominates(costs: Sequence[float], other_costs: Sequence[float]) -> bool:
    """Return whether no cost is above the other's."""
    return all(map(operator.le, costs, other_costs))


def headers(keys: Sequence[str]) -> list[str]:
    """The last words of the keys where these differ."""
    last_words = [key.rpartition(".")[2] for key in keys]
    names = []

    for last_word, key in zip(last_words, keys, strict=True):
        names.append(last_word if last_words.count(last_word) == 1 else key)

    return names


def short(value: Any) -> str:
    """A chosen value in a table."""
    if isinstance(value, float):
        return f"{value:.4g}"

    return scalars.spelled(value)


def drawn_text(drawn: Mapping[str, Any]) -> str:
    """The chosen values to the last bit, as they are put into a sweep file."""
    return ", ".join(f"{key}={scalars.spelled(value)}" for key, value in drawn.items())


def space_text(search: Search) -> str:
    """The space in words."""
    rules = ""
    if search.constraints:
        rules = f"; only {', '.join(rule.text for rule in search.constraints)}"

    return ", ".join(parameter.text() for parameter in search.space) + rules
