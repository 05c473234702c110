"""Layers of K members at once, on stacked tensors: what vmap would take apart into more operators,
before autocast has seen it.

A parameter that all members share comes expanded, without memory of its own for each.
Letters: K members, B clouds, C channels in, D out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    """x (K, B, C, ...), weight (K, D, C, 1, ...), bias (K, D) -> (K, B, D, ...): a product;
    channels lie last in memory. Only for calls of which `is_product` is true.
    """
    return linear(x.movedim(2, -1), weight.flatten(2), bias).movedim(-1, 2)


def is_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Return whether a convolution of one member, x (B, C, ...) and weight (D, C, 1, ...), is a
    product at every position: kernel and stride of 1, no padding, no groups.
    """
    if x.dim() != weight.dim() or groups != 1 or isinstance(padding, str):
        return False

    kernel = weight.shape[2:]
    return _all_equal(kernel, 1) and _all_equal(stride, 1) and _all_equal(padding, 0)


def _all_equal(numbers: Any, number: int) -> bool:
    """Return whether a number, or each of several, is this one."""
    if isinstance(numbers, int):
        return numbers == number

    return all(each == number for each in numbers)


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
    scale = weight.view(grid)
    if bias is None:
        return (normal * scale).to(normal.dtype)

    return torch.addcmul(bias.view(grid), normal, scale).to(normal.dtype)


RULES: Mapping[Callable[..., Any], Callable[..., Tensor]] = {
    F.linear: linear,
    torch.conv1d: convolution,
    torch.conv2d: convolution,
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm,
}


def rule_for(
    function: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any]
) -> Callable[..., Tensor] | None:
    """Return the function of all members that stands for a call of one; None where it is vmap's
    own.
    """
    rule = RULES.get(function)
    if rule is convolution and not is_product(*args, **named):
        return None

    return rule
