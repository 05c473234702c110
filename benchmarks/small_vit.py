"""A small vision transformer with random weights, as wide as DeiT-Ti: for benchmarks alone, so it
stands in no sweep's registry.

Source of the shape: DeiT (arXiv 2012.12877), table 1: width 192, 12 blocks, 3 heads.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from pointsweep.config.backbones import BackboneConfig
from pointsweep.models.backbones.base import Backbone, Shape
from pointsweep.models.backbones.vit import SIDE, ViT


class SmallViTConfig(BackboneConfig):
    modality: ClassVar[str] = "2d"

    name: Literal["small_vit"] = "small_vit"


class SmallViT(ViT):
    """ViT's plane and positions over narrower blocks."""

    def __init__(self, config: BackboneConfig) -> None:
        Backbone.__init__(self, config, Shape(192, 12, 3, 768, class_token=True))
        self.register_buffer("table", torch.zeros(SIDE, SIDE, 192))
