"""PointNet++ with single-scale grouping.

Source: PointNet++ (arXiv 1706.02413), section 3 and appendix B.1 (SSG, classification). A group is made of the nearest points within
the radius, filled up with the centre; the published ball query takes the first ones in the order of the file, which is no property
of a shape.
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
class PointNet2Config(NetworkConfig):
    neighbours: int = 32  # of the first level; twice as many in the second
    radius: float = 0.2  # of the first level, in the cloud's units; twice that in the second
    dropout: float = 0.5

    def problems(self) -> Iterator[str]:
        if self.neighbours < 1:
            yield f"neighbours: must be at least 1, got {self.neighbours}"
        if self.radius <= 0:
            yield f"radius: must be positive, got {self.radius}"
        if not 0 <= self.dropout < 1:
            yield f"dropout: must be in [0, 1), got {self.dropout}"


class SetAbstraction(nn.Module):
    """Features (B, P, C) at places (B, P, 3) -> (B, G, D) at G = P / `shrink` farthest points (section 3.2)."""

    def __init__(self, shrink: int, radius: float, neighbours: int, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.shrink, self.radius, self.neighbours = shrink, radius, neighbours
        pairs = zip((dims[0] + 3, *dims[1:-1]), dims[1:], strict=True)
        self.layers = nn.Sequential(*(Dense(a, b) for a, b in pairs))

    def forward(self, places: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        centers = gather(places, farthest_points(places, max(places.shape[1] // self.shrink, 1)))  # (B, G, 3)
        near = ball(centers, places, self.radius, min(self.neighbours, places.shape[1]))  # (B, G, K)
        members = gather(places, near) - centers.unsqueeze(2)
        if features is not None:
            members = torch.cat([members, gather(features, near)], dim=3)
        return centers, self.layers(members).amax(dim=2)


class PointNet2(nn.Module):
    """points (B, P, 3) -> logits (B, classes). 1,024 points: 512 and 128 centres. 40 classes: 1,475,688 parameters."""

    def __init__(self, config: PointNet2Config, num_classes: int, compat: str) -> None:
        super().__init__()
        self.first = SetAbstraction(2, config.radius, config.neighbours, (0, 64, 64, 128))
        self.second = SetAbstraction(4, 2 * config.radius, 2 * config.neighbours, (128, 128, 128, 256))
        self.whole = nn.Sequential(Dense(256 + 3, 256), Dense(256, 512), Dense(512, 1024))
        self.head = classifier((1024, 512, 256), num_classes, config.dropout)

    def forward(self, points: Tensor) -> Tensor:
        centers, features = self.second(*self.first(points, None))
        pooled = self.whole(torch.cat([centers, features], dim=2)).amax(dim=1)  # (B, 1024)
        logits: Tensor = self.head(pooled)
        return logits
