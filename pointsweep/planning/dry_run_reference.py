"""The definitions that a dry run compares training with: rate, step and evaluation, written out
with torch's own parts.

Of the training loop the reference uses only the seeds of the noise (`loop.stream`): with other
dropout masks no step would be the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.config.parts import TrainConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.data.dataset import Dataset, Split
from pointsweep.data.part_dataset import PartDataset
from pointsweep.models.layers import set_noise
from pointsweep.models.point_model import PointModel
from pointsweep.planning.dry_run_data import EVAL_BATCH, STEPS, Recording
from pointsweep.results.confusion import IGNORED
from pointsweep.training.loop import step_rate, stream

BETAS = (0.9, 0.999)
# rows (B,) of each batch, and what the loop took of them
Batches = Sequence[tuple[np.ndarray, tuple[Tensor, ...]]]


def rate(train: TrainConfig, epoch: int, step: int = 0, steps: int = 1) -> float:
    """The learning rate of epoch 1, 2, ... (spec 2.8): a line from min_lr up to lr, then half a
    cosine down to min_lr.

    With `lag_epochs` it comes so many epochs later. With `warmup_fraction` that of a step: the line
    goes over this share of all steps, and the first step is already on its way.
    """
    height = train.lr - train.min_lr
    done = max(float(epoch - 1 - train.lag_epochs), 0.0)

    if train.warmup_fraction is not None:
        line = max(round(train.epochs * steps * train.warmup_fraction), 1)
        number = steps * (epoch - 1) + step + 1  # of the step, from 1 on
        if number <= line:
            return train.min_lr + height * number / line

        done += step / steps
    elif done < train.warmup_epochs:
        return train.min_lr + height * done / train.warmup_epochs

    length = train.cosine_epochs or max(train.epochs - train.lag_epochs, 1)
    angle = math.pi * min(done / length, 1.0)
    return train.min_lr + height * (1.0 + math.cos(angle)) / 2.0


def wrong_rates(train: TrainConfig) -> list[str]:
    """Say where the schedule is not the one that the settings describe."""
    for epoch in range(1, train.epochs + 1):
        for step in range(STEPS):
            given = step_rate(train, epoch, step, STEPS)
            expected = rate(train, epoch, step, STEPS)
            if not math.isclose(given, expected, rel_tol=1e-9, abs_tol=1e-15):
                return [
                    f"the learning rate of epoch {epoch} is {given:.3g}, its settings say"
                    f" {expected:.3g}"
                ]

    return []


def reference(
    model: nn.Module, config: TrialConfig, epochs: Sequence[Batches], data: Recording
) -> tuple[list[float], list[float]]:
    """Prepare `model` and train it in place; see `reference_epochs`."""
    if isinstance(model, PointModel):
        rows = data.evaluation_order(data.train)
        batches = []
        for start in range(0, len(rows), EVAL_BATCH):
            points, *_ = data.eval_batch(data.train, rows[start : start + EVAL_BATCH])
            batches.append(points)

        model.method.prepare(model, batches)

    return reference_epochs(model, config, dict(enumerate(epochs, start=1)), data)


@dataclass
class Moments:
    """State of AdamW for a parameter: the running means of its gradient and of its square, over
    `steps`.
    """

    mean: Tensor
    square: Tensor
    steps: int = 0


@torch.no_grad()
def adamw_step(
    parameter: Tensor, moments: Moments, lr: float, decay: float, eps: float
) -> None:
    """Change a parameter by one step of AdamW (arXiv 1711.05101, algorithm 2), whose class would
    load torch's compiler.
    """
    assert parameter.grad is not None
    first, second = BETAS
    moments.steps += 1
    moments.mean.mul_(first).add_(parameter.grad, alpha=1 - first)
    moments.square.mul_(second).addcmul_(
        parameter.grad, parameter.grad, value=1 - second
    )
    mean_share = 1 - first**moments.steps
    square_share = 1 - second**moments.steps
    scale = (moments.square / square_share).sqrt_().add_(eps)
    parameter.mul_(1 - lr * decay)
    parameter.addcdiv_(moments.mean, scale, value=-lr / mean_share)


def reference_epochs(
    model: nn.Module,
    config: TrialConfig,
    epochs: Mapping[int, Batches],
    data: Recording,
) -> tuple[list[float], list[float]]:
    """Train `model` in place on the batches of epochs, given by number: cross-entropy, clipping,
    AdamW.

    Labels are those stored of the clouds. Return each epoch's mean loss and its accuracy.
    """
    means = []
    accuracies = []
    train = config.train
    decays = _decays(model, train)
    moments: dict[nn.Parameter, Moments] = {}

    for number, epoch in epochs.items():
        model.train()
        losses = []
        correct = []

        for step, (index, batch) in enumerate(epoch):
            noise_seed = stream(config.seed, "noise", number, step)
            set_noise(model, torch.Generator().manual_seed(noise_seed))
            model.zero_grad()
            labels = labels_of(batch, data, data.train, index)
            logits = model(*inputs_of(batch)).float()
            loss = F.cross_entropy(
                logits, labels, label_smoothing=train.label_smoothing
            )
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(list(decays), train.clip_norm)
            lr = rate(train, number, step, len(epoch))

            for parameter, decay in decays.items():
                if parameter.grad is None:
                    continue

                if parameter not in moments:
                    zeros = torch.zeros_like(parameter)
                    moments[parameter] = Moments(mean=zeros, square=zeros.clone())

                adamw_step(
                    parameter,
                    moments[parameter],
                    lr=lr,
                    decay=decay,
                    eps=train.adam_eps,
                )

            losses.append(float(loss.detach()))
            correct.append(float((logits.argmax(dim=1) == labels).double().mean()))

        means.append(float(np.mean(losses)))
        # Of the steps' means: exact of clouds, of parts a number for each point where batches hold
        # clouds of as many points.
        accuracies.append(float(np.mean(correct)))

    return means, accuracies


def _decays(model: nn.Module, train: TrainConfig) -> dict[nn.Parameter, float]:
    """Return the weight decay of each trained parameter."""
    decays: dict[nn.Parameter, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_token = "token" in name and not train.decay_tokens
            exempt = parameter.dim() <= 1 or name.endswith("bias") or is_token
            is_decayed = not exempt or train.decayed == "all"
            decays[parameter] = train.weight_decay if is_decayed else 0.0

    return decays


@torch.no_grad()
def measured(
    model: nn.Module, data: Dataset, split: Split, config: TrialConfig
) -> tuple[float, float | None]:
    """Return mean loss and accuracy of a split; no accuracy of parts, which categories limit.

    Under `compat: fixed` in one batch, which is another one than the evaluation's: no cloud may see
    which clouds are beside it.
    """
    model.eval()
    order = data.evaluation_order(split)
    size = len(order) if config.compat == "fixed" else EVAL_BATCH
    loss = hits = count = 0.0

    for at in range(0, len(order), size):
        rows = order[at : at + size]
        batch = data.eval_batch(split, rows)
        labels = labels_of(batch, data, split, rows)
        logits = model(*inputs_of(batch)).double()
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        hits += int((logits.argmax(dim=1) == labels).sum())
        count += int((labels != IGNORED).sum())

    accuracy = None if isinstance(data, PartDataset) else hits / count
    return loss / count, accuracy


def inputs_of(batch: Sequence[Tensor]) -> Sequence[Tensor]:
    return batch[:-1]


def labels_of(
    batch: Sequence[Tensor], data: Dataset, split: Split, rows: np.ndarray
) -> Tensor:
    """Return the labels of a batch: those stored of the clouds (B,), or its parts (B, P)."""
    if isinstance(data, PartDataset):
        return batch[-1]

    return torch.from_numpy(split.labels[rows])
