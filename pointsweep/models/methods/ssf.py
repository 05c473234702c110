"""SSF: every output of the frozen model is scaled and shifted, channel by channel.

Source: Scaling & Shifting Your Features (arXiv 2210.08823), equation 2, and its program
(github.com/dongzelian/SSF, models/vision_transformer.py): behind both norms, the joined q, k and v,
the output projection and both layers of the feed-forward branch of every block, behind the patch
embedding and behind the final norm. Scales start from N(1, 0.02), shifts from N(0, 0.02). Here the
tokens come from a tokenizer, so what stands behind the patch embedding there stands behind the
tokens. The final norm is frozen, as in the program. Letters: B clouds, N tokens, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from pointsweep.models.backbones.base import Backbone, TransformerBlock
from pointsweep.models.layers import Chain, drawn
from pointsweep.models.methods.base import Method


class Shift(nn.Module):
    """x * scale + shift per channel, started at N(1, 0.02) and N(0, 0.02)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(drawn(0.02, dim).add_(1.0))
        self.shift = nn.Parameter(drawn(0.02, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class SSF(Method):
    """SSF. At width 768, 12 blocks: 205,824 values, which the paper prints with heads of 100 and
    1000 classes (0.28M, 0.97M).
    """

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        self.tokens = Shift(backbone.widths[0])
        for block in backbone.blocks:
            assert isinstance(block, TransformerBlock)
            shift_outputs(block)

        shift_norm(backbone)

    def observe(self, points: Tensor, tokens: Tensor) -> tuple[Tensor, None]:
        return self.tokens(tokens), None


def shift_outputs(block: TransformerBlock) -> None:
    """Put a scale and a shift behind every linear layer and norm of a block."""
    layers = block.norms()
    for role in ("q", "k", "v", "out", "fc1", "fc2"):
        layers += block.projections(role)

    for owner, name in layers:
        layer = getattr(owner, name)
        width = layer.weight.shape[0]  # of a matrix (C_out, C_in), of a norm (C,)
        setattr(owner, name, Chain(layer, Shift(width)))


def shift_norm(backbone: Backbone) -> None:
    """Freeze the final norm, and put a scale and a shift behind it."""
    backbone.norm.requires_grad_(False)
    backbone.norm = nn.Sequential(backbone.norm, Shift(backbone.dim))
