"""PointMLP.

Source: PointMLP (arXiv 2202.07123), section 3 and its program's classification model: residual layers before and after pooling, and a
geometric affine module that scales each cloud's neighbourhoods by one deviation of its own. The published 12.6M leave the head out.
Letters: B clouds, P points, G centres, K neighbours, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pointsweep.config import NetworkConfig
from pointsweep.geometry import farthest_points, gather, nearest
from pointsweep.layers import Dense, classifier


@dataclass(frozen=True)
class PointMLPConfig(NetworkConfig):
    embed_dim: int = 64
    neighbours: int = 24
    num_blocks: int = 2  # residual blocks before, and as many after, the pooling of a stage
    dropout: float = 0.5

    def problems(self) -> Iterator[str]:
        for name in ("embed_dim", "neighbours", "num_blocks"):
            if getattr(self, name) < 1:
                yield f"{name}: must be at least 1, got {getattr(self, name)}"
        if not 0 <= self.dropout < 1:
            yield f"dropout: must be in [0, 1), got {self.dropout}"


class ResidualMLP(nn.Module):
    """ReLU(x + Dense(Dense(x))) over the last dimension (equation 2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(Dense(dim, dim, bias=False), Dense(dim, dim, bias=False, slope=None))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


class Stage(nn.Module):
    """Features (B, P, C) at places (B, P, 3) -> (B, P / 2, 2C) at half as many places."""

    def __init__(self, dim: int, neighbours: int, num_blocks: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.scale, self.shift = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.widen = Dense(2 * dim, 2 * dim, bias=False)
        self.before = nn.Sequential(*(ResidualMLP(2 * dim) for _ in range(num_blocks)))
        self.after = nn.Sequential(*(ResidualMLP(2 * dim) for _ in range(num_blocks)))

    def forward(self, places: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        chosen = farthest_points(places, places.shape[1] // 2)
        centers, own = gather(places, chosen), gather(features, chosen)  # (B, G, 3), (B, G, C)
        near = nearest(centers, places, self.neighbours)
        away = gather(features, near) - own.unsqueeze(2)  # (B, G, K, C)
        # One deviation for a cloud, over all its neighbourhoods (equation 3).
        away = away / (away.flatten(1).std(dim=1)[:, None, None, None] + 1e-5) * self.scale + self.shift
        pair = torch.cat([away, own.unsqueeze(2).expand_as(away)], dim=3)
        return centers, self.after(self.before(self.widen(pair)).amax(dim=2))


class PointMLP(nn.Module):
    """points (B, P, 3) -> logits (B, classes). 40 classes: 13,238,504 parameters, 12,570,560 without the head."""

    def __init__(self, config: PointMLPConfig, num_classes: int, compat: str) -> None:
        super().__init__()
        width = config.embed_dim
        self.embed = Dense(3, width, bias=False)
        self.stages = nn.ModuleList(Stage(width << i, config.neighbours, config.num_blocks) for i in range(4))
        self.head = classifier((16 * width, 512, 256), num_classes, config.dropout)

    def forward(self, points: Tensor) -> Tensor:
        places, features = points, self.embed(points)
        for stage in self.stages:
            places, features = stage(places, features)
        logits: Tensor = self.head(features.amax(dim=1))
        return logits
