"""Adapter tuning: bottlenecks on the residual branches of every block.

Sources: Houlsby et al. (arXiv 1902.00751), after attention and after the feed-forward branch, with
a residual of their own; `single`, after the feed-forward branch only; AdaptFormer (arXiv
2205.13535), parallel to it, scaled by 0.1 and starting as a no-op (spec 5).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pointsweep.config.methods import AdapterConfig
from pointsweep.models.backbones.base import Backbone, TransformerBlock
from pointsweep.models.layers import Bottleneck
from pointsweep.models.methods.base import Method


class AdapterAfter(nn.Module):
    """y + scale * adapter(y) for y = module(x)."""

    def __init__(self, module: nn.Module, adapter: nn.Module, scale: float) -> None:
        super().__init__()
        self.module = module
        self.adapter = adapter
        self.scale = scale

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        output: Tensor = self.module(x, *more)
        return output + self.scale * self.adapter(output)


class Adapter(Method):
    """Adapters. At width 768, 12 blocks: single d=8 156,768 values, houlsby d=4 165,984."""

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        config: AdapterConfig = self.config
        parallel = config.kind == "adaptformer"
        self.scale = config.scale

        if self.scale is None:
            self.scale = 0.1 if parallel else 1.0

        self.own = nn.ModuleList()
        for block, width in zip(backbone.blocks, backbone.widths, strict=True):
            assert isinstance(block, TransformerBlock)
            bottleneck = self._bottleneck(width)
            self.own.append(bottleneck)

            if config.kind == "houlsby":
                owner, name = block.attention()
                setattr(
                    owner,
                    name,
                    AdapterAfter(
                        getattr(owner, name), self._bottleneck(width), self.scale
                    ),
                )

    def after_ffn(
        self, index: int, output: Tensor, inputs: Tensor, context: Any
    ) -> Tensor:
        return output + self.scale * self.own[index](
            inputs if self.config.kind == "adaptformer" else output
        )

    def _bottleneck(self, dim: int) -> Bottleneck:
        bottleneck = Bottleneck(dim, self.config.bottleneck, self.config.dropout)
        bottleneck.start("zero_up" if self.config.kind == "adaptformer" else "xavier")
        return bottleneck
