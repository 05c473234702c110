"""Call of a library's layer for tokens of ours: its mask, its positions, and all else that its
program hands to it.

Letters: B clouds, T tokens, N of them points, H heads, D channels of a rotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Arguments of layers that have to do with generating text, one token after the other: off.
OF_GENERATION = ("use_cache", "output_attentions", "output_hidden_states")
# Kinds of masks: none, numbers to be added, true where a token may look, true where it may not.
MASKS = ("none", "added", "attend", "masked")
# How positions reach a layer, if not in the tokens: rotations of queries and keys, biases on the
# attention logits.
ROTARY, GRID_ROTARY, RELATIVE, ALIBI, UNPLACED = (
    "rotary",
    "rotary on a grid",
    "relative",
    "ALiBi",
    "unplaced",
)


@dataclass(frozen=True, eq=False)
class LayerCall:
    """Call of a layer: its arguments beside its tokens."""

    constants: Mapping[str, Any]
    mask_argument: str = ""
    mask_kind: str = "none"
    causal: bool = False
    positions: str = ""  # one of the kinds above; empty where none come into the layer
    position_argument: str = ""
    example: Any = None  # what the library's own program gave for it
    heads: int = 1
    spare_axis: bool = False  # rotations need an axis for the heads
    packed: bool = (
        False  # rotations of all tokens are one tensor, sines in front (timm)
    )

    def arguments(self, x: Tensor, bias: Any, variant: int = 0) -> dict[str, Any]:
        """For tokens x (B, T, C) whose last N are the points'.

        `bias`: rotations ((cos, sin) (B, N, D), ...), or (B, H, N, N) to be added to the logits;
        None: all at one place.
        """
        given = dict(self.constants)
        added = None

        if self.positions in (ROTARY, GRID_ROTARY):
            given[self.position_argument] = self._rotations(x, bias, variant)
        elif self.positions == RELATIVE:
            given[self.position_argument] = (
                _padded(bias, x) if bias is not None else self._no_bias(x)
            )
        elif self.positions == ALIBI:
            given[self.position_argument] = self._no_slopes(x)
            added = None if bias is None else _padded(bias, x)

        if self.mask_argument:
            given[self.mask_argument] = self._mask(x, added)

        for name, value in given.items():
            if callable(value) and not isinstance(value, (type, torch.nn.Module)):
                given[name] = value(x)

        return given

    def _rotations(self, x: Tensor, bias: Any, variant: int) -> Any:
        """Cosines and sines (B, T, D); tokens in front of the points' are not turned. On a grid
        transformers gives them none.
        """
        width = self.example[0].shape[-1]
        num_points = 0 if bias is None else bias[variant][0].shape[1]

        if self.positions == GRID_ROTARY and bias is not None and not self.packed:
            cosines, sines = (part.to(x.dtype) for part in bias[variant])
        else:
            front = x.shape[1] - num_points
            cosines = x.new_ones(len(x), front, width)
            sines = x.new_zeros(len(x), front, width)

            if bias is not None:
                cosines = torch.cat([cosines, bias[variant][0].to(x.dtype)], dim=1)
                sines = torch.cat([sines, bias[variant][1].to(x.dtype)], dim=1)

        if self.spare_axis:
            cosines, sines = cosines.unsqueeze(1), sines.unsqueeze(1)

        if self.packed:
            return torch.cat([sines, cosines], dim=-1)

        return (cosines, sines)

    def _no_bias(self, x: Tensor) -> Tensor:
        return x.new_zeros(1, self.heads, x.shape[1], x.shape[1])

    def _no_slopes(self, x: Tensor) -> Tensor:
        """No slopes: Bloom's (B * H, 1, T); MPT's (H, 1, length) is of any length."""
        if (
            self.example.shape[-1] > x.shape[1]
            and self.position_argument == "position_bias"
        ):
            return torch.zeros_like(self.example, dtype=x.dtype, device=x.device)

        return x.new_zeros(len(x) * self.heads, 1, x.shape[1])

    def _mask(self, x: Tensor, added: Tensor | None) -> Tensor | None:
        if self.mask_kind == "none" and added is None:
            return None

        num_tokens = x.shape[1]
        allowed = torch.ones(
            1, 1, num_tokens, num_tokens, dtype=torch.bool, device=x.device
        )
        if self.causal:
            allowed = allowed.tril()

        if self.mask_kind == "attend":
            return allowed
        if self.mask_kind == "masked":
            return ~allowed

        mask = x.new_zeros(1, 1, num_tokens, num_tokens).masked_fill(
            ~allowed, torch.finfo(x.dtype).min
        )
        if added is None:
            return mask

        return (mask + added.to(x.dtype)).clamp(min=torch.finfo(x.dtype).min)


def _padded(bias: Tensor, x: Tensor) -> Tensor:
    """A bias (B, H, N, N) among the last N tokens -> (B, H, T, T), zero for those in front."""
    front = x.shape[1] - bias.shape[-1]
    return F.pad(bias.to(x.dtype), (front, 0, front, 0))
