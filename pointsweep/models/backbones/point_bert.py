"""Point-BERT.

Source: Point-BERT (arXiv 2111.14819), weights of its authors (a dict `base_model`, the encoder
under `transformer_q.`) or the hub's `torch-pointcloud/point-bert-base.pretrain.xumin-yu`. Width
384, 12 pre-norm blocks, 6 heads, no q/k/v bias; groups are embedded 256 wide and led to 384 by one
linear layer; class token and its position are the checkpoint's (spec 1.4, 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pointsweep.config.backbones import BackboneConfig, PointBERTConfig
from pointsweep.models.backbones.base import Backbone, Shape
from pointsweep.models.backbones.checkpoints import (
    TIMM_BLOCKS,
    Names,
    hub_file,
    split_qkv,
)
from pointsweep.models.backbones.patch_embedding import (
    PLACES,
    PatchEmbedding,
    Stem,
    body_of,
    place_mlp,
    with_stem,
)

NAMES = Names(
    direct=PLACES
    | {
        "cls_pos": "cls_position",
        "reduce_dim.weight": "stem.reduce.weight",
        "reduce_dim.bias": "stem.reduce.bias",
    },
    prefix="blocks.blocks.",
    blocks=TIMM_BLOCKS,
    dropped=("mask_token", "lm_head.", "cls_head", "dvae."),
)


class PointBERT(Backbone):
    """Point-MAE's blocks behind a narrower embedding of the groups."""

    def __init__(self, config: PointBERTConfig) -> None:
        super().__init__(
            config, Shape(384, 12, 6, 1536, qkv_bias=False, eps=1e-5, class_token=True)
        )
        self.stem = Stem(
            [PatchEmbedding((3, 128, 256), (512, 256))],
            [place_mlp(128, 384)],
            nn.Linear(256, 384),
        )

        self.cls_position = nn.Parameter(torch.zeros(1, 1, 384))

    def positions(self, locations: Tensor) -> Tensor:
        encodings: Tensor = self.stem.places[0](locations)
        return encodings

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        return hub_file(
            config, "torch-pointcloud/point-bert-base.pretrain.xumin-yu", fetch
        )

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return with_stem(
            NAMES.apply(
                split_qkv(body_of(state, ("transformer_q.",))), len(self.blocks)
            )
        )
