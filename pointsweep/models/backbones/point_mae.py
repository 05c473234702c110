"""Point-MAE.

Source: Point-MAE (arXiv 2203.06604), weights of its authors (a dict `base_model`, the encoder under
`MAE_encoder.`) or the hub's `torch-pointcloud/point-mae-base.pretrain.yatian-pang`; ACT's file
(arXiv 2212.08320) has the same encoder under `ACT_encoder.`. Width 384, 12 pre-norm blocks, 6
heads, no q/k/v bias; positions of the centres by an MLP, added before every block (spec 1.4, 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pointsweep.config.backbones import BackboneConfig, PointMAEConfig
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
    direct=PLACES,
    prefix="blocks.blocks.",
    blocks=TIMM_BLOCKS,
    dropped=("mask_token", "cls_token", "cls_pos", "cls_head"),
)


class PointMAE(Backbone):
    """Full fine-tuning with the two-layer head for 15 classes: 22,093,327 values. The class token
    is made at fine-tuning.
    """

    def __init__(self, config: PointMAEConfig) -> None:
        super().__init__(config, Shape(384, 12, 6, 1536, qkv_bias=False, eps=1e-5))
        self.stem = Stem(
            [PatchEmbedding((3, 128, 256), (512, 384))], [place_mlp(128, 384)]
        )

    def positions(self, locations: Tensor) -> Tensor:
        encodings: Tensor = self.stem.places[0](locations)
        return encodings

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        return hub_file(
            config, "torch-pointcloud/point-mae-base.pretrain.yatian-pang", fetch
        )

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        body = body_of(state, ("MAE_encoder.", "ACT_encoder."))
        return with_stem(NAMES.apply(split_qkv(body), len(self.blocks)))
