"""Our AdamW against torch's, bit for bit."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pointsweep.training.adamw import AdamW


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3), nn.Linear(3, 2))


def groups(model: nn.Sequential) -> list[dict]:
    weights = [p for p in model.parameters() if p.dim() > 1]
    return [
        {"params": weights, "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]


def train(model: nn.Sequential, optimizer, steps: range) -> None:
    for step in steps:
        optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
        clouds = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
        # The last layer has no gradient in every other step, and the first of them comes late.
        made = model if step % 2 else model[:4]
        made(clouds).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())


def weights(model: nn.Sequential) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def test_it_takes_the_steps_of_torch():
    ours, torchs = network(), network()
    train(ours, AdamW(groups(ours), 1e-3), range(9))
    train(torchs, torch.optim.AdamW(groups(torchs), lr=1e-3, fused=True), range(9))
    assert all(map(torch.equal, weights(ours), weights(torchs)))


def test_it_goes_on_from_its_own_state_and_from_that_of_torch():
    whole, first, last = network(), network(), network()
    train(whole, AdamW(groups(whole), 1e-3), range(8))
    begun = torch.optim.AdamW(groups(first), lr=1e-3, fused=True)
    train(first, begun, range(5))
    for state in (begun.state_dict()["state"], _state_of_ours(5)):
        last.load_state_dict(first.state_dict())
        optimizer = AdamW(groups(last), 1e-3)
        optimizer.load(copy.deepcopy(state))
        train(last, optimizer, range(5, 8))
        assert all(map(torch.equal, weights(whole), weights(last)))


def _state_of_ours(steps: int) -> dict:
    model = network()
    optimizer = AdamW(groups(model), 1e-3)
    train(model, optimizer, range(steps))
    return optimizer.state()
