"""Any2Point's layers as the public program has them: what the GPU rows compare with.

Source: the program of Any2Point (arXiv 2404.07989), written anew. Letters: B clouds, N tokens, C
channels, M views, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.sweep import plain_farthest_points
from pointsweep.models import tokenizers
from pointsweep.models.methods import any2point
from pointsweep.models.methods.any2point import Any2Point, Neighbourhoods
from pointsweep.ops import linear
from pointsweep.ops.cells import Cells
from pointsweep.training import prefetch as ahead


def looped_after_block(
    self: Any2Point, index: int, tokens: Tensor, context: Neighbourhoods | None
) -> Tensor:
    """`Any2Point.after_block` as the public program has it: one view after the other. The same
    numbers but for rounding.
    """
    assert context is not None
    classes, t = tokens[:, : self.prefix], tokens[:, self.prefix :]
    views = [_one_view(self, index, view, t, context) for view in range(self.num_views)]
    together = torch.stack(views, dim=1)  # (B, M, N, C)

    ensemble = _ensemble(self.voxel_norms[index], together, t, context)
    return torch.cat([classes, t + self.config.coef_pro * ensemble], dim=1)


def _ensemble(
    voxel_norm: Any, views: Tensor, t: Tensor, context: Neighbourhoods
) -> Tensor:
    """views (B, M, N, C), t (B, N, C) -> (B, N, C)."""
    t = t.unsqueeze(1)
    pooled = context.voxels.max(t) + _mean(t, context.voxels)
    guide = nn.functional.gelu(voxel_norm(pooled, context.voxels))  # (B, 1, N, C)
    weights = (nn.functional.cosine_similarity(views, guide, dim=3) + 1) / 2
    weights = weights / weights.sum(dim=1, keepdim=True)  # (B, M, N)

    return (weights.unsqueeze(3) * views).sum(dim=1)


def _mean(values: Tensor, cells: Cells) -> Tensor:
    """Mean over the cell of every token, by sums at its first one: (B, M, N, C) -> the same."""
    index = cells.first.unsqueeze(-1).expand_as(values)
    shares = values * cells.share.unsqueeze(-1)
    return torch.zeros_like(values).scatter_add(2, index, shares).gather(2, index)


def _one_view(
    method: Any2Point, index: int, view: int, t: Tensor, context: Neighbourhoods
) -> Tensor:
    """(B, N, C) -> (B, N, C)."""
    attention, heads, y = method.attention, method.attention.num_heads, t
    part = slice(view, view + 1)
    rows = slice(view * attention.dim, (view + 1) * attention.dim)
    x = nn.functional.layer_norm(
        t, (attention.dim,), attention.norm_weight[rows], attention.norm_bias[rows]
    )
    qkv = (
        x @ attention.qkv_weight[view]
        + attention.qkv_bias.view(method.num_views, -1)[view]
    )

    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(
        2, 0, 3, 1, 4
    )  # (B, H, N, middle / H) each
    weights = (
        q @ k.transpose(-2, -1) * attention.out_weight.shape[1] ** -0.5
        + context.far[:, view]
    ).softmax(dim=-1)

    y = (
        t
        + (weights @ v).transpose(1, 2).flatten(2) @ attention.out_weight[view]
        + attention.out_bias[rows]
    )

    cells = Cells(
        context.cells.first[:, part],
        context.cells.share[:, part],
        context.cells.average[:, part],
        context.cells.count,
    )
    pooled = _mean(y.unsqueeze(1), cells)  # (B, 1, N, C)
    norm = method.cell_norms[index]
    # Running statistics of all views lie in one tensor: a single view's are computed and dropped.
    mean, var = any2point.cell_statistics(pooled.to(norm.bias.dtype), cells)
    scale = norm.weight[rows] * torch.rsqrt(var + norm.eps)

    return nn.functional.gelu(
        pooled * scale + (norm.bias[rows] - mean * scale)
    ).squeeze(1)


@contextmanager
def public_layers() -> Iterator[None]:
    """The tokenizer's stages as 1x1 convolutions, views in a loop, the usual loop of farthest
    points, torch's own products, and nothing made ahead, as in the public program.
    """
    before = Any2Point.after_block, tokenizers.farthest_points
    onednn, linear.ONEDNN = linear.ONEDNN, False
    by_rows = tokenizers.Stage.works_by_rows
    tokenizers.Stage.works_by_rows = lambda *_: False  # type: ignore[method-assign]
    any2point.Any2Point.after_block = looped_after_block  # type: ignore[method-assign]
    tokenizers.farthest_points = plain_farthest_points  # type: ignore[assignment]

    try:
        with in_the_step():
            yield
    finally:
        linear.ONEDNN = onednn
        any2point.Any2Point.after_block, tokenizers.farthest_points = before  # type: ignore[method-assign,assignment]
        tokenizers.Stage.works_by_rows = by_rows  # type: ignore[method-assign]


@contextmanager
def in_the_step() -> Iterator[None]:
    """No geometry ahead."""
    before, ahead.AHEAD_ON = ahead.AHEAD_ON, set()
    try:
        yield
    finally:
        ahead.AHEAD_ON = before
