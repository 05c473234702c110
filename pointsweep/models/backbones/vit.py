"""ViT-B/16 at 224 pixels, in two trainings: DeiT-B on ImageNet-1k and the augreg ViT on
ImageNet-21k.

Sources: DeiT (arXiv 2012.12877), weights `timm/deit_base_patch16_224.fb_in1k`; ViT (arXiv
2010.11929) as trained for arXiv 2106.10270, weights `timm/vit_base_patch16_224.augreg_in21k`. Read
in timm's layout or in transformers'. Width 768, 12 pre-norm blocks, positions of a 14 x 14 grid;
cells are patches (spec 2.11, 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pointsweep.config.backbones import BackboneConfig
from pointsweep.models.backbones.base import Backbone, Plane, Shape, grid_positions
from pointsweep.models.backbones.checkpoints import (
    TIMM,
    TIMM_BLOCKS,
    VIT,
    VIT_BLOCKS,
    Names,
    grid_table,
    hub_file,
    split_qkv,
    without_prefix,
)

SIDE = 14
TIMM_NAMES = Names(
    direct=TIMM,
    prefix="blocks.",
    blocks=TIMM_BLOCKS,
    dropped=("patch_embed.", "head.", "pre_logits."),
)
NAMES = Names(
    direct=VIT,
    prefix="encoder.layer.",
    blocks=VIT_BLOCKS,
    dropped=("embeddings.patch_embeddings.", "pooler.", "classifier."),
)


class ViT(Backbone):
    """12 pre-norm blocks; the class token is the checkpoint's, its own position row is not used."""

    plane = Plane(width=224, height=224, cell=16)
    repository = "timm/vit_base_patch16_224.augreg_in21k"
    table: Tensor

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config, Shape(768, 12, 12, 3072, class_token=True))
        self.register_buffer("table", torch.zeros(SIDE, SIDE, 768))

    def positions(self, locations: Tensor) -> Tensor:
        return grid_positions(self.table, locations, self.plane)

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        return hub_file(config, cls.repository, fetch)

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = TIMM_NAMES if "pos_embed" in state else NAMES
        body = without_prefix(without_prefix(state, "vit."), "deit.")
        tensors = names.apply(split_qkv(body), len(self.blocks))

        if "table" in tensors:
            tensors["table"] = grid_table(tensors["table"], SIDE, SIDE)

        return tensors


class DeiT(ViT):
    """The same network, trained on ImageNet-1k."""

    repository = "timm/deit_base_patch16_224.fb_in1k"
