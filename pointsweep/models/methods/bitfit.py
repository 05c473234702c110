"""BitFit: the biases of the frozen blocks train, nothing is inserted.

Source: BitFit (arXiv 2106.10199), section 2; spec 5.
"""

from __future__ import annotations

from pointsweep.models.backbones.base import Backbone
from pointsweep.models.methods.base import Method


class BitFit(Method):
    """BitFit. At width 768, 12 blocks: 101,376 values; 36,864 in Point-MAE, whose q, k and v have
    none. Raises ValueError for no bias.
    """

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        has_bias = False
        for name, parameter in backbone.blocks.named_parameters():
            if name.endswith(".bias"):
                parameter.requires_grad_(True)
                has_bias = True

        if not has_bias:
            raise ValueError(
                f"method: bitfit trains the biases of a backbone, and {backbone.config.name} has"
                " none"
            )

    def thaws(self, name: str) -> bool:
        return name.startswith("blocks.") and name.endswith(".bias")
