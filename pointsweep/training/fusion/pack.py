"""Packs: trials that share a frozen backbone train together, one batched pass of it for all.

Every member runs its own trial in a thread of its own (members.py). On a GPU members of one
structure, whatever their seeds, rates and decays, run their tokenizers as one, and then all that is
behind them (joint.py). At a frozen part of the backbone they meet those of other structures too,
and it runs once for all; a part that a method has changed (a low-rank update, a trained bias) is
met layer by layer. On a CPU, where joining gains nothing, members take turns, a batch each.
Everything else, from the order of the data to the noise of dropout, batch statistics, clipping and
the learning rate, is the member's own: it may start late, end early, diverge or fail without
others. Letters: B clouds, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pointsweep.config import official, registry
from pointsweep.config.backbones import BackboneConfig
from pointsweep.config.base import canonical_json
from pointsweep.config.schema import TrialConfig
from pointsweep.models.backbones.base import Attention, Backbone, Block
from pointsweep.models.point_model import PointModel
from pointsweep.ops.vmap import Part, current
from pointsweep.training.fusion.coroutines import meet, visit

BEFORE = (
    (-2,),
    (-1,),
)  # places in front of the blocks: the tokenizer's, and that of all behind it
# Values (B, N, K, C) of a tokenizer's stage: reading and writing as many takes a GPU about as long
# as it takes to launch a kernel.
LIGHT = 1 << 22


def packs_of(
    configs: Sequence[TrialConfig], size: int | Callable[[TrialConfig], int]
) -> list[list[TrialConfig]]:
    """The trials in packs of at most `size` that share a backbone, in their order. What cannot be
    shared runs alone.
    """
    open_packs: dict[tuple[str, int], list[TrialConfig]] = {}
    packs: list[list[TrialConfig]] = []

    for config in configs:
        shared = shared_part(config)
        max_size = size if isinstance(size, int) else size(config)
        if shared is None or max_size <= 1:
            packs.append([config])
            continue

        key = (shared, max_size)
        if key not in open_packs or len(open_packs[key]) == max_size:
            open_packs[key] = []
            packs.append(open_packs[key])

        open_packs[key].append(config)

    return packs


def shared_part(config: TrialConfig) -> str | None:
    """Return what members of a pack have in common.

    None for a network and for full fine-tuning, which freeze nothing, and for a probe, which takes
    no steps.
    """
    if (
        config.backbone is None
        or config.method is None
        or config.method.name == "full"
        or config.probes
    ):
        return None

    return canonical_json(config.backbone) + config.train.precision


class SharedBackbone:
    """The frozen weights of a pack: loaded once, standing in every member's model."""

    def __init__(self, config: BackboneConfig, device: torch.device) -> None:
        self.config = config
        self.whole: Backbone = registry.load("backbones", config.name)(config)
        self.origin = self.whole.load()
        self.change_per_block = self.whole.change_per_block()
        self.whole = self.whole.requires_grad_(False).eval().to(device)
        self.device = device

    def build(self, config: TrialConfig, num_classes: int) -> nn.Module:
        """The model that `model.build` makes of the config, with the same start, on the pack's
        frozen weights.
        """
        # Of its own it keeps the structure and what may be thawed; the matrices are the pack's.
        trial_backbone: Backbone = registry.load("backbones", self.config.name)(
            self.config
        )
        _share(trial_backbone, self.whole)
        model = PointModel(config, num_classes, backbone=trial_backbone).to(self.device)
        model.weights_origin = self.origin
        model.change_per_block = self.change_per_block

        for index, (block, frozen) in enumerate(
            zip(model.backbone.blocks, self.whole.blocks, strict=True)
        ):
            if not isinstance(block, Block):
                _own_what_trains(block, frozen)
                continue

            assert isinstance(frozen, Block)
            for order, name in enumerate(("attn", "ffn")):
                _join((index, order), block, name, getattr(frozen, name))

        # A compiled part cannot be run under vmap; nor can an embedding that trains its statistics
        # and belongs to two parts, nor a library's layers, which do not know it.
        joins = (
            config.method is not None
            and config.method.joins
            and all(isinstance(block, Block) for block in self.whole.blocks)
        )
        if (
            joins
            and not config.train.compile
            and not official.program(config).trains_frozen_norms
        ):
            _meet_in(model, config)

        return model


def _share(trial_backbone: Backbone, shared: Backbone) -> None:
    """Give `trial_backbone` the matrices of the blocks of `shared` themselves and copies of all
    else, which is small and may be thawed.
    """
    shared_modules = dict(shared.named_modules())
    trial_backbone.to(next(shared.parameters()).device)
    trial_backbone.load_state_dict(shared.state_dict())

    for name, module in trial_backbone.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("blocks."):
            module.weight = shared_modules[name].weight  # type: ignore[assignment]


def _join(place: tuple[int, int], block: Block, name: str, frozen: nn.Module) -> None:
    """Let the block's `attn` or `ffn` meet the other members': whole where the method has left it
    alone, else layer by layer.
    """
    part = getattr(block, name)
    if _untouched(part, frozen):
        setattr(block, name, Joined(place, frozen))
        return

    matrices = {
        id(layer.weight): layer
        for layer in frozen.modules()
        if isinstance(layer, nn.Linear)
    }
    for number, layer in enumerate(
        module for module in part.modules() if isinstance(module, nn.Linear)
    ):
        shared = matrices.get(id(layer.weight))
        if shared is None:
            continue

        if layer.weight.requires_grad:  # thawed by the method: from here on its own
            layer.weight = nn.Parameter(layer.weight.detach().clone())
            continue

        # On the instance, as in `_meet_in`: another module in its place would rename the bias in
        # the member's checkpoint.
        layer.forward = JoinedLinear((*place, number), layer, shared)  # type: ignore[method-assign,assignment]


def _own_what_trains(block: nn.Module, frozen: nn.Module) -> None:
    """Give a layer of a library, which members run one after the other, its own copy of a shared
    matrix that the method trains.
    """
    shared = {
        id(layer.weight) for layer in frozen.modules() if isinstance(layer, nn.Linear)
    }
    for layer in block.modules():
        if (
            isinstance(layer, nn.Linear)
            and id(layer.weight) in shared
            and layer.weight.requires_grad
        ):
            layer.weight = nn.Parameter(layer.weight.detach().clone())


def _untouched(part: nn.Module, frozen: nn.Module) -> bool:
    if any(p.requires_grad for p in part.parameters()) or [
        type(m) for m in part.modules()
    ] != [type(m) for m in frozen.modules()]:
        return False

    # Dropout on the attention is a member's own noise, and the published attention across the batch
    # must not see other members.
    return not isinstance(part, Attention) or (
        part.dropout.p == 0.0 and not part.across_batch
    )


class Joined(nn.Module):
    """A frozen attention or feed-forward branch, (B, T, C) -> (B, T, C), that members of a pack run
    together.
    """

    def __init__(self, place: tuple[int, ...], frozen: nn.Module) -> None:
        super().__init__()
        self.place = place
        self.frozen = frozen

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is not None:  # every member has its own: nothing to join
            return self.frozen(x, bias)  # type: ignore[no-any-return]
        return meet(self.place, self.frozen, x)


def _meet_in(model: PointModel, config: TrialConfig) -> None:
    """Let members of equal structure run their tokenizers as one, and all behind them, whatever
    their seeds and rates.
    """
    tokenizer = Part(model.tokenizer)
    remainder = Part(model, but="tokenizer")
    tokenizer_kind = (
        config.tokenizer,
        config.compat,
        official.program(config),
        config.train.precision,
        model.backbone.widths[0],
    )

    structure = (
        *tokenizer_kind,
        config.backbone,
        config.positions,
        config.method,
        config.head,
    )

    def tokens(points: Tensor) -> tuple[Tensor, Tensor]:
        if current() is not None or not _light(remainder.module, points):
            return tokenizer.forward(points)  # type: ignore[no-any-return]
        return visit(BEFORE[0], tokenizer, (points,), tokenizer_kind)  # type: ignore[no-any-return]

    def logits(
        points: Tensor,
        category: Tensor | None = None,
        made: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if current() is not None:
            return remainder.forward(points, category, made)  # type: ignore[no-any-return]
        return visit(
            BEFORE[1],
            remainder,
            (points, category, tokenizer.module(points)),
            structure,
        )  # type: ignore[no-any-return]

    # On the instances: a module around them would give every tensor of a checkpoint another name,
    # and `Part` runs a member alone by its class, which must stay the plain one.
    model.tokenizer.forward, model.forward = tokens, logits  # type: ignore[method-assign,assignment]


def _light(model: Any, points: Tensor) -> bool:
    """Return whether the launches of a tokenizer's kernels are what it takes. Where they are not,
    joining would copy much for nothing.

    With stages that are computed again it is each member's own: what a checkpoint keeps back, vmap
    does not let it keep.
    """
    config = model.tokenizer.config
    values: int = (
        len(points) * config.num_tokens * config.neighbours * model.backbone.widths[0]
    )

    return values <= LIGHT and not getattr(model.tokenizer, "recomputed", False)


class JoinedLinear:
    """A frozen matrix inside a part that the method has changed, with the member's bias if that
    trains.
    """

    def __init__(
        self, place: tuple[int, ...], layer: nn.Linear, shared: nn.Linear
    ) -> None:
        self.place = place
        self.layer = layer
        self.shared = shared
        self.own_bias = layer.bias is not None and layer.bias.requires_grad

    def __call__(self, x: Tensor) -> Tensor:
        part = self._product if self.own_bias else self._whole
        rows = meet(
            (*self.place, int(self.own_bias)), part, x.flatten(0, -2)
        ).unflatten(0, x.shape[:-1])
        return rows + self.layer.bias if self.own_bias else rows

    def _product(self, rows: Tensor) -> Tensor:
        return nn.functional.linear(rows, self.shared.weight)

    def _whole(self, rows: Tensor) -> Tensor:
        return nn.functional.linear(rows, self.shared.weight, self.shared.bias)
