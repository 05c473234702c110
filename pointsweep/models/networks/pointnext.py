"""PointNeXt-S: PointNet++ with a stem, residual set abstraction and neighbour offsets in units of
the radius.

Source: arXiv 2206.04670, section 3.2 (receptive field and model scaling) and the published
configuration of PointNeXt-S for ScanObjectNN: stem of width 32, four stages of stride 2, radius
0.15 growing by 1.5, and the height as a fourth channel; ModelNet40's configuration has three
(`heights: false`). Published: 1.367M and 1.374M parameters. The 94.0 on ModelNet40 that Any2Point's
Table 1 prints beside 1.4M is that of `width: 64`, 4.5M. Balls as in `pointnet2`: the nearest of too
many points, not the first. Features of points go into the stem. Letters: B clouds, P points, G
centres, K neighbours, C channels, D width of a stage, F features of a point.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pointsweep.config.networks import PointNeXtConfig
from pointsweep.models.layers import fully_connected, shared_mlp
from pointsweep.ops.point_ops import ball, coordinates, gather, pyramid, with_height

STRIDE = 2  # points per centre


class SetAbstraction(nn.Module):
    """offsets (B, G, K, 3), neighbour (B, G, K, C), own (B, G, C) -> features of the centres (B, G,
    D).
    """

    def __init__(self, dim: int, width: int, residual: bool) -> None:
        super().__init__()
        self.inner = shared_mlp((3 + dim, width // 2), axes=2)
        self.outer = nn.Sequential(
            nn.Conv2d(width // 2, width, 1, bias=False), nn.BatchNorm2d(width)
        )
        self.skip = nn.Linear(dim, width) if residual else None

    def forward(self, offsets: Tensor, neighbour: Tensor, own: Tensor) -> Tensor:
        group = torch.cat([offsets, neighbour], dim=3)
        group = group.permute(0, 3, 1, 2)  # (B, 3 + C, G, K)
        x = self.outer(self.inner(group)).amax(dim=3).transpose(1, 2)  # (B, G, D)
        return torch.relu(x if self.skip is None else x + self.skip(own))


class PointNeXt(nn.Module):
    """points (B, P, 3 + F) -> logits (B, classes). With 15 classes: 1,367,119 parameters, and 32
    for each feature.
    """

    def __init__(
        self, config: PointNeXtConfig, num_classes: int, compat: str, features: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        dims = [config.width << stage for stage in range(config.num_stages + 1)]
        self.stem = nn.Linear((4 if config.heights else 3) + features, dims[0])
        self.stages = nn.ModuleList()

        for dim in dims[:-1]:
            self.stages.append(SetAbstraction(dim, 2 * dim, config.residual))

        self.all = shared_mlp((3 + dims[-1], dims[-1], dims[-1]), axes=1)
        hidden = fully_connected((dims[-1], 512, 256), config.dropout, bias=False)
        self.head = nn.Sequential(hidden, nn.Linear(256, num_classes))

    def forward(self, points: Tensor) -> Tensor:
        config, radius = self.config, self.config.radius
        xyz, features = coordinates(points), points[:, :, 3:]
        order, counts = pyramid(xyz, [STRIDE] * config.num_stages)
        inputs = with_height(xyz) if config.heights else xyz

        if features.shape[2]:
            inputs = torch.cat([inputs, features], dim=2)

        x = self.stem(inputs)  # (B, P, C)
        centers, own = gather(xyz, order), gather(x, order)
        for count, stage in zip(counts, self.stages, strict=True):
            centers = centers[:, :count]
            near = ball(centers, xyz, radius, config.neighbours)  # (B, G, K)
            unit = radius if config.normalised_offsets else 1.0
            offsets = (gather(xyz, near) - centers.unsqueeze(2)) / unit
            own = x = stage(offsets, gather(x, near), own[:, :count])
            xyz, radius = centers, radius * config.radius_scaling

        x = self.all(torch.cat([xyz, x], dim=2).transpose(1, 2)).amax(dim=2)  # (B, D)
        logits: Tensor = self.head(x)
        return logits
