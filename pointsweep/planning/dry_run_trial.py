"""One small trial of a dry run: trained by the code that a launch runs, and compared with the
definitions.

Letters: B clouds, P points.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointsweep.config.schema import TrialConfig
from pointsweep.data.dataset import Dataset
from pointsweep.models.point_model import PointModel, build, trained_state
from pointsweep.planning.dry_run_data import BATCH, Recording, few, small
from pointsweep.planning.dry_run_reference import measured, reference, reference_epochs
from pointsweep.planning.probe import frozen_backbone
from pointsweep.results.trial_dir import Snapshot, TrialFolder
from pointsweep.training.loop import Evaluation, make_optimizer, train_epoch
from pointsweep.training.runner import Trial
from pointsweep.training.supervisor import TrialStoppedError

EPOCHS = 2
TOLERANCE = 1e-6  # of a tensor's largest change: double precision leaves 1e-10
NOISE = 1e-5  # of the learning rate: the step of AdamW by a gradient of 1e-13, with its eps of 1e-8


class HistoryAlone(TrialFolder):
    """A folder that keeps no checkpoint and no weights: they would be read by nobody."""

    def commit_epoch(
        self, event: Mapping[str, Any], snapshot: Snapshot, last: bool
    ) -> None:
        """Make the epoch's checkpoint, drop it, and add the epoch to the history."""
        snapshot()
        self.append(event)

    def save_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Drop the trained weights."""


class Frozen:
    """Stand-in for a pack's shared backbone: here one of made numbers, whose own tensors are
    remembered.
    """

    def __init__(self) -> None:
        # held, so that no other tensor gets the identity of one that is gone
        self.tensors: list[tuple[str, Tensor]] = []
        self.own: dict[int, str] = {}

    def build(self, config: TrialConfig, num_classes: int) -> nn.Module:
        """The trial's model on a backbone of made numbers."""
        if config.backbone is None:
            return build(config, num_classes)

        backbone = frozen_backbone(config.backbone)
        self.tensors = list(backbone.named_parameters())
        self.own = {id(tensor): name for name, tensor in self.tensors}

        return PointModel(config, num_classes, backbone=backbone)


@dataclass
class Run:
    """One small trial: its model as it starts, and, once `of` has trained it, as it ends, with what
    was taken of the data.

    `last_epoch`: after which one it stops. `first_epoch`: what training changes, as it is after the
    first one.
    """

    config: TrialConfig
    dataset: Dataset
    folder: Path
    last_epoch: int = EPOCHS
    first_epoch: dict[str, Tensor] = field(default_factory=dict)
    data: Recording = field(init=False)
    frozen: Frozen = field(init=False)
    trial: Trial = field(init=False)
    start: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.frozen = Frozen()
        self.data = small(self.dataset)
        device = torch.device("cpu")
        shared: Any = self.frozen
        self.trial = Trial(
            self.config,
            HistoryAlone(self.folder),
            device,
            self._report,
            lambda: None,
            shared,
        )

        self.trial.dataset = self.data
        self.start = self.trial.model

    @classmethod
    def of(
        cls,
        config: TrialConfig,
        dataset: Dataset,
        folder: Path,
        last_epoch: int = EPOCHS,
    ) -> Run:
        """Return a small trial that has run to its end, or to an earlier epoch's."""
        run = cls(config, dataset, folder, last_epoch)
        run.start = copy.deepcopy(run.trial.model.double())

        with suppress(TrialStoppedError):
            run.trial.run()

        return run

    def _report(self, result: Mapping[str, Any]) -> None:
        if result["epoch"] == 1:
            self.first_epoch = _copied(trained_state(self.trial.model))

        if self.last_epoch <= result["epoch"] < EPOCHS:
            raise TrialStoppedError(result["epoch"])

    def epochs(self) -> list[list[tuple[np.ndarray, tuple[Tensor, ...]]]]:
        """The batches of every epoch, as the loop took them."""
        calls = self.data.train_calls
        size = max(1, len(calls) // EPOCHS)
        return [calls[at : at + size] for at in range(0, len(calls), size)]

    def wrong_order(self) -> Iterator[str]:
        """Say what is wrong with the batches: their size and number, clouds taken twice, an order
        that does not change.
        """
        count = len(self.data.train.labels)
        steps = count // BATCH
        epochs = self.epochs()

        if len(epochs) != EPOCHS or any(len(epoch) != steps for epoch in epochs):
            num_batches = len(self.data.train_calls)
            yield (
                f"{num_batches} batches were made for {EPOCHS} epochs of {steps} steps: batches are"
                " used again, or left out"
            )
            return

        orders = []
        for epoch in epochs:
            batches = [index for index, _ in epoch]
            sizes = [len(index) for index in batches]
            if sizes != [BATCH] * steps:
                yield (
                    f"train.batch_size: batches of {sizes} clouds where {BATCH} were asked for"
                )
                return

            orders.append(np.concatenate(batches))

        for order in orders:
            is_repeated = len(set(order.tolist())) != len(order)
            if is_repeated or order.min() < 0 or order.max() >= count:
                yield "an epoch takes a training cloud twice, or one that is not there"

            if (np.diff(order) > 0).all() or (np.diff(order) < 0).all():
                yield "the training clouds come in the order of the file: they are not shuffled"

        if all((order == orders[0]).all() for order in orders[1:]):
            yield "every epoch takes the training clouds in the same order"

        if len(set(self.data.states[::steps])) < EPOCHS:
            yield "augmentation draws the same random numbers in every epoch"

    def wrong_step(self) -> Iterator[str]:
        """Say what training gave that its definition does not: of every tensor, trained, frozen, or
        a statistic.
        """
        config = self.config
        initial = _copied(self.start.state_dict())
        model = self.start
        expected, expected_hits = reference(model, config, self.epochs(), self.data)
        losses = []
        hits = []

        for event in self.trial.folder.epochs():
            losses.append(event["metrics"]["train/loss"])
            hits.append(event["metrics"]["train/accuracy"])

        is_complete = len(losses) == len(expected)
        if is_complete and not np.allclose(losses, expected, rtol=1e-4):
            yield (
                f"train/loss is {losses[-1]:.6g}, the mean loss of the epoch's clouds"
                f" {expected[-1]:.6g}"
            )
        elif is_complete and not np.allclose(hits, expected_hits):
            yield (
                f"train/accuracy is {hits[-1]:.4f}, that of the training steps is"
                f" {expected_hits[-1]:.4f}"
            )

        yield from _wrong_changes(initial, self.trial.model, model, config.train.lr)

    def wrong_late_epochs(self, numbers: Sequence[int], planned: int) -> Iterator[str]:
        """Say where a step in late epochs of those planned is not the one that its settings
        describe.

        Something may be frozen, thawed or set otherwise after a number of epochs, which the first
        ones do not show. The trial's own model is trained on, so nothing else may be asked of it
        afterwards.
        """
        train = self.config.train.model_copy(update={"epochs": planned})
        config = self.config.model_copy(update={"train": train})
        model = self.trial.model

        for number in numbers:
            data = small(self.dataset)
            data.train = few(data.train, BATCH)
            expected = copy.deepcopy(model)
            before = _copied(model.state_dict())
            trained_before = _trained_names(model)

            optimizer = make_optimizer(model, train)
            train_epoch(model, optimizer, data, config=config, epoch=number)
            reference_epochs(expected, config, {number: data.train_calls}, data)
            trained_after = _trained_names(model)

            problems = list(_wrong_changes(before, model, expected, train.lr))

            if not problems and trained_after != trained_before:
                problems = ["other tensors train after it than before it"]

            for text in problems:
                yield f"in epoch {number} of {planned}: {text}"

            if problems:
                return

    def wrong_statistics(self) -> Iterator[str]:
        """Say which batch statistics stand still though their layer trains, or move though it is
        frozen.
        """
        stuck, moved = [], []
        for (name, module), (_, before) in zip(
            self.trial.model.named_modules(), self.start.named_modules(), strict=True
        ):
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                continue
            if module.running_mean is None:
                continue

            trains = any(p.requires_grad for p in module.parameters())
            same = bool((module.running_mean == before.running_mean).all())
            if trains and same:
                stuck.append(f"{name}.running_mean")

            if not trains and not same and self.config.compat == "fixed":
                moved.append(f"{name}.running_mean")

        if stuck:
            yield (
                f"the statistics {_listed(stuck)} do not follow the training clouds: the layer is"
                " not in training mode"
            )

        if moved:
            yield f"the statistics {_listed(moved)} of a frozen layer follow the training clouds"

    def wrong_evaluation(self) -> Iterator[str]:
        """Say where the history's loss and accuracy of a split are not those of the model on that
        split's clouds.
        """
        epochs = self.trial.folder.epochs()
        if len(epochs) != EPOCHS:
            yield f"{len(epochs)} epochs stand in the history of a trial of {EPOCHS}"
            return

        metrics = epochs[-1]["metrics"]
        before = _copied(self.trial.model.state_dict())
        for split in filter(None, (self.data.test, self.data.val)):
            loss, accuracy = measured(self.trial.model, self.data, split, self.config)
            logged = metrics[f"{split.name}/loss"]
            hits = metrics[f"{split.name}/accuracy"]

            if not math.isclose(logged, loss, rel_tol=1e-4, abs_tol=1e-6):
                yield (
                    f"{split.name}/loss is {logged:.6g}, the model's own loss on the {split.name}"
                    f" clouds is {loss:.6g}: other clouds, an order that got lost, noise or"
                    " training mode in evaluation"
                )
            elif accuracy is not None and abs(hits - accuracy) > 1e-9:
                yield f"{split.name}/accuracy is {hits:.4f}, that of the model is {accuracy:.4f}"

        after = self.trial.model.state_dict()
        changed = []
        for name, value in before.items():
            if not torch.equal(value, after[name]):
                changed.append(name)

        if changed:
            yield f"{_listed(changed)} changed in an evaluation"

    def wrong_choice(self) -> Iterator[str]:
        """Say which protocol takes another epoch than it should, over four made epochs whose best
        differ.
        """
        trial = self.trial
        before = trial.best, trial.predictions
        trial.best = {}
        trial.predictions = {}
        measure = self.config.dataset.metrics[0]
        curves = {
            "train/accuracy": (0.9, 0.1, 0.2, 0.3),
            f"test/{measure}": (0.2, 0.9, 0.5, 0.9),
            f"val/{measure}": (0.3, 0.1, 0.8, 0.8),
        }

        expected = {"last": 4, "best_test": 2, "best_val": 3}

        for epoch in range(1, 5):
            metrics = {name: curve[epoch - 1] for name, curve in curves.items()}
            # The predictions say by their class of which epoch they are.
            predictions = np.full(3, epoch, dtype=np.uint8)
            evaluation = Evaluation(1.0, metrics[f"test/{measure}"], predictions)
            trial._select(epoch, metrics, evaluation)

        chosen = {name: int(best["epoch"]) for name, best in trial.best.items()}
        predicted = {name: int(values[0]) for name, values in trial.predictions.items()}
        trial.best, trial.predictions = before

        for name, epoch in expected.items():
            if chosen.get(name) != epoch or predicted.get(name) != epoch:
                yield (
                    f"protocol {name} takes epoch {chosen.get(name)} with predictions of"
                    f" {predicted.get(name)} where {epoch} is its own"
                )


def wrong_start(run: Run, same: Run, other: Run) -> Iterator[str]:
    """Say what a seed does not decide, or what else does: the start of everything new, and nothing
    of the frozen backbone.
    """
    first = {name: p.detach().float() for name, p in run.start.named_parameters()}
    again = dict(same.start.named_parameters())
    second = dict(other.start.named_parameters())
    changed = [name for name in first if not torch.equal(first[name], again[name])]

    if changed:
        yield f"{_listed(changed)} start otherwise when the same seed starts again"

    frozen = []
    for name, parameter in other.start.named_parameters():
        if not parameter.requires_grad and not torch.equal(parameter, first[name]):
            frozen.append(name)

    if frozen:
        yield f"{_listed(frozen)} are frozen and differ from seed to seed"

    # by part of the model: which of its new weights are equal
    equal_of: dict[str, list[bool]] = {}
    names = {id(p): name for name, p in run.trial.model.named_parameters()}
    pretrained = {names[key] for key in run.frozen.own if key in names}

    for name, parameter in run.start.named_parameters():
        is_old = name in pretrained or name.startswith(("cls_", "norm."))
        is_constant = bool((parameter == parameter.flatten()[0]).all())
        if parameter.requires_grad and not is_old and not is_constant:
            part = name.partition(".")[0]
            equal_of.setdefault(part, []).append(torch.equal(first[name], second[name]))

    method = getattr(run.trial.model, "method", None)
    if method is not None and method.starts_from_weights:
        equal_of.pop("backbone", None)

    for part, equal in equal_of.items():
        if all(equal):
            yield f"{part}: its new weights start alike for every seed"


def wrong_seeds(run: Run, same: Run, other: Run) -> Iterator[str]:
    """Say what a second run with the same seed, or with another one, should give and does not; an
    epoch of them shows it.
    """
    first, again = run.first_epoch, same.first_epoch
    if any(not torch.equal(first[name], again[name]) for name in first):
        yield "the same seed gives other weights when it is run again"

    num_batches = len(other.data.train_calls)
    if _order(run, num_batches) == _order(other, num_batches):
        yield "another seed takes the training clouds in the same order"

    if run.data.states[:1] == other.data.states[:1]:
        yield "another seed draws the same random numbers for augmentation"


def _order(run: Run, num_batches: int) -> list[list[int]]:
    """Return the rows of the first batches."""
    return [index.tolist() for index, _ in run.data.train_calls[:num_batches]]


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _trained_names(model: nn.Module) -> set[str]:
    names = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.add(name)

    return names


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _wrong_changes(
    before_all: Mapping[str, Tensor],
    model: nn.Module,
    reference_model: nn.Module,
    lr: float,
) -> Iterator[str]:
    """Say which tensors of a trained model changed otherwise than those of the reference, from the
    same start.
    """
    expected, actual = reference_model.state_dict(), model.state_dict()
    moved = []
    still = []
    other = []
    trained = _trained_names(reference_model)

    for name, before in before_all.items():
        if not before.is_floating_point() or not before.numel():
            continue

        change = actual[name] - before
        expected_change = expected[name] - before
        changed = float(change.abs().max())
        size = float(expected_change.abs().max())
        deviation = float((change - expected_change).abs().max())
        # The step of a gradient that is zero but for rounding: so is that of a bias before a batch
        # norm. It may be exactly zero in one of the two runs.
        noise = NOISE * lr if name in trained else 0.0

        if size == 0 and changed > noise:
            moved.append(name)
        elif changed == 0 and size > noise:
            still.append(name)
        elif deviation > max(TOLERANCE * size, noise):
            other.append(name)

    if moved:
        yield f"{_listed(moved)} changed in training, and should not"

    if still:
        yield f"{_listed(still)} did not change in training, and should"

    if other:
        yield (
            f"{_listed(other)} changed in training otherwise than one step of AdamW after another"
            " says (rate, decay, clipping, loss, batch)"
        )
