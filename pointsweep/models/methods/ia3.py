"""(IA)3: keys, values and hidden activations are multiplied by trained vectors.

Source: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning
(arXiv 2205.05638), section 3.3: softmax(Q (l_k * K)^T / sqrt(d)) (l_v * V), and (l_ff *
activation(W1 x)) W2. All vectors start at one, so the model starts as it was. Where the
feed-forward branch is gated, as in T0, the program scales the other factor, which is the same.
Letters: C channels, D width of the hidden layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pointsweep.models.backbones.base import Backbone, TransformerBlock
from pointsweep.models.layers import Chain
from pointsweep.models.methods.base import Method


class Rescaled(nn.Module):
    """(..., C) -> (..., C), every channel times a trained factor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class IA3(Method):
    """(IA)3. At width 768, 12 blocks: 12 (768 + 768 + 3072) = 55,296 values."""

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        for block in backbone.blocks:
            assert isinstance(block, TransformerBlock)
            for target in ("k", "v"):
                if target in self.config.targets:
                    for owner, name in block.projections(target):
                        layer: nn.Linear = getattr(owner, name)
                        setattr(owner, name, Chain(layer, Rescaled(layer.out_features)))

            if "ffn" in self.config.targets:
                for owner, name in block.projections("fc2"):
                    last: nn.Linear = getattr(owner, name)
                    setattr(owner, name, Chain(Rescaled(last.in_features), last))
