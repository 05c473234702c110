"""The dry run finds every fault of training planted here, one at a time in the text of the code, and nothing in the code as it is."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import textwrap

import numpy as np
import pytest
import torch

from pointsweep.config.validation import trial_from_dict
from pointsweep.planning.audit import Arm as Model
from pointsweep.planning.audit import _broken, audit
from pointsweep.planning.dry_run import Arm, dry_run
from pointsweep.planning.dry_run_reference import Moments, adamw_step
from pointsweep.planning.probe import probe
from pointsweep.training import runner as trial

DATA = {
    "name": "synthetic", "num_points": 64, "presample": 64, "source_points": 96, "train_per_class": 6, "test_per_class": 4,
    "num_classes": 4, "val_fraction": 0.25, "translate": 0.1,
}  # fmt: skip


def config(method="head_only", modality="1d", **settings):
    tokenizer = {"name": "patch" if modality == "3d" else "point_pn_light", "num_tokens": 6, "neighbours": 4}
    data = {
        "dataset": dict(DATA), "tokenizer": tokenizer, "backbone": {"name": "tiny", "modality": modality, "drop_path": 0.2},
        "method": {"name": method}, "train": {"epochs": 6, "warmup_epochs": 2, "lr": 1e-3, "label_smoothing": 0.2, "batch_size": 8},
    }  # fmt: skip
    for key, value in settings.items():
        part, _, field = key.partition("__")
        data[part][field] = value
    return trial_from_dict(data)


def said(*configs):
    """What the audit of models and the dry run refuse."""
    trial._open_dataset.cache_clear()
    probe.cache_clear()
    _broken.cache_clear()
    found = [*audit([Model(one, (f"arm {n}",)) for n, one in enumerate(configs)], {}), *dry_run(arms(*configs))]
    return [finding.text for finding in found if finding.refuses]


def arms(*configs):
    return [Arm(one, f"arm {n}") for n, one in enumerate(configs)]


def plant(monkeypatch, place, old, new):
    """Replaces a piece of the text of one function, as somebody's edit would.

    The text is as ast.unparse writes it, whatever the layout of the file: a line a statement, single quotes.
    """
    module_name, _, path = place.partition(":")
    owner = importlib.import_module(f"pointsweep.{module_name}")
    *classes, name = path.split(".")
    globals_of = vars(owner)
    for step in classes:
        owner = getattr(owner, step)
    source = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(inspect.getattr_static(owner, name)))))
    old = old.replace('"', "'")
    assert source.count(old) == 1, f"{place}: {old!r} stands there {source.count(old)} times"
    made = {}
    exec(compile(source.replace(old, new), place, "exec"), globals_of, made)
    original = inspect.getattr_static(owner, name)
    monkeypatch.setattr(owner, name, made[name])
    for other in [module for key, module in sys.modules.items() if key.startswith("pointsweep.")]:
        if vars(other).get(name) is original:  # imported there by its name
            monkeypatch.setattr(other, name, made[name])


# id, where, the text, what stands there in its place, words of the finding, settings of the arm
FAULTS = [
    ("order of the file", "training.loop:batches", ".permutation(count)", ".permutation(count) * 0 + np.arange(count)", "not shuffled", {}),
    ("one order for all epochs", "training.loop:batches", '"order", epoch', '"order"', "same order", {}),
    ("one order for all seeds", "training.loop:batches", 'stream(seed, "order", epoch)', 'stream("order", epoch)', "another seed", {}),
    ("clouds taken twice", "training.loop:batches", ".permutation(count)", ".integers(count, size=count)", "twice", {}),
    ("smaller batches", "training.loop:batches", "order[start:start + size]", "order[start:start + size - 1]", "batch_size", {}),
    ("the last batch is kept", "training.loop:batches", "count - size + 1", "count", "does not run", {}),
    ("a batch is left out", "training.loop:batches", "range(0, count", "range(size, count", "does not run", {}),
    ("a constant rate", "training.loop:learning_rate", "span = train.lr - train.min_lr", "return train.lr", "learning rate of epoch 1", {}),
    ("no warm-up", "training.loop:learning_rate", "if t < train.warmup_epochs", "if False", "learning rate", {}),
    ("a shifted cosine", "training.loop:learning_rate", "t / train.period", "(t - train.warmup_epochs) / train.period", "learning rate", {}),
    ("another rate in the step", "training.loop:train_epoch", "= step_rate(", "= 2 * step_rate(", "AdamW", {}),
    ("a warm-up by steps from nothing", "training.loop:step_rate", "(number + 1) / warmup_steps", "number / warmup_steps", "learning rate of epoch 1", {"train__warmup_epochs": 10, "train__warmup_fraction": 0.3}),
    ("a warm-up that does not scale", "training.loop:step_rate", "train.warmup_fraction * train.epochs", "train.warmup_fraction", "learning rate", {"train__warmup_epochs": 10, "train__warmup_fraction": 0.3}),
    ("the rate of the first group alone", "training.loop:train_epoch", "for param_group in optimizer.param_groups:", "for param_group in optimizer.param_groups[:1]:", "AdamW", {}),
    ("no smoothing", "training.loop:accumulate", "train.label_smoothing", "0.0", "train/loss", {}),
    ("no decay", "training.loop:make_optimizer", "train.weight_decay", "0.0", "AdamW", {}),
    ("decay on everything", "training.loop:make_optimizer", "(plain if spared else decayed)", "decayed", "AdamW", {}),
    ("decay on all is not looked at", "training.loop:make_optimizer", 'exempt and train.decayed == "matrices"', "exempt", "AdamW", {"train__decayed": "all"}),
    ("eps is not looked at", "training.loop:make_optimizer", "train.adam_eps", "1e-8", "AdamW", {"train__adam_eps": 0.01}),
    ("the head is left out", "training.loop:make_optimizer", "if parameter.requires_grad:", 'if parameter.requires_grad and not name.startswith("head."):', "did not change", {}),
    ("no clipping", "training.fusion.fused_step:Step.take", "nn.utils.clip_grad_norm_(self.trained, self.clip_norm)", "pass", "AdamW", {}),
    ("gradients are kept", "training.loop:train_epoch", "optimizer.zero_grad()", "pass", "AdamW", {}),
    ("gradients are gone before the step", "training.loop:train_epoch", "take_step(optimizer, trained", "optimizer.zero_grad() or take_step(optimizer, trained", "did not change", {}),
    ("two steps a batch", "training.loop:train_epoch", "take_step(optimizer, trained, train.clip_norm)", "[take_step(optimizer, trained, train.clip_norm) for _ in range(2)]", "AdamW", {}),
    ("moments are lost", "training.loop:train_epoch", "loss_sum += loss * labels.numel()", "loss_sum += loss * labels.numel(); optimizer.moments.clear()", "AdamW", {}),
    ("an accuracy that counts every cloud", "training.loop:train_epoch", "correct += hits", "correct += labels.numel()", "train/accuracy", {}),
    ("half a batch", "training.loop:accumulate", "F.cross_entropy(logits.float(), targets", "F.cross_entropy(logits.float()[:1], targets[:1]", "AdamW", {}),
    ("a sum in place of a mean", "training.loop:accumulate", "label_smoothing=train.label_smoothing", 'label_smoothing=train.label_smoothing, reduction="sum"', "train/loss", {}),
    ("evaluation mode in training", "training.loop:train_epoch", "model.train()", "model.eval()", "training mode", {}),
    ("training mode in evaluation", "training.loop:evaluate", "model.eval()", "model.train()", "does not run", {"method": "adapter"}),
    ("one mask for all steps", "training.loop:train_epoch", '"noise", epoch, step, *rank_key', '"noise", 0, *rank_key', "AdamW", {}),
    ("augmentation alike in all epochs", "training.loop:train_epoch", '"augment", epoch', '"augment"', "same random numbers in every epoch", {}),
    ("augmentation alike for all seeds", "training.loop:train_epoch", 'stream(config.seed, "augment", epoch)', 'stream("augment", epoch)', "another seed draws", {}),
    ("labels in another order", "data.dataset:Dataset.train_batch", "self.train.labels[index])", "self.train.labels[np.roll(index, 1)])", "labels of a training batch", {}),
    ("points of other clouds", "data.dataset:Dataset.train_batch", "self._points(self.train, index)", "self._points(self.train, index - 1)", "points", {}),
    ("test points of training clouds", "data.dataset:Dataset.eval_batch", "self._samples(split)", "self._samples(self.train)", "batch holds points", {}),
    ("validation on the test clouds", "training.runner:Trial._end_epoch", "self.dataset.val, self.config", "self.dataset.test, self.config", "val/loss", {}),
    ("test numbers of the validation clouds", "training.runner:Trial._end_epoch", "self.dataset.test, self.config", "self.dataset.val, self.config", "does not run", {}),
    ("validation clouds are trained on", "data.dataset:Dataset.__init__", "take(train_rows, ", "take(np.arange(len(stored.labels)), ", "validation clouds are training", {}),
    ("no augmentation", "data.dataset:Dataset.train_batch", "if self.augment_first:", "if False:", "changes no training cloud", {}),
    ("augmentation in evaluation", "data.dataset:Dataset.eval_batch", "normalise(torch.from_numpy(np.array(samples[rows])), self.config)", "augment(torch.from_numpy(np.array(samples[rows])), self.config, torch.Generator())", "test", {}),
    ("one change for a whole batch", "data.augment:augment", "shift = config.translate * (2 * torch.rand(len(points), 1, 3", "shift = config.translate * (2 * torch.rand(1, 1, 3", "alike", {"dataset__rotate": "none", "dataset__scale": [1.0, 1.0]}),
    ("no translation", "data.augment:augment", "if config.translate:", "if False:", "dataset.translate", {}),
    ("no rotation", "data.augment:augment", 'config.rotate == "gravity"', "False", "dataset.rotate", {}),
    ("best_val looks at the test set", "training.runner:Trial._select", 'f"val/{measure}"', 'f"test/{measure}"', "best_val", {}),
    ("the last of equal epochs", "training.runner:Trial._better", "> self.best", ">= self.best", "best_test", {}),
    ("the last epoch is the best one", "training.runner:Trial._select", '["last", *chosen]', "chosen", "last", {}),
    ("predictions of another epoch", "training.runner:Trial._select", "self.predictions[protocol] = test.predictions", "self.predictions.setdefault(protocol, test.predictions)", "predictions", {}),
    ("an epoch is left out", "training.runner:Trial._train", "range(first, self.config", "range(first + 1, self.config", "", {}),
    ("one start for all seeds", "models.point_model:start_of", "generator_for(seed,", "generator_for(0,", "start alike for every seed", {}),
    ("a start of its own every time", "models.point_model:start_of", 'torch.manual_seed(generator_for(seed, f"start of {part}").initial_seed())', "torch.seed()", "same seed starts again", {}),
    ("accuracy of the least likely class", "training.loop:score", "logits.argmax", "logits.argmin", "accuracy", {}),
    ("an evaluation's order is lost", "training.loop:evaluate", "torch.cat(logits)[file_order]", "torch.cat(logits)", "test/loss", {"dataset__test_order": "shuffled"}),
    ("a frozen matrix trains", "models.methods.lora:LoRA.attach", "setattr(owner, name, LowRank(", "getattr(owner, name).weight.requires_grad_(True); setattr(owner, name, LowRank(", "frozen backbone", {"method": "lora"}),
    ("half of the prompts is zero", "models.methods.prompt:Prompt.before_block", "self.prompts[index]", "(self.prompts[index] * (self.prompts[index].new_ones(len(self.prompts[index]), 1).cumsum(0) < 6))", "method.prompts", {"method": "prompt"}),
    ("a norm of the backbone trains", "models.methods.prompt:Prompt.attach", "self.deep =", "backbone.blocks[0].norm1.requires_grad_(True); self.deep =", "frozen backbone", {"method": "prompt"}),
    ("the head is frozen after three epochs", "training.loop:train_epoch", "model.train()", "model.train(); [p.requires_grad_(epoch <= 3) for name, p in model.named_parameters() if name.startswith('head.')]", "in epoch 6 of 6: head.", {}),
    ("a norm of the backbone trains in the last epoch", "training.loop:train_epoch", "optimizer.zero_grad()", "optimizer.zero_grad(); epoch == 40 and model.backbone.blocks[0].norm1.bias.data.add_(1e-3)", "in epoch 40 of 40: backbone.blocks.0.norm1.bias changed in training, and should not", {"train__epochs": 40}),
    ("the adapter stands still after three epochs", "training.loop:train_epoch", "take_step(optimizer, trained", "[setattr(p, 'grad', None) for name, p in model.named_parameters() if epoch > 3 and name.startswith('method.')] and take_step(optimizer, trained", "of 100: method.", {"method": "adapter", "train__epochs": 100}),
    ("no masks after three epochs", "training.loop:train_epoch", "model.train()", "model.train(epoch <= 3)", "in epoch 6 of 6", {}),
    ("no smoothing at the end", "training.loop:train_epoch", "accumulate(model, inputs, labels, train,", "accumulate(model, inputs, labels, train.model_copy(update={'label_smoothing': train.label_smoothing * (epoch < 6)}),", "in epoch 6 of 6", {}),
    ("the rate of another epoch at the end", "training.loop:train_epoch", "= step_rate(train, epoch,", "= step_rate(train, min(epoch, 4),", "in epoch 6 of 6", {}),
    ("a bias of the backbone moves by hand", "training.loop:train_epoch", "optimizer.zero_grad()", "optimizer.zero_grad(); model.backbone.blocks[0].norm1.bias.data.add_(1e-3)", "should not", {}),
]  # fmt: skip


def test_the_code_as_it_is_passes_for_every_method_and_kind_of_backbone():
    kinds = [("head_only", "1d"), ("full", "1d"), ("bitfit", "2d"), ("prompt", "1d"), ("adapter", "2d"), ("lora", "1d"),
             ("any2point", "1d"), ("any2point", "2d"), ("appt", "2d"), ("idpt", "3d"), ("dapt", "3d"), ("point_peft", "3d")]  # fmt: skip
    assert said(*(config(method, modality) for method, modality in kinds)) == []


def test_the_gradient_of_a_bias_before_a_batch_norm_is_zero_but_for_rounding():
    """Exactly zero in one of two runs and 1e-20 in the other: no fault."""
    assert said(trial_from_dict({"dataset": {"name": "synthetic", "num_points": 64}, "network": {"name": "pointnet"}})) == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0])
def test_a_fault_of_training_is_refused(fault, monkeypatch):
    _, place, old, new, words, settings = fault
    plant(monkeypatch, place, old, new)
    found = said(config(**settings))
    assert any(words in text for text in found), found


def test_stored_clouds_larger_than_a_sample_are_sampled_for_each_split():
    """A data set keeps the samples of training and validation clouds together; the dry run's few clouds are stored apart."""
    assert said(config(dataset__source_points=400)) == []


def test_a_dry_run_leaves_nothing_behind_in_the_data_set_that_a_launch_trains_on():
    made = config(dataset__num_points=48, dataset__presample=64)
    trial._open_dataset.cache_clear()
    fresh = trial.load_dataset(made.dataset)
    rows = {split.name: np.arange(len(split.labels)) for split in (fresh.train, fresh.val, fresh.test)}
    wanted = {split.name: fresh.eval_batch(split, rows[split.name])[0] for split in (fresh.train, fresh.val, fresh.test)}

    trial._open_dataset.cache_clear()
    assert dry_run(arms(made)) == []
    used = trial.load_dataset(made.dataset)
    for split in (used.train, used.val, used.test):
        assert torch.equal(used.eval_batch(split, rows[split.name])[0], wanted[split.name])


@pytest.mark.parametrize("settings", [{"lr": 10.0}, {"lr": 1e6}, {"lr": 1e36}, {"lr": 1e36, "min_lr": 1e35, "warmup_epochs": 0}])
@pytest.mark.parametrize("method", ["full", "adapter"])
def test_a_rate_at_which_trials_diverge_is_no_fault_of_the_code(method, settings):
    made = config(method, **{f"train__{name}": value for name, value in settings.items()})
    assert dry_run(arms(made)) == []


def test_a_warm_up_by_steps_is_what_its_settings_say():
    assert said(config(train__warmup_epochs=10, train__warmup_fraction=0.3)) == []


def test_the_step_that_training_is_compared_with_is_torchs_adamw():
    """Five steps of two rates, in double precision, against torch.optim.AdamW."""
    generator = torch.Generator().manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64))
    theirs = torch.nn.Parameter(ours.detach().clone())
    optimiser = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.05, eps=1e-6)
    moments = Moments(torch.zeros_like(ours), torch.zeros_like(ours))
    for step in range(5):
        gradient = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        rate = 1e-2 if step < 3 else 4e-3
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
        adamw_step(ours, moments, rate, 0.05, 1e-6)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("splits", [{"test_limit": 1}, {"train_limit": 6, "test_limit": 1}], ids=str)
def test_a_single_test_cloud_is_no_fault(splits):
    """Neither in the arm itself nor where a sweep varies how its clouds are changed."""
    settings = {f"dataset__{name}": value for name, value in splits.items()}
    assert said(*(config(dataset__rotate=rotate, **settings) for rotate in ("none", "gravity"))) == []


def test_threads_and_random_numbers_are_as_before_also_after_an_error(monkeypatch):
    def fail(*_):
        torch.rand(3)
        raise RuntimeError("of a plug-in")

    monkeypatch.setattr("pointsweep.planning.dry_run.settings_without_effect", fail)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="of a plug-in"):
            dry_run([])
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)
