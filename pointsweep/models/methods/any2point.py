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
from pointsweep.models.layers import Bottleneck, DropPath, has_hooks, init_matrix
from pointsweep.models.methods.base import Method
from pointsweep.ops import view_ensemble
from pointsweep.ops.cells import Cells, cells_of
from pointsweep.ops.point_ops import line_cells, plane_cells, voxel_ids
from pointsweep.ops.vmap import folded, is_eager_on_cpu

FAR = -1e5  # added to the attention logit of two tokens that share no cell


class CellNorm(nn.BatchNorm1d):
    """Batch normalisation over the cells of each view, of values that stand at the tokens: (B, M,
    N, C) -> the same shape.

    Equal to BatchNorm over a tensor of all cells in which empty ones are zero, without that tensor:
    a token counts `share`.
    """

    def __init__(self, num_views: int, dim: int) -> None:
        super().__init__(num_views * dim)
        self.grid = (num_views, dim)

    def forward(self, values: Tensor, cells: Cells) -> Tensor:  # type: ignore[override]
        if self.training:
            assert self.running_mean is not None
            # wider than bf16
            mean, var = cell_statistics(values.to(self.running_mean.dtype), cells)
            self.record(mean, var, cells.count)
        else:
            mean, var = self.running()

        scale = self.by_view(self.weight) * torch.rsqrt(var + self.eps)
        shift = self.by_view(self.bias) - mean * scale
        return values * scale.unsqueeze(1) + shift.unsqueeze(1)

    def by_view(self, parameter: Tensor) -> Tensor:
        """(M C,) -> (M, C)."""
        return parameter.view(self.grid)

    def running(self) -> tuple[Tensor, Tensor]:
        """Return the running mean and variance (M, C)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        return self.by_view(self.running_mean), self.by_view(self.running_var)

    @torch.no_grad()
    def record(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Move the running statistics towards a batch's (M, C) of so many cells, with Bessel's
        correction.
        """
        assert self.running_mean is not None
        assert self.running_var is not None
        unbiased = var * count / (count - 1).clamp(min=1)
        assert self.momentum is not None
        # lerp_ has no batching rule
        lerp = partial(Tensor.lerp_, weight=self.momentum)
        folded(lerp, self.running_mean, mean.flatten())
        folded(lerp, self.running_var, unbiased.flatten())


def cell_statistics(values: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
    """Mean and variance (M, C) over the cells of each view, without Bessel's correction, of values
    (B, M, N, C) that are a cell's at each of its tokens.
    """
    share = cells.share.unsqueeze(-1)  # (B, M, N, 1)
    mean = (values * share).sum(dim=(0, 2)) / cells.count  # (M, C)
    spread = ((values - mean.unsqueeze(1)).square() * share).sum(dim=(0, 2))
    empty = cells.count - cells.share.sum(dim=(0, 2)).unsqueeze(1)  # (M, 1)

    return mean, (spread + empty * mean.square()) / cells.count


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
        """tokens (B, N, C), far (B, M, 1, N, N) additive -> what the heads mixed (B, M, N, E), in
        front of the last layer, `last`. E is `middle` and a one, which is multiplied by the bias.
        """
        # The norm's weight and bias are a view's, so they are worked into its first layer: tokens
        # are normalised and multiplied once for all views.
        weight = self.norm_weight.view(self.num_views, -1, 1) * self.qkv_weight
        bias = self.norm_bias.view(self.num_views, 1, -1) @ self.qkv_weight
        bias = bias.flatten() + self.qkv_bias
        x = F.layer_norm(tokens, (self.dim,))
        qkv = x @ weight.transpose(0, 1).flatten(1) + bias  # (B, N, M * 3 * middle)
        # (B, M, H, N, middle / H) each
        q, k, v = qkv.unflatten(2, (self.num_views, 3, self.num_heads, -1)).permute(
            3, 0, 2, 4, 1, 5
        )
        # The program scales by the full middle width, not by that of a head.
        scale = self.out_weight.shape[1] ** -0.5
        weights = ((q * scale) @ k.transpose(-2, -1) + far).softmax(dim=-1)
        mixed = (weights @ v).transpose(2, 3).flatten(3)  # (B, M, N, middle)

        return F.pad(mixed, (0, 1), value=1.0)

    def last(self) -> Tensor:
        """The last layer's weight and bias (M, E, C)."""
        bias = self.out_bias.view(self.num_views, 1, -1)
        return torch.cat([self.out_weight, bias], dim=1)


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
    parts_lack_gradient = ("attention.qkv_weight",)
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
            if num_views == 1:  # whose weight is one, whatever the voxels say
                names = [name for name, _ in self.voxel_norms.named_parameters()]
                self.lack_gradient = tuple(f"voxel_norms.{name}" for name in names)

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
        if self.config.local_aggregation:
            mixed = drop_path(self.attention(t, context.far))  # (B, M, N, E)
            last = self.attention.last()  # (M, E, C)
        else:  # no channels
            mixed = t.new_empty(len(t), self.num_views, t.shape[1], 0)
            last = t.new_empty(self.num_views, 0, t.shape[2])

        guide = None
        if self.config.ensemble == "adaptive":
            guide = self._guide(voxel_norm, t, context.voxels)

        if guide is not None and self._works_in_place(t, cell_norm):
            ensemble = in_place(t, mixed, last, guide, cell_norm, context.cells)
        else:
            pooled = self._pooled(t, mixed, last, context.cells)
            views = F.gelu(cell_norm(pooled, context.cells))  # (B, M, N, C)
            ensemble = self._ensemble(views, guide)  # (B, N, C)

        return torch.cat([classes, t + self.config.coef_pro * ensemble], dim=1)

    def _works_in_place(self, t: Tensor, cell_norm: CellNorm) -> bool:
        """Return whether `in_place` can stand for the plain layers."""
        if self.config.cell_pooling != "mean" or self.compiled_aggregate is not None:
            return False
        if has_hooks(cell_norm) or not is_eager_on_cpu(t):
            return False

        return cell_norm.training or not torch.is_grad_enabled()

    def _guide(self, voxel_norm: Any, t: Tensor, voxels: Cells) -> Tensor:
        """Make of each voxel's tokens what the views are weighed by (B, 1, N, C)."""
        t = t.unsqueeze(1)
        guide: Tensor = F.gelu(voxel_norm(voxels.max(t) + voxels.mean(t), voxels))
        return guide

    def _pooled(self, t: Tensor, mixed: Tensor, last: Tensor, cells: Cells) -> Tensor:
        """Aggregate the tokens of each cell, t + what the attention adds to them: (B, M, N, C).

        A mean of sums is the sum of means, and a layer's mean that of its input: E channels are
        averaged in place of C.
        """
        t = t.unsqueeze(1)
        pooled = cells.mean(t) + cells.mean(mixed) @ last
        if self.config.cell_pooling == "mean_max":
            pooled = pooled + cells.max(t + mixed @ last)

        return pooled

    def _ensemble(self, views: Tensor, guide: Tensor | None) -> Tensor:
        """views (B, M, N, C), guide (B, 1, N, C) -> (B, N, C)."""
        if guide is not None:
            weights = (cosine(views, guide) + 1) / 2  # (B, M, N)
            weights = weights / weights.sum(dim=1, keepdim=True)
            return (weights.unsqueeze(3) * views).sum(dim=1)

        if self.config.ensemble == "maxmean":
            return views.amax(dim=1) + views.mean(dim=1)

        return views.mean(dim=1)


def in_place(
    t: Tensor,
    mixed: Tensor,
    last: Tensor,
    guide: Tensor,
    cell_norm: CellNorm,
    cells: Cells,
) -> Tensor:
    """The adaptive ensemble (B, N, C) of means over cells, by `view_ensemble`."""
    norm = view_ensemble.Norm(
        cell_norm.by_view(cell_norm.weight),
        cell_norm.by_view(cell_norm.bias),
        cell_norm.eps,
    )
    inputs = (t, cells.mean(mixed), last, guide.squeeze(1), norm, cells)
    if not cell_norm.training:
        return view_ensemble.evaluation(*inputs, *cell_norm.running())

    ensemble, mean, variance = view_ensemble.training(*inputs)
    cell_norm.record(mean, variance, cells.count)
    return ensemble


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of the angle between vectors (..., C), which are broadcast -> (...).

    That of `F.cosine_similarity`, which divides both vectors by their lengths: here their product
    alone is divided.
    """
    products = (first * second).sum(dim=-1)
    lengths = [
        torch.linalg.vector_norm(side, dim=-1).clamp_min(1e-8)
        for side in (first, second)
    ]

    return products / (lengths[0] * lengths[1])


def source_cells(
    locations: Tensor, plane: Plane, cell_size: float | None
) -> tuple[Tensor, int]:
    """Cell ids (B, M, N) of places on a line or plane, and the number of cells of one view."""
    size = cell_size or plane.cell
    if plane.height == 1:
        return line_cells(locations, size, plane.width)

    return plane_cells(locations, size, (plane.width, plane.height))
