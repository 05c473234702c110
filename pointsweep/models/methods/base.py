"""Interface of a method: hooks, each of which does nothing by default (design.md, section 4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from pointsweep.config.methods import MethodConfig
from pointsweep.config.official import Program
from pointsweep.models.backbones.base import Backbone


class Method(nn.Module):
    """Inserted into, or thawing parts of, a frozen backbone. Its own parameters are trained.

    Letters: B clouds, N tokens, C channels, M views. `prefix` tokens (the class token) stand before
    the N point tokens.
    """

    extra_features = (
        0  # how many features (B, C) `pool` hands to the head beside the pooled tokens
    )
    trains_class_token = True  # that of the checkpoint; a new one trains always
    # own tensors of which parts have no gradient in the published program too
    parts_lack_gradient: tuple[str, ...] = ()
    # own tensors that no gradient reaches at all with these settings, in that program either
    lack_gradient: tuple[str, ...] = ()
    # what it adds to the blocks starts as the frozen weights say, alike for every seed
    starts_from_weights = False
    # `after_attention` is called; blocks that cannot call it are refused by `attach`
    works_between = False
    # the head takes the mean of the batch's first cloud for all: a published fault (T3)
    takes_first_mean = False

    def __init__(self, config: MethodConfig, compat: str = "fixed") -> None:
        super().__init__()
        self.config: Any = config
        self.compat = compat
        # of the model: what a released program does that no setting says
        self.program = Program()

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        """Make own parameters, once; thaw (`requires_grad_`) or wrap parts of the frozen
        backbone.
        """

    def thaws(self, name: str) -> bool:
        """Return whether `attach` lets this tensor of the frozen backbone train; a launch refuses
        any other that would.
        """
        return False

    def prepare(self, model: nn.Module, batches: Iterable[Tensor]) -> None:
        """Prepare once before training, without gradient, over batches of training clouds (B, P,
        3).
        """

    def observe(self, points: Tensor, tokens: Tensor) -> tuple[Tensor, Any]:
        """See, once per forward, the clouds (B, P, 3) and their tokens (B, N, C) as they come,
        without class token and positions.

        Returns the tokens, and what `begin` shall get as `seen`.
        """
        return tokens, None

    def begin(
        self,
        index: int,
        tokens: Tensor,
        centers: Tensor,
        locations: Tensor | None,
        seen: Any,
    ) -> tuple[Tensor, Any]:
        """Begin a scale, in front of its first block `index` (0 where there is one scale).

        tokens (B, prefix + N, C), centers (B, N, 3), places (B, M, N) or (B, M, N, 2), None on 3d.
        Returns the tokens and a context that the other hooks get; nothing of a batch is kept on
        `self`.
        """
        return tokens, None

    def geometry(self, centers: Tensor, locations: Tensor | None) -> Any:
        """Return what `begin` makes of the first scale's centres and places alone, for `once` to
        keep; on a GPU called one batch ahead.
        """

    def before_block(self, index: int, tokens: Tensor, context: Any) -> Tensor:
        """The tokens as block `index` shall see them."""
        return tokens

    def attention_bias(self, index: int, bias: Any) -> Any:
        """Return what block `index` adds to its attention's logits among the last of its tokens
        (`Backbone.attention_bias`); None where the backbone adds nothing.
        """
        return bias

    def after_attention(self, index: int, tokens: Tensor, context: Any) -> Tensor:
        """Return, where `works_between`, the tokens between the attention and the feed-forward
        branch of block `index`, as it shall go on.
        """
        return tokens

    def after_ffn(
        self, index: int, output: Tensor, inputs: Tensor, context: Any
    ) -> Tensor:
        """The feed-forward branch (B, tokens, C) of block `index` before the residual sum; `inputs`
        is what went into it.
        """
        return output

    def after_block(self, index: int, tokens: Tensor, context: Any) -> Tensor:
        """The tokens after block `index`, (B, prefix + N, C) again."""
        return tokens

    def pool(self, tokens: Tensor, context: Any) -> tuple[Tensor, list[Tensor]]:
        """Return what the head pools of the normed tokens after the last block, and
        `extra_features` features (B, C).
        """
        return tokens, []
