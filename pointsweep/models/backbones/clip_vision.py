"""The image tower of CLIP ViT-B/16.

Source: CLIP (arXiv 2103.00020), weights `openai/clip-vit-base-patch16`: width 768, 12 pre-norm
blocks, QuickGELU, a norm in front of the first block, positions of a 14 x 14 grid. The ViT-L towers
are 1,024 wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pointsweep.config.backbones import BackboneConfig, CLIPVisionConfig
from pointsweep.models.backbones.base import Backbone, Plane, Shape, grid_positions
from pointsweep.models.backbones.checkpoints import (
    CLIP_BLOCKS,
    OPENAI_BLOCKS,
    Names,
    grid_table,
    hub_file,
    split_in_proj,
    without_prefix,
)

SIDE = 14
NAMES = Names(
    direct={
        "embeddings.position_embedding.weight": "table",
        "embeddings.class_embedding": "cls_token",
        "pre_layrnorm.weight": "pre_norm.weight",
        "pre_layrnorm.bias": "pre_norm.bias",
        "post_layernorm.weight": "norm.weight",
        "post_layernorm.bias": "norm.bias",
    },
    prefix="encoder.layers.",
    blocks=CLIP_BLOCKS,
    dropped=("embeddings.patch_embedding.", "embeddings.position_ids"),
)
OPENAI_NAMES = Names(  # of OpenAI's own file, below `visual.`
    direct={
        "positional_embedding": "table",
        "class_embedding": "cls_token",
        "ln_pre.weight": "pre_norm.weight",
        "ln_pre.bias": "pre_norm.bias",
        "ln_post.weight": "norm.weight",
        "ln_post.bias": "norm.bias",
    },
    prefix="transformer.resblocks.",
    blocks=OPENAI_BLOCKS,
    dropped=("conv1.", "proj"),
)


class CLIPVision(Backbone):
    """CLIP's vision tower. Tokens with their positions pass the frozen norm in front of the blocks,
    as patches do.
    """

    plane = Plane(width=224, height=224, cell=16)
    scheme = "clip"
    table: Tensor

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(
            config,
            Shape(
                768, 12, 12, 3072, eps=1e-5, activation="quick_gelu", class_token=True
            ),
        )
        self.register_buffer("table", torch.zeros(SIDE, SIDE, 768))
        self.pre_norm = nn.LayerNorm(768, eps=1e-5)

    def positions(self, locations: Tensor) -> Tensor:
        return grid_positions(self.table, locations, self.plane)

    def start(self, tokens: Tensor) -> Tensor:
        return self.pre_norm(tokens)

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        return hub_file(config, "openai/clip-vit-base-patch16", fetch)

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if any(name.startswith("visual.transformer.resblocks.") for name in state):
            tensors = OPENAI_NAMES.apply(
                split_in_proj(without_prefix(state, "visual.")), len(self.blocks)
            )
        else:
            tensors = NAMES.apply(
                without_prefix(state, "vision_model."), len(self.blocks)
            )

        if "table" in tensors:
            tensors["table"] = grid_table(tensors["table"].unsqueeze(0), SIDE, SIDE)

        if "cls_token" in tensors:
            tensors["cls_token"] = tensors["cls_token"].reshape(1, 1, -1)

        return tensors
