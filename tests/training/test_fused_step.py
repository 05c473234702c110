"""The optimisers' steps of several trials as one, against each alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pointsweep.config.parts import TrainConfig
from pointsweep.training.fusion.fused_step import Step, take_together
from pointsweep.training.loop import make_optimizer


def trial(seed, **settings):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3), nn.Linear(3, 1))
    model[3].requires_grad_(False)
    return model, make_optimizer(model, TrainConfig(**settings))


def gradients(model, step):
    """Large enough to be clipped; one parameter has none, as what a forward pass does not use."""
    generator = torch.Generator().manual_seed(step)
    for parameter in list(model.parameters())[1:]:
        parameter.grad = 30 * torch.randn(parameter.shape, generator=generator)


def test_every_trial_takes_the_step_that_it_takes_alone():
    """Other rates, decays and norms, and one that has taken two steps more; to the last bit, states too."""
    settings = [{"lr": 1e-3}, {"lr": 1e-3}, {"lr": 3e-2, "weight_decay": 0.5, "clip_norm": 0.1}]
    trials = [trial(seed, **each) for seed, each in enumerate(settings)]
    for step in range(2):
        gradients(trials[1][0], step)
        trials[1][1].step()
    alone = copy.deepcopy(trials)
    for step in range(3):
        for model, _ in (*trials, *alone):
            gradients(model, step)
        norms = [each.get("clip_norm", TrainConfig().clip_norm) for each in settings]
        steps, others = (
            [Step(optimizer, list(model.parameters()), norm) for (model, optimizer), norm in zip(side, norms, strict=True)]
            for side in (trials, alone)
        )
        take_together(steps)
        for other in others:
            other.take()
    for (model, optimizer), (expected, own) in zip(trials, alone, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters(), strict=True))
        settings = [
            [{name: value for name, value in group.items() if name != "params"} for group in each.param_groups]
            for each in (optimizer, own)
        ]
        assert settings[0] == settings[1]
        found, wanted = optimizer.state(), own.state()
        assert found.keys() == wanted.keys()
        for index, values in wanted.items():
            assert all(torch.equal(found[index][name], value) for name, value in values.items())
    assert float(trials[1][1].state()[1]["step"]) == pytest.approx(5)
