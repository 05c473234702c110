"""The contracts that authors of plug-ins run: what breaks one is found by the check that is named after it."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import nn

from pointsweep.config import registry
from pointsweep.config.datasets import DatasetConfig, NumPoints
from pointsweep.config.methods import MethodConfig
from pointsweep.config.networks import NetworkConfig
from pointsweep.data.dataset import Dataset
from pointsweep.models.methods.base import Method
from pointsweep.testing import contract_of_method, dataset_contract, network_contract, pytest_cases
from pointsweep.testing.method_contract import Cases


class FaultyConfig(MethodConfig):
    """A method with one fault."""

    modalities: ClassVar[tuple[str, ...]] = ("1d",)

    name: Literal["faulty"] = "faulty"
    fault: Literal["none", "mean_of_batch", "unused", "frozen", "noise", "hidden_state"] = "none"


class Faulty(Method):
    Config = FaultyConfig

    def attach(self, backbone, prefix, num_views):
        width = backbone.widths[0]
        self.shift = nn.Parameter(0.1 * torch.randn(width))
        self.hidden = torch.randn(width)
        if self.config.fault == "unused":
            self.unused = nn.Parameter(torch.zeros(width))
        if self.config.fault == "noise":
            torch.seed()
            self.noise = nn.Parameter(torch.randn(width))

    def before_block(self, index, tokens, context):
        tokens = tokens + (self.shift.detach() if self.config.fault == "frozen" else self.shift)
        if self.config.fault == "mean_of_batch":
            tokens = tokens + tokens.mean(dim=0, keepdim=True)
        if self.config.fault == "hidden_state":
            tokens = tokens + self.hidden.to(tokens)
        if self.config.fault == "noise":
            tokens = tokens + self.noise
        return tokens


@pytest.fixture(autouse=True)
def _own_components(monkeypatch):
    for kind in ("methods", "datasets", "networks"):
        monkeypatch.setitem(registry._REGISTERED, kind, dict(registry._REGISTERED[kind]))
    registry.union.cache_clear()
    yield
    registry.union.cache_clear()


def failing(checks) -> list[str]:
    """The names of the checks that fail."""
    found = []
    for name, check in checks.items():
        try:
            check()
        except AssertionError:
            found.append(name)
    return found


@pytest.mark.parametrize(
    ("fault", "checks"),
    [
        ("none", []),
        ("mean_of_batch", ["1d independent_of_others"]),
        ("unused", ["1d every_weight_trains"]),
        ("frozen", ["1d every_weight_trains"]),
        ("noise", ["1d same_seed_same_model"]),
        ("hidden_state", ["1d state_carries_over"]),
    ],
)
def test_a_fault_of_a_method_fails_the_check_that_is_about_it(fault, checks):
    pytest_cases.registered(Faulty, "methods")
    assert failing(Cases("faulty", fields={"fault": fault}).checks()) == checks


def test_a_method_that_does_not_start_as_nothing_is_told_so():
    pytest_cases.registered(Faulty, "methods")
    assert failing(Cases("faulty", starts_as_nothing=True).checks()) == ["1d starts_as_nothing"]


def test_one_line_is_a_test_with_a_case_a_check():
    test = contract_of_method(Faulty)
    [mark] = test.pytestmark
    assert len(mark.args[1]) == 5
    for check in mark.args[1]:
        test(check)


class RowsConfig(DatasetConfig):
    """Rows of points, a class each."""

    num_classes: ClassVar[int] = 3

    name: Literal["rows"] = "rows"
    fault: Literal["none", "float64", "label", "shared", "random", "missing"] = "none"
    num_points: NumPoints = 16
    presample: int = 16


class Rows(Dataset):
    Config = RowsConfig

    def __init__(self, config):
        generator = np.random.default_rng(None if config.fault == "random" else 0)
        arrays = {}
        for split in ("train", "test"):
            labels = np.arange(24) % 3
            points = generator.normal(size=(24, 16, 3)) + labels[:, None, None]
            arrays[f"{split}_points"] = points.astype(np.float64 if config.fault == "float64" else np.float32)
            arrays[f"{split}_labels"] = labels
        if config.fault == "label":
            arrays["test_labels"] = arrays["test_labels"] + 1
        if config.fault == "missing":
            arrays["test_labels"] = arrays["test_labels"] % 2
        if config.fault == "shared":
            arrays["test_points"][:3] = arrays["train_points"][:3, ::-1]
        super().__init__(config, ["a", "b", "c"], arrays, f"digest {arrays['train_points'].sum()}")


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("float64", "clouds_and_labels_fit"),
        ("label", "clouds_and_labels_fit"),
        ("missing", "every_class_is_in_both_splits"),
        ("shared", "no_test_cloud_is_trained_on"),
        ("random", "read_again_it_is_the_same"),
    ],
)
def test_a_fault_of_a_data_set_fails_the_check_that_is_about_it(fault, check):
    pytest_cases.registered(Rows, "datasets")
    assert check in failing(dataset_contract.checks("rows", {"fault": fault}))


def test_a_sound_data_set_holds_the_contract():
    assert failing(dataset_contract.checks(pytest_cases.registered(Rows, "datasets"), {})) == []


@pytest.mark.parametrize("name", ["synthetic"])
def test_our_own_data_set_that_needs_no_files_holds_the_contract(name):
    assert failing(dataset_contract.checks(name, {})) == []


class PooledConfig(NetworkConfig):
    """A network with a fault."""

    name: Literal["pooled"] = "pooled"
    leaks: bool = False


class Pooled(nn.Module):
    Config = PooledConfig

    def __init__(self, config, num_classes, compat):
        super().__init__()
        self.config = config
        self.body = nn.Linear(3, 16)
        self.head = nn.Linear(16, num_classes)

    def forward(self, points):
        features = self.body(points).relu().amax(dim=1)
        return self.head(features - features.mean(dim=0) if self.config.leaks else features)


def test_a_network_of_somebody_else_s_is_checked_too():
    name = pytest_cases.registered(Pooled, "networks")
    assert failing(network_contract.checks(name, {})) == []
    assert failing(network_contract.checks(name, {"leaks": True}))[:2] == ["independent_of_others", "alone_as_in_a_batch"]


def test_a_component_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="Rows is one of the datasets, not of the methods"):
        pytest_cases.registered(Rows, "methods")


def test_the_package_is_imported_without_torch():
    code = "import sys, pointsweep.testing; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
