"""The `search:` and `per_arm:` sections of a sweep file -> a Search, and the arms that it tunes;
every problem with path and line.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from pointsweep.config import scalars
from pointsweep.config.base import MOST_WHOLE, Config
from pointsweep.config.validation import problems_of
from pointsweep.errors import unknown
from pointsweep.results.metrics import DEFAULT
from pointsweep.sweep.axes import DIGITS, comparable, read_when
from pointsweep.sweep.conditions import PARTS_OF_A_TRIAL
from pointsweep.sweep.search_space import (
    OBJECTIVES,
    ONE_OBJECTIVE,
    PACKAGES,
    RANGE,
    SAMPLERS,
    SCHEDULERS,
    Constraint,
    Parameter,
    Search,
    constraint_problems,
)

if TYPE_CHECKING:
    from pointsweep.sweep.parser import Reader

# the types that the ends of a range may have
NUMBER_TYPES: dict[str, Any] = {"int": int, "float": (int, float)}
Path = tuple[Any, ...]
Section = TypeVar("Section", bound=Config)
MOST_TRIALS = 1000  # where only hours are given
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


# The keys of the sections, with their types and defaults


def _refused(text: str, value: Any) -> PydanticCustomError:
    shown = {"text": text, "value": scalars.shown(value)}
    return PydanticCustomError("conflict", "{text}, got {value}", shown)


def whole_from(least: int) -> Any:
    """Return the type of a whole number from `least` on."""

    def check(value: Any) -> Any:
        if type(value) is not int or not least <= value <= MOST_WHOLE:
            raise _refused(f"must be a whole number from {least} on", value)
        return value

    return BeforeValidator(check)


def _check_hours(value: Any) -> Any:
    if value is None:
        return value
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise _refused("must be a number above 0", value)

    return value


def _check_address(value: Any) -> Any:
    if value is None:
        return value
    if not isinstance(value, str) or "://" not in value:
        raise _refused(
            "must be the URL of a database, e.g. postgresql://host/name", value
        )

    user, _, _ = value.partition("://")[2].rpartition("@")
    if ":" in user:
        # Not repeated in the message: the file is kept in the store, and a log is read by many.
        raise PydanticCustomError(
            "conflict",
            "holds a password, and this file is kept in the store; ~/.pgpass is a place for it",
        )

    return value


# The limits are for the JSON Schema: the validators come first, with their own words.
FromZero = Annotated[int, Field(ge=0, le=MOST_WHOLE), whole_from(0)]
FromOne = Annotated[int, Field(ge=1), whole_from(1)]
Hours = Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_check_hours)]
Address = Annotated[
    Annotated[str, Field(pattern="://")] | None, BeforeValidator(_check_address)
]


class StudyConfig(Config):
    """Keys of `per_arm.search`, the study that every row gets; `search` has them too.

    Space, constraints, objectives, sampler, scheduler and start points are open here: what is right
    in one depends on another, or on the trials of the file, and is looked at by the reader.
    """

    space: Any = None
    """Keys of a trial and their ranges."""
    constraints: Any = None
    """Arithmetic and comparisons of keys."""
    objectives: Any = Field(default={"val/accuracy": "maximize"})
    """Several give the Pareto front."""
    sampler: Any = "tpe"
    scheduler: Any = None
    seed: FromZero = 0
    """Of the sampler."""
    batch: FromOne = 4
    """Suggestions that are made at once."""
    storage: Address = None
    """The URL of a database."""


class SearchConfig(StudyConfig):
    """Keys of `search`, a search that takes the place of a table."""

    enqueue: Any = None
    """Points to start with."""
    trials: FromOne = 20
    """Of the study; 1000 where hours: is given alone."""
    hours: Hours = None
    """Of training, after which no further batch starts."""
    use_finished: bool = True
    """Finished trials of the store are told first."""
    top: FromOne = 10
    """Rows of the table."""


class PerArmConfig(Config):
    """Keys of `per_arm`, a search for every row of a table."""

    search: Any = None
    """The study of every row."""
    trials: FromOne = 20
    """Of each study; 1000 where hours: is given alone."""
    hours: Hours = None
    """Of training for each row, after which no further batch starts."""
    then_seeds: FromOne = 3
    """Seeds that every row's winner is trained with."""
    then_on: Literal["train", "train_and_val"] = "train"
    """What the winners are trained on."""


# The reader


class SearchReader:
    """Reader of the search section of one sweep; problems go to the sweep's reader."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.per_arm = "per_arm" in reader.data
        self.path: Path = ("per_arm", "search") if self.per_arm else ("search",)

    def complain(self, path: Path, message: str) -> None:
        self.reader.complain(path, message)

    def read(self) -> Search:
        """The search; worth something only if there are no problems after it."""
        data = self.reader.data
        if "search" in data and self.per_arm:
            self.complain(
                ("per_arm",), "stands beside search: a file has one of the two"
            )

        for key in ("rows", "columns", "axes", "exclude"):
            if key in data and not self.per_arm:
                self.complain(
                    (key,),
                    "search takes the place of rows, columns and axes; to tune every row use"
                    " per_arm",
                )

        if data.get("protocol") == "best_test":
            self.complain(
                ("protocol",),
                "a search sees the validation split only; allowed: last, best_val",
            )

        if str(data.get("metric", "")).startswith("test/") and not self.per_arm:
            self.complain(
                ("metric",),
                "a search sees and prints val/accuracy; test metrics are for a sweep of what it has"
                " chosen",
            )

        study: StudyConfig
        budget: SearchConfig | PerArmConfig
        if self.per_arm:
            budget = self._section(("per_arm",), PerArmConfig)
            study = self._section(self.path, StudyConfig)
        else:
            budget = study = self._section(self.path, SearchConfig)

        if isinstance(budget, PerArmConfig):
            self._check_then_on(budget.then_on)

        sampler, options = self._sampler(study.sampler, study.objectives)
        scheduler, schedule = self._scheduler(study.scheduler, study.objectives)
        trials = budget.trials

        if budget.hours is not None and "trials" not in budget.model_fields_set:
            trials = MOST_TRIALS

        search = Search(
            space=self._space(study.space),
            constraints=tuple(self._constraints(study.constraints)),
            sampler=sampler,
            options=options,
            seed=study.seed,
            trials=trials,
            hours=budget.hours,
            batch=study.batch,
            objectives=self._objectives(study.objectives),
            scheduler=scheduler,
            schedule=schedule,
            storage=study.storage,
        )

        if isinstance(budget, SearchConfig):
            return replace(
                search,
                enqueue=tuple(self._enqueue(budget.enqueue)),
                use_finished=budget.use_finished,
                top=budget.top,
            )

        # Finished trials told to some rows' studies would give these more looks than their budget.
        return replace(
            search,
            use_finished=False,
            then_seeds=budget.then_seeds,
            then_on=budget.then_on,
        )

    def _check_then_on(self, value: str) -> None:
        """Complain of winners that are trained on all clouds where validation clouds are needed."""
        if value != "train_and_val":
            return

        for key, default in (("protocol", "last"), ("metric", DEFAULT)):
            requested = str(self.reader.data.get(key, default))
            if requested.startswith(("best_val", "val/")):
                message = (
                    f"train_and_val leaves the winners no validation clouds, {key}: {requested}"
                    " needs them"
                )
                self.complain(("per_arm", "then_on"), message)

    def _section(self, path: Path, kind: type[Section]) -> Section:
        """Return the section at a path; what is wrong in it is complained of and left at its
        default.
        """
        data: Any = self.reader.data
        for part in path:
            data = data.get(part) if isinstance(data, Mapping) else None

        keys = list(kind.model_fields)
        if not isinstance(data, Mapping):
            self.complain(
                path, f"must be a mapping with {', '.join(keys)}; got {data!r}"
            )
            return kind()

        for key in data:
            if key not in keys:
                self.complain((*path, key), unknown("key", key, keys, "Allowed"))

        known = {key: value for key, value in data.items() if key in keys}
        try:
            return kind.model_validate(known)
        except ValidationError as error:
            wrong = problems_of(error, kind)

        for key, message in wrong:
            self.complain((*path, key), message)
            known.pop(key, None)

        return kind.model_validate(known)

    def _whole(
        self, path: Path, data: Mapping[str, Any], key: str, default: int, least: int
    ) -> int:
        value = data.get(key, default)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if is_whole and least <= value <= MOST_WHOLE:
            return int(value)

        shown = scalars.shown(value)
        text = f"must be a whole number from {least} on, got {shown}"
        self.complain((*path, key), text)

        return default

    def _sampler(self, value: Any, objectives: Any) -> tuple[str, Mapping[str, Any]]:
        path = (*self.path, "sampler")
        options = dict(value) if isinstance(value, Mapping) else {"name": value}
        name = options.pop("name", None)

        if name not in SAMPLERS:
            self.complain(path, unknown("sampler", name, SAMPLERS, "Known"))
            return "tpe", {}

        for key, option in options.items():
            kind = SAMPLERS[name].get(key)
            if kind is None:
                text = unknown(f"option of {name}", key, SAMPLERS[name], "It has")
                self.complain((*path, key), text)
            elif not _is_option(option, kind):
                text = f"must be {KINDS[kind]}, got {scalars.shown(option)}"
                self.complain((*path, key), text)

        has_several = isinstance(objectives, Mapping) and len(objectives) > 1
        if name in ONE_OBJECTIVE and has_several:
            listed = ", ".join(map(str, objectives))
            self.complain(path, f"{name} aims at one objective, got {listed}")

        needed = PACKAGES.get(name)
        if needed and importlib.util.find_spec(needed) is None:
            self.complain(
                path,
                f"{name} needs the package {needed}, which is not installed: pip install {needed}",
            )

        return name, options

    def _scheduler(
        self, value: Any, objectives: Any
    ) -> tuple[str | None, Mapping[str, int]]:
        path = (*self.path, "scheduler")
        options = dict(value) if isinstance(value, Mapping) else {"name": value}
        name = options.pop("name", None)

        if value is None:
            return None, {}

        if name == "pbt":
            self.complain(
                path,
                "pbt copies weights between trials, so that a trial's settings would not tell its"
                f" numbers; known: {', '.join(SCHEDULERS)}",
            )
            return None, {}

        if name not in SCHEDULERS:
            self.complain(path, unknown("scheduler", name, SCHEDULERS, "Known"))
            return None, {}

        for key in options:
            if key not in SCHEDULERS[name]:
                text = unknown(f"option of {name}", key, SCHEDULERS[name], "It has")
                self.complain((*path, key), text)

        if objectives != {"val/accuracy": "maximize"}:
            self.complain(path, "a scheduler needs val/accuracy as the one objective")

        schedule = {}
        for key, default in SCHEDULERS[name].items():
            least = 2 if key == "reduction" else 1
            schedule[key] = self._whole(
                path, options, key=key, default=default, least=least
            )

        return name, schedule

    def _objectives(self, value: Any) -> Mapping[str, str]:
        path = (*self.path, "objectives")
        if not isinstance(value, Mapping) or not value:
            self.complain(
                path,
                "must be a mapping such as {val/accuracy: maximize, parameters: minimize}, got"
                f" {value!r}",
            )
            return {"val/accuracy": "maximize"}

        for name, direction in value.items():
            if str(name).startswith("test"):
                self.complain(
                    (*path, name),
                    f"a search may not see the test split; allowed: {', '.join(OBJECTIVES)}",
                )
            elif name not in OBJECTIVES:
                self.complain(
                    (*path, name), unknown("objective", name, OBJECTIVES, "Allowed")
                )
            elif direction != OBJECTIVES[name]:
                self.complain(
                    (*path, name),
                    f"{name} has the direction {OBJECTIVES[name]}, got {direction!r}",
                )

        if self.per_arm and len(value) > 1:
            self.complain(
                path,
                "per_arm needs one objective: of several there is no single winner",
            )

        return value

    def _space(self, value: Any) -> tuple[Parameter, ...]:
        path = (*self.path, "space")
        if not isinstance(value, Mapping) or not value:
            self.complain(
                path,
                "must be a mapping of keys to ranges, e.g. train.lr: {float: [1e-4, 1e-2], log:"
                " true}",
            )
            return ()

        allowed = [part for part in PARTS_OF_A_TRIAL if part != "dataset"]
        for key in value:
            part = key.partition(".")[0]
            if part not in allowed:
                self.complain((*path, key), unknown("key", part, allowed, "Allowed"))

        parameters = []
        for key, item in value.items():
            parameter = self._parameter((*path, key), key, item)
            if parameter is not None:
                parameters.append(parameter)

        # A component is chosen before its fields, wherever it stands.
        parameters.sort(key=lambda parameter: "." in parameter.key)
        for index, parameter in enumerate(parameters):
            later = {other.key for other in parameters[index:]}
            for key in parameter.when:
                if key in later:
                    text = "is chosen later; put it before this key"
                    self.complain((*path, parameter.key, "when", key), text)

        return tuple(parameters)

    def _parameter(self, path: Path, key: str, value: Any) -> Parameter | None:
        value = {"choices": value} if isinstance(value, list) else value
        kinds = []
        for kind in ("float", "int", "choices"):
            if isinstance(value, Mapping) and kind in value:
                kinds.append(kind)

        if not isinstance(value, Mapping) or len(kinds) != 1:
            self.complain(
                path,
                "must be a list of choices, {float: [low, high]}, {int: [low, high]} or {choices:"
                " [...]}",
            )
            return None

        for name in value:
            if name not in RANGE:
                self.complain((*path, name), unknown("key", name, RANGE, "Allowed"))

        when = read_when(self.reader.document, (*path, "when"), value.get("when")) or {}
        if kinds[0] == "choices":
            return self._choice(path, key, value["choices"], when)

        return self._range(path, key, kind=kinds[0], value=value, when=when)

    def _choice(
        self, path: Path, key: str, choices: Any, when: Mapping[str, Any]
    ) -> Parameter | None:
        if not isinstance(choices, list) or not choices:
            self.complain(
                path,
                f"the range is empty: needs a list of at least one choice, got {choices!r}",
            )
            return None

        parameter = Parameter(key, "choice", choices=tuple(choices), when=when)
        labelled = list(zip(choices, parameter.labels, strict=True))
        for (one, one_label), (other, other_label) in itertools.combinations(
            labelled, 2
        ):
            spelled, other_spelled = (
                scalars.spelled(one_label),
                scalars.spelled(other_label),
            )
            both = f"the choices {spelled} and {other_spelled} are"
            if one_label == other_label and spelled == other_spelled:
                self.complain(path, f"the choice {spelled} stands twice")
            elif one_label == other_label or one == other:
                # true equals 1, and [1, 2] equals [1.0, 2.0]
                self.complain(path, f"{both} equal")
            elif comparable(one, DIGITS) == comparable(other, DIGITS):
                self.complain(path, f"{both} one number but for rounding")

        return parameter

    def _range(
        self,
        path: Path,
        key: str,
        kind: Any,
        value: Mapping[str, Any],
        when: Mapping[str, Any],
    ) -> Parameter | None:
        limits = value[kind]
        log = value.get("log", False)
        step = value.get("step")

        if not _are_limits(limits, kind):
            numbers = "two whole numbers" if kind == "int" else "two numbers"
            hint = ""
            if isinstance(limits, list):
                wrong = [e for e in limits if not isinstance(e, NUMBER_TYPES[kind])]
                hint = scalars.hint(wrong[0]) if wrong else ""

            text = f"must be [low, high], {numbers}, got {limits!r}{hint}"
            self.complain((*path, kind), text)
            return None

        problem = _range_problem(kind, limits, log)
        if not problem:
            problem = _step_problem(kind, limits, log=log, step=step)

        if problem:
            self.complain(path, problem)
            return None

        number = int if kind == "int" else float
        low, high = map(number, limits)
        return Parameter(key, kind, low=low, high=high, log=log, step=step, when=when)

    def _constraints(self, value: Any) -> Iterator[Constraint]:
        for index, text in enumerate(_listed(value)):
            path = (*self.path, "constraints", index)
            try:
                wrong = constraint_problems(str(text))
            except (ValueError, SyntaxError) as error:
                self.complain(path, f"no constraint: {getattr(error, 'msg', error)}")
                continue

            for message in wrong:
                self.complain(path, message)

            if not wrong:
                yield Constraint(str(text))

    def _enqueue(self, value: Any) -> Iterator[Mapping[str, Any]]:
        for index, point in enumerate(_listed(value)):
            if isinstance(point, Mapping):
                yield point
            else:
                self.complain(
                    (*self.path, "enqueue", index),
                    f"must be a mapping of keys of the space to values, got {point!r}",
                )


def _is_option(value: Any, kind: type) -> bool:
    """Return whether a sampler's option has its type; whole numbers are taken for floats, and
    floats are finite.
    """
    if kind is float and type(value) in (int, float):
        return math.isfinite(value)

    return type(value) is kind


def _are_limits(limits: Any, kind: str) -> bool:
    """Return whether these are the ends of a range: two finite numbers of its kind."""
    if not isinstance(limits, list) or len(limits) != 2:
        return False

    for end in limits:
        if isinstance(end, bool) or not isinstance(end, NUMBER_TYPES[kind]):
            return False
        if end != end or abs(end) == math.inf:
            return False

    return True


def _range_problem(kind: str, limits: Sequence[Any], log: Any) -> str:
    """Return what is wrong with a range's ends and scale; empty if nothing is."""
    low, high = limits
    if kind == "float":
        for end in limits:
            if isinstance(end, int) and abs(end) > 2**53:
                return (
                    f"{max(limits, key=abs)} has more digits than a floating-point number keeps;"
                    " write it with an exponent, as 1e16"
                )

    if low > high:
        return f"the range is empty: {low} is above {high}"
    if not isinstance(log, bool):
        return f"log must be true or false, got {log!r}"
    if log and low <= 0:
        return f"a logarithmic range needs a low end above 0, got {low}"

    return ""


def _step_problem(kind: str, limits: Sequence[Any], log: bool, step: Any) -> str:
    """Return what is wrong with a range's step; empty if nothing is, or there is none."""
    if step is None:
        return ""

    if isinstance(step, bool) or not isinstance(step, NUMBER_TYPES[kind]) or step <= 0:
        number = "whole number" if kind == "int" else "number"
        return f"step must be a {number} above 0, got {step!r}"

    if log:
        return "a range has a step or is logarithmic, not both"

    largest = max(map(abs, limits))
    if kind == "float" and largest * 2**-52 > 4e-9 * step:
        # Optuna takes a value for a step within 1e-8 of one.
        return f"a step of {step} is too fine for numbers as large as {largest}"

    return ""


def _listed(value: Any) -> list[Any]:
    """Return a list as it is, one value as a list of it, and nothing as an empty one."""
    if value is None:
        return []

    return value if isinstance(value, list) else [value]
