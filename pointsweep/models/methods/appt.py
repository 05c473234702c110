"""APPT: the tokenizer's global vector as a prompt, a fresh copy of it in front of every block.

Source: APPT, the released demo (its paper's tables could not be read); spec 4. The tokenizer is
`point_pn`, the head `pool: mean_plus_max` over all tokens; the trained table of positions is
`positions: {kind: learnable, init_std: 0}`. `compat: official` takes the mean of the batch's first
cloud for every cloud (T3). Letters: B clouds, N tokens, C channels, S prompts so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointsweep.config.methods import APPTConfig
from pointsweep.models.backbones.base import Backbone
from pointsweep.models.layers import drawn, insert_tokens, remove_tokens
from pointsweep.models.methods.base import Method


@dataclass
class Prompts:
    """The context of one forward: the prompt (B, 1, C) that the next block gets, and how many stand
    in front of the tokens.
    """

    vector: Tensor
    count: int = 0


class APPT(Method):
    """APPT. With the ViT-B blocks: 3,421,251 values without the head, 3,369,792 of them the
    tokenizer's. A class token stays frozen.
    """

    trains_class_token = False

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        config: APPTConfig = self.config
        if len(backbone.scale_starts) > 1:
            raise ValueError(
                f"method: appt's prompts walk through all blocks, and {backbone.config.name} has"
                " scales"
            )

        self.prefix = prefix
        self.depth = min(config.prompt_depth, len(backbone.blocks))
        self.takes_first_mean = self.compat == "official"

        if config.position_feature:
            self.mix = nn.Linear(2, 1)

        if config.prompt_source == "none":
            self.depth = 0

        if config.prompt_source == "learnable":
            self.prompts = nn.Parameter(drawn(0.02, self.depth, backbone.dim))

        # The demo's norm is new: the checkpoint's is not loaded.
        for name, parameter in backbone.norm.named_parameters():
            nn.init.constant_(parameter, 1.0 if name == "weight" else 0.0)

    def observe(self, points: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        vector = summary(tokens)
        if self.config.position_feature:
            away = tokens - tokens.mean(dim=1, keepdim=True)
            tokens = tokens + self.mix(torch.stack([tokens, away], dim=-1)).squeeze(-1)

        return tokens, vector

    def begin(
        self,
        index: int,
        tokens: Tensor,
        centers: Tensor,
        locations: Tensor | None,
        seen: Any,
    ) -> tuple[Tensor, Prompts]:
        return tokens, Prompts(seen)

    def before_block(self, index: int, tokens: Tensor, context: Prompts) -> Tensor:
        if index >= self.depth:
            return tokens

        own = self.config.prompt_source == "learnable"
        prompt = (
            self.prompts[index].unsqueeze(0) if own else context.vector
        )  # (1, C) or (B, 1, C)
        start = self.prefix + context.count
        context.count += 1

        return insert_tokens(tokens, prompt, start)

    def after_block(self, index: int, tokens: Tensor, context: Prompts) -> Tensor:
        if index >= self.depth:
            return tokens

        newest = self.prefix + context.count - 1
        if self.config.prompt_update == "per_block":
            context.vector = summary(tokens[:, newest + 1 :])

        if not self.config.accumulate:
            context.count -= 1
            return remove_tokens(tokens, 1, at=newest)

        if index == self.depth - 1 and self.config.prompt_source == "shared":
            # The demo overwrites what became of the last prompt by the prompt.
            return insert_tokens(
                remove_tokens(tokens, 1, at=newest), context.vector, at=newest
            )

        return tokens


def summary(tokens: Tensor) -> Tensor:
    """tokens (B, N, C) -> maximum + mean, (B, 1, C)."""
    return tokens.amax(dim=1, keepdim=True) + tokens.mean(dim=1, keepdim=True)
