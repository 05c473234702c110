"""Full fine-tuning: every block of the backbone trains, and what makes a 3d backbone's tokens;
nothing is inserted (spec 5).

Tables of positions stay as they are.
"""

from __future__ import annotations

from pointsweep.models.backbones.base import Backbone
from pointsweep.models.methods.base import Method


class Full(Method):
    """Full fine-tuning. At width 768: 85,054,464 values more (CLIP text), 85,072,896 (DINOv2)."""

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        backbone.blocks.requires_grad_(True)
        if backbone.stem is not None:
            backbone.stem.requires_grad_(True)

    def thaws(self, name: str) -> bool:
        return name.startswith(("blocks.", "stem."))
