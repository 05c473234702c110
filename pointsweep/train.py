"""The loop: learning rate, optimiser, one epoch, evaluation. Every step is a function of the trial's config and the step's number.

Source: the training protocol of Any2Point (arXiv 2404.07989) and its program (spec 2.8). Letters: B clouds, P points.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.config import TrainConfig, TrialConfig
from pointsweep.data.base import Dataset, Split
from pointsweep.failures import Diverged
from pointsweep.layers import set_noise


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy (fraction) over a split, and the predicted class of every cloud, uint8 (n,)."""

    loss: float
    accuracy: float
    predictions: np.ndarray


def stream(*parts: int | str) -> int:
    """A seed for one purpose, e.g. stream(seed, "order", epoch): independent of every other and of what was drawn before."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def learning_rate(train: TrainConfig, epoch: int) -> float:
    """The rate of epoch 1, 2, ...: t = epoch - 1 counts from zero; linear warm-up from min_lr, then a cosine in t, not shifted."""
    t = epoch - 1
    span = train.lr - train.min_lr
    if t < train.warmup_epochs:
        return train.min_lr + t * span / train.warmup_epochs
    period = train.cosine_epochs or train.epochs
    return train.min_lr + 0.5 * span * (1 + math.cos(math.pi * min(t / period, 1.0)))


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over what is trainable; no decay on biases and other 1-D parameters (and on tokens, where the program says so)."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.dim() <= 1 or name.endswith("bias") or (not train.decay_tokens and "token" in name)
            (plain if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=train.lr, fused=True)


def batches(count: int, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Index arrays (size,) of one epoch in its own random order; the last, smaller batch is dropped."""
    order = np.random.default_rng(stream(seed, "order", epoch)).permutation(count)
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, dataset: Dataset, config: TrialConfig, epoch: int, parts: int = 1
) -> dict[str, float]:
    """One pass over the training clouds, each batch computed in `parts`. Returns train/loss and train/accuracy; raises Diverged."""
    train, device = config.train, next(model.parameters()).device
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(train, epoch)
    trained = [p for p in model.parameters() if p.requires_grad]
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    correct, seen = torch.zeros((), dtype=torch.long, device=device), 0
    augmentation = torch.Generator().manual_seed(stream(config.seed, "augment", epoch))
    model.train()
    for step, index in enumerate(batches(len(dataset.train.labels), train.batch_size, config.seed, epoch)):
        set_noise(model, torch.Generator(device).manual_seed(stream(config.seed, "noise", epoch, step)))
        points, labels = (tensor.to(device) for tensor in dataset.train_batch(index, augmentation))
        optimizer.zero_grad(set_to_none=True)
        loss, hits = accumulate(model, points, labels, train, parts)
        nn.utils.clip_grad_norm_(trained, train.clip_norm)
        optimizer.step()
        loss_sum += loss * len(labels)
        correct += hits
        seen += len(labels)
    mean = float(loss_sum) / seen
    if not math.isfinite(mean):
        raise Diverged(f"the training loss of epoch {epoch} is {mean}")
    return {"train/loss": mean, "train/accuracy": int(correct) / seen}


def accumulate(model: nn.Module, points: Tensor, labels: Tensor, train: TrainConfig, parts: int) -> tuple[Tensor, Tensor]:
    """Adds the gradient of the mean loss of points (B, P, 3), labels (B,). Returns that loss, float64, and the number of hits.

    In several parts the memory of one part suffices, and the gradient is that of the whole batch but for rounding, unless the
    clouds of a batch see each other: batch normalisation then takes its statistics over a part, and dropout draws other masks.
    """
    loss_sum = torch.zeros((), dtype=torch.float64, device=points.device)
    correct = torch.zeros((), dtype=torch.long, device=points.device)
    for clouds, wanted in zip(points.tensor_split(parts), labels.tensor_split(parts), strict=True):
        with autocast(train.precision, points.device):
            logits = model(clouds)
        loss = F.cross_entropy(logits.float(), wanted, label_smoothing=train.label_smoothing) * (len(wanted) / len(labels))
        loss.backward()
        loss_sum += loss.detach().double()
        correct += (logits.argmax(dim=1) == wanted).sum()
    return loss_sum, correct


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset, split: Split, config: TrialConfig, parts: int = 1) -> Evaluation:
    """Loss, accuracy and predictions on a whole split; predictions stand in file order, whatever the order of the batches.

    Each batch goes through the model in `parts`; but in compat `official`, where the clouds of a batch see each other, whole.
    """
    parts = parts if config.compat == "fixed" else 1
    device, size = next(iter(model.state_dict().values())).device, config.train.eval_batch_size
    model.eval()
    order, logits = dataset.evaluation_order(split), []
    forward = functools.partial(_in_parts, model, parts)
    votes = config.train.votes if split.name == "test" else 1
    for start in range(0, len(order), size):
        points, _ = dataset.eval_batch(split, order[start : start + size])
        with autocast(config.train.precision, device):
            logits.append(_vote(forward, points, dataset, votes, stream(config.seed, "vote", start)))
    back = torch.from_numpy(np.argsort(order))
    return score(torch.cat(logits)[back], torch.from_numpy(split.labels))


def _in_parts(model: nn.Module, parts: int, points: Tensor) -> Tensor:
    """points (B, P, 3) -> logits (B, classes) on the CPU."""
    device = next(iter(model.state_dict().values())).device
    pieces = [model(piece.to(device)).float().cpu() for piece in points.tensor_split(min(parts, len(points)))]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _vote(forward: Callable[[Tensor], Tensor], points: Tensor, dataset: Dataset, votes: int, seed: int) -> Tensor:
    """points (B, P, 3) -> logits (B, classes) on the CPU; of several votes the logarithm of the mean probability."""
    if votes == 1:
        return forward(points)
    generator = torch.Generator().manual_seed(seed)
    copies = [points] + [dataset.augmented(points, generator) for _ in range(votes - 1)]
    return torch.stack([forward(copy).softmax(dim=1) for copy in copies]).mean(dim=0).log()


def score(logits: Tensor, labels: Tensor) -> Evaluation:
    """logits (n, classes), labels (n,) -> Evaluation."""
    predictions = logits.argmax(dim=1)
    accuracy = int((predictions == labels).sum()) / len(labels)
    return Evaluation(float(F.cross_entropy(logits.double(), labels)), accuracy, predictions.numpy().astype(np.uint8))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context a forward runs in: bf16 where the config asks for it, else nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
