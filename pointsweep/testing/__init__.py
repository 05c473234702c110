"""Contract checks for tests of methods and data sets, each one line of pytest for the author of
one.

    from pointsweep.testing import contract_of_method
    test_gains = contract_of_method(Gains)

Beside it chaos: a sweep killed and cut off again and again.
"""

from __future__ import annotations

from typing import Any


def contract_of_method(
    method: type,
    *,
    starts_as_nothing: bool = False,
    without_gradient: str = "",
    **fields: Any,
) -> Any:
    """Return a pytest function of all that a method must hold, a case for each modality and check.

    `fields` are settings of the method. `starts_as_nothing`: a new model must give what `head_only`
    gives. `without_gradient` is a regular expression for trained tensors whose gradient is zero by
    construction.
    """
    from pointsweep.testing import method_contract, pytest_cases

    cases = method_contract.Cases(
        method=pytest_cases.registered(method, "methods"),
        starts_as_nothing=starts_as_nothing,
        without_gradient=without_gradient,
        fields=fields,
    )

    return pytest_cases.as_test(cases.checks())


def contract_of_dataset(dataset: type, **fields: Any) -> Any:
    """Return a pytest function of all that a data set must hold, a case for each check. `fields`
    are its settings.
    """
    from pointsweep.testing import dataset_contract, pytest_cases

    name = pytest_cases.registered(dataset, "datasets")

    return pytest_cases.as_test(dataset_contract.checks(name, fields))


def contract_of_network(network: type, **fields: Any) -> Any:
    """Return a pytest function of all that a trained network must hold, a case for each check.
    `fields` are its settings.
    """
    from pointsweep.testing import network_contract, pytest_cases

    name = pytest_cases.registered(network, "networks")

    return pytest_cases.as_test(network_contract.checks(name, fields))
