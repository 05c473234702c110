"""Checks of a contract as one function that pytest runs, a case for each check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pointsweep.config import registry

Check = Callable[[], None]


def registered(component: type, kind: str) -> str:
    """Register a component by its class, if it is not yet; return its name. Raises PluginError for
    what it lacks.
    """
    own_kind, name = registry.register_class(component)
    if own_kind != kind:
        raise ValueError(
            f"{component.__name__} is one of the {own_kind}, not of the {kind}"
        )

    return name


def as_test(checks: Mapping[str, Check]) -> Any:
    """Return a test of pytest's with a case for each check, by its name."""
    import pytest

    @pytest.mark.parametrize("check", list(checks.values()), ids=list(checks))
    def test(check: Check) -> None:
        check()

    return test
