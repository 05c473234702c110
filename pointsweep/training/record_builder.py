"""A trained model, its chosen epochs and its history -> the record that is kept of the trial."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pointsweep.config.schema import TrialConfig
from pointsweep.data import facts
from pointsweep.data.dataset import Dataset
from pointsweep.models.point_model import NEAR_IDENTITY, PointModel, count_parameters
from pointsweep.results.events import Event, device_s
from pointsweep.results.plugin_origin import plugin_origin
from pointsweep.results.records import Record
from pointsweep.statistics.paired_objects import packed, packed_groups
from pointsweep.utils.provenance import origin


@dataclass(frozen=True)
class Result:
    """Result of a training: `best` and `predictions` by protocol, the latter as Evaluation has
    them; `parts` of a batch.
    """

    config: TrialConfig
    dataset: Dataset
    model: nn.Module
    best: Mapping[str, Mapping[str, Any]]
    predictions: Mapping[str, np.ndarray]
    parts: int
    device: torch.device
    processes: int = 1


def make_record(result: Result, epochs: Sequence[Event], attempts: int) -> Record:
    """Make the record of a trial with these epochs behind it."""
    config, dataset = result.config, result.dataset
    num_steps = len(epochs) * (len(dataset.train.labels) // config.train.batch_size)
    num_clouds = num_steps * config.train.batch_size
    train_s = sum(event["train_s"] for event in epochs)

    metrics = {}

    for protocol, best in result.best.items():
        metrics[protocol] = {"epoch": best["epoch"], **best["metrics"]}

    table_marks = (
        *marks(config, dataset, result.model),
        *split_mark(result.model, config, result.parts, result.processes),
    )

    return Record(
        key=config.key(),
        config=config.to_dict(),
        metrics=metrics,
        parameters=vars(count_parameters(result.model)),
        dataset=describe(config, dataset) | _objects(dataset),
        weights_origin=getattr(result.model, "weights_origin", "none"),
        marks=table_marks,
        seconds={
            "total": sum(event["seconds"] for event in epochs),
            "train": train_s,
            "device": device_s(epochs),
        },
        peak_memory_bytes=max(event["peak_memory_bytes"] for event in epochs),
        clouds_per_s=num_clouds / train_s if train_s else 0.0,
        origin=origin(str(result.device)) | plugin_origin(config),
        attempts=attempts,
        correct=_correct(result),
        energy_j=used([event.get("energy_j", {}) for event in epochs]),
    )


def classifies(predictions: Mapping[str, np.ndarray]) -> bool:
    """Return whether predictions are a class for each object. Part segmentation keeps an IoU a
    shape, semantic segmentation a confusion matrix a block.
    """
    for values in predictions.values():
        if values.dtype.kind not in "iu" or values.ndim != 1:
            return False

    return True


def _correct(result: Result) -> dict[str, str]:
    if not classifies(result.predictions):
        return {}

    labels = result.dataset.test.labels
    correct = {}
    for protocol, predicted in result.predictions.items():
        correct[protocol] = packed(predicted == labels)

    return correct


def used(epochs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Joules by device over all epochs; of a device that some epoch could not be read of,
    nothing.
    """
    names = set(epochs[0]).intersection(*epochs[1:])
    joules = {}

    for name in sorted(names):
        joules[name] = sum(epoch[name] for epoch in epochs)

    return joules


def describe(config: TrialConfig, dataset: Dataset) -> dict[str, Any]:
    """Return what the record and MLflow say of the data."""
    return {
        "name": config.dataset.name,
        "digest": dataset.digest,
        "num_classes": dataset.num_classes,
        "num_train": len(dataset.train.labels),
        "num_test": len(dataset.test.labels),
        "num_val": 0 if dataset.val is None else len(dataset.val.labels),
    }


def _objects(dataset: Dataset) -> dict[str, str]:
    """Return which object each test cloud is of, where several clouds are of one."""
    groups = dataset.test.groups
    if groups is None or len(np.unique(groups)) == len(groups):
        return {}

    return {"test_groups": packed_groups(groups)}


WEIGHT_MARKS = {
    "random": "random frozen weights",
    "shuffled": "shuffled frozen weights",
    "reinitialised": "reinitialised frozen weights",
}
NO_BLOCKS = "no transformer blocks"


def block_marks(config: TrialConfig, model: nn.Module) -> tuple[str, ...]:
    """Return what to say of the frozen blocks: that there are none, or that they hardly change the
    tokens.
    """
    if config.backbone is None or config.method is None:
        return ()
    if config.backbone.num_blocks == 0:
        return (NO_BLOCKS,)

    backbone_marks: tuple[str, ...] = ()
    if isinstance(model, PointModel) and _uses_own_positions(config):
        backbone_marks = model.backbone.marks()

    frozen = config.method.name != "full" and not config.backbone.stand_in
    change = getattr(model, "change_per_block", None)

    if frozen and change is not None and change < NEAR_IDENTITY:
        limit = f"{NEAR_IDENTITY * 100:.0f} %"
        near_identity = (
            "frozen blocks close to an identity"
            f" (a change of less than {limit} a block)"
        )
        return (*backbone_marks, near_identity)

    return backbone_marks


def _uses_own_positions(config: TrialConfig) -> bool:
    return config.positions is not None and config.positions.kind == "virtual"


def marks(config: TrialConfig, dataset: Dataset, model: nn.Module) -> tuple[str, ...]:
    """Return what a table must say beside the number."""
    texts: list[str] = []
    if config.backbone is not None and config.backbone.weights in WEIGHT_MARKS:
        texts.append(WEIGHT_MARKS[config.backbone.weights])

    texts += block_marks(config, model)
    texts += dataset.marks
    texts += data_marks(config, dataset)

    if config.compat == "official":
        texts.append("official program")

    return tuple(texts)


def data_marks(config: TrialConfig, dataset: Dataset) -> tuple[str, ...]:
    """Return what the clouds themselves are not that a published number is about."""
    # Clouds that splits share are refused before a launch, unless the configuration allows them.
    dataset_facts = facts.read_facts(
        dataset, config.dataset, overlap=config.dataset.allow_overlap
    )
    return facts.marks(dataset_facts, config.dataset, config.trains)


def split_mark(
    model: nn.Module, config: TrialConfig, parts: int, processes: int = 1
) -> tuple[str, ...]:
    """Return what to say if batches were not taken whole, as other masks are then drawn for
    dropout.

    Parts have batch statistics of their own as well; processes share theirs.
    """
    if parts * processes == 1:
        return ()

    batch_size = config.train.batch_size
    text = f"batches of {batch_size}"
    if processes > 1:
        text += f" by {processes} processes"

    if parts > 1:
        text += f" in {parts} parts (out of memory)"
        if _has_batch_norm(model):
            text += f", batch statistics over {batch_size // parts}"

    return (text,)


def _has_batch_norm(model: nn.Module) -> bool:
    batch_norm = nn.modules.batchnorm._BatchNorm
    return any(isinstance(module, batch_norm) for module in model.modules())


def peak_memory_bytes(device: torch.device) -> int:
    """The largest amount in use so far: of the device on a GPU, else of this process, earlier
    trials of the worker included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
