"""The positional encoding that every method shares: the source backbone's own encodings at
projected locations, or an alternative.

Source: Any2Point (arXiv 2404.07989), equations 1-2 and Table 4; spec 2.1-2.4, 2.10. Letters: B
clouds, N tokens, C channels, M views.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pointsweep.config.parts import PositionsConfig
from pointsweep.models.backbones.base import Backbone
from pointsweep.models.batch_cache import cached
from pointsweep.models.layers import drawn
from pointsweep.ops.point_ops import (
    project_lines,
    project_planes,
    rotations,
    uniform_lines,
    view_lines,
)


class Positions(nn.Module):
    """centers (B, N, 3) -> places on the virtual lines or planes of the backbone, and encodings (B,
    N, C).

    Places are in the units of `backbone.plane`: (B, M, N) on a line, pixels (B, M, N, 2) on a
    plane. Raises ValueError for `view_set: uniform` on a plane, which has no such views.
    """

    views: Tensor
    table: Tensor

    def __init__(
        self, config: PositionsConfig, backbone: Backbone, num_tokens: int, compat: str
    ) -> None:
        super().__init__()
        self.config = config
        self.plane = backbone.plane
        self.compat = compat
        self.scrambled = (
            compat == "official" if config.scrambled is None else config.scrambled
        )
        self.encode = backbone.positions_at
        self.bias = backbone.attention_bias

        if (
            config.kind in ("learnable", "sinusoidal")
            and len(backbone.scale_starts) > 1
        ):
            raise ValueError(
                f"positions.kind: {config.kind} needs one scale, {backbone.config.name} has"
                " several; allowed: virtual, none"
            )

        self.at_start = config.injection in ("once", "twice_then_each")
        self.at_every_block = config.injection in ("each_block", "twice_then_each")
        self.register_buffer("views", self._views(), persistent=False)

        if config.kind == "learnable":
            self.table = nn.Parameter(
                drawn(config.init_std, 1, num_tokens, backbone.dim)
            )
        elif config.kind == "sinusoidal":
            self.register_buffer(
                "table",
                sine_table(num_tokens, backbone.dim).unsqueeze(0),
                persistent=False,
            )

    def _views(self) -> Tensor:
        """Directions (M, 3) of the lines, or matrices (M, 3, 3) of the planes' views."""
        config = self.config
        if self.plane is None:
            return torch.empty(0)

        # Views are constants: they are made on the CPU even while a model is built on the meta
        # device.
        with torch.device("cpu"):
            if self.plane.height > 1:
                if config.view_set == "uniform":
                    raise ValueError(
                        "positions.view_set: uniform views exist on lines (1d backbones) only;"
                        " allowed here: pointclip"
                    )

                return rotations(config.num_views)

            if config.view_set == "uniform":
                return uniform_lines(config.num_views)

            return view_lines(config.num_views, torch.tensor(config.line))

    def project(self, centers: Tensor) -> Tensor | None:
        """Return where the centres fall on each view; None on a 3d backbone."""
        if self.plane is None:
            return None

        name = ("projected", self.config, self.plane, self.compat)
        return cached([centers], name, self._project)

    def _project(self, centers: Tensor) -> Tensor:
        assert self.plane is not None
        if self.plane.height == 1:
            return project_lines(centers, self.views, self.plane.width, self.compat)

        size = (self.plane.width, self.plane.height)
        stretch = 1.0
        if self.compat == "official":
            # The published program for audio stretches y twice (T13).
            stretch = self.plane.height / self.plane.width

        return project_planes(
            centers,
            self.views,
            translation=self.config.translation,
            size=size,
            stretch=stretch,
        )

    def attention_bias(
        self, index: int, centers: Tensor, projected: Tensor | None
    ) -> Any:
        """Return what the backbone adds to the attention logits of the scale that begins at block
        `index`, (B, H or 1, N, N).

        On a line it is T5's positional encoding, so it is there with `virtual` only; on a 3d
        backbone it belongs to the attention.
        """
        if self.plane is None or self.config.kind == "virtual":
            return self.bias(index, centers, projected)

        return None

    def forward(
        self, centers: Tensor, projected: Tensor | None, index: int = 0
    ) -> Tensor | None:
        """Encodings (B, N, C) for the scale that begins at block `index`, averaged over the views;
        None without any.
        """
        if self.config.kind == "none":
            return None
        if self.config.kind in ("learnable", "sinusoidal"):
            return self.table.expand(len(centers), -1, -1)
        if projected is None or self.plane is None:
            return self.encode(index, centers)

        if self.plane.height == 1 and self.compat == "official":
            encodings = self._official_line(index, projected)
        elif self.plane.height == 1:
            # [0, length) on the line to [0, length - 1] in the table, by a constant and not by the
            # batch's extremes (T5).
            position = projected * (self.plane.width - 1) / self.plane.width
            encodings = self.encode(index, position)
        else:
            encodings = self.encode(index, projected)
            if encodings is not None and self.scrambled:
                # The program has (C, N) a view and reshapes it to (N, C) where it should transpose
                # (T41).
                encodings = encodings.transpose(2, 3).reshape(encodings.shape)

        if encodings is None:
            return None

        return encodings.mean(dim=1)  # (B, M, N, C) -> (B, N, C)

    def _official_line(self, index: int, projected: Tensor) -> Tensor | None:
        """The published interpolation: stretched by the whole batch's extremes (T5), weights that
        vanish at whole numbers (T8).
        """
        assert self.plane is not None
        last = self.plane.width - 1
        position = projected * last / (projected.max() - projected.min())
        left = position.floor().clamp(0, last)
        right = position.ceil().clamp(0, last)
        at_left = self.encode(index, left)
        at_right = self.encode(index, right)

        if at_left is None or at_right is None:
            return None

        left_weight = (right - position).unsqueeze(-1)
        right_weight = (position - left).unsqueeze(-1)
        return left_weight * at_left + right_weight * at_right


def sine_table(length: int, dim: int) -> Tensor:
    """The usual table (length, dim) of sines and cosines, base 10000 (arXiv 1706.03762, section
    3.5).
    """
    rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angles = torch.arange(length).unsqueeze(1) * rates
    table = torch.zeros(length, dim)
    table[:, 0::2], table[:, 1::2] = angles.sin(), angles.cos()[:, : dim // 2]

    return table
