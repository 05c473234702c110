"""PointNet.

Source: PointNet (arXiv 1612.00593), figure 2 and appendix C: input transform, two layers, feature transform, three layers, maximum.
Its regularisation of the feature transform (section 4.2, weight 0.001) is left out: the loop has one loss for all models.
Letters: B clouds, P points, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pointsweep.config import NetworkConfig
from pointsweep.layers import Dense, classifier


@dataclass(frozen=True)
class PointNetConfig(NetworkConfig):
    input_transform: bool = True
    feature_transform: bool = True
    dropout: float = 0.3

    def problems(self) -> Iterator[str]:
        if not 0 <= self.dropout < 1:
            yield f"dropout: must be in [0, 1), got {self.dropout}"


class Transform(nn.Module):
    """A linear map of a cloud's points or features, made of the cloud itself: (B, P, C) -> (B, P, C). It starts as the identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.points = nn.Sequential(Dense(dim, 64), Dense(64, 128), Dense(128, 1024))
        self.cloud = nn.Sequential(Dense(1024, 512), Dense(512, 256))
        self.matrix = nn.Linear(256, dim * dim)
        nn.init.zeros_(self.matrix.weight)
        nn.init.zeros_(self.matrix.bias)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix(self.cloud(self.points(x).amax(dim=1))).view(-1, self.dim, self.dim)
        return x @ (matrix + torch.eye(self.dim, device=x.device, dtype=x.dtype))


class PointNet(nn.Module):
    """points (B, P, 3) -> logits (B, classes). 40 classes: 3,480,049 parameters."""

    def __init__(self, config: PointNetConfig, num_classes: int, compat: str) -> None:
        super().__init__()
        self.input_transform = Transform(3) if config.input_transform else nn.Identity()
        self.first = nn.Sequential(Dense(3, 64), Dense(64, 64))
        self.feature_transform = Transform(64) if config.feature_transform else nn.Identity()
        self.second = nn.Sequential(Dense(64, 64), Dense(64, 128), Dense(128, 1024))
        self.head = classifier((1024, 512, 256), num_classes, config.dropout)

    def forward(self, points: Tensor) -> Tensor:
        x = self.feature_transform(self.first(self.input_transform(points)))  # (B, P, 64)
        logits: Tensor = self.head(self.second(x).amax(dim=1))
        return logits
