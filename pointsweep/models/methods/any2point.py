"""Any2Point: a guided adapter in every block, whose local aggregation follows the virtual
projection.

Source: Any2Point (arXiv 2404.07989), section 3 and its program; the order of operations is that of
spec 2.5, the switches those of spec 2.10. Where the paper leaves the features out of its equation
3, the weighted mean of the program is meant and followed.

Letters: B clouds, N tokens, C channels, M views, H heads. The per-view parameters of all views lie
in one tensor each, so that the views are computed together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.config.methods import Any2PointConfig
from pointsweep.models.backbones.base import Backbone, Plane
from pointsweep.models.batch_cache import cached
from pointsweep.models.layers import Bottleneck, DropPath, init_matrix
from pointsweep.models.methods.base import Method
from pointsweep.ops.point_ops import line_cells, plane_cells, voxel_ids
from pointsweep.ops.vmap import folded

FAR = -1e5  # added to the attention logit of two tokens that share no cell


@dataclass(frozen=True)
class Cells:
    """Cells of a grid: which tokens share one. `first` is the index of the first token of a token's
    cell, `share` 1 / the cell's size.
    """

    first: Tensor  # (B, M, N)
    share: Tensor  # (B, M, N)
    count: Tensor  # () cells of a view over the whole batch, empty ones included where they count

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the cell of every token: (B, M, N, C) -> (B, M, N, C)."""
        index = self.first.unsqueeze(-1).expand_as(values)
        zeros = torch.zeros_like(values)
        shares = values * self.share.unsqueeze(-1).to(values.dtype)
        sums = zeros.scatter_add(2, index, shares)

        return sums.gather(2, index)

    def max(self, values: Tensor) -> Tensor:
        """Maximum over the cell of every token: (B, M, N, C) -> (B, M, N, C)."""
        index = self.first.unsqueeze(-1).expand_as(values)
        tops = torch.zeros_like(values).scatter_reduce(
            2, index, values, "amax", include_self=False
        )

        return tops.gather(2, index)


def cells_of(ids: Tensor, count: int | None) -> Cells:
    """ids (B, M, N) -> Cells; `count` cells a sample and view, or None for the occupied ones
    alone.
    """
    same = ids.unsqueeze(3) == ids.unsqueeze(2)  # (B, M, N, N)
    share = 1.0 / same.sum(dim=3)
    first = same.int().argmax(dim=3)

    if count is None:
        return Cells(first, share, share.sum(dim=(0, 2)).amax())

    return Cells(first, share, share.new_full((), count * len(ids)))


class CellNorm(nn.BatchNorm1d):
    """Batch normalisation over the cells of each view, of values that stand at the tokens: (B, M,
    N, C) -> the same shape.

    Equal to BatchNorm over a tensor of all cells in which empty ones are zero, without that tensor:
    a token counts `share`.
    """

    def __init__(self, num_views: int, dim: int) -> None:
        super().__init__(num_views * dim)
        self.grid = (num_views, 1, dim)

    def forward(self, values: Tensor, cells: Cells) -> Tensor:  # type: ignore[override]
        if self.training:
            assert self.running_mean is not None
            # wider than bf16
            mean, var = self._statistics(values.to(self.running_mean.dtype), cells)
        else:
            mean, var = self.running_mean, self.running_var  # type: ignore[assignment]

        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return values * scale.reshape(self.grid) + shift.reshape(self.grid)

    def _statistics(self, values: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
        share = cells.share.unsqueeze(-1)  # (B, M, N, 1)
        mean = (values * share).sum(dim=(0, 2)) / cells.count  # (M, C)
        spread = ((values - mean.unsqueeze(1)).square() * share).sum(dim=(0, 2))
        empty = cells.count - cells.share.sum(dim=(0, 2)).unsqueeze(1)  # (M, 1)
        var = (spread + empty * mean.square()) / cells.count

        with torch.no_grad():
            unbiased = var * cells.count / (cells.count - 1).clamp(min=1)
            assert self.running_mean is not None
            assert self.running_var is not None
            # lerp_ has no batching rule
            lerp = partial(Tensor.lerp_, weight=self.momentum or 0.1)
            folded(lerp, self.running_mean, mean.flatten())
            folded(lerp, self.running_var, unbiased.flatten())

        return mean.flatten(), var.flatten()


class LocalAttention(nn.Module):
    """LA_j(LN_j(t)): self-attention among the tokens of a cell, one set of weights a view, shared
    by all blocks.
    """

    def __init__(self, config: Any2PointConfig, num_views: int, dim: int) -> None:
        super().__init__()
        middle = config.attn_dim
        self.num_heads = config.attn_heads
        self.num_views = num_views
        self.dim = dim
        self.norm_weight = nn.Parameter(torch.ones(num_views * dim))
        self.norm_bias = nn.Parameter(torch.zeros(num_views * dim))
        self.qkv_weight = nn.Parameter(torch.empty(num_views, dim, 3 * middle))
        self.qkv_bias = nn.Parameter(torch.zeros(num_views * 3 * middle))
        self.out_weight = nn.Parameter(torch.empty(num_views, middle, dim))
        self.out_bias = nn.Parameter(torch.zeros(num_views * dim))

        for view in range(num_views):
            init_matrix(self.qkv_weight[view], config.adapter_init)
            init_matrix(self.out_weight[view], config.adapter_init)

    def forward(self, tokens: Tensor, far: Tensor) -> Tensor:
        """tokens (B, N, C), far (B, M, 1, N, N) additive -> (B, M, N, C)."""
        grid = (self.num_views, 1, -1)
        x = F.layer_norm(tokens, (self.dim,)).unsqueeze(1)  # (B, 1, N, C)
        x = x * self.norm_weight.view(grid) + self.norm_bias.view(grid)  # (B, M, N, C)
        qkv = x @ self.qkv_weight + self.qkv_bias.view(grid)  # (B, M, N, 3 * middle)
        # (B, M, H, N, middle / H) each
        q, k, v = qkv.unflatten(3, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        # The program scales by the full middle width, not by that of a head.
        scale = self.out_weight.shape[1] ** -0.5
        weights = (q @ k.transpose(-2, -1) * scale + far).softmax(dim=-1)
        mixed = (weights @ v).transpose(2, 3).flatten(3)  # (B, M, N, middle)

        return mixed @ self.out_weight + self.out_bias.view(grid)


@dataclass(frozen=True)
class Neighbourhoods:
    """The context of one forward: cells of the views, the additive mask of their attention, and the
    voxels.
    """

    cells: Cells  # of (B, M, N)
    far: Tensor  # (B, M, 1, N, N)
    voxels: Cells  # of (B, 1, N)


class Any2Point(Method):
    """The guided adapter. Trained values at width 768, 12 blocks, beside the 279,744 of tokens and
    norm: spec 2.7.
    """

    # where every cell holds one token, queries and keys have nothing to choose from
    idle_parts = ("attention.qkv_weight",)
    compiled_aggregate: Callable[..., Tensor] | None = None  # see compilation.py

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        config: Any2PointConfig = self.config
        dim, depth = backbone.dim, len(backbone.blocks)
        self.prefix = prefix
        self.num_views = num_views
        self.plane = backbone.plane

        if config.adapter == "none":
            return

        self.bottlenecks = nn.ModuleList()
        for _ in range(depth):
            self.bottlenecks.append(Bottleneck(dim, config.bottleneck, config.dropout))

        # After all are made: the order of random draws is a part of a trial's numbers.
        for bottleneck in self.bottlenecks:
            assert isinstance(bottleneck, Bottleneck)
            bottleneck.start(config.adapter_init)

        if config.adapter == "mlp":
            return

        self.cell_norms = nn.ModuleList(CellNorm(num_views, dim) for _ in range(depth))
        if config.ensemble == "adaptive":
            self.voxel_norms = nn.ModuleList(CellNorm(1, dim) for _ in range(depth))

        if config.local_aggregation:
            self.attention = LocalAttention(config, num_views, dim)
            self.drop_paths = nn.ModuleList()
            for rate in backbone.drop_path_rates:
                drop_path = DropPath(rate)
                if self.program.drops_each_token:
                    drop_path.lead = 3  # a draw for every cloud, view and token

                self.drop_paths.append(drop_path)

    def begin(
        self,
        index: int,
        tokens: Tensor,
        centers: Tensor,
        locations: Tensor | None,
        seen: Any,
    ) -> tuple[Tensor, Neighbourhoods | None]:
        return tokens, self.geometry(centers, locations)

    def geometry(
        self, centers: Tensor, locations: Tensor | None
    ) -> Neighbourhoods | None:
        if self.config.adapter != "guided":
            return None

        config = self.config
        name = (
            "cells",
            self.num_views,
            self.plane,
            config.voxel_size,
            config.cell_size,
            config.local_space,
            config.bn_nonempty_only,
        )

        made_of = [centers] if locations is None else [centers, locations]

        return cached(made_of, name, self._neighbourhoods)

    def _neighbourhoods(
        self, centers: Tensor, locations: Tensor | None = None
    ) -> Neighbourhoods:
        voxel = voxel_ids(centers, self.config.voxel_size)
        voxels = cells_of(voxel.unsqueeze(1), None)
        if self.config.local_space == "3d":
            ids, count = voxel.unsqueeze(1).expand(-1, self.num_views, -1), None
        else:
            assert locations is not None
            assert self.plane is not None
            ids, count = source_cells(locations, self.plane, self.config.cell_size)

        cells = cells_of(ids, None if self.config.bn_nonempty_only else count)
        far = torch.where(ids.unsqueeze(3) == ids.unsqueeze(2), 0.0, FAR).unsqueeze(2)
        return Neighbourhoods(cells, far, voxels)

    def after_ffn(
        self, index: int, output: Tensor, inputs: Tensor, context: Neighbourhoods | None
    ) -> Tensor:
        if self.config.adapter == "none":
            return output
        return output + self.config.scale_factor * self.bottlenecks[index](output)

    def after_block(
        self, index: int, tokens: Tensor, context: Neighbourhoods | None
    ) -> Tensor:
        if context is None:
            return tokens

        own_layers = []
        for name in ("drop_paths", "cell_norms", "voxel_norms"):
            layers: Any = getattr(self, name, None)
            own_layers.append(None if layers is None else layers[index])

        aggregate = self.compiled_aggregate or self.aggregate
        return aggregate(tokens, context, *own_layers)

    def aggregate(
        self,
        tokens: Tensor,
        context: Neighbourhoods,
        drop_path: Any,
        cell_norm: Any,
        voxel_norm: Any,
    ) -> Tensor:
        """`after_block` with the block's own layers. It is the same for all blocks, so that it is
        compiled once (compilation.py).
        """
        classes, t = tokens[:, : self.prefix], tokens[:, self.prefix :]  # (B, N, C)
        y = t.unsqueeze(1)  # (B, 1, N, C)

        if self.config.local_aggregation:
            y = y + drop_path(self.attention(t, context.far))  # (B, M, N, C)

        y = y.expand(-1, self.num_views, -1, -1)
        pooled = context.cells.mean(y)
        if self.config.cell_pooling == "mean_max":
            pooled = pooled + context.cells.max(y)

        views = F.gelu(cell_norm(pooled, context.cells))  # (B, M, N, C)
        ensemble = self._ensemble(voxel_norm, views, t, context)  # (B, N, C)
        return torch.cat([classes, t + self.config.coef_pro * ensemble], dim=1)

    def _ensemble(
        self, voxel_norm: Any, views: Tensor, t: Tensor, context: Neighbourhoods
    ) -> Tensor:
        """views (B, M, N, C) -> (B, N, C)."""
        if self.config.ensemble == "mean":
            return views.mean(dim=1)
        if self.config.ensemble == "maxmean":
            return views.amax(dim=1) + views.mean(dim=1)

        t = t.unsqueeze(1)
        pooled = context.voxels.max(t) + context.voxels.mean(t)
        guide = F.gelu(voxel_norm(pooled, context.voxels))  # (B, 1, N, C)
        weights = (F.cosine_similarity(views, guide, dim=3) + 1) / 2  # (B, M, N)
        weights = weights / weights.sum(dim=1, keepdim=True)

        return (weights.unsqueeze(3) * views).sum(dim=1)


def source_cells(
    locations: Tensor, plane: Plane, cell_size: float | None
) -> tuple[Tensor, int]:
    """Cell ids (B, M, N) of places on a line or plane, and the number of cells of one view."""
    size = cell_size or plane.cell
    if plane.height == 1:
        return line_cells(locations, size, plane.width)

    return plane_cells(locations, size, (plane.width, plane.height))
