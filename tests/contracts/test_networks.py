"""What every registered trained network must hold. A new network is tested here the moment it is registered."""

from __future__ import annotations

import pytest
import torch

from pointsweep.config import registry
from pointsweep.models.point_model import build
from pointsweep.sweep.sweep import load
from pointsweep.testing import network_contract

CASES = [name for name in registry.names("networks") if registry.config_class("networks", name).trainable]
CHECKS = [(name, check) for name in CASES for check in network_contract.checks(name, {})]


@pytest.mark.parametrize(("name", "check"), CHECKS)
def test_a_network_holds_the_contract(name, check):
    """The checks are those that the author of a plug-in runs; each is described where it stands."""
    network_contract.checks(name, {})[check]()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_at_full_width_it_runs_on_the_clouds_of_the_smoke_profile(name, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(f"name: t\nbase: {{dataset: modelnet40}}\nrows: [{{label: a, network: {name}}}]\nseeds: 1\n")
    (trial,) = load(path, ["profile=smoke"]).trials()
    assert trial.config.dataset.num_points == network_contract.POINTS
    logits = build(trial.config, 10).eval()(network_contract.points(2))
    assert logits.shape == (2, 10) and logits.isfinite().all()
