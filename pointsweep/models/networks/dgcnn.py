"""DGCNN: convolutions over the edges of a neighbour graph that is drawn anew, among features, in
front of every layer.

Source: arXiv 1801.07829, section 3.1 (EdgeConv), section 3.2 (dynamic graph) and the classification
network of section 4.1 and figure 3. A point is its own first neighbour, as in the published
program. Letters: B clouds, P points, K neighbours, C channels, D width of a layer.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.config.networks import DGCNNConfig
from pointsweep.models.layers import Dropout, PairLinear
from pointsweep.ops.point_ops import nearest

SLOPE = 0.2  # of LeakyReLU


class EdgeConv(nn.Module):
    """x (B, P, C) -> max over the neighbours j of LeakyReLU(BN(W [x_j - x_i, x_i])), (B, P, D)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.edge = PairLinear(dim, width, relative=True)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        edges = self.norm(self.edge(x, x, near))  # (B, D, P, K)
        # LeakyReLU is monotonic: behind the maximum it gives the same and costs K times less.
        return F.leaky_relu(edges.amax(dim=3), SLOPE).transpose(1, 2)


class DGCNN(nn.Module):
    """points (B, P, 3) -> logits (B, classes). With 40 classes: 1,809,576 parameters."""

    def __init__(self, config: DGCNNConfig, num_classes: int, compat: str) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList()

        for dim, width in itertools.pairwise((3, *config.widths)):
            self.layers.append(EdgeConv(dim, width))

        self.embed = nn.Sequential(
            nn.Conv1d(sum(config.widths), config.embed_dim, 1, bias=False),
            nn.BatchNorm1d(config.embed_dim),
            nn.LeakyReLU(SLOPE),
        )

        self.head = nn.Sequential(
            nn.Linear(2 * config.embed_dim, 512, bias=False), nn.BatchNorm1d(512),
            nn.LeakyReLU(SLOPE), Dropout(config.dropout),
            nn.Linear(512, 256), nn.BatchNorm1d(256), nn.LeakyReLU(SLOPE), Dropout(config.dropout),
            nn.Linear(256, num_classes),
        )  # fmt: skip

    def forward(self, points: Tensor) -> Tensor:
        x = points
        near = self._graph(points)
        features = []

        for index, layer in enumerate(self.layers):
            if index and self.config.dynamic:
                near = self._graph(x)

            x = layer(x, near)
            features.append(x)

        x = self.embed(torch.cat(features, dim=2).transpose(1, 2))  # (B, embed_dim, P)
        logits: Tensor = self.head(torch.cat([x.amax(dim=2), x.mean(dim=2)], dim=1))
        return logits

    def _graph(self, x: Tensor) -> Tensor:
        """The neighbours (B, P, K) of every point among features x (B, P, C); no gradient passes
        through the choice.
        """
        x = x.detach().float()
        return nearest(x, x, self.config.neighbours)
