"""The head of part segmentation: what a transformer knows after three of its blocks, spread to all
points.

Source: the part segmentation of Point-MAE (arXiv 2203.06604) and its program, whose head takes
blocks 4, 8 and 12: maximum and mean over the tokens and the category's embedding for the whole
cloud, features spread from the centres to the points as in PointNet++ (arXiv 1706.02413), a
classifier of every point. Fractions of the depth stand for its blocks, each with its own centres,
so that backbones of another depth, or with scales, have the same head. What a method pools beside
the tokens goes to the whole cloud's features. The published programs of APPT's segmentation are no
source: they do not run (spec 8, T36). Letters: B clouds, P points, N tokens, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.config.parts import HeadConfig
from pointsweep.models.layers import Dropout, shared_mlp
from pointsweep.ops.point_ops import interpolation

LABEL_WIDTH = 64
Level = tuple[Tensor, Tensor]  # features (B, N, C) and their centres (B, N, 3)


def levels(num_blocks: int) -> list[int]:
    """The blocks whose output is taken: those at a third, two thirds and the whole of the depth; 3,
    7 and 11 of 12.
    """
    return sorted({math.ceil(num_blocks * third / 3) - 1 for third in (1, 2, 3)})


class SegmentationHead(nn.Module):
    """Head of part segmentation: points, categories and levels -> logits of every point. Width 384,
    12 blocks, 50 parts: 5,238,706 values.

    `widths` are those of the levels; `extra` the width of what a method pools beside the tokens.
    """

    def __init__(
        self,
        config: HeadConfig,
        widths: Sequence[int],
        extra: int,
        num_categories: int,
        num_parts: int,
    ) -> None:
        super().__init__()
        self.num_categories = num_categories
        # The backbone's norm is for the last width; the narrower scales have one of their own, as
        # in Point-M2AE's program.
        self.norms = nn.ModuleList()

        for width in widths:
            is_last = width == widths[-1]
            self.norms.append(nn.Identity() if is_last else nn.LayerNorm(width))

        self.label: nn.Sequential | None = None

        if num_categories > 1:  # of scenes there is one, which says nothing
            self.label = nn.Sequential(
                nn.Linear(num_categories, LABEL_WIDTH, bias=False),
                nn.BatchNorm1d(LABEL_WIDTH),
                nn.LeakyReLU(0.2),
            )

        label_width = LABEL_WIDTH if self.label is not None else 0
        first, second, third, fourth = config.segmentation_widths
        self.spread = shared_mlp((3 + sum(widths), first, second), axes=1, bias=True)
        self.mix = nn.Conv1d(second + 2 * sum(widths) + label_width + extra, third, 1)
        self.layers = nn.Sequential(
            nn.BatchNorm1d(third), nn.ReLU(), Dropout(config.dropout),
            nn.Conv1d(third, fourth, 1), nn.BatchNorm1d(fourth), nn.ReLU(),
            nn.Conv1d(fourth, num_parts, 1),
        )  # fmt: skip

    def forward(
        self,
        points: Tensor,
        category: Tensor,
        levels: Sequence[Level],
        extra: Sequence[Tensor],
    ) -> Tensor:
        """points (B, P, 3), category (B,), a level for each of `widths` and features (B, C) ->
        logits (B, parts, P).
        """
        features, centers = [], []
        for norm, (values, level_centers) in zip(self.norms, levels, strict=True):
            features.append(norm(values))
            centers.append(level_centers)

        pooled = [values.amax(dim=1) for values in features]
        pooled += [values.mean(dim=1) for values in features]

        if self.label is not None:
            one_hot = F.one_hot(category, self.num_categories)
            pooled.append(self.label(one_hot.to(points.dtype)))

        cloud = torch.cat([*pooled, *extra], dim=1)  # (B, C)
        at_points = self.spread(self._at_points(points, features, centers))  # (B, C, P)
        # The program puts the cloud's features beside every point's; a product of a concatenation
        # is a sum of products.
        sizes = [at_points.shape[1], cloud.shape[1]]
        point_weight, cloud_weight = self.mix.weight.split(sizes, dim=1)
        of_points = F.conv1d(at_points, point_weight)
        of_cloud = F.linear(cloud, cloud_weight.squeeze(2), self.mix.bias)
        logits: Tensor = self.layers(of_points + of_cloud.unsqueeze(2))

        return logits

    @staticmethod
    def _at_points(
        points: Tensor, features: Sequence[Tensor], centers: Sequence[Tensor]
    ) -> Tensor:
        """The points' coordinates and the levels' features at them, (B, 3 + C, P)."""
        columns = [points.transpose(1, 2)]
        previous: Tensor | None = None

        for values, level_centers in zip(features, centers, strict=True):
            # one scale: all levels have the same centres
            if level_centers is not previous:
                weights = interpolation(points, level_centers)  # (B, P, N)
                previous = level_centers

            columns.append((weights @ values).transpose(1, 2))

        return torch.cat(columns, dim=1)
