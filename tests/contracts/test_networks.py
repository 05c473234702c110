"""What every registered network must hold. A new network is tested here the moment it is registered."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pointsweep import registry
from pointsweep.checks import trial_from_dict
from pointsweep.layers import set_noise
from pointsweep.model import build

NAMES = [name for name in registry.names("networks") if registry.config_class("networks", name).trainable]


def network(name: str, seed: int = 0) -> torch.nn.Module:
    fields = {"neighbours": 8} if "neighbours" in registry.config_class("networks", name).__dataclass_fields__ else {}
    torch.manual_seed(seed)
    made = build(trial_from_dict({"dataset": "synthetic", "network": {"name": name, **fields}}), 5)
    set_noise(made, torch.Generator().manual_seed(0))
    return made


def points(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 128, 3, generator=torch.Generator().manual_seed(seed)) * 0.4


def settled(name: str) -> torch.nn.Module:
    made = network(name).train()
    with torch.no_grad():
        for seed in range(3):
            made(points(6, seed))
    return made.eval()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_no_prediction_depends_on_another_sample(name):
    made, clouds = settled(name), points()
    before = made(clouds)
    clouds[2] = 3 * torch.randn(128, 3)
    after = made(clouds)
    torch.testing.assert_close(after[[0, 1, 3]], before[[0, 1, 3]], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after[2], before[2], atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_order_of_the_points_does_not_matter_behind_the_first(name):
    made, clouds = settled(name), points()
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(127, generator=torch.Generator().manual_seed(2))])
    torch.testing.assert_close(made(clouds[:, order]), made(clouds), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_reaches_every_weight_and_lowers_the_loss(name):
    made = network(name).train()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.02)
    labels, losses = torch.arange(4), []
    for _ in range(4):
        set_noise(made, torch.Generator().manual_seed(0))
        loss = F.cross_entropy(made(points()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for name, p in made.named_parameters() if not name.endswith("linear.bias")
    )
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_builds_the_same_network_and_another_seed_another(name):
    first, again, other = (network(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
