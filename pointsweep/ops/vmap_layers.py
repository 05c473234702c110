"""Layers of K members at once, on stacked tensors: what vmap would take apart into more operators,
before autocast has seen it.

A parameter that all members share comes expanded, without memory of its own for each.
Letters: K members, B clouds, C channels in, D out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def shared(tensor: Tensor | None) -> bool:
    """Return whether (K, ...) are the same values for all members."""
    return tensor is None or tensor.stride(0) == 0


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (K, ..., C), weight (K, D, C), bias (K, D) -> (K, ..., D)."""
    if shared(weight) and shared(bias):
        return F.linear(x, weight[0], None if bias is None else bias[0])

    rows = x.reshape(len(x), -1, x.shape[-1])
    across = weight.transpose(1, 2)
    if bias is None:
        output = torch.bmm(rows, across)
    else:
        output = torch.baddbmm(bias.unsqueeze(1), rows, across)

    return output.view(*x.shape[:-1], -1)


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *more: Any
) -> Tensor:
    """x (K, B, C, ...), weight (K, D, C, 1, ...), bias (K, D) -> (K, B, D, ...): a product;
    channels lie last in memory.
    """
    assert all(size == 1 for size in weight.shape[3:]), (
        "a kernel of 1 is what all of our layers have"
    )
    return linear(x.movedim(2, -1), weight.flatten(2), bias).movedim(-1, 2)


def batch_norm(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """x (K, B, C, ...), all others (K, C) -> x's shape: K C channels, each with the statistics of
    its own member.
    """
    channels = x.transpose(0, 1).flatten(1, 2)
    normed = F.batch_norm(
        channels,
        _flattened(mean),
        _flattened(var),
        _flattened(weight),
        _flattened(bias),
        **settings,
    )

    return normed.unflatten(1, (len(x), -1)).transpose(0, 1)


def _flattened(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.flatten()


def layer_norm(
    x: Tensor,
    shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """x (K, ..., C), weight and bias (K, C) -> x's shape."""
    if shared(weight) and shared(bias):
        return F.layer_norm(
            x,
            shape,
            None if weight is None else weight[0],
            None if bias is None else bias[0],
            eps,
        )

    normal = F.layer_norm(x, shape, eps=eps)
    grid = (
        len(x),
        *[1] * (x.dim() - 1 - len(shape)),
        *shape,
    )

    assert weight is not None
    assert bias is not None

    return torch.addcmul(bias.view(grid), normal, weight.view(grid)).to(normal.dtype)


def cosine_similarity(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """(K, ...) each; `dim`, not negative, is a member's."""
    return F.cosine_similarity(x, y, dim=dim + 1)


RULES: Mapping[Callable[..., Any], Callable[..., Tensor]] = {
    F.linear: linear,
    torch.conv1d: convolution,
    torch.conv2d: convolution,
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm,
    F.cosine_similarity: cosine_similarity,
}
