"""A study of Optuna behind an arm: ask, tell, and continue after any end. With samplers.py the only
file with optuna.

Two studies stand behind one. The log, in a database, gets every suggestion whole, in one
transaction, and later its values in another; it is what dashboards open. The sampler works on a
study in memory, which is replayed from the log when a search continues: asked again for every
suggestion and told every value, in the order of the first time. So a search that was killed makes
the same suggestions as one that was not, whatever state a sampler keeps, and the same as plain
Optuna with that seed.
"""

from __future__ import annotations

import logging
import shlex
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
import sqlalchemy
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from pointsweep.config.schema import TrialConfig
from pointsweep.errors import ResourcesError, StoreError, StoreUnavailableError
from pointsweep.hpo.pruners import LETS_WAIT, Curve, rung_that_counts
from pointsweep.hpo.samplers import distribution, sampler, suggest
from pointsweep.hpo.suggestion import Suggestion
from pointsweep.sweep.search_space import Arm, Search
from pointsweep.utils.masking import masked, scrubbed
from pointsweep.utils.sqlite_files import set_aside_name, sqlite_path, sqlite_problem

NOTHING: Mapping[int, Any] = MappingProxyType({})
# suggestions in a row that break a constraint, before the search gives up
REJECTIONS = 1000
# of a finished trial: drawn, values, keys, curve
Found = tuple[Mapping[str, Any], tuple[float, ...], Sequence[str], Curve]
# number of a suggestion -> its values, if it has any
Results = Mapping[int, tuple[float, ...] | None]
LOCK_WAIT_S = 60.0  # for another process that has locked the study's database
STARTUP = 10  # trials before Optuna's samplers learn, where they are not told how many
# finished, before importances say anything: the best tenth of them is set against all
LEAST_TRIALS = 20
STATES = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "stopped",
}
BLIND = ("random", "grid", "qmc")  # samplers that do not look at what they are told

optuna.logging.set_verbosity(logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def require_sound(path: Path) -> None:
    """Raise StoreError, with the way back, for a study's database that cannot be used."""
    problem = sqlite_problem(path)
    if not problem:
        return

    if "locked" in problem:
        remedy = "end that process, or wait, then run the same command again"
    elif "read-only" in problem or "cannot be" in problem:
        remedy = "give this user the right to read and write it"
    else:
        remedy = (
            "its trials are in the store; set it aside and the same command makes it anew: mv"
            f" {_aside(path)}"
        )

    raise StoreError(f"the search's study {path} {problem}; {remedy}")


@contextmanager
def opening(url: str | None) -> Iterator[None]:
    """Turn what Optuna and its database layer raise over a study that cannot be opened into
    StoreError, without secrets.
    """
    try:
        yield
    except Exception as error:  # of Optuna, SQLAlchemy, Alembic or a database's driver
        path = sqlite_path(url or "")
        location = str(path) if path is not None else masked(url or "")
        message = " ".join(scrubbed(str(error), url or "").split())[:300]
        remedy = "if another version of Optuna made it, use that version"

        if path is not None:
            remedy += (
                "; or set it aside, and the same command makes it anew from the trials: mv"
                f" {_aside(path)}"
            )

        raise StoreError(
            f"the search's study {location} cannot be opened: {type(error).__name__}:"
            f" {message}; {remedy}"
        ) from error


@contextmanager
def working(url: str | None) -> Iterator[None]:
    """Turn what a study's database raises while a search runs into StoreUnavailableError: locked by
    another process, or damaged.
    """
    try:
        yield
    except (optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError) as error:
        path = sqlite_path(url or "")
        location = str(path) if path is not None else masked(url or "")
        cause = error.__cause__ or error
        message = " ".join(scrubbed(str(cause), url or "").split())[:300]
        remedy = ""

        if path is not None and "locked" not in message:
            remedy = (
                "; if that stays so, set it aside, and it is made anew from the trials: mv"
                f" {_aside(path)}"
            )

        raise StoreUnavailableError(
            f"the search's study {location} cannot be read or written: {message}{remedy}"
        ) from error


def _aside(path: Path) -> str:
    return f"{shlex.quote(str(path))} {shlex.quote(str(set_aside_name(path)))}"


def _storage(url: str | None) -> optuna.storages.BaseStorage | str | None:
    if url is None or not url.startswith("sqlite"):
        return url
    # Dashboards and backups lock it for a while.
    return optuna.storages.RDBStorage(
        url, engine_kwargs={"connect_args": {"timeout": LOCK_WAIT_S}}
    )


class Study:
    """The study of one arm. `url` is that of the log's database; None keeps the log in memory."""

    def __init__(self, url: str | None, name: str, arm: Arm, search: Search) -> None:
        self.arm = arm
        self.search = search
        self.name = name
        # its options are looked at before anything is launched
        sampler(search, search.seed)
        self.directions = []

        for direction in search.objectives.values():
            self.directions.append(StudyDirection[direction.upper()])

        with opening(url):
            self.log = optuna.create_study(
                storage=_storage(url),
                study_name=name,
                directions=self.directions,
                load_if_exists=True,
            )
            if self.log.metric_names != list(search.objectives):
                self.log.set_metric_names(list(search.objectives))

        self.note = ""
        self.live: optuna.Study | None = None
        # number in the log -> the trial in memory that is not told yet
        self.open: dict[int, optuna.trial.Trial] = {}
        self.position_of: dict[int, int] = {}  # number in the log -> number in memory

    def suggestions(self) -> list[Suggestion]:
        """All trials of the log."""
        return [_suggestion(trial) for trial in self.log.get_trials(deepcopy=False)]

    @property
    def started(self) -> bool:
        """Return whether `start` has been called, in this process or an earlier one."""
        return bool(self.log.user_attrs.get("started"))

    def start(self, known: Iterable[Found]) -> None:
        """Begin, before the first suggestion: finished trials of the store become trials of the
        study.
        """
        if self.started:
            return

        stored_keys = set()
        for trial in self.log.get_trials(deepcopy=False):
            stored_keys.add(tuple(trial.user_attrs["keys"]))

        for drawn, values, keys, curve in known:
            if tuple(keys) in stored_keys:
                continue

            if not self.search.has_curves:
                curve = NOTHING

            self._add(drawn, {"known": True, "keys": list(keys)}, values, curve)

        self.log.set_user_attr("objectives", list(self.search.objectives))
        self.log.set_user_attr("started", True)

    def next_batch(self) -> int:
        """The number of the batch that is open, else of the one to come."""
        last = -1
        for item in self.suggestions():
            if item.known:
                continue
            if item.open:
                return item.batches[-1]

            last = max(last, item.batches[-1])

        return last + 1

    def ask(
        self, count: int, fresh: int | None = None, promoted: Sequence[int] = ()
    ) -> list[Suggestion]:
        """The open suggestions of a batch of `count`: of those that wait the `promoted`, by number,
        and new ones, at most `fresh`.

        Fewer where a grid is used up. Asked again for a batch that is open, of which a part may
        have been told, it is the same.
        """
        self._replay()
        batch = self.next_batch()
        items = self.suggestions()
        promoted = promoted[:count]

        for number in promoted:
            batches = items[number].batches
            if batch not in batches:
                self._writer(number).set_user_attr("promoted", [*batches[1:], batch])

        num_new = count - len(promoted)
        if fresh is not None:
            num_new = min(num_new, fresh)

        num_drawn = sum(item.batch == batch for item in items)
        for _ in range(num_new - num_drawn):
            suggestion = self._draw()
            if suggestion is None:
                break

            trial, drawn, config = suggestion
            keys = [trial_config.key() for trial_config in self.arm.trials(config)]
            number = self._add(drawn, {"batch": batch, "keys": keys})
            self._open(number, trial)

        return [item for item in self.suggestions() if item.open]

    def tell(
        self,
        results: Results,
        curves: Mapping[int, Curve] = NOTHING,
        stopped: Collection[int] = (),
        facts: Mapping[int, Mapping[str, Any]] = NOTHING,
    ) -> None:
        """The values of suggestions of the open batch by number, None for what has none, and what a
        scheduler is to know: a curve for each.

        The log has them at once; the sampler gets those of a batch together, when its last one is
        there. What was `stopped` waits, under a scheduler that lets it; the rest without values has
        failed. Each is told once, whatever happens in between.
        """
        items = self.suggestions()
        batch = self.next_batch()

        for number in sorted(results):
            item = items[number]
            if not item.open:
                continue

            writer = self._writer(number)
            for name, value in facts.get(number, {}).items():
                writer.set_user_attr(name, value)

            curve = curves.get(number, NOTHING)
            for epoch in sorted(curve.keys() - item.curve.keys()):
                writer.report(curve[epoch], epoch)

            if number in stopped and self.search.scheduler in LETS_WAIT:
                writer.set_user_attr("waits", {**item.waits, batch: max(curve)})
                continue

            values = results[number]
            state = TrialState.FAIL
            if values:
                state = TrialState.COMPLETE
            elif number in stopped:
                state = TrialState.PRUNED

            self.log.tell(number, values=values, state=state)

        self._tell_live(batch)

    def close(self) -> None:
        """Give up what still waits."""
        for item in self.suggestions():
            if item.waiting:
                self.log.tell(item.number, state=TrialState.PRUNED)

    def importances(self) -> dict[str, dict[str, float]]:
        """objective -> key -> its share in what sets the best trials apart (PED-ANOVA, arXiv
        2304.10255); of too few none.
        """
        complete = self.log.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        shares: dict[str, dict[str, float]] = {}

        if len(complete) < LEAST_TRIALS:
            return shares

        for index, (name, direction) in enumerate(self.search.objectives.items()):
            # of what it is given, the least counts as the best
            sign = -1.0 if direction == "maximize" else 1.0
            costs = {trial.number: sign * trial.values[index] for trial in complete}
            if len(set(costs.values())) == 1:
                continue

            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            # it warns that the least counts as the best
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                shares[name] = optuna.importance.get_param_importances(
                    self.log, evaluator=evaluator, target=_costs_of(costs)
                )

        return shares

    # The log

    def _add(
        self,
        drawn: Mapping[str, Any],
        attributes: Mapping[str, Any],
        values: tuple[float, ...] | None = None,
        curve: Curve = NOTHING,
    ) -> int:
        """Add a trial to the study, running if it has no values yet, and return its number."""
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING if values is None else TrialState.COMPLETE,
            values=values,
            params=dict(drawn),
            distributions=self._distributions(drawn),
            user_attrs=dict(attributes),
            intermediate_values=dict(curve),
        )

        # The count before is the new trial's number: no other process can add one in between, as
        # the sweep's folder is locked.
        number = len(self.log.get_trials(deepcopy=False))
        self.log.add_trial(trial)

        return number

    def _writer(self, number: int) -> optuna.trial.Trial:
        """Return a trial of the log, to be written to."""
        trial = self.log.get_trials(deepcopy=False)[number]
        return optuna.trial.Trial(self.log, trial._trial_id)

    # The sampler's study

    def _distributions(
        self, drawn: Mapping[str, Any]
    ) -> dict[str, optuna.distributions.BaseDistribution]:
        distributions = {}
        for parameter in self.arm.parameters:
            if parameter.key in drawn:
                distributions[parameter.key] = distribution(parameter)

        return distributions

    def _fresh(self, seed: int, items: Iterable[Suggestion]) -> None:
        """Begin a study in memory that knows these suggestions alone."""
        self.open.clear()
        self.position_of.clear()
        self.live = optuna.create_study(
            sampler=sampler(self.search, seed), directions=self.directions
        )

        for item in items:
            self.position_of[item.number] = len(self.position_of)
            values = item.values if item.state == "complete" else None
            self.live.add_trial(self._frozen(item, values))

        used = [self.arm.settled(item.drawn) for item in items if not item.known]
        for point in self.arm.enqueue:
            if not any(point.items() <= drawn.items() for drawn in used):
                self.live.enqueue_trial(dict(point))

    def _frozen(
        self,
        item: Suggestion,
        values: Sequence[float] | None,
        attributes: Mapping[str, Any] | None = None,
    ) -> FrozenTrial:
        """Return a trial with these values for the sampler; without any one that it does not look
        at.
        """
        return optuna.trial.create_trial(
            state=TrialState.COMPLETE if values else TrialState.FAIL,
            values=values,
            params=dict(item.drawn),
            distributions=self._distributions(item.drawn),
            system_attrs=dict(attributes or {}),
        )

    def _open(self, number: int, trial: optuna.trial.Trial) -> None:
        self.open[number] = trial
        self.position_of[number] = trial.number

    def _replay(self) -> None:
        """Bring the sampler's study to where the log is."""
        if self.live is not None:
            return

        items = self.suggestions()
        self._fresh(self.search.seed, [item for item in items if item.known])
        searched = [item for item in items if not item.known]
        batches: set[int] = set()

        for item in searched:
            batches.update(item.batches)

        for batch in sorted(batches):
            for item in searched:
                if item.batch == batch and not self._replay_suggestion(item):
                    # Another version of Optuna drew the log: the sampler is given its trials, and a
                    # seed of its own.
                    self.note = (
                        f"{self.name}: the sampler could not be replayed, so from suggestion"
                        f" {len(searched)} on it has another random state"
                    )
                    self._fresh(self.search.seed + len(searched), items)
                    return

            self._tell_live(batch)

    def _replay_suggestion(self, item: Suggestion) -> bool:
        """Draw a suggestion of the log once more, and return whether it came out the same."""
        suggestion = self._draw()
        if suggestion is None:
            return False

        trial, drawn, _ = suggestion
        if drawn != self.arm.settled(item.drawn):
            return False

        self._open(item.number, trial)
        return True

    def _tell_live(self, batch: int) -> None:
        """Tell the sampler a batch, once the log knows all its ends: the order does not depend on
        who was first.
        """
        assert self.live is not None
        items = self.suggestions()

        if any(item.open and item.batches[-1] == batch for item in items):
            return

        for number in sorted(self.open):
            trial = self.open.pop(number)
            state, curve = items[number].before(batch + 1)
            if state == "complete":
                self.live.tell(trial, list(items[number].values))
            elif state == "stopped" and self.search.scheduler not in LETS_WAIT:
                for epoch, value in curve.items():
                    trial.report(value, epoch)

                self.live.tell(trial, state=TrialState.PRUNED)
            else:
                self.live.tell(trial, state=TrialState.FAIL)

        if self.search.scheduler in LETS_WAIT and self.search.sampler not in BLIND:
            self._tell_again(items, batch)

    def _tell_again(self, items: Sequence[Suggestion], batch: int) -> None:
        """Tell the sampler what all trials had at the rung that counts by now, or at their end; of
        the others that there is nothing.

        Optuna closes a trial that was told. So they go into a new study, in their order, and the
        sampler goes over to it.
        """
        assert self.live is not None
        trials = self.live.get_trials(deepcopy=False)
        states: dict[int, tuple[str, Mapping[int, float]]] = {}
        curves = []
        num_complete = 0

        for number in self.position_of:
            state, curve = items[number].before(batch + 1)
            states[number] = state, curve
            if state != "failed":
                curves.append(curve)

            if state == "complete":
                num_complete += 1

        enough = self.search.options.get("n_startup_trials", STARTUP)
        rung = rung_that_counts(curves, self.search, enough)
        for number, position in self.position_of.items():
            state, curve = states[number]
            values = None
            if num_complete >= enough:
                if state == "complete":
                    values = items[number].values
            elif rung in curve and state != "failed":
                values = (curve[rung],)

            trials[position] = self._frozen(
                items[number], values, trials[position].system_attrs
            )

        self.live = optuna.create_study(
            sampler=self.live.sampler, directions=self.directions
        )
        self.live.add_trials(trials)

    def _draw(self) -> tuple[optuna.trial.Trial, dict[str, Any], TrialConfig] | None:
        """The next suggestion that is a valid trial; None where a grid is used up. Raises
        ResourcesError if there seems to be none.
        """
        assert self.live is not None
        for _ in range(REJECTIONS):
            if self.search.sampler == "grid":
                points_left = self.live.get_trials(
                    deepcopy=False, states=(TrialState.WAITING,)
                )
                if not points_left:
                    return None

            trial = self.live.ask()
            drawn: dict[str, Any] = {}
            for parameter in self.arm.parameters:
                if self.arm.applies(parameter, drawn):
                    drawn[parameter.key] = suggest(trial, parameter)

            config = self.arm.config(drawn)
            if config is not None:
                return trial, drawn, config

            self.live.tell(trial, state=TrialState.FAIL)

        raise ResourcesError(
            f"{self.name}: {REJECTIONS} suggestions in a row break a constraint; widen the space or"
            " the constraints"
        )


def _costs_of(costs: Mapping[int, float]) -> Callable[[FrozenTrial], float]:
    return lambda trial: costs[trial.number]


def _suggestion(trial: FrozenTrial) -> Suggestion:
    attributes = trial.user_attrs
    values = tuple(trial.values) if trial.state == TrialState.COMPLETE else ()
    curve = dict(sorted(trial.intermediate_values.items()))
    known = bool(attributes.get("known"))
    batches = () if known else (attributes["batch"], *attributes.get("promoted", ()))
    # JSON has words for keys
    waits = {int(batch): epoch for batch, epoch in attributes.get("waits", {}).items()}
    times = []

    if not known:  # else it was not trained by the search
        for time in (trial.datetime_start, trial.datetime_complete):
            if time is not None:
                times.append(time.timestamp())

    return Suggestion(
        number=trial.number,
        drawn=trial.params,
        batches=batches,
        state=STATES[trial.state],
        values=values,
        curve=curve,
        known=known,
        waits=waits,
        times=tuple(times),
    )
