"""What a trial continues from, as named tensors: trained weights, the optimiser's moments, the
predictions kept so far.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pointsweep.models.point_model import load_trained_state, trained_state
from pointsweep.training.adamw import AdamW


def snapshot(
    model: nn.Module, optimizer: AdamW | None, predictions: Mapping[str, np.ndarray]
) -> dict[str, Tensor]:
    """Return a snapshot on the CPU; what is there already is not copied: the next step may change
    it.
    """
    tensors = {f"model.{name}": tensor for name, tensor in trained_state(model).items()}
    if optimizer is not None:
        for index, values in optimizer.state().items():
            for name, value in values.items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)

    for protocol, classes in predictions.items():
        tensors[f"predictions.{protocol}"] = torch.tensor(classes)

    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def restore(
    tensors: Mapping[str, Tensor], model: nn.Module, optimizer: AdamW
) -> dict[str, np.ndarray]:
    """Put a snapshot back into model and optimiser; return its predictions, by protocol."""
    parts: dict[str, dict[str, Tensor]] = {
        "model": {},
        "optimizer": {},
        "predictions": {},
    }
    for name, tensor in tensors.items():
        part, _, key = name.partition(".")
        parts[part][key] = tensor

    load_trained_state(model, parts["model"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, _, field = name.partition(".")
        moments.setdefault(int(index), {})[field] = tensor

    optimizer.load(moments)
    return {name: tensor.numpy() for name, tensor in parts["predictions"].items()}


def to_bytes(tensors: Mapping[str, Tensor], first: int, parts: int) -> bytes:
    """Return what the other processes of a trial begin with: a snapshot, the first epoch to train,
    and in how many parts. No pickle.
    """
    from safetensors.torch import save

    return save({**tensors, "first": torch.tensor(first), "parts": torch.tensor(parts)})


def from_bytes(data: bytes) -> tuple[dict[str, Tensor], int, int]:
    """Return what `to_bytes` was given."""
    from safetensors.torch import load

    tensors = load(data)
    return tensors, int(tensors.pop("first")), int(tensors.pop("parts"))
