"""PPT: further groups of points become prompts, with encodings of their own centres, and three
bottlenecks work on tokens.

Source: Positional Prompt Tuning for Efficient 3D Representation Learning (arXiv 2408.11567) and its
program (github.com/zsc000722/PPT, models/PPT.py, read in November 2026). The prompts come from the
backbone's own embedding of groups around farthest points. Before every block a bottleneck acts on
the points' tokens and another on the prompts, each added to what it reads; a third reads the stream
between attention and feed-forward branch and is added behind the latter. The three are the same for
all blocks, and start from truncated normals of 0.02. The head takes the class token, the mean of
the points' tokens and the mean of the prompts. Trained beside them: the MLP of positions, and the
first layers of the embedding; the final norm is frozen (inferred: the program leaves that to its
reader, and with these the count is the 1.04M that papers print). Here a prompt's encoding is added
before every block, as the program does, whatever `positions.injection` says; the embedding's second
norm, which is frozen, keeps the checkpoint's statistics (there: they move); the program's head has
GELU in the place of ReLU. Letters: B clouds, N tokens, C channels, S prompts, K points of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointsweep.models.backbones.base import Backbone, Block
from pointsweep.models.backbones.patch_embedding import Stem
from pointsweep.models.layers import init_matrix, insert_tokens
from pointsweep.models.methods.base import Method
from pointsweep.models.tokenizers import neighbourhoods

TRAINED = ("stem.patches.0.first_conv.", "stem.places.0.")


@dataclass
class Prompts:
    """Prompts of one forward: the prompts and their encodings (B, S, C), and what the
    running block adds.
    """

    tokens: Tensor
    encoding: Tensor
    added: Tensor | None = None


class PPT(Method):
    """PPT. With Point-MAE and a two-layer head over three features for 15 classes: 1,042,191
    values.
    """

    extra_features = 1
    works_between = True

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        if len(backbone.scale_starts) > 1 or not prefix:
            raise ValueError(
                "method: ppt's prompts walk through all blocks beside a class token;"
                f" {backbone.config.name} has scales"
            )

        own_blocks = all(isinstance(block, Block) for block in backbone.blocks)
        if not isinstance(backbone.stem, Stem) or not own_blocks:
            raise ValueError(
                "method: ppt thaws a part of the embedding of a 3d checkpoint (point_mae, ...);"
                f" {backbone.config.name} has none"
            )

        self.prefix = prefix
        self.stem = backbone.stem
        width = self.config.bottleneck
        self.on_points = _bottleneck(backbone.dim, width)
        self.on_prompts = _bottleneck(backbone.dim, width)
        self.beside = _bottleneck(backbone.dim, width)
        self.stem.patches[0].first_conv.requires_grad_(True)  # type: ignore[union-attr]
        self.stem.places[0].requires_grad_(True)
        backbone.norm.requires_grad_(False)

    def thaws(self, name: str) -> bool:
        return name.startswith(TRAINED)

    def observe(self, points: Tensor, tokens: Tensor) -> tuple[Tensor, Prompts]:
        most = points.shape[1]
        count = min(self.config.num_prompts, most)
        near = min(self.config.prompt_neighbours, most)
        # (B, S, 3), (B, S, K, 3)
        _, [(centers, _, relative)] = neighbourhoods(points, [count], near)
        prompts = self.stem.reduce(self.stem.patches[0](relative))

        return tokens, Prompts(prompts, self.stem.places[0](centers))

    def begin(
        self,
        index: int,
        tokens: Tensor,
        centers: Tensor,
        locations: Tensor | None,
        seen: Prompts,
    ) -> tuple[Tensor, Prompts]:
        # (B, prefix + S + N, C)
        with_prompts = insert_tokens(tokens, seen.tokens, at=self.prefix)
        return with_prompts, seen

    def before_block(self, index: int, tokens: Tensor, context: Prompts) -> Tensor:
        end = self._end(context)
        prompts = tokens[:, self.prefix : end] + context.encoding
        points = tokens[:, end:]
        prompts = prompts + self.on_prompts(prompts)
        points = points + self.on_points(points)

        return torch.cat([tokens[:, : self.prefix], prompts, points], dim=1)

    def after_attention(self, index: int, tokens: Tensor, context: Prompts) -> Tensor:
        context.added = self.beside(tokens)
        return tokens

    def after_ffn(
        self, index: int, output: Tensor, inputs: Tensor, context: Prompts
    ) -> Tensor:
        assert context.added is not None
        added = context.added
        context.added = None
        return output + added

    def pool(self, tokens: Tensor, context: Prompts) -> tuple[Tensor, list[Tensor]]:
        end = self._end(context)
        prompts = tokens[:, self.prefix : end].mean(dim=1)  # (B, C)
        # The mean stands for the points' tokens: of one token alone the head's maximum is the
        # token.
        points = tokens[:, end:].mean(dim=1, keepdim=True)  # (B, 1, C)
        return torch.cat([tokens[:, : self.prefix], points], dim=1), [prompts]

    def _end(self, context: Any) -> int:
        """Return where the prompts end, which stand behind the class token."""
        return self.prefix + int(context.tokens.shape[1])


def _bottleneck(dim: int, width: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, dim))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            init_matrix(layer.weight, "trunc_normal")
            nn.init.zeros_(layer.bias)

    return layers
