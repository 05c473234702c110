"""Exceptions of the package cross processes: each is pickled by Ray in a worker and raised again in the command."""

from __future__ import annotations

import importlib
import pickle
import pkgutil

import pytest

import pointsweep
from pointsweep.errors import ConfigError, Problem

# Those that take more than a text.
SAMPLES = {
    "ConfigError": ConfigError("sweep.yaml", [Problem("train.lr", "is no number", 3), Problem("", "is empty")]),
}


def exception_classes() -> list[type[BaseException]]:
    found: set[type[BaseException]] = set()
    for info in pkgutil.walk_packages(pointsweep.__path__, "pointsweep."):
        if info.name.endswith("__main__") or "triton" in info.name:
            continue
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__.startswith("pointsweep")
            if own and issubclass(value, BaseException):
                found.add(value)
    return sorted(found, key=lambda each: (each.__module__, each.__name__))


def test_the_packages_exceptions_are_found():
    names = {each.__name__ for each in exception_classes()}
    assert {"ConfigError", "StoreUnavailableError", "DivergedError", "TrackerUnavailableError", "InterruptionError"} <= names


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_every_exception_is_the_same_after_it_was_pickled(protocol):
    for each in exception_classes():
        before = SAMPLES.get(each.__name__) or each("what went wrong, and where")
        after = pickle.loads(pickle.dumps(before, protocol))
        assert type(after) is type(before)
        assert (str(after), after.args, vars(after)) == (str(before), before.args, vars(before))
