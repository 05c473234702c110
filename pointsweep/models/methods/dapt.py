"""DAPT: adapters with a learned scale for every token, whose mean becomes a further prompt, and
shifted features everywhere.

Source: Dynamic Adapter Meets Prompt Tuning (arXiv 2403.01439), sections 3.2-3.4; spec 5. Two things
are ours: the prompt is the mean over the tokens of GELU of the adapter's output, and it has a scale
and shift of its own, which meets the published count. Letters: B clouds, N tokens, C channels, S
prompts so far.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.config.methods import DAPTConfig
from pointsweep.models.backbones.base import Backbone, TransformerBlock
from pointsweep.models.layers import Dropout, insert_tokens, remove_tokens
from pointsweep.models.methods.base import Method
from pointsweep.models.methods.ssf import Shift, shift_norm, shift_outputs


class DynamicAdapter(nn.Module):
    """Dynamic adapter: tokens (B, N, C) -> what is added to them, and what a prompt is made of,
    both (B, N, C).
    """

    def __init__(self, config: DAPTConfig, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.down = nn.Linear(dim, config.bottleneck)
        self.up = nn.Linear(config.bottleneck, dim)
        self.dropout = Dropout(config.dropout)
        self.scale = nn.Linear(dim, 1) if config.dynamic_scale else None
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.gelu(self.down(self.norm(x)))
        output = self.up(self.dropout(hidden))
        added = output

        if self.scale is not None:
            added = output * F.relu(self.scale(x))

        return added, F.gelu(output)


class DAPT(Method):
    """DAPT. With Point-MAE and the two-layer head for 15 classes: 1,087,003 values. Head: class
    token, mean of the prompts, maximum.
    """

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        config: DAPTConfig = self.config
        if len(backbone.scale_starts) > 1 and config.prompts:
            raise ValueError(
                f"method.prompts: dapt's prompts walk through all blocks, {backbone.config.name}"
                " has scales; allowed: false"
            )

        self.prefix = prefix
        self.last = len(backbone.blocks) - 1
        self.extra_features = int(config.prompts)
        widths = backbone.widths
        self.adapters = nn.ModuleList(DynamicAdapter(config, w) for w in widths)

        if config.prompts:
            self.prompt_shifts = nn.ModuleList(Shift(width) for width in widths)

        if config.shifts:
            for block in backbone.blocks:
                assert isinstance(block, TransformerBlock)
                shift_outputs(block)
            shift_norm(backbone)

    def begin(
        self,
        index: int,
        tokens: Tensor,
        centers: Tensor,
        locations: Tensor | None,
        seen: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        return tokens, []

    def after_ffn(
        self, index: int, output: Tensor, inputs: Tensor, context: list[Tensor]
    ) -> Tensor:
        added, material = self.adapters[index](inputs)
        context.append(material)
        return output + added

    def after_block(self, index: int, tokens: Tensor, context: list[Tensor]) -> Tensor:
        material = context.pop()
        if not self.config.prompts:
            return tokens

        mean = material.mean(dim=1, keepdim=True)  # (B, 1, C)
        prompt = self.prompt_shifts[index](mean)
        return insert_tokens(tokens, prompt, at=self.prefix)

    def pool(self, tokens: Tensor, context: Any) -> tuple[Tensor, list[Tensor]]:
        if not self.config.prompts:
            return tokens, []

        num_prompts = self.last + 1
        end = self.prefix + num_prompts
        prompts = tokens[:, self.prefix : end].mean(dim=1)  # (B, C)

        return remove_tokens(tokens, num_prompts, at=self.prefix), [prompts]
