"""The encoder of T5-base.

Source: T5 (arXiv 1910.10683), section 2.1; weights `google-t5/t5-base`: width 768, 12 pre-norm
blocks, norms without mean and shift, no biases, attention logits not scaled. T5 has no position
table: what a pair of words has is a bias on their attention, by their distance. Ours is the mean
over the virtual lines of that bias at the distance of two centres on the line. Letters: B clouds, N
tokens, M views, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pointsweep.config.backbones import BackboneConfig, T5Config
from pointsweep.models.backbones.base import Backbone, Plane, Shape
from pointsweep.models.backbones.checkpoints import Names, hub_file

BUCKETS, FARTHEST = 32, 128
NAMES = Names(
    direct={
        "encoder.final_layer_norm.weight": "norm.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "table",
    },
    prefix="encoder.block.",
    blocks={
        "layer.0.layer_norm": "norm1",
        "layer.0.SelfAttention.q": "attn.q",
        "layer.0.SelfAttention.k": "attn.k",
        "layer.0.SelfAttention.v": "attn.v",
        "layer.0.SelfAttention.o": "attn.out",
        "layer.1.layer_norm": "norm2",
        "layer.1.DenseReluDense.wi": "ffn.0",
        "layer.1.DenseReluDense.wo": "ffn.2",
    },
    dropped=("shared.", "encoder.embed_tokens.", "decoder.", "lm_head."),
)


class T5(Backbone):
    """The line has 512 places, the length that T5 was trained with."""

    plane = Plane(width=512, height=1, cell=13)
    scheme = "t5"
    table: Tensor

    def __init__(self, config: T5Config) -> None:
        shape = Shape(
            768,
            12,
            12,
            3072,
            qkv_bias=False,
            eps=1e-6,
            activation="relu",
            norm="rms",
            bias=False,
            scaled=False,
        )
        super().__init__(config, shape)
        # of the first block, shared by all
        self.register_buffer("table", torch.zeros(BUCKETS, 12))

    def positions(self, locations: Tensor) -> None:
        return None

    def attention_bias(
        self, index: int, centers: Tensor, locations: Tensor | None
    ) -> Tensor:
        assert locations is not None
        bias: Tensor | int = 0
        for view in locations.unbind(1):  # (B, N)
            distances = view.unsqueeze(1) - view.unsqueeze(2)  # key - query
            bias = bias + self.table[bucket(distances)]  # (B, N, N, H)

        return torch.as_tensor(bias).permute(0, 3, 1, 2) / locations.shape[1]

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        return hub_file(config, "google-t5/t5-base", fetch)

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return NAMES.apply(state, len(self.blocks))


def bucket(distance: Tensor) -> Tensor:
    """Rows of the bias table for distances key - query: half for either sign, the near ones
    exactly, the far ones by logarithm.
    """
    distance = distance.round()
    half = BUCKETS // 2
    exact = half // 2
    size = distance.abs()
    far = exact + (size.clamp(min=1) / exact).log() / math.log(FARTHEST / exact) * (
        half - exact
    )
    row = torch.where(size < exact, size, far.floor().clamp(max=half - 1))

    return (row + half * (distance > 0)).long()
