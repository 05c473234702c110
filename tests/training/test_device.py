"""A step on another device than the CPU, without a GPU: on torch's meta device, which knows places and shapes but no values.

It refuses operators over two devices, and whatever the CPU would have to wait for: a number, a mask, a shape that values decide.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pointsweep.config import registry
from pointsweep.models import batch_cache
from pointsweep.models.batch_cache import LeastRecentlyUsed, train_batch
from pointsweep.models.point_model import build
from pointsweep.training import prefetch as ahead
from pointsweep.training.loop import accumulate, prepare
from pointsweep.training.prefetch import one_ahead
from pointsweep.training.runner import load_dataset
from tests.training.test_pack import config

META = torch.device("meta")
# By default the methods with geometry of their own, and the two orders of augmentation and sampling; all of them in the long run.
CASES = [
    pytest.param(name, modality, True, marks=[pytest.mark.slow] if order or name not in ("any2point", "point_peft") else [])
    for name in registry.names("methods")
    for order, modality in enumerate(registry.config_class("methods", name).modalities)
]


@pytest.mark.parametrize(("method", "modality", "augment_first"), [*CASES, ("head_only", "1d", False)])
def test_a_step_stays_on_its_device_and_waits_for_nothing(monkeypatch, method, modality, augment_first):
    """From the stored clouds to the gradients, in two parts, the next batch ahead."""
    monkeypatch.setattr(batch_cache, "_caches", {"meta": LeastRecentlyUsed(1 << 20)})
    monkeypatch.setattr(ahead, "AHEAD_ON", {"meta"})
    trial = config(method, modality)
    trial = trial.replace(dataset=trial.dataset.replace(presample=48, num_points=40, translate=0.1, unit_sphere=True))
    dataset = load_dataset(trial.dataset)
    monkeypatch.setattr(dataset, "augment_first", augment_first)
    model, random = build(trial, dataset.num_classes).to(META).train(), torch.Generator().manual_seed(0)
    model.method.prepare(model, [torch.empty(8, 40, 3, device=META)])
    batches = one_ahead(
        [np.arange(8), np.arange(8, 16)],
        lambda index: train_batch(dataset, index, random, META),
        lambda batch: prepare(model, "fp32", 2, batch),
        META,
    )
    for points, labels in batches:
        loss, hits = accumulate(model, [points], labels, trial.train, 2)
        assert {points.device, labels.device, loss.device, hits.device} == {META}
    assert {p.grad.device for p in model.parameters() if p.requires_grad} == {META}
