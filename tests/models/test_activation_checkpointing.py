"""A tokenizer that computes its stages twice trains to the same bits and keeps less."""

from __future__ import annotations

import pytest
import torch

from pointsweep.models.activation_checkpointing import recompute_stages
from pointsweep.models.point_model import build, trained_state
from pointsweep.training.loop import accumulate, make_optimizer
from tests.training.test_pack import config


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_stages_give_the_same_bits(precision):
    trial = config("any2point", precision=precision)
    states, kept = [], []
    for again in (False, True):
        torch.manual_seed(0)
        model = build(trial, 5).train()
        if again:
            recompute_stages(model.tokenizer)
        optimizer = make_optimizer(model, trial.train)
        generator = torch.Generator().manual_seed(0)
        for module in model.modules():
            if hasattr(module, "generator"):
                module.generator = generator
        points, labels = torch.rand(8, 64, 3, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 5
        sizes = []
        for _ in range(3):
            optimizer.zero_grad()
            pack = lambda t: (sizes.append(t.numel()), t)[1]  # noqa: B023, E731
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                accumulate(model, [points], labels, trial.train, 1)
            optimizer.step()
        states.append(trained_state(model))
        kept.append(sum(sizes))
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert kept[1] < kept[0]
