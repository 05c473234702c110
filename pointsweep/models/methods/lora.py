"""LoRA: low-rank updates beside frozen projections, W x + (alpha / r) B A x.

Source: LoRA (arXiv 2106.09685), equation 3; A starts Kaiming-uniform, B at zero, so the model
starts as it was (spec 5). Letters: C channels, r rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.models.backbones.base import Backbone, TransformerBlock
from pointsweep.models.methods.base import Method


class LowRank(nn.Module):
    """A frozen linear layer with its low-rank update: (..., C_in) -> (..., C_out)."""

    def __init__(self, frozen: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.frozen = frozen
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.empty(rank, frozen.in_features))  # A
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))  # B
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    @property
    def weight(self) -> Tensor:
        """The frozen matrix; T5's layers ask for its type."""
        return self.frozen.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.scale * F.linear(F.linear(x, self.down), self.up)


class LoRA(Method):
    """LoRA. At width 768, 12 blocks: 589,824 values for q, v at rank 16, as many for q, k, v, out
    at rank 8.
    """

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        rank, alpha = self.config.rank, self.config.alpha
        if alpha is None:
            alpha = float(rank)

        for block in backbone.blocks:
            assert isinstance(block, TransformerBlock)
            for target in self.config.targets:
                for owner, name in block.projections(target):
                    frozen = getattr(owner, name)
                    setattr(owner, name, LowRank(frozen, rank, alpha))
