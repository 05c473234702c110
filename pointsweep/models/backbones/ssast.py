"""SSAST-B, a self-supervised audio spectrogram transformer.

Source: SSAST (arXiv 2110.09784), patch-based; weights
`Simon-Kotchou/ssast-base-patch-audioset-16-16` in transformers' AST layout, or the original file
with `module.v.` in front of timm's names. Width 768, 12 pre-norm blocks, positions of 8 (frequency)
x 64 (time) patches, behind the rows of the class and the distillation token, which are left out
(spec 2.11, 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pointsweep.config.backbones import BackboneConfig, SSASTConfig
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

FREQUENCIES, TIMES = 8, 64
NAMES = Names(
    direct=VIT,
    prefix="encoder.layer.",
    blocks=VIT_BLOCKS,
    dropped=(
        "embeddings.patch_embeddings.",
        "embeddings.distillation_token",
        "classifier.",
    ),
)
ORIGINAL_NAMES = Names(
    direct=TIMM,
    prefix="blocks.",
    blocks=TIMM_BLOCKS,
    dropped=("patch_embed.", "dist_token", "head.", "head_dist."),
)


class SSAST(Backbone):
    """The plane is 1,024 wide (time) and 128 high (frequency); a cell is one patch. Norms have the
    original program's eps.
    """

    plane = Plane(width=1024, height=128, cell=16)
    table: Tensor

    def __init__(self, config: SSASTConfig) -> None:
        super().__init__(config, Shape(768, 12, 12, 3072, class_token=True))
        self.register_buffer("table", torch.zeros(FREQUENCIES, TIMES, 768))

    def positions(self, locations: Tensor) -> Tensor:
        return grid_positions(self.table, locations, self.plane)

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        return hub_file(config, "Simon-Kotchou/ssast-base-patch-audioset-16-16", fetch)

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # The original file also holds the heads and the mask of the pretraining beside `module.v.`.
        body = without_prefix(
            without_prefix(state, "audio_spectrogram_transformer."), "module.v."
        )
        names = ORIGINAL_NAMES if "pos_embed" in body else NAMES
        tensors = names.apply(split_qkv(body), len(self.blocks))

        if "table" in tensors:
            tensors["table"] = grid_table(
                tensors["table"], FREQUENCIES, TIMES, leading=2
            )

        return tensors
