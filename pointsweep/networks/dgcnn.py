"""DGCNN.

Source: Dynamic Graph CNN (arXiv 1801.07829), figure 3 and section 4.1: four edge convolutions, each over the graph of its own input's
nearest neighbours, joined, pooled by maximum and mean.
Letters: B clouds, P points, C channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pointsweep.config import NetworkConfig
from pointsweep.layers import Dense, EdgeConv, classifier


@dataclass(frozen=True)
class DGCNNConfig(NetworkConfig):
    neighbours: int = 20
    embed_dim: int = 1024
    dropout: float = 0.5

    def problems(self) -> Iterator[str]:
        for name in ("neighbours", "embed_dim"):
            if getattr(self, name) < 1:
                yield f"{name}: must be at least 1, got {getattr(self, name)}"
        if not 0 <= self.dropout < 1:
            yield f"dropout: must be in [0, 1), got {self.dropout}"


class DGCNN(nn.Module):
    """points (B, P, 3) -> logits (B, classes). 40 classes: 1,810,088 parameters."""

    def __init__(self, config: DGCNNConfig, num_classes: int, compat: str) -> None:
        super().__init__()
        dims = (3, 64, 64, 128, 256)
        self.edges = nn.ModuleList(EdgeConv(a, b, config.neighbours) for a, b in itertools.pairwise(dims))
        self.join = Dense(sum(dims[1:]), config.embed_dim, bias=False, slope=0.2)
        self.head = classifier((2 * config.embed_dim, 512, 256), num_classes, config.dropout, slope=0.2)

    def forward(self, points: Tensor) -> Tensor:
        features, x = [], points
        for edge in self.edges:
            x = edge(x)
            features.append(x)
        joined = self.join(torch.cat(features, dim=2))  # (B, P, embed_dim)
        logits: Tensor = self.head(torch.cat([joined.amax(dim=1), joined.mean(dim=1)], dim=1))
        return logits
