"""Point-PEFT's parts: the local stage of its geometry-aware adapter, its zero-gated prompts, and
the frozen encoder of its bank.

Source: Point-PEFT (arXiv 2310.03059) and its program; spec 3.2-3.4. Letters: B clouds, N tokens, C
channels, S prompts, G groups, K neighbours, H heads.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.models.backbones.base import Attention, Backbone
from pointsweep.models.layers import insert_tokens
from pointsweep.ops.point_ops import farthest_points, gather, nearest

HEADS, HEAD_DIM = 6, 3


@dataclass(frozen=True)
class Groups:
    """Groups of one forward: which values are in a group and its centre, and how much of each group
    goes back to each token.
    """

    near: Tensor  # (B, G, K) into the values
    centers: Tensor  # (B, G)
    back: Tensor  # (B, N, G)


class LocalStage(nn.Module):
    """Attention among the members of each group, pooled, and propagated back to all tokens; shared
    by the blocks of a scale (3.3).
    """

    def __init__(self, dim: int, mean_too: bool, center_scale: float) -> None:
        super().__init__()
        self.mean_too = mean_too
        self.center_scale = center_scale
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * HEADS * HEAD_DIM, bias=False)
        self.out = nn.Linear(HEADS * HEAD_DIM, dim)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @staticmethod
    def groups(
        xyz: Tensor,
        tokens_at: Tensor,
        count: int,
        neighbours: int,
        skip_near_origin: bool = False,
    ) -> Groups:
        """Group values at `xyz` (B, n, 3) for tokens at (B, N, 3). A gradient flows through
        `back` alone.
        """
        count = min(count, xyz.shape[1])
        chosen = farthest_points(xyz.detach(), count, skip_near_origin)  # (B, G)
        centers = gather(xyz, chosen)
        near = nearest(centers.detach(), xyz.detach(), min(neighbours, xyz.shape[1]))
        # (B, N, G)
        closeness = 1 / (
            (tokens_at.unsqueeze(2) - centers.unsqueeze(1)).square().sum(dim=3) + 1e-8
        )

        return Groups(near, chosen, closeness / closeness.sum(dim=2, keepdim=True))

    def forward(
        self,
        values: Tensor,
        groups: Groups,
        norm: nn.Module,
        stride: int | None,
        drop_path: nn.Module,
    ) -> Tensor:
        """values (B, n, C) -> (B, N, C). With a `stride` shorter than n the indices meet other
        values, of other clouds too (T2).
        """
        members = self._look_up(values, groups.near, stride)  # (B, G, K, C)
        members = members + drop_path(self._attend(self.norm(members)))
        pooled = members.amax(dim=2)

        if self.mean_too:
            pooled = pooled + members.mean(dim=2)

        pooled = F.gelu(norm(pooled.flatten(0, 1))).unflatten(0, pooled.shape[:2])
        of_centers = self._look_up(values, groups.centers, stride)  # (B, G, C)
        pooled = pooled + self.center_scale * of_centers

        return groups.back @ pooled

    @staticmethod
    def _look_up(values: Tensor, index: Tensor, stride: int | None) -> Tensor:
        if stride is None:
            return gather(values, index)

        clouds = torch.arange(len(values), device=values.device)
        offsets = stride * clouds.view(-1, *[1] * (index.dim() - 1))
        return values.flatten(0, 1)[index + offsets]

    def _attend(self, x: Tensor) -> Tensor:
        """x (B, G, K, C) -> (B, G, K, C)."""
        qkv = self.qkv(x).unflatten(3, (3, HEADS, HEAD_DIM))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # (B, G, H, K, 3) each
        scale = (
            HEADS * HEAD_DIM
        ) ** -0.5  # as in the program, by the width of all heads
        weights = (q @ k.transpose(-2, -1) * scale).softmax(dim=-1)
        mixed: Tensor = self.out((weights @ v).transpose(2, 3).flatten(3))

        return mixed


class GatedPrompts(nn.Module):
    """Attention that lets the tokens look at the prompts beside them through gates that start shut
    (3.4).

    The prompts stand behind the class token and give keys and values only; a softmax is taken of a
    softmax, as in the program (T29).
    """

    def __init__(self, attention: Attention, prefix: int, num_prompts: int) -> None:
        super().__init__()
        self.attention = attention
        self.prefix = prefix
        self.num_prompts = num_prompts
        self.gate = nn.Parameter(torch.zeros(attention.num_heads, 1, 1))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        end, frozen = self.prefix + self.num_prompts, self.attention
        prompts = x[:, self.prefix : end]
        tokens = torch.cat([x[:, : self.prefix], x[:, end:]], dim=1)
        # (B, H, T, C / H)
        q = frozen._heads(frozen.q(tokens))
        k = frozen._heads(frozen.k(tokens))
        v = frozen._heads(frozen.v(tokens))
        # (B, H, S, C / H)
        pk = frozen._heads(frozen.k(prompts))
        pv = frozen._heads(frozen.v(prompts))
        logits = q @ pk.transpose(-2, -1) * frozen.scale
        weights = logits.softmax(dim=-1).softmax(dim=-1)
        mixed = frozen._attend(q, k, v, bias) + self.gate * (weights @ pv)
        output = frozen.out(mixed.transpose(1, 2).flatten(2))  # (B, T, C)

        no_prompts = torch.zeros_like(prompts)

        return insert_tokens(output, no_prompts, at=self.prefix)


class AroundPrompts(nn.Module):
    """A frozen norm that leaves the prompts behind the class token as they are, as the released
    program does (T48).
    """

    def __init__(self, norm: nn.Module, prefix: int, num_prompts: int) -> None:
        super().__init__()
        self.norm = norm
        self.prefix = prefix
        self.num_prompts = num_prompts

    def forward(self, x: Tensor) -> Tensor:
        start, end = self.prefix, self.prefix + self.num_prompts
        normed: Tensor = self.norm(x)
        return torch.cat([normed[:, :start], x[:, start:end], normed[:, end:]], dim=1)


def frozen_copy(backbone: Backbone) -> Backbone:
    """The backbone as it was loaded, in eval mode; it shares the weights that stay frozen and has
    its own of what is tuned later.
    """
    shared: dict[int, nn.Parameter] = {}
    for name, parameter in backbone.named_parameters():
        is_tuned = name.endswith(".bias") or name.startswith("norm.")
        if not is_tuned:
            shared[id(parameter)] = parameter

    copied = copy.deepcopy(backbone, dict(shared))

    for patch in copied.stem.patches:
        patch.keep_statistics()

    for parameter in copied.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)

    return copied.eval()
