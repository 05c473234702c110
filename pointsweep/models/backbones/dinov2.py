"""DINOv2 ViT-B/14.

Source: DINOv2 (arXiv 2304.07193), weights `facebook/dinov2-base`; also read in timm's layout
(`vit_base_patch14_dinov2.lvd142m`) from a local file. Width 768, 12 blocks with layer scale,
positions of a 37 x 37 grid (spec 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pointsweep.config.backbones import BackboneConfig, DINOv2Config
from pointsweep.models.backbones.base import Backbone, Plane, Shape, grid_positions
from pointsweep.models.backbones.checkpoints import (
    TIMM,
    TIMM_BLOCKS,
    VIT,
    Names,
    grid_table,
    hub_file,
    split_qkv,
)

SIDE = 37
NAMES = Names(
    direct=VIT,
    prefix="encoder.layer.",
    blocks={
        "norm1": "norm1",
        "norm2": "norm2",
        "attention.attention.query": "attn.q",
        "attention.attention.key": "attn.k",
        "attention.attention.value": "attn.v",
        "attention.output.dense": "attn.out",
        "layer_scale1.lambda1": "scale1.gamma",
        "layer_scale2.lambda1": "scale2.gamma",
        "mlp.fc1": "ffn.0",
        "mlp.fc2": "ffn.2",
    },
    dropped=("embeddings.patch_embeddings.", "embeddings.mask_token"),
)
TIMM_NAMES = Names(
    direct=TIMM,
    prefix="blocks.",
    blocks=TIMM_BLOCKS,
    dropped=("patch_embed.", "mask_token", "head."),
)


class DINOv2(Backbone):
    """12 pre-norm blocks; the class token is the checkpoint's, its own position row is not used
    (spec 2.1).
    """

    plane = Plane(width=518, height=518, cell=26)
    table: Tensor

    def __init__(self, config: DINOv2Config) -> None:
        super().__init__(
            config, Shape(768, 12, 12, 3072, layer_scale=True, class_token=True)
        )
        self.register_buffer("table", torch.zeros(SIDE, SIDE, 768))

    def positions(self, locations: Tensor) -> Tensor:
        return grid_positions(self.table, locations, self.plane)

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        return hub_file(config, "facebook/dinov2-base", fetch)

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = TIMM_NAMES if "pos_embed" in state else NAMES
        tensors = names.apply(split_qkv(state), len(self.blocks))
        if "table" in tensors:
            tensors["table"] = grid_table(tensors["table"], SIDE, SIDE)

        return tensors
