"""What every registered trained network must hold. A new network is tested here the moment it is registered."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pointsweep.config import registry
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.layers import set_noise
from pointsweep.models.point_model import build, count_parameters, load_trained_state, trained_state
from pointsweep.sweep.sweep import load

CASES = [name for name in registry.names("networks") if registry.config_class("networks", name).trainable]
SMALL = {"neighbours": 8, "embed_dim": 12, "width": 8}  # where a network has such a field
SIZE = 128  # points of a cloud, as in the smoke profile


def network(name: str, seed: int = 0, **fields) -> nn.Module:
    known = registry.config_class("networks", name).model_fields
    small = {field: value for field, value in SMALL.items() if field in known}
    config = trial_from_dict({"dataset": "synthetic", "network": {"name": name, **small, **fields}})
    torch.manual_seed(seed)
    made = build(config, 5)
    set_noise(made, torch.Generator().manual_seed(0))
    return made


def points(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, SIZE, 3, generator=torch.Generator().manual_seed(seed)) * 0.5


def settle(made: nn.Module) -> nn.Module:
    """Batch norms with statistics of real batches, and weights that are not at a special start."""
    made.train()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        for seed in range(3):
            made(points(8, seed))
    return made.eval()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_no_prediction_depends_on_another_sample(name):
    made, clouds = settle(network(name)), points()
    before = made(clouds)
    clouds[2] = 3 * torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(3))
    after = made(clouds)
    torch.testing.assert_close(after[[0, 1, 3]], before[[0, 1, 3]], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after[2], before[2], atol=1e-3)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_cloud_alone_gets_the_logits_it_gets_in_a_batch(name):
    made, clouds = settle(network(name)), points()
    torch.testing.assert_close(made(clouds[1:2]), made(clouds)[1:2], atol=1e-4, rtol=1e-4)


def biases_in_front_of_a_norm(made: nn.Module) -> set[str]:
    """Batch normalisation takes such a bias away again: its gradient is zero by construction."""
    found = set()
    for prefix, module in made.named_modules():
        layers = list(module.named_children()) if isinstance(module, nn.Sequential) else []
        for (name, _), (_, after) in pairwise(layers):
            if isinstance(after, nn.modules.batchnorm._BatchNorm):
                found.add(f"{prefix}.{name}.bias")
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_step_reaches_every_trained_weight(name):
    made = network(name).train()
    before = {key: p.detach().clone() for key, p in made.named_parameters()}
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    for _ in range(2):  # the layers of PointNet's transforms get a gradient only once their last layer has moved
        optimizer.zero_grad()
        F.cross_entropy(made(points()), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    after = dict(made.named_parameters())
    assert all(p.requires_grad and p.grad is not None for p in after.values())
    still = {key for key in before if torch.equal(after[key], before[key])}
    assert not still - biases_in_front_of_a_norm(made)


@pytest.mark.parametrize("name", CASES)
def test_the_same_seed_builds_the_same_model_and_another_seed_another(name):
    first, again, other = (trained_state(network(name, seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_trained_state_carries_a_network_over(name):
    made, copy = settle(network(name)), network(name, seed=5).eval()
    load_trained_state(copy, {key: value.clone() for key, value in trained_state(made).items()})
    assert torch.equal(made(points()), copy(points()))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_order_of_the_points_does_not_matter_behind_the_first(name):
    made, clouds = settle(network(name)), points()
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(SIZE - 1, generator=torch.Generator().manual_seed(2))])
    torch.testing.assert_close(made(clouds[:, order]), made(clouds), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_every_dropout_draws_from_the_trials_noise(name):
    """`nn.Dropout` would draw from the global generator, and a resumed trial would get other numbers."""
    made = network(name).train()
    assert not [module for module in made.modules() if type(module).__module__ == "torch.nn.modules.dropout"]


@pytest.mark.parametrize("name", CASES)
def test_it_is_counted_on_the_meta_device(name):
    config = trial_from_dict({"dataset": "synthetic", "network": name})
    with torch.device("meta"):
        made = build(config, 40)
    counts = count_parameters(made)
    assert all(p.is_meta for p in made.parameters())
    assert 0 < counts.trainable_without_head < counts.trainable == counts.total


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_at_full_width_it_runs_on_the_clouds_of_the_smoke_profile(name, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(f"name: t\nbase: {{dataset: modelnet40}}\nrows: [{{label: a, network: {name}}}]\nseeds: 1\n")
    (trial,) = load(path, ["profile=smoke"]).trials()
    assert trial.config.dataset.num_points == SIZE
    logits = build(trial.config, 10).eval()(points(2))
    assert logits.shape == (2, 10) and logits.isfinite().all()
