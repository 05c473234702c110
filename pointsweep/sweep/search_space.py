"""Space of a search: parameters with their ranges and conditions, constraints, and the arm of a
table they belong to.

Nothing here knows Optuna. A drawn value is a scalar, as Optuna keeps it; `Parameter.value` makes it
the setting of a trial.
"""

from __future__ import annotations

import ast
import json
import operator
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from pointsweep.config import scalars
from pointsweep.config.schema import TrialConfig, with_seed
from pointsweep.errors import Problem
from pointsweep.results.metrics import METRICS
from pointsweep.sweep.conditions import key_problem, kinds_of, matches, value_problem
from pointsweep.sweep.overlay import Settings

Drawn = Mapping[str, Any]  # key -> drawn value, in the order of the space

# Options that a sampler's section of a sweep file may set, with their kinds, and the package it
# needs beside Optuna.
_GENETIC: dict[str, type] = {
    "population_size": int,
    "mutation_prob": float,
    "crossover_prob": float,
    "swapping_prob": float,
}
SAMPLERS: dict[str, dict[str, type]] = {
    "tpe": {
        "n_startup_trials": int,
        "n_ei_candidates": int,
        "multivariate": bool,
        "group": bool,
        "constant_liar": bool,
    },
    "gp": {"n_startup_trials": int, "deterministic_objective": bool},
    "cmaes": {
        "n_startup_trials": int,
        "popsize": int,
        "sigma0": float,
        "with_margin": bool,
        "use_separable_cma": bool,
        "lr_adapt": bool,
    },
    "nsga2": _GENETIC,
    "nsga3": {**_GENETIC, "dividing_parameter": int},
    "qmc": {"qmc_type": str, "scramble": bool},
    "random": {},
    "grid": {},
}
ONE_OBJECTIVE = ("cmaes",)  # samplers that cannot aim at several
PACKAGES = {"gp": "scipy", "cmaes": "cmaes", "qmc": "scipy"}
SCHEDULERS: dict[str, dict[str, int]] = {
    # at epochs 1, 3, 9 ... the best third of those seen there goes on
    "asha": {"min_epochs": 1, "reduction": 3},
    # brackets of asha that start to judge at epochs 1, 3, 9 ...: what needs long to show itself has
    # a chance in the later ones
    "hyperband": {"min_epochs": 1, "reduction": 3},
    # stopped where it is worse than the median of those seen at that epoch
    "median": {"warmup_epochs": 1, "min_trials": 5},
}
# in a search's schedule: epochs of the training's warm-up, the longest of its arms
WARMUP = "training_warmup"
RANGE = ("float", "int", "choices", "log", "step", "when")  # keys of a range
# What a search may aim at: never anything of the test split.
OBJECTIVES = {
    f"val/{name}": METRICS[name].direction for name in ("accuracy", "loss")
} | {"parameters": "minimize"}


@dataclass(frozen=True)
class Parameter:
    """One key of a trial and its range. `when`: it is chosen only where these keys have these
    values.
    """

    key: str
    kind: Literal["float", "int", "choice"]
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    when: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> list[Any]:
        """The choices as scalars: Optuna keeps no lists or mappings."""
        return [label(choice) for choice in self.choices]

    def value(self, drawn: Any) -> Any:
        """The setting that a drawn value stands for."""
        if self.kind == "choice":
            return self.choices[self.labels.index(drawn)]

        return drawn

    def drawn(self, value: Any) -> Any:
        """The inverse for a value of a stored trial. Raises ValueError if it lies outside."""
        if self.kind == "choice":
            for choice in self.choices:
                if _same(choice, value):
                    return label(choice)
            raise ValueError(f"{value!r} lies outside of {self.text()}")

        if not _is_number(value) or not self.low <= value <= self.high:
            raise ValueError(f"{value!r} lies outside of {self.text()}")
        if self.kind == "int" and value != int(value):
            raise ValueError(f"{value!r} lies outside of {self.text()}")

        if self.size() is None:
            if self.kind == "int":
                return int(value)
            return float(value)

        nearest = self.nearest(value)
        if abs(value - nearest) > 1e-8 * (self.step or 1):
            raise ValueError(f"{value!r} lies outside of {self.text()}")

        return nearest

    def size(self) -> int | None:
        """Return how many values there are; None of a range that is not in steps."""
        if self.kind == "choice":
            return len(self.choices)

        step = self._step()
        if step is None:
            return None

        return int((_decimal(self.high) - _decimal(self.low)) // step) + 1

    def at(self, index: int) -> Any:
        """Return a value by its number. Steps are added as decimals, so the third step of 0.1 is
        0.3.
        """
        if self.kind == "choice":
            return self.labels[index]

        step = self._step()
        assert step is not None
        value = _decimal(self.low) + index * step

        if self.kind == "int":
            return int(value)

        return float(value)

    def nearest(self, value: Any) -> Any:
        """Return the step that a number of the range stands for: 0.3 for a sampler's
        0.30000000000000004.
        """
        step, size = self._step(), self.size()
        if self.kind == "choice" or step is None or size is None:
            return value

        index = round((_decimal(value) - _decimal(self.low)) / step)
        return self.at(min(max(index, 0), size - 1))

    def _step(self) -> Fraction | None:
        if self.kind == "int" and not self.log:
            return Fraction(int(self.step or 1))
        return _decimal(self.step) if self.step else None

    def ends(self) -> list[Any]:
        """The drawn values at its borders; of a choice, all."""
        if self.kind == "choice":
            return self.labels

        size = self.size()
        if size is None:
            return [self.low, self.high]

        return [self.at(0), self.at(size - 1)]

    def any(self, order: random.Random) -> Any:
        """A border or a value in between, of equal chance."""
        if order.random() < 0.5:
            return order.choice(self.ends())

        size = self.size()
        if size is not None:
            return self.at(order.randrange(size))

        value = order.uniform(self.low, self.high)
        return int(value) if self.kind == "int" else value

    def text(self) -> str:
        """The range in words."""
        return self._text(scalars.spelled)

    def identity(self) -> str:
        """Return the text by which a study knows its space again; it stays as it is, for the sake
        of stored studies.
        """
        return self._text(str)

    def _text(self, word: Callable[[Any], str]) -> str:
        if self.kind == "choice":
            span = ", ".join(map(word, self.labels))
        else:
            span = f"{_short(self.low)} to {_short(self.high)}"
            if self.log:
                span += ", log"

            if self.step:
                span += f", step {_short(self.step)}"

        conditions = []
        for key, value in self.when.items():
            values = value if isinstance(value, list) else [value]
            conditions.append(f"{key} is {' or '.join(map(word, values))}")

        where = f" where {' and '.join(conditions)}" if conditions else ""
        return f"{self.key} ({span}){where}"


def _short(number: float) -> str:
    """Return a number with as few digits as say what it is."""
    text = f"{number:g}"
    return text if float(text) == number else repr(number)


def _decimal(number: float) -> Fraction:
    """Return a number as the decimal that one writes for it: 0.1 is 1/10."""
    return Fraction(str(number))


def label(choice: Any) -> Any:
    """A choice as a scalar: of a component its name, of a list its JSON."""
    if isinstance(choice, Mapping) and set(choice) == {"name"}:
        return choice["name"]
    if isinstance(choice, (Mapping, list, tuple)):
        return json.dumps(choice, sort_keys=True)

    return choice


def _same(choice: Any, value: Any) -> bool:
    """Return whether a stored value is that of a choice; of a component the name and the fields
    that the choice gives.
    """
    if isinstance(value, Mapping):
        expected = choice if isinstance(choice, Mapping) else {"name": choice}
        return all(_same(item, value.get(name)) for name, item in expected.items())

    return bool(choice == value) and isinstance(choice, bool) == isinstance(value, bool)


@dataclass(frozen=True)
class Constraint:
    """A condition on the keys of a trial: "method.attn_dim % method.attn_heads == 0". Where a key
    is not set it does not apply.
    """

    text: str

    def holds(self, config: Mapping[str, Any]) -> bool:
        """Return whether a trial (as plain data) keeps it."""
        return self._value(config) is not False

    def applies(self, config: Mapping[str, Any]) -> bool:
        """Return whether a trial (as plain data) has the keys that it speaks of."""
        return self._value(config) is not None

    def _value(self, config: Mapping[str, Any]) -> Any:
        tree = ast.parse(self.text, mode="eval").body
        return evaluate(tree, lambda key: lookup(config, key))


OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


def evaluate(node: ast.expr, find: Callable[[str], Any]) -> Any:
    """A constraint's value; None if a key in it is not set. Raises ValueError for what is not
    arithmetic or a comparison.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str)):
        return node.value
    if isinstance(node, (ast.Name, ast.Attribute)):
        return find(ast.unparse(node))

    if isinstance(node, ast.BoolOp):
        operands = [evaluate(operand, find) for operand in node.values]
        known = [value for value in operands if value is not None]
        if not known:
            return None
        if isinstance(node.op, ast.And):
            return all(known)

        return any(known)

    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = evaluate(node.operand, find)
        return None if value is None else -value

    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = evaluate(node.left, find), evaluate(node.right, find)
        if left is None or right is None:
            return None

        return OPERATORS[type(node.op)](left, right)

    if isinstance(node, ast.Compare) and all(type(op) in OPERATORS for op in node.ops):
        return _evaluate_comparison(node, find)

    raise ValueError(
        f"{ast.unparse(node)!r} is no part of a constraint; allowed: keys, numbers, + - * / // % <"
        " <= > >= == != and or"
    )


def _evaluate_comparison(node: ast.Compare, find: Callable[[str], Any]) -> bool | None:
    """Return whether a chain of comparisons (a < b <= c) holds; None if a key in it is not set."""
    values = [evaluate(operand, find) for operand in (node.left, *node.comparators)]
    if any(value is None for value in values):
        return None

    for comparator, left, right in zip(node.ops, values, values[1:], strict=False):
        if not OPERATORS[type(comparator)](left, right):
            return False

    return True


def constraint_problems(text: str) -> list[str]:
    """Return what is wrong with a constraint: keys that no trial has, texts where numbers belong,
    values that no key can have.

    Raises ValueError or SyntaxError for what is no constraint.
    """
    keys: list[str] = []
    tree = ast.parse(text, mode="eval").body
    evaluate(tree, keys.append)  # every key, and every kind of node

    if not isinstance(tree, (ast.Compare, ast.BoolOp)):
        raise ValueError(
            "must be a comparison, such as method.bottleneck * positions.num_views <= 64"
        )

    problems = []
    for key in dict.fromkeys(keys):
        wrong = key_problem(key, {})
        if wrong is not None:
            problems.append(wrong)

    if not problems:  # the values of an unknown key have no kind
        for node in ast.walk(tree):
            problems += _misused(node)

    return problems


def _misused(node: ast.AST) -> Iterator[str]:
    """Yield what one operation of a constraint does with values of the wrong kind."""
    if isinstance(node, ast.BinOp):
        yield from _no_numbers((node.left, node.right))

    if not isinstance(node, ast.Compare):
        return

    sides = (node.left, *node.comparators)
    for left, right, how in zip(sides, sides[1:], node.ops, strict=False):
        if not isinstance(how, (ast.Eq, ast.NotEq)):
            yield from _no_numbers((left, right))
            continue
        for key, constant in ((left, right), (right, left)):
            if not isinstance(key, (ast.Name, ast.Attribute)):
                continue
            if not isinstance(constant, ast.Constant):
                continue

            key_text = ast.unparse(key)
            problem = value_problem(key_text, constant.value, {})
            if problem is not None:
                yield f"{ast.unparse(node)} never holds: {key_text} {problem}"


def _no_numbers(operands: tuple[ast.expr, ...]) -> Iterator[str]:
    for operand in operands:
        text = ast.unparse(operand)
        if isinstance(operand, ast.Constant):
            is_number = _is_number(operand.value)
        elif isinstance(operand, (ast.Name, ast.Attribute)):
            is_number = not kinds_of(text).isdisjoint((int, float))
        else:
            continue  # an operation, whose operands are looked at by themselves

        if not is_number:
            yield f"{text} is no number, and numbers are compared or calculated with here"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key of plain data; of a component its name. None if there is none."""
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None

    if isinstance(node, Mapping):
        return node.get("name", node)

    return node


@dataclass(frozen=True, eq=False)
class Arm:
    """One thing to tune: the settings of a cell with a space on top. `settings_of` puts drawn
    values there, `compose` checks the whole.
    """

    parameters: tuple[Parameter, ...]
    constraints: tuple[Constraint, ...]
    enqueue: tuple[Drawn, ...]
    # every suggestion is trained with all of them, its value is their mean
    seeds: tuple[int, ...]
    settings_of: Callable[[Drawn], Settings]
    compose: Callable[[Settings], tuple[TrialConfig | None, list[Problem]]]

    def applies(self, parameter: Parameter, drawn: Drawn) -> bool:
        """Return whether a parameter is chosen after those drawn before it."""
        return not parameter.when or matches(
            self.settings_of(drawn).data, parameter.when
        )

    def config(self, drawn: Drawn) -> TrialConfig | None:
        """The trial of drawn values; None if it is no valid one or breaks a constraint."""
        config, problems = self.compose(self.settings_of(drawn))
        if config is None or problems:
            return None

        for constraint in self.constraints:
            if not constraint.holds(config.to_dict()):
                return None

        return config

    def settled(self, drawn: Drawn) -> dict[str, Any]:
        """Return drawn values with those in steps as decimals, as studies of earlier versions do
        not keep them.
        """
        settled = dict(drawn)
        for parameter in self.parameters:
            if parameter.key in drawn:
                settled[parameter.key] = parameter.nearest(drawn[parameter.key])

        return settled

    def trials(self, config: TrialConfig) -> list[TrialConfig]:
        """A suggestion's trials, one a seed."""
        return [with_seed(config, seed) for seed in self.seeds]

    def located(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The drawn values that give a stored trial (as plain data), as far as they can be read
        off; None if it lies outside.
        """
        drawn: dict[str, Any] = {}
        for parameter in self.parameters:
            if self.applies(parameter, drawn):
                node: Any = config
                for name in parameter.key.split("."):
                    if not isinstance(node, Mapping) or name not in node:
                        return None
                    node = node[name]

                try:
                    drawn[parameter.key] = parameter.drawn(node)
                except ValueError:
                    return None

        return drawn

    def probes(self, extra: int) -> Iterator[dict[str, Any]]:
        """Points that meet every border of every range at least once where its condition allows,
        then random ones.
        """
        order = random.Random(0)
        extremes = {parameter.key: parameter.ends() for parameter in self.parameters}
        rounds = max(map(len, extremes.values()), default=0)

        for index in range(rounds + extra):
            drawn: dict[str, Any] = {}
            for parameter in self.parameters:
                if not self.applies(parameter, drawn):
                    continue

                if index < rounds:
                    ends = extremes[parameter.key]
                    drawn[parameter.key] = ends[index % len(ends)]
                else:
                    drawn[parameter.key] = parameter.any(order)

            yield drawn

    def points(self) -> Iterator[dict[str, Any]]:
        """All points of a grid in the order of the file, conditions and constraints kept."""
        for point in self._points({}, 0):
            if self.config(point) is not None:
                yield point

    def _points(self, drawn: dict[str, Any], index: int) -> Iterator[dict[str, Any]]:
        if index == len(self.parameters):
            yield drawn
            return

        parameter = self.parameters[index]
        if not self.applies(parameter, drawn):
            yield from self._points(drawn, index + 1)
            return

        for number in range(parameter.size() or 0):
            point = {**drawn, parameter.key: parameter.at(number)}
            yield from self._points(point, index + 1)


@dataclass(frozen=True)
class Search:
    """Settings of a search. `then_seeds` is None for a search on its own; else every row's winner
    is trained with so many more.
    """

    space: tuple[Parameter, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    sampler: str = "tpe"
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0  # of the sampler
    trials: int = 20
    # of training, summed over an arm's trials: no further batch once they are spent
    hours: float | None = None
    batch: int = 4  # suggestions that are made, trained and told together
    objectives: Mapping[str, str] = field(
        default_factory=lambda: {"val/accuracy": "maximize"}
    )
    enqueue: tuple[Mapping[str, Any], ...] = ()
    scheduler: str | None = None
    schedule: Mapping[str, int] = field(default_factory=dict)  # its options
    storage: str | None = None
    use_finished: bool = True
    top: int = 10  # rows of the table
    then_seeds: int | None = None
    # what the winners are trained on with their fresh seeds: `train`, or `train_and_val`
    then_on: str = "train"

    @property
    def single(self) -> bool:
        """Return whether there is one objective, so that there is one best trial."""
        return len(self.objectives) == 1

    @property
    def has_curves(self) -> bool:
        """Return whether a study shows each trial's validation accuracy by epoch: a scheduler's, or
        that of its one objective.

        Optuna has no intermediate values of several objectives.
        """
        return self.scheduler is not None or list(self.objectives) == ["val/accuracy"]
