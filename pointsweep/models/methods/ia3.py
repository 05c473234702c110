"""(IA)3: keys, values and hidden activations are multiplied by trained vectors.

Source: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning (arXiv 2205.05638),
section 3.3: softmax(Q (l_k * K)^T / sqrt(d)) (l_v * V), and (l_ff * activation(W1 x)) W2. All vectors start at one, so the
model starts as it was. Where the feed-forward branch is gated, as in T0, the program scales the other factor, which is
the same; no backbone here is.
Letters: C channels, D width of the hidden layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pointsweep.models.backbones.base import Attention, Backbone, Block
from pointsweep.models.methods.base import Method


class Rescaled(nn.Module):
    """(..., C) -> (..., C), every channel times a trained factor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class IA3(Method):
    """At width 768, 12 blocks: 12 (768 + 768 + 3072) = 55,296 values."""

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        for block in backbone.blocks:
            assert isinstance(block, Block)
            assert isinstance(block.attn, Attention)
            assert isinstance(block.ffn, nn.Sequential)
            for name in ("k", "v"):
                if name in self.config.targets:
                    layer: nn.Linear = getattr(block.attn, name)
                    setattr(block.attn, name, nn.Sequential(layer, Rescaled(layer.out_features)))
            if "ffn" in self.config.targets:
                last = block.ffn[2]
                assert isinstance(last, nn.Linear)
                block.ffn[2] = nn.Sequential(Rescaled(last.in_features), last)
