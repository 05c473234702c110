"""KWT-1, a keyword spotter: a real pretrained audio transformer small enough for a laptop.

Source: Keyword Transformer (arXiv 2104.00769), weights of ARM-software/keyword-transformer
(Apache-2.0), 97.51 % on the test clips of Speech Commands v2 (12 labels);
$POINTSWEEP_DATA/weights/kwt1. Width 64, 12 post-norm blocks, one head, 98 positions in time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pointsweep.config.backbones import BackboneConfig, KWT1Config
from pointsweep.models.backbones.base import Backbone, Plane, Shape, lookup_line
from pointsweep.models.backbones.checkpoints import (
    TIMM_BLOCKS,
    Names,
    data_file,
    line_table,
    split_qkv,
    with_new_norm,
)

LENGTH = 98
NAMES = Names(
    direct={"pos_embed": "table", "cls_token": "cls_token"},
    prefix="blocks.",
    blocks=TIMM_BLOCKS,
    dropped=("patch_embed.", "head."),
)


class KWT1(Backbone):
    """KWT-1. Its patches are slices of time, so its positions lie on a line; there is no final
    norm, the model trains a new one.
    """

    plane = Plane(width=LENGTH, height=1, cell=2)
    scheme = "keras"
    table: Tensor

    def __init__(self, config: KWT1Config) -> None:
        super().__init__(
            config,
            Shape(64, 12, 1, 256, post_norm=True, qkv_bias=False, class_token=True),
        )
        self.register_buffer("table", torch.zeros(LENGTH, 64))

    def positions(self, locations: Tensor) -> Tensor:
        return lookup_line(self.table, locations)

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        return data_file(config, "weights/kwt1/model.safetensors")

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = NAMES.apply(split_qkv(state), len(self.blocks))
        if "table" in tensors:
            tensors["table"] = line_table(tensors["table"].squeeze(0), 1 + LENGTH)[1:]

        return with_new_norm(tensors, self.dim)
