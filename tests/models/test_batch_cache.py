"""Geometry once a batch: the same numbers as without, shared by who sees the same clouds, never by anyone else, and bounded."""

from __future__ import annotations

import pytest
import torch

from pointsweep.config.validation import trial_from_dict
from pointsweep.models import batch_cache as module
from pointsweep.models import tokenizers
from pointsweep.models.batch_cache import SHARE, LeastRecentlyUsed, cached, eval_batch, train_batch
from pointsweep.models.methods.any2point import Any2Point
from pointsweep.models.point_model import build
from pointsweep.training.loop import evaluate
from pointsweep.training.runner import load_dataset
from tests.training.test_pack import config, run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(module, "_caches", {"cpu": LeastRecentlyUsed(module.LIMIT_BYTES["cpu"])})


def test_members_with_one_seed_share_a_batch_and_its_geometry(tmp_path, monkeypatch):
    """Fifteen training batches of either seed and one test batch, whatever the number of arms and epochs."""
    sampled = []
    original = tokenizers.farthest_points
    monkeypatch.setattr(tokenizers, "farthest_points", lambda points, *more: sampled.append(len(points)) or original(points, *more))
    configs = [config(method, seed=seed) for seed in (0, 1) for method in ("lora", "prompt", "any2point")]
    run(configs, tmp_path / "packed", True)
    assert sorted(sampled) == [8] * 30 + [20]


def test_numbers_are_those_without(tmp_path, monkeypatch):
    configs = [config("any2point", seed=0), config("lora", seed=0)]
    shared = run(configs, tmp_path / "shared", False)
    monkeypatch.setattr(module, "_caches", {"cpu": LeastRecentlyUsed(0)})
    for one, other in zip(shared, run(configs, tmp_path / "alone", False), strict=True):
        assert [epoch["metrics"] for epoch in one.epochs()] == [epoch["metrics"] for epoch in other.epochs()]


def test_the_generator_moves_on_as_if_it_had_drawn():
    dataset = load_dataset(trial_from_dict({"dataset": {"name": "synthetic", "train_limit": 20}, "network": "pointnet"}).dataset)
    rows, plain, first, second = torch.arange(8).numpy(), *(torch.Generator().manual_seed(5) for _ in range(3))
    for _ in range(2):
        expected = dataset.train_batch(rows, plain)
        one, other = train_batch(dataset, rows, first, CPU), train_batch(dataset, rows, second, CPU)
        assert torch.equal(one[0], expected[0])
        assert one[0] is other[0]
    assert torch.equal(plain.get_state(), second.get_state())
    assert eval_batch(dataset, dataset.test, rows)[0] is eval_batch(dataset, dataset.test, rows)[0]


def test_a_value_is_of_these_numbers_in_this_mode_alone():
    points = torch.ones(2, 3)
    assert cached([points], "sum", lambda own: own.sum()).item() == 6
    points += 1
    assert cached([points], "sum", lambda own: own.sum()).item() == 12
    assert cached([points[:1]], "sum", lambda own: own.sum()).item() == 6
    assert cached([points.view(2, 3)], "sum", lambda own: pytest.fail("made twice")).item() == 12
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cached([points], "sum", lambda own: torch.tensor(1)).item() == 1
    assert cached([points.requires_grad_()], "sum", lambda own: torch.tensor(2)).item() == 2


def test_inference_mode_leaves_nothing_that_training_would_find():
    """Tensors of inference mode cannot be saved for a backward pass, and count no writes."""
    model, points = build(config("any2point"), 5), torch.rand(4, 64, 3)
    with torch.inference_mode():
        logits = model.eval()(points)
        assert torch.equal(model(points.clone()), logits)
    with torch.no_grad():
        assert torch.equal(model(points), logits)
    model.train()(points).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_what_is_kept_is_bounded_and_the_least_used_goes_first():
    kept = LeastRecentlyUsed(limit_bytes=4000)
    for name in "abcd":
        kept.get(name, lambda: torch.zeros(250))
    kept.get("a", lambda: pytest.fail("made twice"))
    kept.get("e", lambda: torch.zeros(250))
    assert list(kept.entries) == ["c", "d", "a", "e"]
    kept.get("large", lambda: torch.zeros(251))
    assert list(kept.entries) == ["c", "d", "a", "e"]
    assert kept.bytes == 4000


def test_what_evaluation_sees_again_outlives_the_batches_of_an_epoch():
    """And what is made of it, also of a view; but only within its share, 5/8 of 1,700 bytes."""
    kept = LeastRecentlyUsed(limit_bytes=1700)
    clouds = kept.get("clouds", lambda: torch.zeros(4, 25), lasting=True)  # 400 bytes
    kept.get("near", lambda: torch.zeros(10), alive=(clouds[1:],))  # 40, and those 300 again
    for epoch in range(10):
        kept.get(f"batch {epoch}", lambda: torch.zeros(100))
    assert list(kept.lasting) == ["clouds", "near"]
    assert list(kept.entries) == ["batch 8", "batch 9"]
    assert kept.bytes == 400 + 340 + 2 * 400
    kept.get("other clouds", lambda: torch.zeros(100), lasting=True)
    assert list(kept.lasting) == ["near", "other clouds"]
    kept.get("of what has gone", lambda: torch.zeros(1), alive=(clouds,))
    assert "of what has gone" in kept.entries
    assert (kept.bytes, kept.lasting_bytes) == (340 + 400 + 400 + 404, 740)


def test_an_evaluation_makes_no_geometry_again_in_later_epochs(monkeypatch):
    """Though the clouds that were trained on between them fill the memory several times."""
    trial = config("any2point", seed=0)
    dataset = load_dataset(trial.dataset)
    model = build(trial, dataset.num_classes)
    made = []
    original = tokenizers.pos_e
    monkeypatch.setattr(tokenizers, "pos_e", lambda *args, **more: made.append(1) or original(*args, **more))
    first = evaluate(model, dataset, dataset.test, trial)
    filling = module._caches["cpu"].limit_bytes // SHARE
    for number in range(3 * SHARE):
        module._caches["cpu"].get(number, lambda: torch.empty(filling, dtype=torch.uint8))
    assert made
    made.clear()
    assert evaluate(model, dataset, dataset.test, trial).loss == first.loss
    assert not made


def test_what_depends_on_the_clouds_alone_is_found_by_every_arm(monkeypatch):
    """Cells and masks of the guided adapter: made once a batch for two arms that differ elsewhere, again for another voxel size."""
    made = []
    original = Any2Point._neighbourhoods
    monkeypatch.setattr(Any2Point, "_neighbourhoods", lambda self, *places: made.append(1) or original(self, *places))
    points = torch.rand(2, 64, 3)
    for arm in ({}, {"ensemble": "mean"}, {"voxel_size": 0.5}):
        build(config({"name": "any2point"} | arm), 5).eval()(points)
    assert len(made) == 2
