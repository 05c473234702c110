"""Random changes of training clouds, each per sample and per axis; all noise comes from the
generator handed in.

Source: the data pipelines of spec 2.9 and 4.4. Letters: B clouds, P points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pointsweep.config.datasets import FEATURE_CHANNELS, DatasetConfig
from pointsweep.ops.point_ops import to_device, with_height


def augment(
    points: Tensor, config: DatasetConfig, generator: torch.Generator
) -> Tensor:
    """points (B, P, 3) -> (B, P, 3): scale, centre, unit sphere, rotation, translation, each as the
    config says. Features behind the coordinates go along: normals are turned and stretched with the
    surface.

    What is random is drawn on the CPU, wherever the points are: the same for every device. Heights
    are a fourth channel, taken after scaling where the config asks for them; those that the points
    have already are scaled with the y axis.
    """
    low, high = config.scale
    if (low, high) != (1.0, 1.0):
        factors = low + (high - low) * torch.rand(
            len(points), 1, 3, generator=generator
        )
        if config.feature_channels:
            # A surface that is stretched along an axis turns its normals away from it.
            stretched = points[:, :, :3] * to_device(factors, points.device)
            points = torch.cat([stretched, points[:, :, 3:]], dim=2)
            points = with_normals(points, config, 1 / factors)
        else:
            if points.shape[2] == 4:
                factors = torch.cat([factors, factors[:, :, 1:2]], dim=2)
            points = points * to_device(factors, points.device)

    points = normalise(points, config)
    num_turns = 1 if config.rotate_together else len(points)
    turn = None

    if config.rotate == "gravity":
        turn = turns_about_y(num_turns, generator)
    elif config.rotate == "all":
        turn = turns(num_turns, generator)

    if turn is not None and config.feature_channels:
        points = with_normals(points, config, turn)

    heights, points = points[:, :, 3:], points[:, :, :3]
    if turn is not None:
        points = points @ to_device(turn, points.device)

    if config.translate:
        shift = config.translate * (
            2 * torch.rand(len(points), 1, 3, generator=generator) - 1
        )
        points = points + to_device(shift, points.device)

    if heights.shape[2]:
        return torch.cat([points, heights], dim=2)

    return points


def with_normals(points: Tensor, config: DatasetConfig, change: Tensor) -> Tensor:
    """Return points (B, P, 3 + F) whose normals are changed by factors (B, 1, 3) or turns (B, 3,
    3), and are of unit length again; without normals the points as they are.
    """
    if "normal" not in config.point_features:
        return points

    before = config.point_features[: config.point_features.index("normal")]
    first = 3 + sum(FEATURE_CHANNELS[name] for name in before)
    normals = points[:, :, first : first + 3]
    change = to_device(change, points.device)
    normals = normals @ change if change.shape[1] == 3 else normals * change
    normals = torch.nn.functional.normalize(normals, dim=2)  # one of length 0 stays

    return torch.cat([points[:, :, :first], normals, points[:, :, first + 3 :]], dim=2)


def normalise(points: Tensor, config: DatasetConfig) -> Tensor:
    """points (B, P, 3): the mean subtracted and the largest norm made 1, where the config says so;
    no randomness.

    Heights, where the config asks for them or the points have them, are those before: (B, P, 4).
    """
    if config.heights and points.shape[2] == 3:
        points = with_height(points)

    heights, points = points[:, :, 3:], points[:, :, :3]
    if config.center:
        points = points - points.mean(dim=1, keepdim=True)

    if config.unit_sphere:
        points = points / points.norm(dim=2).amax(dim=1)[:, None, None].clamp(min=1e-9)

    if heights.shape[2]:
        return torch.cat([points, heights], dim=2)

    return points


def turns_about_y(count: int, generator: torch.Generator) -> Tensor:
    """Matrices (count, 3, 3) of uniform turns about the y axis (gravity)."""
    angle = math.pi * (2 * torch.rand(count, generator=generator) - 1)
    cos = angle.cos()
    sin = angle.sin()
    zero = torch.zeros(count)
    one = torch.ones(count)

    entries = [cos, zero, sin, zero, one, zero, -sin, zero, cos]  # row by row

    return torch.stack(entries, dim=1).view(count, 3, 3)


def turns(count: int, generator: torch.Generator) -> Tensor:
    """Matrices (count, 3, 3) of uniform rotations in space, from unit quaternions."""
    q = torch.randn(count, 4, generator=generator)
    w, x, y, z = (q / q.norm(dim=1, keepdim=True)).unbind(1)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip

    return torch.stack(entries, dim=1).view(count, 3, 3)
