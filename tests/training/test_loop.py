"""The loop's formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from pointsweep.config.parts import TrainConfig
from pointsweep.config.validation import component_problems, trial_from_dict
from pointsweep.results.checkpoint import decode, encode
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.training.loop import _vote, batches, evaluate, learning_rate, make_optimizer, score, step_rate, stream
from pointsweep.training.record_builder import classifies
from pointsweep.training.runner import load_dataset
from pointsweep.training.trainer_state import snapshot


@pytest.mark.parametrize(("epoch", "rate"), [(1, 1.0e-6), (2, 5.09e-5), (11, 4.9863e-4), (12, 4.9835e-4), (300, 1.0137e-6)])
def test_learning_rates_of_the_published_schedule(epoch: int, rate: float):
    assert learning_rate(TrainConfig(), epoch) == pytest.approx(rate, rel=1e-4)


def test_a_schedule_that_lags_an_epoch_is_that_of_the_programs_that_step_it_late():
    """301 epochs, numbered from 0, and the rate set for the next epoch by the number of the one that ends: two epochs at 1e-6."""
    train = TrainConfig(epochs=301, lag_epochs=1)
    assert [learning_rate(train, epoch) for epoch in (1, 2)] == [1e-6, 1e-6]
    plain = [learning_rate(TrainConfig(), epoch) for epoch in range(1, 301)]
    assert [learning_rate(train, epoch) for epoch in range(2, 302)] == plain
    demo = TrainConfig(epochs=301, lag_epochs=1, min_lr=1e-4, warmup_epochs=0, cosine_epochs=200)
    unshifted = [1e-4 + 2e-4 * (1 + math.cos(math.pi * min(t, 200) / 200)) for t in range(300)]
    assert [learning_rate(demo, epoch) for epoch in range(2, 302)] == pytest.approx(unshifted)
    assert learning_rate(demo, 1) == 5e-4


def test_weight_decay_spares_vectors_and_on_request_tokens():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
            self.frozen = nn.Parameter(torch.zeros(5, 5), requires_grad=False)

    def decays(**fields):
        groups = make_optimizer(Model(), TrainConfig(**fields)).param_groups
        return {tuple(p.shape): group["weight_decay"] for group in groups for p in group["params"]}

    assert decays() == {(2, 3): 0.05, (2,): 0.0, (1, 1, 4): 0.05}
    assert decays(decay_tokens=False) == {(2, 3): 0.05, (2,): 0.0, (1, 1, 4): 0.0}
    assert decays(decayed="all") == {(2, 3): 0.05, (2,): 0.05, (1, 1, 4): 0.05}


@pytest.mark.parametrize("fields", [{}, {"adam_eps": 1e-4}, {"adam_eps": 1e-4, "decayed": "all", "weight_decay": 0.3}])
def test_a_step_is_that_of_torchs_adamw_with_the_same_eps_and_decay(fields):
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    config = TrainConfig(**fields)
    optimizer = make_optimizer(ours, config)
    bias_decay = config.weight_decay if config.decayed == "all" else 0.0
    groups = [
        {"params": [theirs.weight], "weight_decay": config.weight_decay},
        {"params": [theirs.bias], "weight_decay": bias_decay},
    ]
    reference = torch.optim.AdamW(groups, lr=config.lr, eps=fields.get("adam_eps", 1e-8))
    for _ in range(3):
        x = 1e-3 * torch.randn(4, 3)
        for model, each in ((ours, optimizer), (theirs, reference)):
            each.zero_grad()
            model(x).square().sum().backward()
            each.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-6, atol=1e-8)


def test_eps_and_decay_are_checked():
    assert component_problems("train", {"adam_eps": 0.0}) == [("train.adam_eps", "must be positive, got 0.0")]
    both = {"decayed": "all", "decay_tokens": False}
    assert [path for path, _ in component_problems("train", both)] == ["train.decay_tokens"]


def test_an_epoch_visits_each_cloud_at_most_once_in_an_order_of_its_own():
    first, second = (list(batches(10, 4, seed=3, epoch=epoch)) for epoch in (1, 2))
    assert [len(index) for index in first] == [4, 4]
    seen = [int(i) for index in first for i in index]
    assert len(set(seen)) == 8
    assert seen != [int(i) for index in second for i in index]
    again = [int(i) for index in batches(10, 4, seed=3, epoch=1) for i in index]
    assert again == seen


def test_streams_of_random_numbers_do_not_meet():
    assert len({stream(seed, purpose, epoch) for seed in range(3) for purpose in ("order", "noise") for epoch in range(5)}) == 30


class Sees(nn.Module):
    """Clouds -> logits that depend on each cloud alone; remembers the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.sizes = nn.Parameter(torch.tensor(3.0)), []

    def forward(self, points):
        self.sizes.append(len(points))
        return self.scale * points[:, :3].flatten(1)[:, :4]


@pytest.mark.parametrize(("compat", "sizes"), [("fixed", [3, 3, 3, 3]), ("official", [6, 6])])
@pytest.mark.parametrize("order", ["file", "by_class", "shuffled"])
def test_predictions_stand_in_file_order_and_clouds_that_see_each_other_stay_together(order, compat, sizes):
    data = {"name": "synthetic", "num_points": 16, "presample": 16, "source_points": 32, "num_classes": 4, "test_limit": 12}
    trial = trial_from_dict({
        "dataset": {**data, "test_order": order}, "network": "pointnet", "train": {"eval_batch_size": 6},
    })  # fmt: skip
    trial = trial.model_copy(update={"compat": compat})  # a network has no official form; the model here is neither
    dataset, model = load_dataset(trial.dataset), Sees()
    result = evaluate(model, dataset, dataset.test, trial, parts=2)
    clouds, labels = dataset.eval_batch(dataset.test, np.arange(12))
    logits = (3.0 * clouds[:, :3].flatten(1)[:, :4]).detach()
    assert model.sizes == sizes
    assert result.predictions.tolist() == logits.argmax(dim=1).tolist()
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)


def test_score_counts_right_answers():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0], [0.0, 5.0]])
    result = score(logits, torch.tensor([0, 1, 1, 1]))
    assert result.accuracy == 0.75
    assert result.predictions.tolist() == [0, 1, 0, 1]
    expected = -torch.tensor([2.0, 1.0, -2.0, 5.0]).sigmoid().log().mean()
    assert result.loss == pytest.approx(float(expected))


@pytest.mark.parametrize(("num_classes", "type_"), [(2, "uint8"), (256, "uint8"), (257, "int32"), (1000, "int32"), (70_000, "int32")])
def test_predictions_hold_every_class(tmp_path, num_classes, type_):
    """From the scores, through a checkpoint and the trial's folder, to what the page of a report holds."""
    labels = torch.tensor([0, num_classes // 2, num_classes - 1])
    evaluation = score(torch.nn.functional.one_hot(labels, num_classes).float(), labels)
    assert (evaluation.accuracy, evaluation.predictions.dtype) == (1.0, np.dtype(type_))
    model = torch.nn.Linear(1, 1).requires_grad_(False)
    (tmp_path / "checkpoint").write_bytes(encode(snapshot(model, None, {"last": evaluation.predictions}), {}))
    tensors, _ = decode(tmp_path / "checkpoint")
    kept = tensors["predictions.last"].numpy()
    folder = TrialFolder(tmp_path / "trial")
    folder.path.mkdir()
    folder.save_predictions({"last": kept}, labels.numpy(), [f"kind {number}" for number in range(num_classes)])
    found, names = folder.truth()
    assert folder.predictions()["last"].tolist() == found.tolist() == labels.tolist()
    assert len(names) == num_classes
    assert classifies(folder.predictions())


def test_votes_of_a_model_that_is_very_sure_have_a_finite_loss():
    """A probability of exp(-500) is 0 as a float; its logarithm is -500."""
    points = torch.zeros(2, 4, 3)
    logits = torch.tensor([[500.0, 0.0], [0.0, 500.0]])

    class Same:
        def augmented(self, points, generator):
            return points

    found = _vote(lambda inputs: logits, [points], Same(), 3, 0)
    assert torch.allclose(found, torch.tensor([[0.0, -500.0], [-500.0, 0.0]]))


def test_the_warm_up_of_a_fraction_rises_from_the_first_step_on():
    """Ten epochs of four steps, a tenth of them: the rates of steps 1 to 4 are a quarter, a half, three quarters and all of lr."""
    train = TrainConfig(epochs=10, lr=1.0, min_lr=0.0, warmup_fraction=0.1)
    rates = [step_rate(train, epoch, step, 4) for epoch in range(1, 11) for step in range(4)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4] == pytest.approx((1 + math.cos(math.pi * 4 / 40)) / 2)
    assert rates[-1] == pytest.approx((1 + math.cos(math.pi * 39 / 40)) / 2)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[4:]))


@pytest.mark.parametrize("epochs", [3, 5, 30, 300])
def test_the_warm_up_of_a_fraction_scales_with_the_epochs(epochs):
    train = TrainConfig(epochs=epochs, lr=1.0, min_lr=0.0, warmup_fraction=0.1)
    rates = [step_rate(train, epoch, step, 20) for epoch in range(1, epochs + 1) for step in range(20)]
    assert rates.index(max(rates)) + 1 == pytest.approx(0.1 * epochs * 20, abs=1)


def test_the_papers_have_one_rate_an_epoch():
    train = TrainConfig(epochs=100)
    for epoch in (1, 5, 12):
        assert {step_rate(train, epoch, step, 9) for step in range(9)} == {learning_rate(train, epoch)}


def test_a_fraction_takes_the_place_of_the_warm_up_by_epochs():
    both = {"warmup_fraction": 0.1, "warmup_epochs": 1}
    assert [path for path, _ in component_problems("train", both)] == ["train.warmup_fraction"]
    assert component_problems("train", {"warmup_fraction": 1.0}) == [
        ("train.warmup_fraction", "must lie between 0 and 1 or null, got 1.0")
    ]
    assert component_problems("train", {"warmup_fraction": 0.1}) == []
