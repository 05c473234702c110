"""One batch ahead, on a CPU without a second stream: what is made early is found by the step, and no number changes."""

from __future__ import annotations

import pytest
import torch

from pointsweep.config.validation import trial_from_dict
from pointsweep.models import batch_cache as module
from pointsweep.models import tokenizers
from pointsweep.models.batch_cache import LeastRecentlyUsed
from pointsweep.models.methods.any2point import Any2Point
from pointsweep.models.point_model import PointModel
from pointsweep.training import prefetch as ahead
from pointsweep.training.prefetch import one_ahead
from tests.training.test_pack import config, run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(module, "_caches", {"cpu": LeastRecentlyUsed(module.LIMIT_BYTES["cpu"])})


def test_each_batch_is_loaded_and_prepared_before_the_one_in_front_is_given_out(monkeypatch):
    seen = []

    def load(item):
        seen.append(f"load {item}")
        return [torch.tensor(item)]

    def prepare(batch):
        seen.append(f"prepare {int(batch[0])}")

    monkeypatch.setattr(ahead, "AHEAD_ON", {"cpu"})
    for batch in one_ahead(range(3), load, prepare, CPU):
        seen.append(f"step {int(batch[0])}")
    assert seen == ["load 0", "prepare 0", "load 1", "prepare 1", "step 0", "load 2", "prepare 2", "step 1", "step 2"]
    assert list(one_ahead([], load, prepare, CPU)) == []


def test_on_a_cpu_nothing_is_held_ahead():
    loaded = []
    given = one_ahead(range(3), lambda item: loaded.append(item) or [torch.tensor(item)], lambda batch: pytest.fail("prepared"), CPU)
    for step, _ in enumerate(given):
        assert loaded == list(range(step + 1))


@pytest.mark.parametrize("packed", [False, True])
def test_numbers_are_bit_for_bit_those_without(tmp_path, monkeypatch, packed):
    """Two arms of one seed, one of another, with everything that draws: augmentation, order, dropout."""
    configs = [config("any2point", seed=0), config("lora", seed=0), config("any2point", seed=1)]
    before = run(configs, tmp_path / "without", packed)
    monkeypatch.setattr(module, "_caches", {"cpu": LeastRecentlyUsed(module.LIMIT_BYTES["cpu"])})
    monkeypatch.setattr(ahead, "AHEAD_ON", {"cpu"})
    for one, other in zip(before, run(configs, tmp_path / "ahead", packed), strict=True):
        assert [epoch["metrics"] for epoch in one.epochs()] == [epoch["metrics"] for epoch in other.epochs()]
        assert (one.path / "weights.safetensors").read_bytes() == (other.path / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tokenizer", ["point_pn_light", "point_pn", "patch"])
def test_the_step_finds_all_geometry_that_was_prepared(tmp_path, monkeypatch, precision, tokenizer):
    """No sampling and no cells are worked out in a training step itself, whatever the mode; in two parts as well."""
    inside, late = [], []
    for owner, name in ((tokenizers, "farthest_points"), (tokenizers, "nearest"), (Any2Point, "_neighbourhoods")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, f=original: late.extend(inside) or f(*args))
    forward = PointModel.forward
    monkeypatch.setattr(PointModel, "forward", lambda self, points: _noted(inside, self.training, lambda: forward(self, points)))
    monkeypatch.setattr(ahead, "AHEAD_ON", {"cpu"})
    one = config("any2point", precision=precision, epochs=1)
    parts = {"name": tokenizer, "num_tokens": 6, "neighbours": 6}
    [folder] = run([trial_from_dict(one.to_dict() | {"tokenizer": parts})], tmp_path, False)
    assert folder.failure() is None
    assert late == []


def _noted(inside, training, work):
    inside[:] = ["in a step"] if training else []
    try:
        return work()
    finally:
        inside.clear()
