"""The audio trunk of ImageBind-huge.

Source: ImageBind (arXiv 2305.05665), weights `nielsr/imagebind-huge` in the original names
(CC-BY-NC-SA 4.0, not for commercial use): width 768, 12 pre-norm blocks, positions of 12
(frequency) x 19 (time) patches of a spectrogram (spec 2.4, 7).

`bias_kv` keeps the learned extra key and value of its attention, which the published Any2Point
program drops (T24). `compat: official` reads the position table as that program does, 19 x 12 in
the order of a 12 x 19 grid (T14).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pointsweep.config.backbones import BackboneConfig, ImageBindAudioConfig
from pointsweep.models.backbones.base import Backbone, Plane, Shape, grid_positions
from pointsweep.models.backbones.checkpoints import (
    Names,
    grid_table,
    hub_file,
    split_in_proj,
)

FREQUENCIES, TIMES = 12, 19
NAMES = Names(
    direct={
        "modality_preprocessors.audio.pos_embedding_helper.pos_embed": "table",
        "modality_preprocessors.audio.cls_token": "cls_token",
        "modality_heads.audio.0.weight": "norm.weight",
        "modality_heads.audio.0.bias": "norm.bias",
    },
    prefix="modality_trunks.audio.blocks.",
    blocks={
        "norm_1": "norm1",
        "norm_2": "norm2",
        "attn.q": "attn.q",
        "attn.k": "attn.k",
        "attn.v": "attn.v",
        "attn.out_proj": "attn.out",
        "attn.extra": "attn.extra",
        "mlp.fc1": "ffn.0",
        "mlp.fc2": "ffn.2",
    },
    dropped=(
        "modality_preprocessors.",
        "modality_heads.",
        "modality_postprocessors.",
        "modality_trunks.",
    ),
)


class ImageBindAudio(Backbone):
    """The plane is 192 wide (frequency) and 304 high (time), a cell one patch of 16."""

    plane = Plane(width=192, height=304, cell=16)
    table: Tensor

    def __init__(self, config: ImageBindAudioConfig) -> None:
        super().__init__(
            config, Shape(768, 12, 12, 3072, class_token=True, extra_key=config.bias_kv)
        )
        self.register_buffer("table", torch.zeros(FREQUENCIES, TIMES, 768))

    def positions(self, locations: Tensor) -> Tensor:
        scrambled = self.table.reshape(TIMES, FREQUENCIES, -1)
        return grid_positions(
            scrambled if self.compat == "official" else self.table.transpose(0, 1),
            locations,
            self.plane,
        )

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        return hub_file(config, "nielsr/imagebind-huge", fetch, "pytorch_model.bin")

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = NAMES.apply(split_in_proj(state), len(self.blocks))
        if "table" in tensors:
            tensors["table"] = grid_table(tensors["table"], FREQUENCIES, TIMES)

        if not self.shape.extra_key:
            for name in list(tensors):
                if name.endswith("attn.extra"):
                    del tensors[name]

        return tensors
