"""A transformer small enough for tests and smoke runs, with random frozen weights and the contract
of the real ones.

It stands for a backbone of any modality: `like` names the one it stands for, so that the stand-ins
of two backbones differ.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from pointsweep.config.backbones import TinyConfig
from pointsweep.models.backbones.base import (
    Backbone,
    Plane,
    Shape,
    lookup_line,
    lookup_plane,
)
from pointsweep.models.backbones.checkpoints import init_random
from pointsweep.models.backbones.patch_embedding import PatchEmbedding, Stem, place_mlp

LENGTH, SIDE = 77, 7  # of the line, and of the plane's grid


class Tiny(Backbone):
    """Width 48, 2 blocks, 4 heads. Tables are drawn with the scale of the tokens, or positions
    would drown in them.
    """

    table: Tensor

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(
            config,
            Shape(
                dim=48,
                num_blocks=2,
                num_heads=4,
                mlp=96,
                class_token=config.modality == "2d",
            ),
        )
        self.like = config.like
        if config.modality == "3d":
            self.stem = Stem(
                [PatchEmbedding((3, 16, 32), (48, 48))], [place_mlp(48, 48)]
            )
        elif config.modality == "2d":
            self.plane = Plane(width=518, height=518, cell=74)
            self.register_buffer("table", torch.zeros(SIDE, SIDE, 48))
        else:
            self.plane = Plane(width=LENGTH, height=1, cell=2)
            self.register_buffer("table", torch.zeros(LENGTH, 48))

    def load(self) -> str:
        seed = self.own_seed() + zlib.crc32(self.like.encode())  # 0 for no name
        init_random(self, seed)
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                if (
                    name == "table"
                    or name.startswith("stem.places")
                    or name == "cls_token"
                ):
                    tensor.mul_(25.0)

        return f"random, seed {seed}"

    def positions(self, locations: Tensor) -> Tensor:
        if self.plane is None:
            encodings: Tensor = self.stem.places[0](locations)
            return encodings

        if self.plane.height == 1:
            return lookup_line(self.table, locations)

        return lookup_plane(
            self.table, locations * ((SIDE - 1) / (self.plane.width - 1))
        )
