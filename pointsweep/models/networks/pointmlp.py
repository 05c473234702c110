"""PointMLP: residual layers at every neighbour and, behind a maximum, at every centre;
neighbourhoods normalised and rescaled.

Source: arXiv 2202.07123, section 3.2 (eq. 2) and the geometric affine module of section 3.3 (eq.
3). The spread in eq. 3 is one number per cloud, over its groups, neighbours and channels, as in
later versions of the published program; its first release takes one number over the whole batch,
which makes a prediction depend on the other clouds, and is not offered here. Published parameters:
12.6M, which are those in front of the head. Letters: B clouds, P points, G centres, K neighbours, C
channels, D width of a stage.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pointsweep.config.networks import PointMLPConfig
from pointsweep.models.layers import Residual, fully_connected, shared_mlp
from pointsweep.ops.point_ops import gather, nearest, pyramid

STRIDE = 2  # points per centre


class GeometricAffine(nn.Module):
    """neighbour (B, G, K, C), own (B, G, C) -> alpha (neighbour - anchor) / spread + beta (eq.
    3).
    """

    def __init__(self, dim: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind != "none":
            self.alpha = nn.Parameter(torch.ones(dim))
            self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, neighbour: Tensor, own: Tensor) -> Tensor:
        if self.kind == "none":
            return neighbour

        anchor = own.unsqueeze(2)  # (B, G, 1, C)
        if self.kind != "anchor":
            anchor = neighbour.mean(dim=2, keepdim=True)

        away = neighbour - anchor
        # of every cloud by itself
        spread = away.flatten(1).std(dim=1)[:, None, None, None]

        return self.alpha * (away / (spread + 1e-5)) + self.beta


class Stage(nn.Module):
    """Stage: features of the centres (B, G, D) from those of their neighbours (B, G, K, C) and
    their own (B, G, C).
    """

    def __init__(self, dim: int, width: int, config: PointMLPConfig) -> None:
        super().__init__()
        self.affine = GeometricAffine(dim, config.affine)
        self.transfer = shared_mlp((2 * dim, width), axes=2)
        self.pre = _residual_blocks(width, config.pre_blocks)
        self.pos = _residual_blocks(width, config.pos_blocks)

    def forward(self, neighbour: Tensor, own: Tensor) -> Tensor:
        normalised = self.affine(neighbour, own)
        center = own.unsqueeze(2).expand_as(neighbour)
        both = torch.cat([normalised, center], dim=3)  # (B, G, K, 2C)
        wide = self.pre(self.transfer(both.permute(0, 3, 1, 2)))  # (B, D, G, K)
        x = wide.amax(dim=3, keepdim=True)  # (B, D, G, 1)

        return self.pos(x).squeeze(3).transpose(1, 2)


def _residual_blocks(width: int, count: int) -> nn.Sequential:
    blocks = [Residual(width, width, bias=False) for _ in range(count)]
    return nn.Sequential(*blocks)


class PointMLP(nn.Module):
    """points (B, P, 3) -> logits (B, classes). 12,570,560 parameters, and with the head for 40
    classes 13,238,504.
    """

    def __init__(self, config: PointMLPConfig, num_classes: int, compat: str) -> None:
        super().__init__()
        self.config = config
        dims = [config.embed_dim << stage for stage in range(config.num_stages + 1)]
        self.embed = shared_mlp((3, dims[0]), axes=1)
        self.stages = nn.ModuleList(Stage(dim, 2 * dim, config) for dim in dims[:-1])
        self.head = nn.Sequential(
            fully_connected((dims[-1], 512, 256), config.dropout),
            nn.Linear(256, num_classes),
        )

    def forward(self, points: Tensor) -> Tensor:
        order, counts = pyramid(points, [STRIDE] * self.config.num_stages)
        x = self.embed(points.transpose(1, 2)).transpose(1, 2)  # (B, P, C)
        xyz = points
        centers = gather(points, order)
        own = gather(x, order)

        for count, stage in zip(counts, self.stages, strict=True):
            centers = centers[:, :count]
            near = nearest(centers, xyz, self.config.neighbours)  # (B, G, K)
            own = x = stage(gather(x, near), own[:, :count])
            xyz = centers

        logits: Tensor = self.head(x.amax(dim=1))
        return logits
