"""Point-PN: Point-NN with trained layers between its farthest points, neighbours and trigonometric
features.

Source: arXiv 2303.08134, section 4 (Point-NN as an architectural framework), and its program: raw
embedding of width 36, stages of width 72, 144, 288 and 288 (times 2, 2, 2, 1) with 2, 1, 1 and 1
residual bottlenecks of half the width. ScanObjectNN's program reads the height as a fourth channel
and scales neighbourhoods by their extent (`scan`): 477,432 parameters in front of the head.
ModelNet40's reads three channels (`heights: false`, 36 fewer) and scales by the standard deviation
(`mn40`), in the program that of the whole batch; here every cloud is scaled by itself. Width 96 is
the point embedding of APPT (spec 1.3). Letters: B clouds, P points, G centres, K neighbours, C
channels, D width of a stage.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pointsweep.config.networks import PointPNConfig
from pointsweep.models.layers import PairLinear, Residual, fully_connected, shared_mlp
from pointsweep.models.tokenizers import normalise
from pointsweep.ops.point_ops import gather, nearest, pos_e, pyramid, with_height

STRIDE = 2  # points per centre


class Stage(nn.Module):
    """x (B, P, C), own (B, G, C), near (B, G, K), relative (B, G, K, 3) -> features of the centres
    (B, G, D).
    """

    def __init__(
        self, dim: int, width: int, blocks: int, config: PointPNConfig
    ) -> None:
        super().__init__()
        self.config = config
        self.pair = PairLinear(dim, width)
        self.norm = nn.BatchNorm2d(width)
        residuals = [Residual(width, width // 2) for _ in range(blocks)]
        self.blocks = nn.Sequential(*residuals)

    def forward(self, x: Tensor, own: Tensor, near: Tensor, relative: Tensor) -> Tensor:
        wide = torch.relu(self.norm(self.pair(x, own, near)))  # (B, D, G, K)
        relative = normalise(relative, self.config.normalisation)
        e = pos_e(relative, wide.shape[1], self.config.alpha, self.config.beta)
        e = e.permute(0, 3, 1, 2)  # (B, D, G, K)
        wide = self.blocks((wide + e) * e)

        return (wide.amax(dim=3) + wide.mean(dim=3)).transpose(1, 2)


class PointPN(nn.Module):
    """points (B, P, 3) -> logits (B, classes). 477,432 parameters, and with the head for 15 classes
    762,119.
    """

    def __init__(self, config: PointPNConfig, num_classes: int, compat: str) -> None:
        super().__init__()
        self.config = config
        dims = [config.embed_dim]

        for expansion in config.expansions:
            dims.append(dims[-1] * expansion)

        self.embed = shared_mlp((4 if config.heights else 3, dims[0]), axes=1)
        self.stages = nn.ModuleList()
        for dim, width, blocks in zip(dims, dims[1:], config.blocks, strict=False):
            self.stages.append(Stage(dim, width, blocks, config))

        self.head = nn.Sequential(
            fully_connected((dims[-1], 512, 256), config.dropout),
            nn.Linear(256, num_classes),
        )

    def forward(self, points: Tensor) -> Tensor:
        order, counts = pyramid(points, [STRIDE] * len(self.stages))
        x = with_height(points) if self.config.heights else points
        x = self.embed(x.transpose(1, 2)).transpose(1, 2)  # (B, P, C)
        xyz = points
        centers = gather(points, order)
        own = gather(x, order)

        for count, stage in zip(counts, self.stages, strict=True):
            centers = centers[:, :count]
            near = nearest(centers, xyz, self.config.neighbours)  # (B, G, K)
            relative = gather(xyz, near) - centers.unsqueeze(2)  # (B, G, K, 3)
            own = x = stage(x, own[:, :count], near, relative)
            xyz = centers

        logits: Tensor = self.head(x.amax(dim=1) + x.mean(dim=1))
        return logits
