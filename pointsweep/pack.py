"""Packs: trials that share a frozen backbone train together, one batched pass of it for all.

Every member runs its own trial in a thread of its own (members.py). On a GPU, where it comes to a frozen part of the backbone it
meets the others, and the part runs once for all; a part that a method has changed (a low-rank update, a trained bias) is met layer
by layer, so that arms of different structure share what they have in common. On a CPU, where joining gains nothing, members take
turns, a batch each. Everything else, from the order of the data to the noise of dropout, batch statistics, clipping and the
learning rate, is the member's own: it may start late, end early, diverge or fail without others.
Letters: B clouds, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pointsweep import registry
from pointsweep.backbones.base import Attention, Backbone, Block
from pointsweep.config import BackboneConfig, TrialConfig, canonical_json
from pointsweep.members import meet
from pointsweep.model import PointModel


def packs_of(configs: Sequence[TrialConfig], size: int | Callable[[TrialConfig], int]) -> list[list[TrialConfig]]:
    """The trials in packs of at most `size` that share a backbone, in their order. What cannot be shared runs alone."""
    open_packs: dict[tuple[str, int], list[TrialConfig]] = {}
    packs: list[list[TrialConfig]] = []
    for config in configs:
        shared = shared_part(config)
        most = size if isinstance(size, int) else size(config)
        if shared is None or most <= 1:
            packs.append([config])
            continue
        key = (shared, most)
        if key not in open_packs or len(open_packs[key]) == most:
            open_packs[key] = []
            packs.append(open_packs[key])
        open_packs[key].append(config)
    return packs


def shared_part(config: TrialConfig) -> str | None:
    """What members of a pack have in common; None for a network and for full fine-tuning, which freeze nothing."""
    if config.backbone is None or config.method is None or config.method.name == "full":
        return None
    return canonical_json(config.backbone) + config.train.precision


class SharedBackbone:
    """The frozen weights of a pack: loaded once, standing in every member's model."""

    def __init__(self, config: BackboneConfig, device: torch.device) -> None:
        self.config = config
        self.whole: Backbone = registry.load("backbones", config.name)(config)
        self.origin = self.whole.load()
        self.whole = self.whole.requires_grad_(False).eval().to(device)
        self.device = device

    def build(self, config: TrialConfig, num_classes: int) -> nn.Module:
        """The model that `model.build` makes of the config, with the same start, on the pack's frozen weights."""
        # Built and thrown away but for its structure: a model's start must not depend on whether it runs in a pack.
        own: Backbone = registry.load("backbones", self.config.name)(self.config)
        _share(own, self.whole)
        model = PointModel(config, num_classes, backbone=own).to(self.device)
        model.weights_origin = self.origin
        for index, (block, frozen) in enumerate(zip(model.backbone.blocks, self.whole.blocks, strict=True)):
            assert isinstance(block, Block)
            assert isinstance(frozen, Block)
            for order, name in enumerate(("attn", "ffn")):
                _join((index, order), block, name, getattr(frozen, name))
        return model


def _share(own: Backbone, whole: Backbone) -> None:
    """Gives `own` the matrices of `whole` themselves and copies of all else, which is small and may be thawed."""
    theirs = dict(whole.named_modules())
    own.to(next(whole.parameters()).device)
    own.load_state_dict(whole.state_dict())
    for name, module in own.named_modules():
        if isinstance(module, nn.Linear):
            module.weight = theirs[name].weight  # type: ignore[assignment]


def _join(place: tuple[int, int], block: Block, name: str, frozen: nn.Module) -> None:
    """Lets the block's `attn` or `ffn` meet the other members': whole where the method has left it alone, else layer by layer."""
    part = getattr(block, name)
    if _untouched(part, frozen):
        setattr(block, name, Joined(place, frozen))
        return
    matrices = {id(layer.weight): layer for layer in frozen.modules() if isinstance(layer, nn.Linear)}
    for number, layer in enumerate(module for module in part.modules() if isinstance(module, nn.Linear)):
        shared = matrices.get(id(layer.weight))
        if shared is None:
            continue
        if layer.weight.requires_grad:  # thawed by the method: from here on its own
            layer.weight = nn.Parameter(layer.weight.detach().clone())
            continue
        layer.forward = JoinedLinear((*place, number), layer, shared)  # type: ignore[method-assign,assignment]


def _untouched(part: nn.Module, frozen: nn.Module) -> bool:
    if any(p.requires_grad for p in part.parameters()) or [type(m) for m in part.modules()] != [type(m) for m in frozen.modules()]:
        return False
    # Dropout on the attention is a member's own noise, and the published attention across the batch must not see other members.
    return not isinstance(part, Attention) or (part.dropout.p == 0.0 and not part.across_batch)


class Joined(nn.Module):
    """A frozen attention or feed-forward branch, (B, T, C) -> (B, T, C), that members of a pack run together."""

    def __init__(self, place: tuple[int, ...], frozen: nn.Module) -> None:
        super().__init__()
        self.place, self.frozen = place, frozen

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is not None:  # every member has its own: nothing to join
            return self.frozen(x, bias)  # type: ignore[no-any-return]
        return meet(self.place, self.frozen, x)


class JoinedLinear:
    """A frozen matrix inside a part that the method has changed, with the member's bias if that trains."""

    def __init__(self, place: tuple[int, ...], layer: nn.Linear, shared: nn.Linear) -> None:
        self.place, self.layer, self.shared = place, layer, shared

    def __call__(self, x: Tensor) -> Tensor:
        own_bias = self.layer.bias is not None and self.layer.bias.requires_grad
        part = self._product if own_bias else self._whole
        rows = meet((*self.place, int(own_bias)), part, x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return rows + self.layer.bias if own_bias else rows

    def _product(self, rows: Tensor) -> Tensor:
        return nn.functional.linear(rows, self.shared.weight)

    def _whole(self, rows: Tensor) -> Tensor:
        return nn.functional.linear(rows, self.shared.weight, self.shared.bias)
