"""Work of the other processes of a trial (data_parallel.py): they take over its state, and compute
their part of every step to its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pointsweep.config import plugins
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.activation_checkpointing import recompute_stages
from pointsweep.models.point_model import PointModel, build
from pointsweep.training.data_parallel import joined, meeting, synchronise
from pointsweep.training.loop import make_optimizer, train_epoch
from pointsweep.training.runner import Job, device_of, load_dataset
from pointsweep.training.trainer_state import from_bytes, restore


def follow(
    config: Mapping[str, Any], job: Job, rank: int, size: int, host: str, port: int
) -> None:
    """Compute this process's part until the trial has trained its last epoch. Raises
    ProcessLostError.
    """
    torch.set_num_threads(job.threads)
    plugins.adopt(job.plugins)
    trial = trial_from_dict(config)
    dataset = load_dataset(trial.dataset)
    model = build(trial, dataset.num_classes).to(device_of(job.device))
    synchronise(model)

    if job.recompute and isinstance(model, PointModel):
        recompute_stages(model.tokenizer)

    optimizer = make_optimizer(model, trial.train)
    with joined(meeting(host, size, port), rank, size) as group:
        tensors, first, parts = from_bytes(group.share(b""))
        restore(tensors, model, optimizer)
        for epoch in range(first, trial.train.epochs + 1):
            train_epoch(model, optimizer, dataset, trial, epoch, parts, group)
