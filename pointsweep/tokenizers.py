"""Points -> tokens and their centres.

Source: the "3D mini-network" of Any2Point (arXiv 2404.07989, spec 1.2), a lightened Point-PN (arXiv 2303.08134).
Letters: B clouds, P points, N tokens, G centres, C channels, K neighbours, D width of a stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pointsweep.config import TokenizerConfig
from pointsweep.geometry import farthest_points, gather, nearest, pos_e
from pointsweep.layers import Residual


@dataclass(frozen=True)
class PointPNLightConfig(TokenizerConfig):
    neighbours: int = 81
    num_tokens: int = 128  # of the last stage; the two before it have two and four times as many centres
    normalisation: Literal["scan", "mn40"] = "scan"  # of neighbourhoods: ScanObjectNN's or ModelNet40's program (spec 1.1)
    last_width: int = 32  # of the last stage's bottleneck

    def problems(self) -> Iterator[str]:
        for name in ("neighbours", "num_tokens", "last_width"):
            if getattr(self, name) < 1:
                yield f"{name}: must be at least 1, got {getattr(self, name)}"


class PointPNLight(nn.Module):
    """points (B, P, 3) -> tokens (B, N, dim), centers (B, N, 3). At width 768: 276,672 parameters.

    Stages of dim/4, dim/2 and dim channels. PosE and the three doublings need a width divisible by 24; where `dim` is not, the
    stages take the next width that is, and one trained linear layer leads to `dim`.
    """

    def __init__(self, config: PointPNLightConfig, dim: int, compat: str) -> None:
        super().__init__()
        self.config, self.num_tokens = config, config.num_tokens
        width = -(-dim // 24) * 24
        self.embed = nn.Sequential(nn.Conv1d(3, width // 8, 1, bias=False), nn.BatchNorm1d(width // 8), nn.ReLU())
        plan = ((width // 4, width // 8, 2), (width // 2, width // 4, 1), (width, config.last_width, 1))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Residual(wide, middle) for _ in range(repeats))) for wide, middle, repeats in plan
        )
        self.out = nn.Identity() if width == dim else nn.Linear(width, dim)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        counts = [self.num_tokens << shift for shift in (2, 1, 0)]
        # Farthest point sampling is nested: the centres of the later stages are the first ones of this sample.
        index = farthest_points(points, counts[0])  # (B, 4N)
        features = self.embed(points.transpose(1, 2)).transpose(1, 2)  # (B, P, D / 2)
        own, order, places = gather(features, index), gather(points, index), points
        for count, stage in zip(counts, self.stages, strict=True):
            centers = order[:, :count]
            near = nearest(centers, places, self.config.neighbours)  # (B, G, K)
            relative = gather(places, near) - centers.unsqueeze(2)  # (B, G, K, 3)
            own = features = self._stage(stage, gather(features, near), own[:, :count], relative)
            places = centers
        return self.out(features), places

    def _stage(self, stage: nn.Module, neighbour: Tensor, own: Tensor, relative: Tensor) -> Tensor:
        """neighbour (B, G, K, C), own (B, G, C), relative (B, G, K, 3) -> (B, G, 2C)."""
        wide = torch.cat([neighbour, own.unsqueeze(2).expand_as(neighbour)], dim=3)  # (B, G, K, D)
        wide = wide + pos_e(normalise(relative, self.config.normalisation), wide.shape[3])
        return stage(wide.permute(0, 3, 1, 2)).amax(dim=3).transpose(1, 2)


def normalise(relative: Tensor, kind: str) -> Tensor:
    """Neighbourhood coordinates (B, G, K, 3) at a common scale, every sample by itself (spec 1.1; T4 for `mn40`)."""
    if kind == "scan":
        return relative / (relative.abs().amax(dim=2, keepdim=True) + 1e-6)
    return relative / (relative.flatten(1).std(dim=1)[:, None, None, None] + 1e-5)
