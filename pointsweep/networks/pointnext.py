"""PointNeXt-S.

Source: PointNeXt (arXiv 2206.04670), section 3.2 and its program's small classification model: set abstraction with two layers, a
residual path, and relative places divided by the radius. Groups as in `pointnet2`.
Letters: B clouds, P points, G centres, K neighbours, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pointsweep.config import NetworkConfig
from pointsweep.geometry import ball, farthest_points, gather
from pointsweep.layers import Dense, classifier


@dataclass(frozen=True)
class PointNeXtConfig(NetworkConfig):
    width: int = 32
    neighbours: int = 32
    radius: float = 0.15  # of the first stage, in the cloud's units; 1.5 times as large in each next one
    dropout: float = 0.5

    def problems(self) -> Iterator[str]:
        for name in ("width", "neighbours"):
            if getattr(self, name) < 1:
                yield f"{name}: must be at least 1, got {getattr(self, name)}"
        if self.radius <= 0:
            yield f"radius: must be positive, got {self.radius}"
        if not 0 <= self.dropout < 1:
            yield f"dropout: must be in [0, 1), got {self.dropout}"


class Stage(nn.Module):
    """Features (B, P, C) at places (B, P, 3) -> (B, P / 2, 2C) at half as many places."""

    def __init__(self, dim: int, radius: float, neighbours: int) -> None:
        super().__init__()
        self.radius, self.neighbours = radius, neighbours
        self.layers = nn.Sequential(Dense(dim + 3, dim, bias=False), Dense(dim, 2 * dim, bias=False, slope=None))
        self.skip = nn.Linear(dim, 2 * dim)

    def forward(self, places: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        chosen = farthest_points(places, places.shape[1] // 2)
        centers = gather(places, chosen)  # (B, G, 3)
        near = ball(centers, places, self.radius, min(self.neighbours, places.shape[1]))
        relative = (gather(places, near) - centers.unsqueeze(2)) / self.radius
        pooled = self.layers(torch.cat([relative, gather(features, near)], dim=3)).amax(dim=2)  # (B, G, 2C)
        return centers, torch.relu(pooled + self.skip(gather(features, chosen)))


class PointNeXt(nn.Module):
    """points (B, P, 3) -> logits (B, classes). 15 classes: 1,367,087 parameters."""

    def __init__(self, config: PointNeXtConfig, num_classes: int, compat: str) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Linear(3, width)
        self.stages = nn.ModuleList(Stage(width << i, config.radius * 1.5**i, config.neighbours) for i in range(4))
        wide = 16 * width
        self.whole = nn.Sequential(Dense(wide + 3, wide, bias=False), Dense(wide, wide, bias=False))
        self.head = classifier((wide, 512, 256), num_classes, config.dropout, bias=False)

    def forward(self, points: Tensor) -> Tensor:
        places, features = points, self.embed(points)
        for stage in self.stages:
            places, features = stage(places, features)
        pooled = self.whole(torch.cat([places, features], dim=2)).amax(dim=1)
        logits: Tensor = self.head(pooled)
        return logits
