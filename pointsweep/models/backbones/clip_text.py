"""The text tower of CLIP ViT-L/14.

Source: CLIP (arXiv 2103.00020), weights `openai/clip-vit-large-patch14`; width 768, 12 blocks (spec
7). Used without the causal mask: tokens of a cloud have no order. The ViT-B towers are 512 wide and
do not fit the papers' tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pointsweep.config.backbones import BackboneConfig, CLIPTextConfig
from pointsweep.models.backbones.base import (
    Attention,
    Backbone,
    Plane,
    Shape,
    lookup_line,
)
from pointsweep.models.backbones.checkpoints import (
    CLIP_BLOCKS,
    OPENAI_BLOCKS,
    Names,
    hub_file,
    line_table,
    split_in_proj,
    without_prefix,
)

NAMES = Names(
    direct={
        "embeddings.position_embedding.weight": "table",
        "final_layer_norm.weight": "norm.weight",
        "final_layer_norm.bias": "norm.bias",
    },
    prefix="encoder.layers.",
    blocks=CLIP_BLOCKS,
    dropped=("embeddings.token_embedding.", "embeddings.position_ids"),
)
OPENAI_NAMES = Names(  # of OpenAI's own file, which holds both towers
    direct={
        "positional_embedding": "table",
        "ln_final.weight": "norm.weight",
        "ln_final.bias": "norm.bias",
    },
    prefix="transformer.resblocks.",
    blocks=OPENAI_BLOCKS,
    dropped=(
        "visual.",
        "token_embedding.",
        "text_projection",
        "logit_scale",
        "input_resolution",
        "context_length",
        "vocab_size",
    ),
)


class CLIPText(Backbone):
    """12 pre-norm blocks, QuickGELU; positions are the 77 rows of the token table."""

    plane = Plane(width=77, height=1, cell=2)
    scheme = "clip"
    table: Tensor

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(
            config, Shape(768, 12, 12, 3072, eps=1e-5, activation="quick_gelu")
        )
        self.register_buffer("table", torch.zeros(77, 768))

    def use_compat(self, compat: str) -> None:
        super().use_compat(compat)
        for module in self.modules():
            if isinstance(module, Attention):
                module.across_batch = compat == "official"

    def positions(self, locations: Tensor) -> Tensor:
        return lookup_line(self.table, locations)

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        return hub_file(config, "openai/clip-vit-large-patch14", fetch)

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if "transformer.resblocks.0.ln_1.weight" in state:
            return self._sized(
                OPENAI_NAMES.apply(split_in_proj(state), len(self.blocks))
            )

        # The hub's file holds both towers, the text one under `text_model.`; a saved CLIPTextModel
        # has no prefix.
        return self._sized(
            NAMES.apply(without_prefix(state, "text_model."), len(self.blocks))
        )

    def _sized(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if "table" in tensors:
            tensors["table"] = line_table(tensors["table"], len(self.table))
        return tensors
