"""Tokens and positions of the 3D transformers: a small PointNet over each group of points, and an
MLP of centres.

Sources: Point-BERT (arXiv 2111.14819), section 3; Point-MAE (arXiv 2203.06604); Point-M2AE (arXiv
2205.14401), section 3.1; spec 1.4. Letters: B clouds, N tokens, K points of a group, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pointsweep.ops.linear import linear


class PatchEmbedding(nn.Module):
    """Embedding of groups (B, N, K, C_in) -> tokens (B, N, C_out): two layers a point, the group's
    maximum beside each point, two layers, maximum.

    While a pair of layers is frozen, its batch norm keeps the checkpoint's statistics, in training
    too. With `trains_norms` it takes the batch's statistics in training and updates its own, as in
    the released programs (T46).
    """

    trains_norms = False

    def __init__(self, first: tuple[int, int, int], second: tuple[int, int]) -> None:
        super().__init__()
        self.first_conv = _two_layers(*first)
        self.second_conv = _two_layers(2 * first[2], *second)

    def train(self, mode: bool = True) -> PatchEmbedding:
        parts = (self.first_conv, self.second_conv)
        trains = []
        for part in parts:
            is_trained = any(parameter.requires_grad for parameter in part.parameters())
            trains.append(self.trains_norms or is_trained)

        super().train(mode and any(trains))
        for part, part_trains in zip(parts, trains, strict=True):
            part.train(mode and part_trains)

        return self

    def keep_statistics(self, kept: bool = True) -> None:
        """Set whether the statistics stay the checkpoint's while the embedding is frozen."""
        self.trains_norms = not kept

    def forward(self, groups: Tensor) -> Tensor:
        size = groups.shape[2]
        first: Any = self.first_conv
        second: Any = self.second_conv
        points = _behind(first, _convolved(groups.flatten(0, 2), first[0]))
        largest = points.unflatten(0, (-1, size)).amax(dim=1)  # (B N, C)

        # A product with (maximum, point) is the sum of one with each, and that of the maximum is
        # the same for all points of a group.
        weight = second[0].weight.squeeze(2)
        of_largest, of_points = weight.split(points.shape[1], dim=1)
        mixed = linear(points, of_points).unflatten(0, (-1, size))
        mixed = mixed + linear(largest, of_largest, second[0].bias).unsqueeze(1)

        points = _behind(second, mixed.flatten(0, 1))
        tokens = points.unflatten(0, (-1, size)).amax(dim=1)  # (B N, C_out)
        return tokens.unflatten(0, groups.shape[:2])


def _convolved(rows: Tensor, layer: nn.Conv1d) -> Tensor:
    """A convolution of width 1 of rows (R, C) -> (R, D)."""
    return linear(rows, layer.weight.squeeze(2), layer.bias)


def _behind(layers: Any, rows: Tensor) -> Tensor:
    """Apply all but the first of `_two_layers` to rows (R, C) -> (R, D)."""
    _, norm, relu, last = layers
    return _convolved(relu(norm(rows)), last)


def _two_layers(dim_in: int, middle: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(dim_in, middle, 1),
        nn.BatchNorm1d(middle),
        nn.ReLU(),
        nn.Conv1d(middle, dim_out, 1),
    )


def place_mlp(middle: int, dim: int) -> nn.Sequential:
    """Centres (..., 3) -> encodings (..., dim)."""
    return nn.Sequential(nn.Linear(3, middle), nn.GELU(), nn.Linear(middle, dim))


class Stem(nn.Module):
    """Embeddings of groups (`patches`) and of centres (`places`), one of each per scale. `reduce`
    maps Point-BERT's wider tokens to the width of its blocks.
    """

    def __init__(
        self,
        patches: list[PatchEmbedding],
        places: list[nn.Sequential],
        reduce: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.patches = nn.ModuleList(patches)
        self.places = nn.ModuleList(places)
        self.reduce = reduce or nn.Identity()


def body_of(
    state: Mapping[str, Tensor], prefixes: tuple[str, ...]
) -> dict[str, Tensor]:
    """The encoder's tensors of a training checkpoint: those below the first prefix found, without
    it; else all of them.

    Raises nothing: what is left over is reported by the strict loading.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    for prefix in prefixes:
        if any(name.startswith(prefix) for name in state):
            body = {}
            for name, tensor in state.items():
                if name.startswith(prefix):
                    body[name.removeprefix(prefix)] = tensor

            return body

    return dict(state)


PLACES = {  # names of the position MLP in the files of Point-BERT's family
    "pos_embed.0.weight": "stem.places.0.0.weight",
    "pos_embed.0.bias": "stem.places.0.0.bias",
    "pos_embed.2.weight": "stem.places.0.2.weight",
    "pos_embed.2.bias": "stem.places.0.2.bias",
}


def with_stem(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename: what these files call `encoder` is the embedding of the groups."""
    renamed = {}
    for name, tensor in state.items():
        renamed[re.sub(r"^encoder\.", "stem.patches.0.", name)] = tensor

    return renamed
