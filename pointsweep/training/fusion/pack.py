"""Packs: trials that share a frozen backbone train together, one batched pass of it for all.

Every member runs its own trial in a thread of its own (coroutines.py). On a GPU members of one
structure, whatever their seeds, rates and decays, run their tokenizers as one, and then all that is
behind them (ops/vmap.py). A frozen part of the backbone runs once for the members of all
structures; of a part that a method has changed (a low-rank update, a trained bias) its frozen
layers do. On a CPU, where joining gains nothing, members take turns, a batch each. Everything else,
from the order of the data to the noise of dropout, batch statistics, clipping and the learning
rate, is the member's own: it may start late, end early, diverge or fail without others. Letters: B
clouds, T tokens, C channels.
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
from pointsweep.training.fusion.coroutines import run_batched, run_joined

# the order of what runs in front of the blocks' parts: the tokenizer, then all behind it
TOKENIZER_ORDER = (-2,)
REMAINDER_ORDER = (-1,)
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
    if config.backbone is None or config.method is None or config.probes:
        return None
    if config.method.name == "full":
        return None

    return canonical_json(config.backbone) + config.train.precision


class SharedBackbone:
    """The frozen weights of a pack: loaded once, standing in every member's model."""

    def __init__(self, config: BackboneConfig, device: torch.device) -> None:
        self.config = config
        backbone: Backbone = registry.load("backbones", config.name)(config)
        self.origin = backbone.load()
        self.change_per_block = backbone.change_per_block()
        self.frozen = backbone.requires_grad_(False).eval().to(device)
        self.device = device

    def build(self, config: TrialConfig, num_classes: int) -> nn.Module:
        """The model that `model.build` makes of the config, with the same start, on the pack's
        frozen weights.
        """
        # Of its own it keeps the structure and what may be thawed; the matrices are the pack's.
        backbone_class = registry.load("backbones", self.config.name)
        trial_backbone: Backbone = backbone_class(self.config)
        _share(trial_backbone, self.frozen)
        model = PointModel(config, num_classes, backbone=trial_backbone).to(self.device)
        model.weights_origin = self.origin
        model.change_per_block = self.change_per_block

        pairs = zip(model.backbone.blocks, self.frozen.blocks, strict=True)

        for index, (block, frozen) in enumerate(pairs):
            if not isinstance(block, Block):
                _own_what_trains(block, frozen)
                continue

            assert isinstance(frozen, Block)
            _join((index, 0), block, "attn", frozen.attn)
            _join((index, 1), block, "ffn", frozen.ffn)

        if self._runs_under_vmap(config):
            _batch_forward(model, config)

        return model

    def _runs_under_vmap(self, config: TrialConfig) -> bool:
        """Return whether a member's model can run as one with those of equal structure.

        A compiled part cannot; nor can an embedding that trains its statistics and belongs to two
        parts, nor a library's layers, which do not know vmap.
        """
        if config.method is None or not config.method.joins or config.train.compile:
            return False
        if not all(isinstance(block, Block) for block in self.frozen.blocks):
            return False

        return not official.program(config).trains_frozen_norms


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


def _join(order: tuple[int, int], block: Block, name: str, frozen: nn.Module) -> None:
    """Let the block's `attn` or `ffn` run together with the other members': as one where the method
    has left it alone, else layer by layer.
    """
    part = getattr(block, name)
    if _is_untouched(part, frozen):
        setattr(block, name, Joined(order, frozen))
        return

    shared_layers = {id(layer.weight): layer for layer in _linears(frozen)}
    for number, layer in enumerate(_linears(part)):
        shared = shared_layers.get(id(layer.weight))
        if shared is None:
            continue

        if layer.weight.requires_grad:  # thawed by the method: from here on its own
            layer.weight = nn.Parameter(layer.weight.detach().clone())
            continue

        # On the instance, as in `_batch_forward`: another module in its place would rename the bias
        # in the member's checkpoint.
        layer.forward = JoinedLinear((*order, number), layer, shared)  # type: ignore[method-assign,assignment]


def _own_what_trains(block: nn.Module, frozen: nn.Module) -> None:
    """Give a layer of a library, which members run one after the other, its own copy of a shared
    matrix that the method trains.
    """
    shared = {id(layer.weight) for layer in _linears(frozen)}
    for layer in _linears(block):
        if id(layer.weight) in shared and layer.weight.requires_grad:
            layer.weight = nn.Parameter(layer.weight.detach().clone())


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def _is_untouched(part: nn.Module, frozen: nn.Module) -> bool:
    """Return whether a method has left a part as it was."""
    if any(parameter.requires_grad for parameter in part.parameters()):
        return False
    if list(map(type, part.modules())) != list(map(type, frozen.modules())):
        return False
    if not isinstance(part, Attention):
        return True

    # Dropout on the attention is a member's own noise, and the published attention across the batch
    # must not see other members.
    return part.dropout.p == 0.0 and not part.across_batch


class Joined(nn.Module):
    """A frozen attention or feed-forward branch, (B, T, C) -> (B, T, C), that members of a pack run
    together.
    """

    def __init__(self, order: tuple[int, ...], frozen: nn.Module) -> None:
        super().__init__()
        self.order = order
        self.frozen = frozen

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is not None:  # every member has its own: nothing to join
            return self.frozen(x, bias)  # type: ignore[no-any-return]
        return run_joined(self.order, self.frozen, x)


def _batch_forward(model: PointModel, config: TrialConfig) -> None:
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
        return run_batched(TOKENIZER_ORDER, tokenizer, (points,), tokenizer_kind)  # type: ignore[no-any-return]

    def logits(
        points: Tensor,
        category: Tensor | None = None,
        tokenized: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if current() is not None:
            return remainder.forward(points, category, tokenized)  # type: ignore[no-any-return]

        inputs = (points, category, tokenizer.module(points))
        return run_batched(REMAINDER_ORDER, remainder, inputs, structure)  # type: ignore[no-any-return]

    # On the instances: a module around them would give every tensor of a checkpoint another name,
    # and `Part` runs a member alone by its class, which must stay the plain one.
    model.tokenizer.forward, model.forward = tokens, logits  # type: ignore[method-assign,assignment]


def _light(model: Any, points: Tensor) -> bool:
    """Return whether the launches of a tokenizer's kernels are what it takes. Where they are not,
    joining would copy much for nothing.

    With stages that are computed again it is each member's own: what a checkpoint keeps back, vmap
    does not let it keep.
    """
    if getattr(model.tokenizer, "recomputed", False):
        return False

    config = model.tokenizer.config
    num_neighbours: int = len(points) * config.num_tokens * config.neighbours
    return num_neighbours * model.backbone.widths[0] <= LIGHT


class JoinedLinear:
    """A frozen matrix inside a part that the method has changed, with the member's bias if that
    trains.
    """

    def __init__(
        self, order: tuple[int, ...], layer: nn.Linear, shared: nn.Linear
    ) -> None:
        self.layer = layer
        self.shared = shared
        self.own_bias = layer.bias is not None and layer.bias.requires_grad
        # Rows without a bias are not joined with those that have one.
        self.order = (*order, int(self.own_bias))

    def __call__(self, x: Tensor) -> Tensor:
        part = self._without_bias if self.own_bias else self._with_shared_bias
        rows = run_joined(self.order, part, x.flatten(0, -2))
        output = rows.unflatten(0, x.shape[:-1])
        return output + self.layer.bias if self.own_bias else output

    def _without_bias(self, rows: Tensor) -> Tensor:
        return nn.functional.linear(rows, self.shared.weight)

    def _with_shared_bias(self, rows: Tensor) -> Tensor:
        return nn.functional.linear(rows, self.shared.weight, self.shared.bias)
