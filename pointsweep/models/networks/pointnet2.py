"""PointNet++: PointNets over the neighbourhoods of ever fewer centres.

Source: arXiv 1706.02413, section 3.2 (set abstraction) and section B of its supplement: the
single-scale network (SSG), with 512 and 128 centres for 1,024 points. Neighbourhoods are balls; see
`geometry.ball` for the one deviation, the choice among too many points. Features of points
(normals) stand beside the relative coordinates in the first stage, as in its program. Letters: B
clouds, P points, G centres, K neighbours, C channels, F features of a point.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pointsweep.config.networks import PointNet2Config
from pointsweep.models.layers import fully_connected, shared_mlp
from pointsweep.ops.point_ops import ball, coordinates, gather, pyramid

WIDTHS = ((64, 64, 128), (128, 128, 256), (256, 512, 1024))


class PointNet2(nn.Module):
    """points (B, P, 3 + F) -> logits (B, classes). With 40 classes: 1,475,688 parameters, and 64
    for each feature.
    """

    def __init__(
        self, config: PointNet2Config, num_classes: int, compat: str, features: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        inputs = (3 + features, 3 + WIDTHS[0][-1], 3 + WIDTHS[1][-1])
        self.stages = nn.ModuleList()

        for width, widths in zip(inputs, WIDTHS, strict=True):
            self.stages.append(shared_mlp((width, *widths), axes=2, bias=True))

        self.head = nn.Sequential(
            fully_connected((1024, 512, 256), config.dropout),
            nn.Linear(256, num_classes),
        )

    def forward(self, points: Tensor) -> Tensor:
        config = self.config
        xyz, x = coordinates(points), points[:, :, 3:]
        order, counts = pyramid(xyz, config.strides)
        centers = gather(xyz, order)

        for stage, (count, radius) in enumerate(zip(counts, config.radii, strict=True)):
            centers = centers[:, :count]
            near = ball(centers, xyz, radius, config.neighbours << stage)  # (B, G, K)
            relative = gather(xyz, near) - centers.unsqueeze(2)  # (B, G, K, 3)
            group = torch.cat([relative, gather(x, near)], dim=3)  # (B, G, K, 3 + C)
            x = pool(self.stages[stage], group)  # (B, G, C)
            xyz = centers

        # The last stage has one group: all centres, relative to the origin.
        x = pool(self.stages[2], torch.cat([xyz, x], dim=2).unsqueeze(1))  # (B, 1, C)
        logits: Tensor = self.head(x.squeeze(1))
        return logits


def pool(layers: nn.Module, group: Tensor) -> Tensor:
    """group (B, G, K, C) -> the maximum over K of what the layers make of it, (B, G, D)."""
    pooled: Tensor = layers(group.permute(0, 3, 1, 2)).amax(dim=3)
    return pooled.transpose(1, 2)
