"""Prompt tuning: learned tokens behind the class token, new ones for every block (deep) or in front
of the first (shallow).

Source: Visual Prompt Tuning (arXiv 2203.12119), started from N(0, 0.02) (spec 5). Letters: B
clouds, N tokens, C channels, L blocks, S prompts.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pointsweep.models.backbones.base import Backbone
from pointsweep.models.layers import drawn, insert_tokens, remove_tokens
from pointsweep.models.methods.base import Method


class Prompt(Method):
    """Prompt tuning. At width 768, 12 blocks, 10 prompts: 92,160 values deep, 7,680 shallow."""

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        self.deep = self.config.depth == "deep"
        # Shallow prompts end with the scale: the next one's tokens are made anew of the points'
        # tokens.
        self.prefix = prefix
        self.last = [*backbone.scale_starts, len(backbone.blocks)][1] - 1
        widths = backbone.widths if self.deep else backbone.widths[:1]
        shape = (len(widths), self.config.num_prompts, max(widths))
        values = drawn(self.config.init_std, *shape)
        self.prompts = nn.ParameterList()

        for of_block, width in zip(values, widths, strict=True):
            self.prompts.append(nn.Parameter(of_block[:, :width].clone()))

    def before_block(self, index: int, tokens: Tensor, context: Any) -> Tensor:
        if self.deep or index == 0:
            # (B, prefix + S + N, C)
            return insert_tokens(tokens, self.prompts[index], at=self.prefix)
        return tokens

    def after_block(self, index: int, tokens: Tensor, context: Any) -> Tensor:
        # Deep: the next block brings its own prompts. Shallow: they walk through all blocks and are
        # dropped before the head.
        if self.deep or index == self.last:
            return remove_tokens(tokens, self.config.num_prompts, at=self.prefix)
        return tokens
