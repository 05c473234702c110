"""Gains: every channel of a frozen feed-forward branch is multiplied by a learned factor.

Source: the feed-forward part of (IA)3, Liu et al., NeurIPS 2022 (arXiv 2205.05638), put behind the
branch. Letters: B clouds, N tokens, C channels.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from pointsweep.config.methods import MethodConfig
from pointsweep.models.backbones.base import Backbone
from pointsweep.models.methods.base import Method


class GainsConfig(MethodConfig):
    """What a sweep file can set under `method:`; every field has a default."""

    name: Literal["gains"] = "gains"
    shift: bool = False
    """Add a learned number to every channel too."""


class Gains(Method):
    """The method itself: hooks into a frozen backbone. It starts as no change at all."""

    Config = GainsConfig

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        """Make the trained tensors, one of each kind a block."""
        self.factors = nn.ParameterList(
            nn.Parameter(torch.ones(width)) for width in backbone.widths
        )
        if self.config.shift:
            self.shifts = nn.ParameterList(
                nn.Parameter(torch.zeros(width)) for width in backbone.widths
            )

    def after_ffn(
        self, index: int, output: Tensor, inputs: Tensor, context: Any
    ) -> Tensor:
        """Change what the feed-forward branch of block `index` gives, (B, prefix + N, C)."""
        output = output * self.factors[index]
        if self.config.shift:
            output = output + self.shifts[index]

        return output
