"""A vision transformer trained on MNIST: a real pretrained vision model small enough for a laptop.

Source: researchase/vit-mnist-explorations (MIT), 97.21 % on MNIST's test images;
$POINTSWEEP_DATA/weights/vit_mnist. Width 64, 6 pre-norm blocks, 4 heads of 64, ReLU, positions of a
7 x 7 grid of 4-pixel patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pointsweep.config.backbones import BackboneConfig, ViTMNISTConfig
from pointsweep.models.backbones.base import Backbone, Plane, Shape, grid_positions
from pointsweep.models.backbones.checkpoints import (
    TIMM,
    TIMM_BLOCKS,
    Names,
    data_file,
    grid_table,
    split_qkv,
)

SIDE = 7


NAMES = Names(
    direct=TIMM,
    prefix="blocks.",
    blocks=TIMM_BLOCKS,
    dropped=("patch_embed.", "head."),
)


class ViTMNIST(Backbone):
    """The plane is the model's own 28 x 28 image, a cell one of its patches."""

    plane = Plane(width=28, height=28, cell=4)
    scheme = "torch"
    table: Tensor

    def __init__(self, config: ViTMNISTConfig) -> None:
        shape = Shape(
            64,
            6,
            4,
            128,
            head_dim=64,
            qkv_bias=False,
            eps=1e-5,
            activation="relu",
            class_token=True,
        )
        super().__init__(config, shape)
        self.register_buffer("table", torch.zeros(SIDE, SIDE, 64))

    def positions(self, locations: Tensor) -> Tensor:
        return grid_positions(self.table, locations, self.plane)

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        return data_file(config, "weights/vit_mnist/model.safetensors")

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = NAMES.apply(split_qkv(state), len(self.blocks))
        if "table" in tensors:
            tensors["table"] = grid_table(tensors["table"], SIDE, SIDE)

        return tensors
