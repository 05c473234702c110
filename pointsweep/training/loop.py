"""The loop: learning rate, optimiser, one epoch, evaluation. Every step is a function of the
trial's config and the step's number.

Source: the training protocol of Any2Point (arXiv 2404.07989) and its program (spec 2.8). Letters: B
clouds, P points.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.config.parts import TrainConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.data.dataset import Dataset, Split
from pointsweep.data.part_dataset import PartDataset
from pointsweep.data.part_metrics import part_score
from pointsweep.data.scenes.dataset import SceneDataset
from pointsweep.models.batch_cache import eval_batch, on_device, train_batch
from pointsweep.models.layers import set_noise
from pointsweep.results.confusion import IGNORED, confusion, confusion_scores
from pointsweep.results.failures import DivergedError
from pointsweep.results.records import class_type
from pointsweep.training.adamw import AdamW
from pointsweep.training.data_parallel import ALONE, Group
from pointsweep.training.fusion.coroutines import backward, take_step, take_turns
from pointsweep.training.prefetch import one_ahead
from pointsweep.utils import interruption


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy (fraction) over a split, and the predicted class of every cloud (n,),
    see `class_type`.

    Of part segmentation both are those of the points, `more` holds the mean IoUs, and `predictions`
    each shape's IoU, float32 (n,). Of semantic segmentation they are each block's confusion matrix,
    int32 (n, classes, classes).
    """

    loss: float
    accuracy: float
    predictions: np.ndarray
    more: Mapping[str, float] = field(default_factory=dict)

    def metrics(self, split: str) -> dict[str, float]:
        """Return the metrics by their names in a history, e.g. test/accuracy."""
        values = {"loss": self.loss, "accuracy": self.accuracy, **self.more}
        return {f"{split}/{name}": value for name, value in values.items()}


def stream(*parts: int | str) -> int:
    """A seed for one purpose, e.g. stream(seed, "order", epoch): independent of every other and of
    what was drawn before.
    """
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def learning_rate(train: TrainConfig, epoch: int) -> float:
    """The rate of epoch 1, 2, ...: t = epoch - 1 counts from zero; linear warm-up from min_lr, then
    a cosine in t, not shifted. With `lag_epochs` all of it comes so many epochs later.
    """
    t = max(epoch - 1 - train.lag_epochs, 0)
    span = train.lr - train.min_lr

    if t < train.warmup_epochs:
        return train.min_lr + t * span / train.warmup_epochs

    return train.min_lr + 0.5 * span * (
        1 + math.cos(math.pi * min(t / train.period, 1.0))
    )


def step_rate(train: TrainConfig, epoch: int, step: int, steps: int) -> float:
    """The rate of step 0, 1, ... of the `steps` of an epoch: that of the epoch, or with
    `warmup_fraction` one of its own.

    The warm-up is linear and ends at `lr` with its last step; the cosine behind it is that of the
    epochs, read at the step.
    """
    if train.warmup_fraction is None:
        return learning_rate(train, epoch)

    span = train.lr - train.min_lr
    number = (epoch - 1) * steps + step  # of the step, from 0
    warmup_steps = max(1, round(train.warmup_fraction * train.epochs * steps))

    if number < warmup_steps:
        return train.min_lr + span * (number + 1) / warmup_steps

    period = train.period * steps
    return train.min_lr + 0.5 * span * (
        1 + math.cos(math.pi * min(number / period, 1.0))
    )


def make_optimizer(model: nn.Module, train: TrainConfig) -> AdamW:
    """AdamW over what is trainable; no decay on biases and other 1-D parameters (and on tokens,
    where the program says so).

    With `decayed: all` on every parameter.
    """
    decayed: list[Tensor] = []
    plain: list[Tensor] = []

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = (
                parameter.dim() <= 1
                or name.endswith("bias")
                or (not train.decay_tokens and "token" in name)
            )
            spared = exempt and train.decayed == "matrices"
            (plain if spared else decayed).append(parameter)

    groups = [
        {"params": decayed, "weight_decay": train.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]], train.lr, train.adam_eps
    )


def batches(count: int, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Index arrays (size,) of one epoch in its own random order; the last, smaller batch is
    dropped.
    """
    order = np.random.default_rng(stream(seed, "order", epoch)).permutation(count)
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]


def train_epoch(
    model: nn.Module, optimizer: AdamW, dataset: Dataset, config: TrialConfig, epoch: int,
    parts: int = 1,
    group: Group = ALONE,
) -> dict[str, float]:  # fmt: skip
    """One pass over the training clouds, each batch computed by all processes of the group, in
    `parts` each.

    Returns train/loss and train/accuracy; raises DivergedError, ProcessLostError.
    """
    train, device = config.train, next(model.parameters()).device
    steps = len(dataset.train.labels) // train.batch_size
    trained = [p for p in model.parameters() if p.requires_grad]
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.long, device=device)
    num_labels = 0
    augmentation = torch.Generator().manual_seed(stream(config.seed, "augment", epoch))
    model.train()
    order = batches(len(dataset.train.labels), train.batch_size, config.seed, epoch)
    load = functools.partial(
        train_batch, dataset, generator=augmentation, device=device
    )
    prepare_batch = functools.partial(
        prepare, model, train.precision, parts, group=group
    )

    for step, (*inputs, labels) in enumerate(
        one_ahead(order, load, prepare_batch, device)
    ):
        # the processes' clouds must not be masked alike
        rank_key = (group.rank,) if group.rank else ()
        set_noise(
            model,
            torch.Generator(device).manual_seed(
                stream(config.seed, "noise", epoch, step, *rank_key)
            ),
        )

        loss, hits = accumulate(model, inputs, labels, train, parts, group)

        for param_group in optimizer.param_groups:
            param_group["lr"] = step_rate(train, epoch, step, steps)

        take_step(optimizer, trained, train.clip_norm)
        # before the others' turn: nothing of a step but its results outlives it
        optimizer.zero_grad()
        loss_sum += loss * labels.numel()
        correct += hits
        num_labels += labels.numel()
        take_turns(device)
        interruption.check()

    mean_loss = float(loss_sum) / num_labels
    if not math.isfinite(mean_loss):
        raise DivergedError(f"the training loss of epoch {epoch} is {mean_loss}")

    return {"train/loss": mean_loss, "train/accuracy": int(correct) / num_labels}


def prepare(
    model: nn.Module,
    precision: str,
    parts: int,
    batch: Sequence[Tensor],
    group: Group = ALONE,
) -> None:
    """Geometry of a batch that is to come, of the parts and in the mode in which the forward pass
    will look for it.
    """
    geometry = getattr(model, "geometry", None)
    if geometry is None:  # a network from scratch
        return

    with autocast(precision, batch[0].device):
        for points in group.part(batch[0]).tensor_split(parts):
            geometry(points)


def accumulate(
    model: nn.Module,
    inputs: Sequence[Tensor],
    labels: Tensor,
    train: TrainConfig,
    parts: int,
    group: Group = ALONE,
) -> tuple[Tensor, Tensor]:
    """Add the gradient of the mean loss of points (B, P, 3), labels (B,) or (B, P); return that
    loss, float64, and the hits.

    In several parts the memory of one part suffices. Of several processes each computes its share,
    and all have the sums; gradients must be empty before. Either way the gradient is that of the
    whole batch but for rounding, unless the clouds of a batch see each other: batch normalisation
    then takes its statistics over a part, and dropout draws other masks.
    """
    loss_sum = torch.zeros((), dtype=torch.float64, device=labels.device)
    correct = torch.zeros((), dtype=torch.long, device=labels.device)
    split = [group.part(tensor).tensor_split(parts) for tensor in (*inputs, labels)]

    for *clouds, targets in zip(*split, strict=True):
        with autocast(train.precision, labels.device):
            logits = model(*clouds)

        mean = F.cross_entropy(
            logits.float(), targets, label_smoothing=train.label_smoothing
        )
        loss = mean * (len(targets) / len(labels))
        backward(loss)
        loss_sum += loss.detach().double()
        correct += (logits.argmax(dim=1) == targets).sum()

    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    group.sum(gradients)
    group.sum([loss_sum])
    group.sum([correct])

    return loss_sum, correct


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    config: TrialConfig,
    parts: int = 1,
) -> Evaluation:
    """Loss, accuracy and predictions on a whole split; predictions stand in file order, whatever
    the order of the batches.

    Each batch goes through the model in `parts`; but in compat `official`, where the clouds of a
    batch see each other, whole.
    """
    model.eval()
    forward = functools.partial(
        _in_parts,
        model,
        parts if config.compat == "fixed" else 1,
        config.train.precision,
    )

    answers = _answers(forward, dataset, split, config)

    if isinstance(dataset, SceneDataset):
        return score_scenes(answers, dataset.num_classes)
    if isinstance(dataset, PartDataset):
        return score_parts(answers, split.labels, dataset.parts)

    rows, logits, _ = zip(*answers, strict=True)
    file_order = torch.from_numpy(np.argsort(np.concatenate(rows)))
    return score(torch.cat(logits)[file_order], torch.tensor(split.labels))


# rows (B,) of a split, their logits (B, classes) or (B, parts, P), their labels
Answer = tuple[np.ndarray, Tensor, Tensor]
# what a model takes, points (B, P, 3) first -> logits on the CPU
Forward = Callable[[Sequence[Tensor]], Tensor]


def _in_parts(
    model: nn.Module, parts: int, precision: str, inputs: Sequence[Tensor]
) -> Tensor:
    device = next(iter(model.state_dict().values())).device
    split = [tensor.tensor_split(min(parts, len(tensor))) for tensor in inputs]
    logits = []

    with autocast(precision, device):
        for micro_batch in zip(*split, strict=True):
            moved = [on_device(tensor, device) for tensor in micro_batch]
            logits.append(model(*moved).float().cpu())

    take_turns(device)
    interruption.check()
    return logits[0] if len(logits) == 1 else torch.cat(logits)


def _answers(
    forward: Forward, dataset: Dataset, split: Split, config: TrialConfig
) -> Iterator[Answer]:
    size = config.train.eval_batch_size
    order = dataset.evaluation_order(split)
    votes = config.train.votes if split.name == "test" else 1

    for start in range(0, len(order), size):
        rows = order[start : start + size]
        *inputs, labels = eval_batch(dataset, split, rows)
        seed = stream(config.seed, "vote", start)
        logits = _vote(forward, inputs, dataset, votes=votes, seed=seed)
        yield rows, logits, labels


def _vote(
    forward: Forward, inputs: Sequence[Tensor], dataset: Dataset, votes: int, seed: int
) -> Tensor:
    """Inputs -> logits (B, classes) on the CPU; of several votes the logarithm of the mean
    probability.
    """
    if votes == 1:
        return forward(inputs)

    points, *other_inputs = inputs
    generator = torch.Generator().manual_seed(seed)
    copies = [points]

    for _ in range(votes - 1):
        copies.append(dataset.augmented(points, generator))

    # In logarithms: a probability that is too small for a float would give an infinite loss.
    logarithms = []
    for copy in copies:
        logarithms.append(forward([copy, *other_inputs]).log_softmax(dim=1))

    return torch.stack(logarithms).logsumexp(dim=0) - math.log(votes)


def score(logits: Tensor, labels: Tensor) -> Evaluation:
    """logits (n, classes), labels (n,) -> Evaluation."""
    predictions = logits.argmax(dim=1)
    accuracy = int((predictions == labels).sum()) / len(labels)
    return Evaluation(
        float(F.cross_entropy(logits.double(), labels)),
        accuracy,
        predictions.numpy().astype(class_type(logits.shape[1])),
    )


def score_parts(
    answers: Iterable[Answer], category: np.ndarray, parts: Sequence[Sequence[int]]
) -> Evaluation:
    """Score every point's logits (B, parts, P) by the shapes' categories (n,): a point gets the
    best of its category's parts.

    The loss is over all parts, as in training.
    """
    allowed = torch.zeros(len(parts), max(map(max, parts)) + 1, dtype=torch.bool)
    for number, category_parts in enumerate(parts):
        allowed[number, list(category_parts)] = True

    order: list[int] = []
    predicted: list[np.ndarray] = []
    truth: list[np.ndarray] = []
    loss = 0.0

    for rows, logits, labels in answers:
        is_allowed = allowed[torch.from_numpy(category[rows])]  # (B, parts)
        scores = logits.masked_fill(~is_allowed.unsqueeze(2), -torch.inf)
        predictions = scores.argmax(dim=1)  # (B, P)
        loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
        order += rows.tolist()
        predicted += list(predictions.numpy())
        truth += list(labels.numpy())

    file_order = np.argsort(order)
    predicted = [predicted[i] for i in file_order]
    truth = [truth[i] for i in file_order]
    ious = part_score(predicted, truth, category.tolist(), parts)
    num_correct = 0

    for of_shape, true_parts in zip(predicted, truth, strict=True):
        num_correct += int((of_shape == true_parts).sum())

    count = sum(map(len, truth))
    shape_metrics = {"instance_miou": ious.instance_miou, "class_miou": ious.class_miou}

    return Evaluation(
        loss / count,
        num_correct / count,
        np.array(ious.by_shape, dtype=np.float32),
        shape_metrics,
    )


def score_scenes(answers: Iterable[Answer], num_classes: int) -> Evaluation:
    """Score every point's logits (B, classes, P) by its class (B, P); points that fill up a cloud
    are not counted.
    """
    order: list[int] = []
    matrices: list[np.ndarray] = []
    loss = 0.0

    for rows, logits, labels in answers:
        batch_loss = F.cross_entropy(
            logits.double(), labels, reduction="sum", ignore_index=IGNORED
        )
        loss += float(batch_loss)
        order += rows.tolist()
        predictions = logits.argmax(dim=1).numpy()  # (B, P)

        for predicted, truth in zip(predictions, labels.numpy(), strict=True):
            matrices.append(confusion(predicted, truth, num_classes))

    counts = np.stack(matrices)[np.argsort(order)]
    scores = confusion_scores(counts.sum(axis=0))
    accuracy = scores.pop("accuracy")

    return Evaluation(loss / int(counts.sum()), accuracy, counts, scores)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context a forward runs in: bf16 where the config asks for it, else nothing."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)

    return nullcontext()
