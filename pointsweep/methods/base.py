"""What a method is: six hooks, each of which does nothing by default (design.md, section 4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from pointsweep.backbones.base import Backbone
from pointsweep.config import MethodConfig


class Method(nn.Module):
    """Inserted into, or thawing parts of, a frozen backbone. Its own parameters are trained.

    Letters: B clouds, N tokens, C channels, M views. `prefix` tokens (the class token) stand before the N point tokens.
    """

    def __init__(self, config: MethodConfig) -> None:
        super().__init__()
        self.config: Any = config

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        """Once: make own parameters; thaw (`requires_grad_`) or wrap parts of the frozen backbone."""

    def prepare(self, model: nn.Module, batches: Iterable[Tensor]) -> None:
        """Once before training, without gradient, over batches of training clouds (B, P, 3)."""

    def begin(self, tokens: Tensor, centers: Tensor, places: Tensor | None) -> tuple[Tensor, Any]:
        """Once per forward: tokens (B, prefix + N, C), centers (B, N, 3), places (B, M, N) or (B, M, N, 2), None on 3d.

        Returns the tokens and a context that the other hooks get; nothing of a batch is kept on `self`.
        """
        return tokens, None

    def before_block(self, index: int, tokens: Tensor, context: Any) -> Tensor:
        """The tokens as block `index` shall see them."""
        return tokens

    def after_ffn(self, index: int, output: Tensor, context: Any) -> Tensor:
        """The feed-forward branch (B, tokens, C) of block `index`, before the residual sum."""
        return output

    def after_block(self, index: int, tokens: Tensor, context: Any) -> Tensor:
        """The tokens after block `index`, (B, prefix + N, C) again."""
        return tokens
