"""Point-PN: Point-NN with linear layers between its parameter-free steps.

Source: "Parameter is Not All You Need" (arXiv 2303.08134), section 3.3; spec 1.3 for the order of its operations. Each cloud's
neighbourhoods are scaled by itself; `compat: official` takes one deviation over the batch (T4).
Letters: B clouds, P points, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from pointsweep.config import NetworkConfig
from pointsweep.layers import classifier
from pointsweep.tokenizers import PointPN as Stages
from pointsweep.tokenizers import PointPNConfig as StagesConfig


@dataclass(frozen=True)
class PointPNConfig(NetworkConfig):
    compats: ClassVar[tuple[str, ...]] = ("fixed", "official")

    embed_dim: int = 36
    neighbours: int = 40
    normalisation: Literal["scan", "mn40"] = "mn40"
    dropout: float = 0.5

    def problems(self) -> Iterator[str]:
        if self.neighbours < 1:
            yield f"neighbours: must be at least 1, got {self.neighbours}"
        if self.embed_dim < 3 or self.embed_dim % 3:
            yield f"embed_dim: must be a multiple of 3, got {self.embed_dim}"
        if not 0 <= self.dropout < 1:
            yield f"dropout: must be in [0, 1), got {self.dropout}"


class PointPN(nn.Module):
    """points (B, P, 3) -> logits (B, classes). The four stages have 477,432 parameters, with the head for 40 classes 768,544."""

    def __init__(self, config: PointPNConfig, num_classes: int, compat: str) -> None:
        super().__init__()
        width, scale = config.embed_dim, config.normalisation
        stages = StagesConfig("point_pn", config.neighbours, embed_dim=width, normalisation=scale, height=False)
        self.stages = Stages(stages, None, compat)
        self.head = classifier((8 * config.embed_dim, 512, 256), num_classes, config.dropout)

    def forward(self, points: Tensor) -> Tensor:
        tokens, _ = self.stages(points, points.shape[1] // 16)  # (B, P / 16, C)
        logits: Tensor = self.head(tokens.amax(dim=1) + tokens.mean(dim=1))
        return logits
