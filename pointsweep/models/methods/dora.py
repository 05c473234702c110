"""DoRA: a frozen matrix is taken apart into the lengths and the directions of its rows; both are
tuned.

Source: DoRA: Weight-Decomposed Low-Rank Adaptation (arXiv 2402.09353), equation 5, W' = m (W + s B
A) / ||W + s B A||, with s = alpha / rank and one length m for each output (the program,
github.com/NVlabs/DoRA, takes the norm along the inputs). m starts as the norm of W, A
Kaiming-uniform, B at zero, so the model starts as it was. Section 4.3: the norm is a constant to
the gradient, which the program does by default. Letters: C channels, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.models.backbones.base import Backbone, TransformerBlock
from pointsweep.models.methods.base import Method
from pointsweep.models.methods.lora import LowRank


class Decomposed(LowRank):
    """A frozen linear layer with a tuned length and direction of every row: (..., C_in) -> (...,
    C_out).
    """

    def __init__(
        self, frozen: nn.Linear, rank: int, alpha: float, detach_norm: bool
    ) -> None:
        super().__init__(frozen, rank, alpha)
        self.detach_norm = detach_norm
        weight = frozen.weight.detach()
        # On the meta device, where a model is only counted, the norm would load torch's compiler:
        # seconds.
        lengths = torch.empty(len(weight)) if weight.is_meta else row_norms(weight)
        self.magnitude = nn.Parameter(lengths)  # m, (C_out,)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.frozen.weight + self.scale * self.up @ self.down
        norms = row_norms(weight)  # (C_out,)
        if self.detach_norm:
            norms = norms.detach()

        ratio = self.magnitude / norms
        output = product = self.frozen(x)
        if self.frozen.bias is not None:
            product = output - self.frozen.bias  # W x

        update = self.scale * F.linear(F.linear(x, self.down), self.up)  # s B A x

        # Written so that nothing is added where the ratio is one and the update zero.
        return output + (ratio - 1) * product + ratio * update


class DoRA(Method):
    """DoRA. At width 768, 12 blocks: 608,256 values for q, v at rank 16; 18,432 more than
    LoRA's.
    """

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        config = self.config
        alpha = config.alpha if config.alpha is not None else float(config.rank)
        for block in backbone.blocks:
            assert isinstance(block, TransformerBlock)
            for target in config.targets:
                for owner, name in block.projections(target):
                    decomposed = Decomposed(
                        getattr(owner, name),
                        rank=config.rank,
                        alpha=alpha,
                        detach_norm=config.detach_norm,
                    )
                    setattr(owner, name, decomposed)


def row_norms(weight: Tensor) -> Tensor:
    """weight (C_out, C_in) -> the length of every row, (C_out,)."""
    return weight.square().sum(dim=1).sqrt()
