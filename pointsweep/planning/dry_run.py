"""The dry run of an arm: a small trial through the real optimiser, training loop and evaluation, before anything is launched.

`audit.py` looks at models; here the training around a model is looked at. Every arm is trained for two epochs of two steps on a few
clouds, in double precision, by the code that a launch runs. What it gives is compared with the definition of a step, of the learning
rate and of an evaluation, which are written out once more below with torch's own parts. In double precision both agree to rounding,
so that whatever else happened (a frozen weight that moved, a setting that was not looked at, labels of other clouds) shows.

Letters: B clouds, P points.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.config import registry
from pointsweep.config.datasets import DatasetConfig
from pointsweep.config.parts import TrainConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.data.dataset import Dataset, Split, sample
from pointsweep.data.part_dataset import PartDataset
from pointsweep.errors import Finding, MissingData
from pointsweep.models.layers import set_noise
from pointsweep.models.point_model import PointModel, build
from pointsweep.planning.probe import POINTS, SMALL, frozen_backbone
from pointsweep.results.failures import BadData, Diverged
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.training.loop import Evaluation, step_rate, stream
from pointsweep.training.runner import Trial, load_dataset

BATCH = 3  # clouds of a step
STEPS = 2  # of an epoch
EPOCHS = 2
TEST_CLOUDS, VAL_CLOUDS = 5, 4  # numbers that tell the splits apart
EVAL_BATCH = 2  # so that an evaluation has several batches
CLIP_NORM = 0.05  # so small that clipping acts in every step
LARGEST_LR = 0.1  # a trial of a larger rate may diverge, which is its own result and no fault of the code
BLOCKS = 1  # of a backbone: the audit's probe looks at all of them
TOLERANCE = 1e-6  # of a tensor's largest change: double precision leaves 1e-10
BETAS = (0.9, 0.999)
PER_FIELD = 3  # values of a training setting that get a dry run of their own
# Settings that may change no number: only how the same numbers are worked out.
WITHOUT_EFFECT = ("eval_batch_size", "compile", "precision")


@dataclass(frozen=True)
class Arm:
    """A trial's configuration and the cell that it stands for."""

    config: TrialConfig
    name: str


def dry_run(arms: Sequence[Arm]) -> list[Finding]:
    """Look at the training of a sweep's arms; every finding refuses the sweep. Needs the data that are here; made ones for others."""
    texts: dict[str, None] = {}
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)  # the products are small: more threads cost time
    for number, arm in enumerate(chosen(arms)):
        if arm.config.network is not None and not arm.config.network.trainable:
            continue
        texts |= dict.fromkeys(f"{arm.name}: {text}" for text in look(arm.config, thorough=number == 0))
    texts |= dict.fromkeys(settings_without_effect(arms))
    torch.set_num_threads(threads)
    torch.set_rng_state(random)
    return [Finding(True, text) for text in texts]


def chosen(arms: Sequence[Arm]) -> list[Arm]:
    """One arm of every structure, and of every training setting that varies a few values in the first structure that has them."""
    found: dict[tuple[Any, ...], Arm] = {}
    seen: dict[tuple[str, Any], int] = {}
    for arm in arms:
        fresh = []
        for name, value in vars(arm.config.train).items():
            key = (name, value)
            if key not in seen and sum(other == name for other, _ in seen) < PER_FIELD:
                fresh.append(key)
        structure = _structure(arm.config)
        if structure in found and not fresh:
            continue
        for key in fresh:
            seen[key] = 1
        found.setdefault(structure, arm)
        found[(structure, *fresh)] = arm
    unique: dict[str, Arm] = {}
    for arm in found.values():
        unique.setdefault(arm.config.key(), arm)
    return list(unique.values())


def _structure(config: TrialConfig) -> tuple[Any, ...]:
    parts = config.tokenizer, config.backbone, config.positions, config.method, config.head, config.network
    return (*parts, config.compat, config.dataset.name)


# The data


class Recording(Dataset):
    """A few clouds of a data set, which remembers what the loop and the evaluation took of it. Points are doubles."""

    train_calls: list[tuple[np.ndarray, tuple[Tensor, ...]]]
    states: list[bytes]  # of the random numbers of augmentation, before each training batch


def small(dataset: Dataset) -> Recording:
    """A few rows of every split; numbers of clouds that differ, so that a split taken for another shows."""
    kind = type(dataset)

    class Small(kind, Recording):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            self.__dict__.update(dataset.__dict__)
            self._sampled = {}  # its own: what is kept of a few clouds must never stand for those of the whole set
            self.train_calls, self.states = [], []
            self.train = _few(dataset.train, STEPS * BATCH + 1)
            self.test = _few(dataset.test, TEST_CLOUDS)
            self.val = None if dataset.val is None else _few(dataset.val, VAL_CLOUDS)
            self.digest = f"few-{dataset.digest}"

        def train_batch(self, index: np.ndarray, generator: torch.Generator, *rest: Any, **more: Any) -> tuple[Tensor, ...]:
            self.states.append(generator.get_state().numpy().tobytes())
            batch = _double(super().train_batch(index, generator, *rest, **more))
            self.train_calls.append((np.array(index), batch))
            return batch

        def eval_batch(self, split: Split, index: np.ndarray) -> tuple[Tensor, ...]:
            return _double(super().eval_batch(split, index))

        def _samples(self, split: Split) -> np.ndarray:
            # Training and validation clouds are stored together in a data set, and apart here: each split has its own samples.
            points = torch.from_numpy(np.array(split.points))
            return sample(points, self.config.num_points).numpy()

        def augmented(self, points: Tensor, generator: torch.Generator) -> Tensor:
            return super().augmented(points.float(), generator).double()  # type: ignore[no-any-return]

    return Small()


def _few(split: Split, count: int) -> Split:
    """`count` rows spread over a split, with the stored clouds of these alone where clouds are stored alike."""
    rows = np.unique(np.linspace(0, len(split.labels) - 1, min(count, len(split.labels))).astype(np.int64))
    few = split.take(rows, split.name)
    if few.points.ndim != 3:
        return few
    return dataclasses.replace(few, points=np.array(few.points[few.index]), index=np.arange(len(rows)))


def _double(batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in batch)


def dataset_of(config: DatasetConfig) -> Dataset | None:
    """The data set, where it can be read here at once; None where it cannot, which the plan says."""
    loader = registry.load("datasets", config.name)
    if loader.made_from and config.name not in ("synthetic", "synthetic_parts"):  # type: ignore[attr-defined]
        return None
    try:
        return load_dataset(config)
    except (MissingData, BadData, ValueError, OSError):
        return None


# One arm


def look(config: TrialConfig, thorough: bool = False) -> list[str]:
    """Return everything that is wrong with the training of one arm. `thorough`: with what is the same for all arms of a launch."""
    found = wrong_rates(config.train)
    try:
        dataset = dataset_of(config.dataset)
        if dataset is not None:
            found += wrong_data(dataset, config)
        found += _wrong_training(smaller(config), thorough)
    except Diverged:
        pass  # the launch says so of each seed, and the table of the cell
    except Exception as error:  # a method or a data set of somebody else's may raise anything: the sweep is refused with its words
        found.append(f"a small trial of it does not run: {type(error).__name__}: {error}")
    return list(dict.fromkeys(found))


def _wrong_training(config: TrialConfig, thorough: bool) -> list[str]:
    if dataset_of(config.dataset) is None:
        config = config.model_copy(update={"dataset": _made(config.dataset)})
    dataset = dataset_of(config.dataset)
    if dataset is None or len(dataset.train.labels) < STEPS * BATCH:
        return []
    other = config.replace(seed=1)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.of(config, dataset, Path(folder) / "first")
        again = Run(config, dataset, Path(folder) / "again")
        found = list(wrong_start(run, again, Run(other, dataset, Path(folder) / "other")))
        # The step last: its definition trains the start itself.
        found += [*run.wrong_order(), *run.wrong_evaluation(), *run.wrong_choice(), *run.wrong_statistics(), *run.wrong_step()]
        if thorough:
            same = Run.of(config, dataset, Path(folder) / "same")
            found += wrong_seeds(run, same, Run.of(other, dataset, Path(folder) / "next"))
    return found


def smaller(config: TrialConfig) -> TrialConfig:
    """Few tokens and blocks, small clouds, two epochs of two steps; all other settings as they are."""
    dataset = config.dataset.model_copy(update={"num_points": POINTS, "presample": POINTS, "train_limit": None, "test_limit": None})
    train = config.train.replace(
        epochs=EPOCHS, batch_size=BATCH, eval_batch_size=EVAL_BATCH, votes=1, clip_norm=CLIP_NORM,
        precision="fp32", compile=False, lr=min(config.train.lr, LARGEST_LR), min_lr=min(config.train.min_lr, LARGEST_LR),
    )  # fmt: skip
    parts: dict[str, Any] = {"dataset": dataset, "train": train}
    for name in ("tokenizer", "network", "backbone", "method"):
        part = getattr(config, name)
        if part is not None:
            parts[name] = part.model_copy(update=_known(part, SMALL))
    backbone = parts.get("backbone")
    if backbone is not None and "scales" not in vars(backbone) and config.dataset.num_categories == 0:
        parts["backbone"] = _shallow(config, backbone)
    return config.model_copy(update=parts)


def _shallow(config: TrialConfig, backbone: Any) -> Any:
    """The backbone with a few blocks, where one of so many can be built and has a single scale."""
    if config.method is not None and any(name in vars(config.method) for name in ("depth", "prompt_depth")):
        return backbone
    with torch.device("meta"):
        made = registry.load("backbones", backbone.name)(backbone)
    if len(made.blocks) <= BLOCKS or len(made.scale_starts) > 1:
        return backbone
    return backbone.replace(num_blocks=BLOCKS)


def _known(part: Any, values: dict[str, Any]) -> dict[str, Any]:
    known = type(part).model_fields
    return {name: value for name, value in values.items() if name in known}


def _made(config: DatasetConfig) -> DatasetConfig:
    """Made clouds in place of those that are not here, changed at random as those would be."""
    name = "synthetic_parts" if config.num_categories else "synthetic"
    kind: Any = registry.config_class("datasets", name)
    shared = set(DatasetConfig.model_fields) & set(kind.model_fields)
    values = {name: getattr(config, name) for name in shared - {"name", "folder"}}
    return kind(name=name, **values)  # type: ignore[no-any-return]


class Frozen:
    """What a pack's shared backbone is to a trial: here one of made numbers, whose own tensors are remembered."""

    def __init__(self) -> None:
        self.tensors: list[tuple[str, Tensor]] = []  # held, so that no other tensor gets the identity of one that is gone
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
    """One small trial: its model as it starts, and, once `of` has trained it, as it ends, with what was taken of the data."""

    config: TrialConfig
    dataset: Dataset
    folder: Path
    data: Recording = field(init=False)
    frozen: Frozen = field(init=False)
    trial: Trial = field(init=False)
    start: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.frozen, self.data = Frozen(), small(self.dataset)
        device = torch.device("cpu")
        shared: Any = self.frozen
        self.trial = Trial(self.config, TrialFolder(self.folder), device, lambda _: None, lambda: None, shared)
        self.trial.dataset = self.data
        self.start = self.trial.model

    @classmethod
    def of(cls, config: TrialConfig, dataset: Dataset, folder: Path) -> Run:
        """A small trial that has run to its end."""
        made = cls(config, dataset, folder)
        made.start = copy.deepcopy(made.trial.model.double())
        made.trial.run()
        return made

    def epochs(self) -> list[list[tuple[np.ndarray, tuple[Tensor, ...]]]]:
        """The batches of every epoch, as the loop took them."""
        calls = self.data.train_calls
        size = max(1, len(calls) // EPOCHS)
        return [calls[at : at + size] for at in range(0, len(calls), size)]

    def wrong_order(self) -> Iterator[str]:
        """Say what is wrong with the batches: their size and number, clouds taken twice, an order that does not change."""
        count = len(self.data.train.labels)
        steps = count // BATCH
        epochs = self.epochs()
        if len(epochs) != EPOCHS or any(len(epoch) != steps for epoch in epochs):
            taken = len(self.data.train_calls)
            yield f"{taken} batches were made for {EPOCHS} epochs of {steps} steps: batches are used again, or left out"
            return
        orders = []
        for epoch in epochs:
            if any(len(index) != BATCH for index, _ in epoch):
                yield f"train.batch_size: batches of {[len(index) for index, _ in epoch]} clouds where {BATCH} were asked for"
                return
            orders.append(np.concatenate([index for index, _ in epoch]))
        for order in orders:
            if len(set(order.tolist())) != len(order) or order.min() < 0 or order.max() >= count:
                yield "an epoch takes a training cloud twice, or one that is not there"
            if (np.diff(order) > 0).all() or (np.diff(order) < 0).all():
                yield "the training clouds come in the order of the file: they are not shuffled"
        if all((order == orders[0]).all() for order in orders[1:]):
            yield "every epoch takes the training clouds in the same order"
        if len(set(self.data.states[::steps])) < EPOCHS:
            yield "augmentation draws the same random numbers in every epoch"

    def wrong_step(self) -> Iterator[str]:
        """Say what training gave that its definition does not: of every tensor, trained, frozen, or a statistic."""
        config = self.config
        begun = {name: value.clone() for name, value in self.start.state_dict().items()}
        model = self.start
        losses, accuracies = reference(model, config, self.epochs(), self.data)
        told = [event["metrics"]["train/loss"] for event in self.trial.folder.epochs()]
        hits = [event["metrics"]["train/accuracy"] for event in self.trial.folder.epochs()]
        if len(told) == len(losses) and not np.allclose(told, losses, rtol=1e-4):
            yield f"train/loss is {told[-1]:.6g}, the mean loss of the epoch's clouds {losses[-1]:.6g}"
        elif len(hits) == len(accuracies) and not np.allclose(hits, accuracies):
            yield f"train/accuracy is {hits[-1]:.4f}, that of the training steps is {accuracies[-1]:.4f}"
        expected, given = model.state_dict(), self.trial.model.state_dict()
        moved, still, other = [], [], []
        noise = TOLERANCE * config.train.lr  # the step of a gradient that is zero but for rounding
        for name, before in begun.items():
            if not before.is_floating_point():
                continue
            change, wanted = (given[name] - before), (expected[name] - before)
            size = float(wanted.abs().max()) if wanted.numel() else 0.0
            if size == 0.0 and float(change.abs().max()) > 0.0:
                moved.append(name)
            elif size > 0.0 and not bool(change.any()):
                still.append(name)
            elif float((change - wanted).abs().max()) > max(TOLERANCE * size, noise):
                other.append(name)
        for names, text in (
            (moved, "changed in training, and should not"),
            (still, "did not change in training, and should"),
            (other, "changed in training otherwise than one step of AdamW after another says (rate, decay, clipping, loss, batch)"),
        ):
            if names:
                yield f"{_listed(names)} {text}"

    def wrong_statistics(self) -> Iterator[str]:
        """Say which batch statistics stand still though their layer trains, or move though it is frozen."""
        stuck, moved = [], []
        for (name, module), (_, before) in zip(self.trial.model.named_modules(), self.start.named_modules(), strict=True):
            if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_mean is None:
                continue
            trains = any(p.requires_grad for p in module.parameters())
            same = bool((module.running_mean == before.running_mean).all())
            if trains and same:
                stuck.append(f"{name}.running_mean")
            if not trains and not same and self.config.compat == "fixed":
                moved.append(f"{name}.running_mean")
        if stuck:
            yield f"the statistics {_listed(stuck)} do not follow the training clouds: the layer is not in training mode"
        if moved:
            yield f"the statistics {_listed(moved)} of a frozen layer follow the training clouds"

    def wrong_evaluation(self) -> Iterator[str]:
        """Say where the history's loss and accuracy of a split are not those of the model on that split's clouds."""
        epochs = self.trial.folder.epochs()
        if len(epochs) != EPOCHS:
            yield f"{len(epochs)} epochs stand in the history of a trial of {EPOCHS}"
            return
        metrics = epochs[-1]["metrics"]
        for split in filter(None, (self.data.test, self.data.val)):
            loss, accuracy = measured(self.trial.model, self.data, split, self.config)
            if not math.isclose(metrics[f"{split.name}/loss"], loss, rel_tol=1e-4, abs_tol=1e-6):
                told = metrics[f"{split.name}/loss"]
                yield (
                    f"{split.name}/loss is {told:.6g}, the model's own loss on the {split.name} clouds is {loss:.6g}: "
                    "other clouds, an order that got lost, noise or training mode in evaluation"
                )
            elif accuracy is not None and abs(metrics[f"{split.name}/accuracy"] - accuracy) > 1e-9:
                yield f"{split.name}/accuracy is {metrics[f'{split.name}/accuracy']:.4f}, that of the model is {accuracy:.4f}"
        yield from self._mode()

    def _mode(self) -> Iterator[str]:
        before = copy.deepcopy(self.trial.model.state_dict())
        self.trial.model.eval()
        with torch.no_grad():
            self.trial.model(*_inputs(self.data.eval_batch(self.data.test, np.arange(2))))
        after = self.trial.model.state_dict()
        changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
        if changed:
            yield f"{_listed(changed)} changed in an evaluation"

    def wrong_choice(self) -> Iterator[str]:
        """Say which protocol takes another epoch than it should, over four made epochs whose best differ."""
        trial = self.trial
        kept = trial.best, trial.predictions
        measure = self.config.dataset.metrics[0]
        test, val, train = (0.2, 0.9, 0.5, 0.9), (0.3, 0.1, 0.8, 0.8), (0.9, 0.1, 0.2, 0.3)
        trial.best, trial.predictions = {}, {}
        for epoch in range(1, 5):
            metrics = {"train/accuracy": train[epoch - 1], f"test/{measure}": test[epoch - 1], f"val/{measure}": val[epoch - 1]}
            marked = Evaluation(1.0, test[epoch - 1], np.full(3, epoch, dtype=np.uint8))
            trial._select(epoch, metrics, marked)
        wanted = {"last": 4, "best_test": 2, "best_val": 3}
        taken = {name: int(best["epoch"]) for name, best in trial.best.items()}
        shown = {name: int(values[0]) for name, values in trial.predictions.items()}
        trial.best, trial.predictions = kept
        for name, epoch in wanted.items():
            if taken.get(name) != epoch or shown.get(name) != epoch:
                yield f"protocol {name} takes epoch {taken.get(name)} with predictions of {shown.get(name)} where {epoch} is its own"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


# The definitions, written out once more


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


def reference(
    model: nn.Module, config: TrialConfig, epochs: Sequence[Sequence[tuple[np.ndarray, tuple[Tensor, ...]]]], data: Recording
) -> tuple[list[float], list[float]]:
    """Train `model` in place on the same batches: cross-entropy, clipping, torch.optim.AdamW; labels are those stored of the clouds.

    Return each epoch's mean loss and its accuracy.
    """
    means = []
    accuracies = []
    train = config.train
    if isinstance(model, PointModel):
        rows = data.evaluation_order(data.train)
        parts = [rows[at : at + EVAL_BATCH] for at in range(0, len(rows), EVAL_BATCH)]
        model.method.prepare(model, [data.eval_batch(data.train, part)[0] for part in parts])
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
    for number, epoch in enumerate(epochs, start=1):
        model.train()
        losses = []
        correct = []
        for step, (index, batch) in enumerate(epoch):
            set_noise(model, torch.Generator().manual_seed(stream(config.seed, "noise", number, step)))
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate(train, number, step, len(epoch))
            labels = batch[-1] if isinstance(data, PartDataset) else torch.from_numpy(data.train.labels[index])
            logits = model(*_inputs(batch)).float()
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
        logits = model(*_inputs(batch)).double()
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        hits += int((logits.argmax(dim=1) == labels).sum())
        count += labels.numel()
    return loss / count, None if isinstance(data, PartDataset) else hits / count


def _inputs(batch: Sequence[Tensor]) -> Sequence[Tensor]:
    return batch[:-1]


# Seeds


def wrong_start(run: Run, same: Run, other: Run) -> Iterator[str]:
    """Say what a seed does not decide, or what else does: the start of everything new, and nothing of the frozen backbone."""
    first = {name: p.detach().float() for name, p in run.start.named_parameters()}
    again, second = ({name: p.detach() for name, p in each.start.named_parameters()} for each in (same, other))
    changed = [name for name in first if not torch.equal(first[name], again[name])]
    if changed:
        yield f"{_listed(changed)} start otherwise when the same seed starts again"
    frozen = [name for name, p in other.start.named_parameters() if not p.requires_grad and not torch.equal(p, first[name])]
    if frozen:
        yield f"{_listed(frozen)} are frozen and differ from seed to seed"
    groups: dict[str, list[bool]] = {}
    names = {id(p): name for name, p in run.trial.model.named_parameters()}
    pretrained = {names[key] for key in run.frozen.own if key in names}
    for name, parameter in run.start.named_parameters():
        constant = bool((parameter == parameter.flatten()[0]).all())
        if parameter.requires_grad and not constant and name not in pretrained and not name.startswith(("cls_", "norm.")):
            groups.setdefault(name.partition(".")[0], []).append(torch.equal(first[name], second[name]))
    for group, equal in groups.items():
        if all(equal):
            yield f"{group}: its new weights start alike for every seed"


def wrong_seeds(run: Run, same: Run, other: Run) -> Iterator[str]:
    """Say what a second run with the same seed, or with another one, should give and does not."""
    first, again = run.trial.model.state_dict(), same.trial.model.state_dict()
    if any(not torch.equal(first[name], again[name]) for name in first):
        yield "the same seed gives other weights when it is run again"
    orders = [[index.tolist() for index, _ in each.data.train_calls] for each in (run, other)]
    if orders[0] == orders[1]:
        yield "another seed takes the training clouds in the same order"
    if run.data.states[:1] == other.data.states[:1]:
        yield "another seed draws the same random numbers for augmentation"


# The data of an arm


def wrong_data(dataset: Dataset, config: TrialConfig) -> Iterator[str]:
    """Say what a data set's batches have wrong: labels or points of other clouds, splits that share clouds, changes at random."""
    if dataset.test.points is dataset.train.points and len(np.intersect1d(dataset.train.index, dataset.test.index)):
        yield "test clouds are training clouds"
    if dataset.val is not None and dataset.val.points is dataset.train.points:
        shared = np.intersect1d(dataset.train.index, dataset.val.index)
        if len(shared):
            yield f"{len(shared)} validation clouds are training clouds"
    if isinstance(dataset, PartDataset) or dataset.train.points.ndim != 3:
        return
    data = small(dataset)
    plain = small(dataset)
    unchanged = {"scale": (1.0, 1.0), "rotate": "none", "translate": 0.0, "center": False, "unit_sphere": False}
    plain.config = dataset.config.model_copy(update={"heights": False, **unchanged})
    rows = np.arange(len(data.train.labels))[::-1].copy()
    points, labels = plain.train_batch(rows, torch.Generator().manual_seed(0))
    if not np.array_equal(labels.numpy(), data.train.labels[rows]):
        yield "the labels of a training batch are not those of its clouds"
    yield from _of_other_clouds(points, data.train, rows, "training")
    for split in filter(None, (plain.test, plain.val)):
        order = np.arange(len(split.labels))[::-1].copy()
        points, labels = plain.eval_batch(split, order)
        if not np.array_equal(labels.numpy(), split.labels[order]):
            yield f"the labels of a {split.name} batch are not those of its clouds"
        yield from _of_other_clouds(points, split, order, split.name)
    yield from _wrong_changes(data)


def _of_other_clouds(points: Tensor, split: Split, rows: np.ndarray, name: str) -> Iterator[str]:
    """points (B, P, 3), unchanged at random: each must be one of the stored cloud's."""
    for cloud, row in zip(points.numpy(), rows, strict=True):
        stored = np.asarray(split.points[split.index[row]], dtype=np.float32).astype(np.float64)
        known = {point.tobytes() for point in np.ascontiguousarray(stored + 0.0)}
        if any(point.tobytes() not in known for point in np.ascontiguousarray(cloud + 0.0)):
            yield f"a {name} batch holds points that are not those of its clouds"
            return


def _wrong_changes(data: Recording) -> Iterator[str]:
    """Say which random change of training clouds does nothing, is the same for all clouds, or reaches an evaluation."""
    config = data.config
    neutral: dict[str, Any] = {"scale": (1.0, 1.0), "rotate": "none", "translate": 0.0}
    asked = [name for name, value in neutral.items() if getattr(config, name) != value]
    once = np.zeros(2, dtype=np.int64)  # the same cloud twice
    whole, _ = data.train_batch(once, torch.Generator().manual_seed(0))
    for name in asked:
        without = copy.copy(data)
        without.config = config.model_copy(update={name: neutral[name]})
        other, _ = without.train_batch(once, torch.Generator().manual_seed(0))
        if torch.equal(whole, other):
            yield f"dataset.{name}: {getattr(config, name)} changes no training cloud"
    if asked:
        if torch.equal(whole[0], whole[1]):
            yield "all clouds of a batch are changed alike by augmentation"
        other, _ = data.train_batch(once, torch.Generator().manual_seed(1))
        if torch.equal(whole, other):
            yield "augmentation changes a cloud alike in every epoch"
        without = copy.copy(data)
        without.config = config.model_copy(update=neutral)
        for split in filter(None, (data.test, data.val)):
            rows = np.arange(2)
            if not torch.equal(data.eval_batch(split, rows)[0], without.eval_batch(split, rows)[0]):
                yield f"augmentation reaches the {split.name} clouds"


# Settings that vary


def settings_without_effect(arms: Sequence[Arm]) -> Iterator[str]:
    """Say which settings of the data that a sweep varies give the same clouds, and the like of `train.init` and `train.votes`."""
    yield from _equal_data(arms)
    for name in ("init", "votes"):
        for first, second in _pairs([arm.config.train for arm in arms], name):
            config = next(arm.config for arm in arms if arm.config.train == first)
            other = config.replace(train=second)
            if config.network is not None or _differs(name, config, other):
                continue
            yield f"train.{name}: {getattr(first, name)} or {getattr(second, name)} changes nothing"


def _differs(name: str, first: TrialConfig, second: TrialConfig) -> bool:
    values = [getattr(config.train, name) for config in (first, second)]
    config = smaller(first)
    if dataset_of(config.dataset) is None:
        config = config.model_copy(update={"dataset": _made(config.dataset)})
    dataset = dataset_of(config.dataset)
    if dataset is None:
        return True
    first, second = (config.replace(train=config.train.replace(**{name: value})) for value in values)
    with tempfile.TemporaryDirectory() as folder:
        if name == "init":
            one, two = (Run(config, dataset, Path(folder) / str(n)).start.state_dict() for n, config in enumerate((first, second)))
            return any(not torch.equal(one[key], two[key]) for key in one)
        losses = []
        for number, config in enumerate((first, second)):
            run = Run(config, dataset, Path(folder) / str(number))
            run.trial.model.double()
            try:
                run.trial.run()
            except Diverged:
                return True
            losses.append(run.trial.folder.epochs()[-1]["metrics"]["test/loss"])
        return losses[0] != losses[1]


def _equal_data(arms: Sequence[Arm]) -> Iterator[str]:
    configs = list(dict.fromkeys(arm.config.dataset for arm in arms))
    for kind in {type(config) for config in configs}:
        own = [config for config in configs if type(config) is kind]
        for setting in kind.model_fields:
            for first, second in _pairs(own, setting):
                a, b = dataset_of(first), dataset_of(second)
                if a is None or b is None or _seen(a) != _seen(b):
                    continue
                values = f"{getattr(first, setting)} or {getattr(second, setting)}"
                yield f"dataset.{setting}: {values} gives the same clouds"


def _pairs(configs: Sequence[Any], name: str) -> Iterator[tuple[Any, Any]]:
    """A few pairs of configs that differ in one field alone."""
    groups: dict[Any, list[Any]] = {}
    for config in dict.fromkeys(configs):
        rest = tuple(value for key, value in vars(config).items() if key != name and not key.startswith("_"))
        groups.setdefault(rest, []).append(config)
    for own in groups.values():
        if len(own) > 1:
            for other in own[1 : PER_FIELD + 1]:
                yield own[0], other
            return


def _seen(dataset: Dataset) -> tuple[Any, ...]:
    """What a trial sees of a data set: the splits' sizes and rows, a batch of each, and the order of an evaluation."""
    seen: list[Any] = []
    for split in (dataset.train, dataset.val, dataset.test):
        if split is None:
            seen.append(None)
            continue
        seen += [split.labels.tobytes(), split.index.tobytes(), dataset.evaluation_order(split).tobytes()]
    few = small(dataset)
    batches = [few.train_batch(np.arange(2), torch.Generator().manual_seed(0)), few.eval_batch(few.test, np.arange(2))]
    seen += [tensor.numpy().tobytes() for batch in batches for tensor in batch]
    return tuple(seen)
