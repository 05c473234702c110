"""Random changes of training clouds, each per sample and per axis; all noise comes from the generator handed in.

Source: the data pipelines of spec 2.9 and 4.4. Letters: B clouds, P points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pointsweep.config import DatasetConfig
from pointsweep.geometry import to_device


def augment(points: Tensor, config: DatasetConfig, generator: torch.Generator) -> Tensor:
    """points (B, P, 3) -> (B, P, 3): scale, centre, unit sphere, rotation, translation, each as the config says.

    What is random is drawn on the CPU, wherever the points are: the same for every device.
    """
    low, high = config.scale
    if (low, high) != (1.0, 1.0):
        points = points * to_device(low + (high - low) * torch.rand(len(points), 1, 3, generator=generator), points.device)
    points = normalise(points, config)
    if config.rotate == "gravity":
        points = points @ to_device(turns_about_y(len(points), generator), points.device)
    elif config.rotate == "all":
        points = points @ to_device(turns(len(points), generator), points.device)
    if config.translate:
        shift = config.translate * (2 * torch.rand(len(points), 1, 3, generator=generator) - 1)
        points = points + to_device(shift, points.device)
    return points


def normalise(points: Tensor, config: DatasetConfig) -> Tensor:
    """points (B, P, 3): the mean subtracted and the largest norm made 1, where the config says so; no randomness."""
    if config.center:
        points = points - points.mean(dim=1, keepdim=True)
    if config.unit_sphere:
        points = points / points.norm(dim=2).amax(dim=1)[:, None, None].clamp(min=1e-9)
    return points


def turns_about_y(count: int, generator: torch.Generator) -> Tensor:
    """Matrices (count, 3, 3) of uniform turns about the y axis (gravity)."""
    angle = math.pi * (2 * torch.rand(count, generator=generator) - 1)
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros(count), torch.ones(count)
    return torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], dim=1).view(count, 3, 3)


def turns(count: int, generator: torch.Generator) -> Tensor:
    """Matrices (count, 3, 3) of uniform rotations in space, from unit quaternions."""
    q = torch.randn(count, 4, generator=generator)
    w, x, y, z = (q / q.norm(dim=1, keepdim=True)).unbind(1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=1).view(count, 3, 3)
