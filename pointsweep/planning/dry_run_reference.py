"""The definitions that a dry run compares training with: rate, step and evaluation, written out with torch's own parts.

Nothing here calls the code that it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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
from pointsweep.training.loop import step_rate, stream

BETAS = (0.9, 0.999)
Batches = Sequence[tuple[np.ndarray, tuple[Tensor, ...]]]  # rows (B,) of each batch, and what the loop took of them


def rate(train: TrainConfig, epoch: int, step: int = 0, steps: int = 1) -> float:
    """The learning rate of epoch 1, 2, ... (spec 2.8): a line from min_lr up to lr, then half a cosine down to min_lr.

    With `warmup_fraction` that of a step: the line goes over this share of all steps, and the first step is already on its way.
    """
    done = float(epoch - 1)
    if train.warmup_fraction is not None:
        line = max(round(train.epochs * steps * train.warmup_fraction), 1)
        if steps * (epoch - 1) + step + 1 <= line:
            return train.min_lr + (train.lr - train.min_lr) * (steps * (epoch - 1) + step + 1) / line
        done += step / steps
    elif done < train.warmup_epochs:
        return train.min_lr + (train.lr - train.min_lr) * done / train.warmup_epochs
    angle = math.pi * min(done / (train.cosine_epochs or train.epochs), 1.0)
    return train.min_lr + (train.lr - train.min_lr) * (1.0 + math.cos(angle)) / 2.0


def wrong_rates(train: TrainConfig) -> list[str]:
    """Say where the schedule is not the one that the settings describe."""
    for epoch in range(1, train.epochs + 1):
        for step in range(STEPS):
            given, wanted = step_rate(train, epoch, step, STEPS), rate(train, epoch, step, STEPS)
            if not math.isclose(given, wanted, rel_tol=1e-9, abs_tol=1e-15):
                return [f"the learning rate of epoch {epoch} is {given:.3g}, its settings say {wanted:.3g}"]
    return []


def reference(model: nn.Module, config: TrialConfig, epochs: Sequence[Batches], data: Recording) -> tuple[list[float], list[float]]:
    """Prepare `model` and train it in place; see `reference_epochs`."""
    if isinstance(model, PointModel):
        rows = data.evaluation_order(data.train)
        parts = [rows[at : at + EVAL_BATCH] for at in range(0, len(rows), EVAL_BATCH)]
        model.method.prepare(model, [data.eval_batch(data.train, part)[0] for part in parts])
    return reference_epochs(model, config, dict(enumerate(epochs, start=1)), data)


def reference_epochs(
    model: nn.Module, config: TrialConfig, epochs: Mapping[int, Batches], data: Recording
) -> tuple[list[float], list[float]]:
    """Train `model` in place on the batches of epochs, given by number: cross-entropy, clipping, torch.optim.AdamW.

    Labels are those stored of the clouds. Return each epoch's mean loss and its accuracy.
    """
    means = []
    accuracies = []
    train = config.train
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_token = "token" in name and not train.decay_tokens
        exempt = parameter.dim() <= 1 or name.endswith("bias") or is_token
        if train.decayed == "all":
            exempt = False
        (plain if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1.0, betas=BETAS, eps=train.adam_eps)
    for number, epoch in epochs.items():
        model.train()
        losses = []
        correct = []
        for step, (index, batch) in enumerate(epoch):
            set_noise(model, torch.Generator().manual_seed(stream(config.seed, "noise", number, step)))
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate(train, number, step, len(epoch))
            labels = batch[-1] if isinstance(data, PartDataset) else torch.from_numpy(data.train.labels[index])
            logits = model(*inputs_of(batch)).float()
            loss = F.cross_entropy(logits, labels, label_smoothing=train.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_([*decayed, *plain], train.clip_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
            correct.append(float((logits.argmax(dim=1) == labels).double().mean()))
        means.append(float(np.mean(losses)))
        # Of the steps' means: exact of clouds, of parts a number for each point where batches hold clouds of as many points.
        accuracies.append(float(np.mean(correct)))
    return means, accuracies


@torch.no_grad()
def measured(model: nn.Module, data: Dataset, split: Split, config: TrialConfig) -> tuple[float, float | None]:
    """Mean loss and accuracy of a split; cloud by cloud under `compat: fixed`. No accuracy of parts, which categories limit."""
    model.eval()
    order = data.evaluation_order(split)
    size = 1 if config.compat == "fixed" else EVAL_BATCH
    loss = hits = count = 0.0
    for at in range(0, len(order), size):
        rows = order[at : at + size]
        batch = data.eval_batch(split, rows)
        labels = batch[-1] if isinstance(data, PartDataset) else torch.from_numpy(split.labels[rows])
        logits = model(*inputs_of(batch)).double()
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        hits += int((logits.argmax(dim=1) == labels).sum())
        count += labels.numel()
    return loss / count, None if isinstance(data, PartDataset) else hits / count


def inputs_of(batch: Sequence[Tensor]) -> Sequence[Tensor]:
    return batch[:-1]
