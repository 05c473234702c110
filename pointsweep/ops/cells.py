"""Cells of a grid: which tokens share one, and what is common to those that do.

Letters: B clouds, M views, N tokens, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cells:
    """Tokens by the cells that they lie in. `first` is the index of the first token of a token's
    cell, `share` is 1 / the number of tokens in the cell, `average` is that share for two tokens of
    one cell and 0 for others.
    """

    first: Tensor  # (B, M, N)
    share: Tensor  # (B, M, N)
    average: Tensor  # (B, M, N, N)
    count: Tensor  # () cells of a view in the whole batch; with the empty ones, see `cells_of`

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the cell of every token: (B, M or 1, N, C) -> (B, M, N, C)."""
        average = self.average.to(values.dtype)
        if values.shape[1] == 1:  # one product of a cloud for all views
            means = average.flatten(1, 2) @ values.squeeze(1)
            return means.unflatten(1, average.shape[1:3])

        return average @ values

    def max(self, values: Tensor) -> Tensor:
        """Maximum over the cell of every token: (B, M, N, C) -> (B, M, N, C)."""
        index = self.first.unsqueeze(-1).expand_as(values)
        tops = torch.zeros_like(values).scatter_reduce(
            2, index, values, "amax", include_self=False
        )

        return tops.gather(2, index)


def cells_of(ids: Tensor, count: int | None) -> Cells:
    """Cells of tokens with the cell ids (B, M, N). `count` is the number of cells of a cloud and
    view, the empty ones included; None counts the occupied ones alone.
    """
    same = ids.unsqueeze(3) == ids.unsqueeze(2)  # (B, M, N, N)
    share = 1.0 / same.sum(dim=3)
    average = same * share.unsqueeze(3)
    first = same.int().argmax(dim=3)

    if count is None:
        return Cells(first, share, average, share.sum(dim=(0, 2)).amax())

    return Cells(first, share, average, share.new_full((), count * len(ids)))
