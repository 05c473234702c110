"""Hyperparameter searches of a sweep: suggestions are trained in batches, and the result is a Sweep
that is trained and printed as any other.

An arm is a cell whose configuration has parameters to search. Each arm has a study, which suggests
values of these. A suggestion is a set of values, and stands for one trial a seed; these are
ordinary trials, with keys, records and checkpoints as those of a cell that is written in a sweep
file.
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

# Trains every trial of a sweep that has no record. Arguments: the sweep, each trial's limits by
# key, and a function to call with the key of each trial that has ended.
Train = Callable[[Sweep, Mapping[str, Limits], Callable[[str], None]], None]
MISSING = "·"  # in a table: a parameter that the row's suggestion does not have


@dataclass
class _OpenSuggestion:
    """A suggestion of the current batch, its study, and the keys of its trials that have not
    ended.
    """

    study: Study
    item: Suggestion
    keys: set[str]


class Tuning:
    """The searches of a sweep: a single one, or one for every cell (see `_is_per_arm`)."""

    def __init__(self, sweep: Sweep, store: FileStore) -> None:
        assert sweep.search is not None
        self.sweep = sweep
        self.search = sweep.search
        self.store = store
        self.cells = [cell for cell in sweep.cells if cell.arm is not None]
        # returns the address of a trial's run in MLflow by the trial's key; empty without one
        self.trial_page: Callable[[str], str] = lambda key: ""
        path = store.path(f"sweeps/{sweep.name}/study.db")

        if not self.search.storage:
            require_sound(path)

        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self.search.storage and not path.exists():
                # SQLite would create it without write permission for a group, whatever the umask
                open_append(path).close()

        self.url = self.search.storage or sqlite_uri(path)
        self.studies = []
        for cell in self.cells:
            name = study_name(sweep, cell)
            self.studies.append(Study(self.url, name, arm_of(cell), self.search))

    def run(self, train: Train, say: Callable[[str], None]) -> None:
        """Ask the studies for suggestions, train these and return the results to the studies, batch
        by batch, until every study has its number of suggestions or its hours are spent.
        """
        for study in self.studies:
            if not study.started:
                study.start(self._starting_trials(study))

        batches = [Batches(study) for study in self.studies]
        while True:
            asked_batches = []
            for arm_batches in batches:
                is_spent = self._is_budget_spent(arm_batches.study)
                asked_batches.append(arm_batches.ask(is_spent))

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
        """Train the batches of all arms in one launch, so that one arm's slow trials leave no
        worker idle, and write their results to the studies.
        """
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

        # A trial that another process has leased does not end in this launch; its suggestion is
        # written with what the store has of it.
        for study in self.studies:
            unended = []
            for suggestion in open_suggestions:
                if suggestion.study is study:
                    unended.append(suggestion.item)

            if unended:
                self._tell(study, unended)

    def _starting_trials(self, study: Study) -> list[Finished]:
        """Return the finished trials of the store that a new study begins with, and store their
        keys.

        If the study's database is lost, the study that replaces it begins with the same trials,
        although the store has more by then. So it makes the same suggestions again, whose trials
        have records, and nothing is trained twice.
        """
        if not self.search.use_finished:
            return []

        finished = list(known(study.arm, self.search, self.sweep.protocol, self.store))
        name = f"sweeps/{self.sweep.name}/told_first.json"
        key_lists = self._read_key_lists(name)

        # The keys of a suggestion's trials are one text, as a list cannot be the key of a dict.
        if study.name in key_lists:
            by_keys = {}
            for drawn, values, keys, curve in finished:
                by_keys[" ".join(keys)] = (drawn, values, keys, curve)

            return [by_keys[keys] for keys in key_lists[study.name] if keys in by_keys]

        key_lists[study.name] = [" ".join(keys) for _, _, keys, _ in finished]
        self.store.write(name, json.dumps(key_lists, indent=1).encode())
        return finished

    def _read_key_lists(self, name: str) -> dict[str, list[str]]:
        """Return the stored keys by study, those of a suggestion joined by spaces."""
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
        """Write every suggestion whose trials have all ended to its study, and remove it from the
        list. `key` is that of the trial that has just ended; without one, none has.

        The sampler sees the results of a batch together (study.py), so the order in which trials
        end does not change any suggestion.
        """
        for open_suggestion in list(open_suggestions):
            open_suggestion.keys.discard(key)
            if not open_suggestion.keys:
                open_suggestions.remove(open_suggestion)
                self._tell(open_suggestion.study, [open_suggestion.item])

    def _tell(self, study: Study, batch: Sequence[Suggestion]) -> None:
        """Write suggestions to their study, with values (None for a failed or stopped one), curves
        and facts.
        """
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
        """Return what Optuna's dashboard shows of a suggestion beside its values: its cell, its
        training time, and its runs in MLflow. The keys of its trials are there already, from the
        time of the suggestion.
        """
        cell_of = {id(arm_study): name for name, arm_study in self.by_arm().items()}
        facts: dict[str, Any] = {
            "cell": cell_of[id(study)],
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
        """Return the keys of the trials that have no valid record, i.e. are not finished."""
        return [key for key in keys if sound_record(self.store, key) is None]

    def _stopped(self, keys: Sequence[str]) -> bool:
        """Return whether a scheduler has stopped a suggestion: it has unfinished trials, and all of
        these were stopped by the scheduler and did not fail.
        """
        unfinished = self._without_record(keys)
        for key in unfinished:
            if TrialFolder(self.store.path(f"trials/{key}")).stopped() is None:
                return False

        return bool(unfinished)

    def progress(self) -> str:
        """Return a line "tiny: 5 of 12 suggestions finished, 3 waiting"."""
        num_suggestions = self.search.trials * len(self.studies)
        num_finished = sum(self._num_ended(study) for study in self.studies)
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
            line += f", {self._hours_text()}"

        return line

    def extent(self) -> tuple[int, int, float]:
        """Return the number of trials of the whole search that have ended, that of all (0 where the
        budget of hours alone ends the search), and the used fraction of the hours.
        """
        ended = total = 0
        for study in self.studies:
            seeds = len(study.arm.seeds)
            ended += seeds * self._num_ended(study)
            # the last term: each winner is trained with fresh seeds
            total += seeds * self.search.trials + (self.search.then_seeds or 0)

        # A search with a budget of hours alone has the largest number of trials by default.
        if self.search.trials >= MOST_TRIALS:
            total = 0

        used = 0.0
        if self.search.hours:
            used = max(map(self._hours_of, self.studies)) / self.search.hours

        return ended, total, used

    def _num_ended(self, study: Study) -> int:
        """Return the number of a study's suggestions that have ended, without the finished trials
        of the store that it began with.
        """
        searched = [item for item in study.suggestions() if not item.known]
        return sum(item.state != "running" for item in searched)

    def _is_budget_spent(self, study: Study) -> bool:
        """Return whether a study has used up its hours; never without a budget of hours."""
        hours = self.search.hours
        return hours is not None and self._hours_of(study) >= hours

    def _hours_of(self, study: Study) -> float:
        """Return the training time, in hours, of a study's suggestions: those that have ended, and
        running ones of which the study already has a part of the curve.
        """
        seconds = []
        for item in study.suggestions():
            if not item.known and (item.state != "running" or item.curve):
                for key in self._keys(study, item):
                    seconds.append(seconds_of(key, self.store))

        return sum(seconds) / 3600

    def _hours_text(self) -> str:
        """Return "1.5 of 4 hours of each arm spent", by the arm that has used most."""
        used = max(map(self._hours_of, self.studies))
        per_arm = " of each arm" if len(self.studies) > 1 else ""
        return f"{used:.2g} of {self.search.hours:g} hours{per_arm} spent"

    def everything(self) -> Sweep:
        """Return a sweep of all suggestions so far, for their tags in MLflow."""
        return self._batch([study.suggestions() for study in self.studies])

    def _batch(self, batches: Sequence[Sequence[Suggestion]]) -> Sweep:
        """Return a sweep with a row for each suggestion of the batches, one batch an arm."""
        rows: list[tuple[str, ...]] = []
        cells = []
        for cell, study, batch in zip(self.cells, self.studies, batches, strict=True):
            prefix = ""
            if _is_per_arm(self.search):
                prefix = f"{self.sweep.cell_name(cell)} / "

            for item in batch:
                # None where the values make no valid configuration: there is nothing to train
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
        """Return the studies by the names of their cells; a single search has the sweep's name."""
        studies = {}
        for cell, study in zip(self.cells, self.studies, strict=True):
            name = self.sweep.name
            if _is_per_arm(self.search):
                name = self.sweep.cell_name(cell)

            studies[name] = study

        return studies

    def failed(self) -> bool:
        """Return whether an arm has no finished suggestion at all."""
        return not all(map(_finished, self.studies))

    def _keys(self, study: Study, item: Suggestion) -> list[str]:
        """Return the keys of a suggestion's trials, one a seed; none if its values make no valid
        configuration.
        """
        config = study.arm.config(item.drawn)
        if config is not None:
            return [trial.key() for trial in study.arm.trials(config)]

        return []

    # The result

    def result(self) -> Sweep | None:
        """Return the sweep of the result. A single search gives the best suggestions, or the Pareto
        front of several objectives, or None if none has finished; a search per arm gives every
        arm's winner with fresh seeds.
        """
        finished = [_finished(study) for study in self.studies]
        if _is_per_arm(self.search):
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
        """Yield the footnotes of a single search's table."""
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
        num_ended = max(map(self._num_ended, self.studies))
        hours = "" if self.search.hours is None else f", {self._hours_text()}"
        objectives = ", ".join(self.search.objectives)
        protocol = f"protocol {self.sweep.protocol}"

        return (
            f"{num_ended} trials by {self.search.sampler}, sampler seed {self.search.seed},"
            f" aiming at {objectives} ({protocol}){hours}"
        )

    def _failures(self) -> Iterator[str]:
        for cell, study in zip(self.cells, self.studies, strict=True):
            prefix = ""
            if _is_per_arm(self.search):
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
        """Return the sweep in which every arm's cell has its best suggestion, with seeds that the
        search has not used: its own would favour the suggestions that were lucky with them.
        """
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
    """Return the arm of a cell that must have one."""
    assert cell.arm is not None
    return cell.arm


def study_name(sweep: Sweep, cell: Cell) -> str:
    """Return the name of a cell's study in Optuna's database: the sweep's name, the cell's where
    every cell has a study, and a digest of every setting that changes which values are suggested or
    what their results are.

    A changed setting of that kind, e.g. a range of the space, starts a study of its own. More
    trials or hours, or another batch size, are no part of the name, so they continue the study that
    exists.
    """
    arm = arm_of(cell)
    search = sweep.search
    assert search is not None
    # A change of this list would give all stored studies another name, and restart them.
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
    cell_suffix = f": {sweep.cell_name(cell)}" if _is_per_arm(search) else ""

    return f"{sweep.name}{cell_suffix} {digest}"


def _is_per_arm(search: Search) -> bool:
    """Return whether every cell of the sweep has a search of its own, whose winner is then trained
    with fresh seeds (`per_arm` in a sweep file); else the whole sweep is a single search.
    """
    return search.then_seeds is not None


def _example_key(arm: Arm) -> str:
    """Return the key of one of an arm's trials, always the same one. It changes with any setting of
    the arm that is not searched. Empty if no point of the space is a valid configuration.
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
    """Return the best suggestions, as many as the table has rows; of several objectives the Pareto
    front. The best of the first objective comes first.
    """
    # Costs are minimized, so an objective that is maximized changes its sign.
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
    # In the order of costs, no later suggestion can dominate one that is on the front already.
    for item in ordered:
        cost = costs[item.number]
        if not any(_dominates(other_cost, cost) for other_cost in front_costs):
            front.append(item)
            front_costs.append(cost)

    return front


def _dominates(costs: Sequence[float], other_costs: Sequence[float]) -> bool:
    """Return whether no cost is above the other's; so of two equal suggestions the first one
    dominates.
    """
    return all(map(operator.le, costs, other_costs))


def headers(keys: Sequence[str]) -> list[str]:
    """Return a heading for each dotted key: its last word, or the whole key where several keys have
    the same last word.
    """
    last_words = [key.rpartition(".")[2] for key in keys]
    names = []

    for last_word, key in zip(last_words, keys, strict=True):
        names.append(last_word if last_words.count(last_word) == 1 else key)

    return names


def short(value: Any) -> str:
    """Return a parameter's value as a table shows it, a float with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"

    return scalars.spelled(value)


def drawn_text(drawn: Mapping[str, Any]) -> str:
    """Return a suggestion's values without rounding, in the spelling of a sweep file."""
    return ", ".join(f"{key}={scalars.spelled(value)}" for key, value in drawn.items())


def space_text(search: Search) -> str:
    """Return the parameters and constraints of the search space in words."""
    rules = ""
    if search.constraints:
        rules = f"; only {', '.join(rule.text for rule in search.constraints)}"

    return ", ".join(parameter.text() for parameter in search.space) + rules
