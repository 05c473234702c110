"""A study of Optuna behind an arm: ask, tell, and continue after any end. The only file with optuna.

Two studies stand behind one. The log, in a database, gets every suggestion whole, in one transaction, and later its values in
another; it is what dashboards open. The sampler works on a study in memory, which is replayed from the log when a search continues:
asked again for every suggestion and told every value, in the order of the first time. So a search that was killed makes the same
suggestions as one that was not, whatever state a sampler keeps, and the same as plain Optuna with that seed.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from pointsweep.config import TrialConfig
from pointsweep.errors import Unfit
from pointsweep.space import Arm, Parameter, Search

Curve = Sequence[tuple[int, float]]
REJECTIONS = 1000  # suggestions in a row that break a constraint, before the search gives up
LEAST_TRIALS = 20  # finished, before importances say anything: the best tenth of them is set against all
STATES = {TrialState.RUNNING: "running", TrialState.COMPLETE: "complete", TrialState.FAIL: "failed", TrialState.PRUNED: "stopped"}

optuna.logging.set_verbosity(logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True)
class Suggestion:
    """One trial of a study: drawn values, and once it is told its values, one an objective. `known`: found finished in the store."""

    number: int
    drawn: Mapping[str, Any]
    batch: int
    state: str  # running, complete, failed, stopped
    values: tuple[float, ...] = ()
    curve: tuple[tuple[int, float], ...] = ()  # of what was stopped: its objective by epoch
    known: bool = False


class Study:
    """The study of one arm. `url` is that of the log's database; None keeps the log in memory."""

    def __init__(self, url: str | None, name: str, arm: Arm, search: Search) -> None:
        self.arm, self.search, self.name = arm, search, name
        sampler(search, search.seed)  # its options are looked at before anything is launched
        self.directions = [StudyDirection[direction.upper()] for direction in search.objectives.values()]
        self.log = optuna.create_study(storage=url, study_name=name, directions=self.directions, load_if_exists=True)
        self.note = ""
        self.live: optuna.Study | None = None
        self.open: dict[int, optuna.trial.Trial] = {}  # number in the log -> the trial in memory that is not told yet

    def suggestions(self) -> list[Suggestion]:
        """All trials of the log."""
        return [_suggestion(trial) for trial in self.log.get_trials(deepcopy=False)]

    def start(self, known: Iterable[tuple[Mapping[str, Any], tuple[float, ...], Sequence[str]]]) -> None:
        """Before the first suggestion: finished trials of the store (drawn values, values, keys) become trials of the study."""
        if self.log.user_attrs.get("started"):
            return
        told = {tuple(trial.user_attrs["keys"]) for trial in self.log.get_trials(deepcopy=False)}
        for drawn, values, keys in known:
            if tuple(keys) not in told:
                self._add(drawn, {"known": True, "keys": list(keys)}, values)
        self.log.set_user_attr("objectives", list(self.search.objectives))
        self.log.set_user_attr("started", True)

    def ask(self, count: int) -> list[Suggestion]:
        """The suggestions that wait for their values, and new ones, so that there are `count`; fewer where a grid is used up."""
        self._replay()
        before = self.suggestions()
        waiting = [item for item in before if item.state == "running"]
        batch = waiting[0].batch if waiting else max((item.batch for item in before), default=-1) + 1
        size = sum(item.batch == batch for item in before)  # of a batch that was cut off while it was told, some wait no more
        for _ in range(count - size):
            found = self._draw()
            if found is None:
                break
            trial, drawn, config = found
            keys = [each.key() for each in self.arm.trials(config)]
            number = self._add(drawn, {"batch": batch, "keys": keys})
            self.open[number] = trial
            waiting.append(Suggestion(number, drawn, batch, "running"))
        return waiting

    def tell(self, results: Mapping[int, tuple[float, ...] | None], stopped: Mapping[int, Curve] | None = None) -> None:
        """The values of a whole batch by number; None for what failed, and for what was stopped, whose curve stands beside.

        Each is told once, whatever happens in between.
        """
        states = {item.number: item.state for item in self.suggestions()}
        for number in sorted(results):
            if states[number] == "running":
                values = results[number]
                if stopped and number in stopped:
                    trial = optuna.trial.Trial(self.log, self.log.get_trials(deepcopy=False)[number]._trial_id)
                    _tell_stopped(self.log, trial, stopped[number])
                    continue
                self.log.tell(number, values=values, state=TrialState.COMPLETE if values else TrialState.FAIL)
        self._tell_live()

    def importances(self) -> dict[str, dict[str, float]]:
        """objective -> key -> its share in what sets the best trials apart (PED-ANOVA, arXiv 2304.10255); of too few none."""
        done = self.log.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        found = {}
        for index, (name, direction) in enumerate(self.search.objectives.items()):
            sign = -1.0 if direction == "maximize" else 1.0  # of what it is given, the least counts as the best
            costs = {trial.number: sign * trial.values[index] for trial in done}
            if len(done) >= LEAST_TRIALS and len(set(costs.values())) > 1:
                evaluator = optuna.importance.PedAnovaImportanceEvaluator()
                with warnings.catch_warnings():  # it warns that the least counts as the best
                    warnings.simplefilter("ignore", UserWarning)
                    found[name] = optuna.importance.get_param_importances(self.log, evaluator=evaluator, target=_costs_of(costs))
        return found

    # The log

    def _add(self, drawn: Mapping[str, Any], attributes: Mapping[str, Any], values: tuple[float, ...] | None = None) -> int:
        by_key = {parameter.key: parameter for parameter in self.arm.parameters}
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING if values is None else TrialState.COMPLETE,
            values=values,
            params=dict(drawn),
            distributions={key: distribution(by_key[key]) for key in drawn},
            user_attrs=dict(attributes),
        )
        number = len(self.log.get_trials(deepcopy=False))  # one process at a time adds to it: the sweep's folder is locked
        self.log.add_trial(trial)
        return number

    # The sampler's study

    def _fresh(self, seed: int) -> optuna.Study:
        made = optuna.create_study(sampler=sampler(self.search, seed), directions=self.directions)
        for item in self.suggestions():
            if item.known:
                made.add_trial(self._frozen(item))
        for point in self.arm.enqueue:
            made.enqueue_trial(dict(point))
        return made

    def _frozen(self, item: Suggestion) -> FrozenTrial:
        by_key = {parameter.key: parameter for parameter in self.arm.parameters}
        distributions = {key: distribution(by_key[key]) for key in item.drawn}
        return optuna.trial.create_trial(values=item.values, params=dict(item.drawn), distributions=distributions)

    def _replay(self) -> None:
        """Brings the sampler's study to where the log is."""
        if self.live is not None:
            return
        self.live = self._fresh(self.search.seed)
        own = [item for item in self.suggestions() if not item.known]
        for _, batch in itertools.groupby(own, key=lambda item: item.batch):
            for item in batch:
                found = self._draw()
                if found is None or dict(found[1]) != dict(item.drawn):
                    self._restart(own)
                    return
                self.open[item.number] = found[0]
            self._tell_live()

    def _restart(self, own: Sequence[Suggestion]) -> None:
        """Another version of Optuna drew the log: the sampler is given its trials, and goes on with a seed of its own."""
        self.note = f"{self.name}: the sampler could not be replayed, so from suggestion {len(own)} on it has another random state"
        self.open.clear()
        self.live = optuna.create_study(sampler=sampler(self.search, self.search.seed + len(own)), directions=self.directions)
        for item in self.suggestions():
            if item.state == "complete":
                self.live.add_trial(self._frozen(item))
        used = [dict(item.drawn) for item in own]
        for point in self.arm.enqueue:
            if not any(point.items() <= drawn.items() for drawn in used):
                self.live.enqueue_trial(dict(point))

    def _tell_live(self) -> None:
        """Tells the sampler the batch that is open, once the log knows all its values: the order does not depend on who was first."""
        assert self.live is not None
        ended = {item.number: item for item in self.suggestions() if item.state != "running"}
        if not all(number in ended for number in self.open):
            return
        for number in sorted(self.open):
            item = ended[number]
            if item.state == "complete":
                self.live.tell(self.open[number], list(item.values))
            elif item.state == "stopped":
                _tell_stopped(self.live, self.open[number], item.curve)
            else:
                self.live.tell(self.open[number], state=TrialState.FAIL)
        self.open.clear()

    def _draw(self) -> tuple[optuna.trial.Trial, dict[str, Any], TrialConfig] | None:
        """The next suggestion that is a valid trial; None where a grid is used up. Raises Unfit if there seems to be none."""
        assert self.live is not None
        for _ in range(REJECTIONS):
            if self.search.sampler == "grid" and not self.live.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
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
        raise Unfit(f"{self.name}: {REJECTIONS} suggestions in a row break a constraint; widen the space or the constraints")


def _costs_of(costs: Mapping[int, float]) -> Callable[[FrozenTrial], float]:
    return lambda trial: costs[trial.number]


def _tell_stopped(study: optuna.Study, trial: optuna.trial.Trial, curve: Curve) -> None:
    """A trial that was stopped has no value, but what was seen of it until then."""
    for epoch, value in curve:
        trial.report(value, epoch)
    study.tell(trial, state=TrialState.PRUNED)


def _suggestion(trial: FrozenTrial) -> Suggestion:
    attributes = trial.user_attrs
    values = tuple(trial.values) if trial.state == TrialState.COMPLETE else ()
    curve = tuple(sorted(trial.intermediate_values.items()))
    batch, known = attributes.get("batch", -1), bool(attributes.get("known"))
    return Suggestion(trial.number, trial.params, batch, STATES[trial.state], values, curve, known)


def suggest(trial: optuna.trial.Trial, parameter: Parameter) -> Any:
    """A value for a parameter, by the call that a define-by-run program would make."""
    if parameter.kind == "choice":
        return trial.suggest_categorical(parameter.key, parameter.labels)
    if parameter.kind == "int":
        step = int(parameter.step or 1)
        return trial.suggest_int(parameter.key, int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return trial.suggest_float(parameter.key, parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def distribution(parameter: Parameter) -> optuna.distributions.BaseDistribution:
    """The same as Optuna keeps it."""
    if parameter.kind == "choice":
        return optuna.distributions.CategoricalDistribution(parameter.labels)
    if parameter.kind == "int":
        step = int(parameter.step or 1)
        return optuna.distributions.IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return optuna.distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def sampler(search: Search, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that a search names. A grid's points are start points, so nothing is left to its sampler.

    Raises Unfit for options that do not go together.
    """
    made: dict[str, Any] = {
        "tpe": optuna.samplers.TPESampler,
        "gp": optuna.samplers.GPSampler,
        "cmaes": optuna.samplers.CmaEsSampler,
        "nsga2": optuna.samplers.NSGAIISampler,
        "nsga3": optuna.samplers.NSGAIIISampler,
        "qmc": optuna.samplers.QMCSampler,
        "random": optuna.samplers.RandomSampler,
        "grid": optuna.samplers.RandomSampler,
    }
    try:
        found: optuna.samplers.BaseSampler = made[search.sampler](seed=seed, **search.options)
    except ValueError as error:
        raise Unfit(f"sampler {search.sampler}: {error}") from None
    return found
