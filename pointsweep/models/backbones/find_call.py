"""Search for the arguments that the layers of a library's transformer take, by calling them and
comparing.

The arguments that the model's own program gives to a layer are taken apart into those that stay as
they are, the mask, and what carries positions. A call counts only if the layer then gives what it
gave in the model, looks where it should and keeps the samples of a batch apart.

Letters: B clouds, N tokens, C channels, H heads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from pointsweep.models.backbones.layer_call import (
    ALIBI,
    GRID_ROTARY,
    MASKS,
    OF_GENERATION,
    RELATIVE,
    ROTARY,
    UNPLACED,
    LayerCall,
)
from pointsweep.models.backbones.layer_roles import first

CLOSE = 1e-5  # libraries compute parts in single precision
# arguments of one call of a layer, and what came out
Called = tuple[tuple[Any, ...], Mapping[str, Any], Any]


def tokens_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The tokens (B, N, C) that a layer was called with. Raises ValueError where there are none."""
    tokens = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
    if not isinstance(tokens, Tensor):
        raise ValueError("its layers take no tokens as their first argument")

    return tokens


def arguments_of(
    layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """All arguments of a layer but its tokens, by name."""
    names = list(inspect.signature(layer.forward).parameters)
    given = dict(zip(names[1:], args[1:], strict=False)) | dict(kwargs)

    for name in ("hidden_states", "x"):
        given.pop(name, None)

    return given


def find_call(
    name: str, heads: int, layers: list[nn.Module], called: Called, causal: bool | None
) -> tuple[LayerCall, bool]:
    """Return how the layers are called, and whether their own program lets a token look at those in
    front of it alone.

    `called` is the call of the last of them. `causal`: how tokens shall look; None: as in the own
    program. Raises ValueError.
    """
    layer = layers[-1]
    args, kwargs, output = called
    given = arguments_of(layer, args, kwargs)
    tokens = tokens_of(args, kwargs)
    own_causal = not _first_sees_last(layer, tokens, given)
    call = _with_positions(_plain(given), given, heads)
    _set_causal(layers, own_causal)

    if call.packed:
        for part in layers:
            count_no_front(part)

    own = _with_mask(layer, replace(call, causal=own_causal), tokens, first(output))
    if own is None and call.positions:
        call = _neutral(call)
        own = _with_mask(layer, replace(call, causal=own_causal), tokens, first(output))

    if own is None:
        shown = (
            ", ".join(
                sorted(name for name, value in given.items() if value is not None)
            )
            or "no more arguments"
        )
        raise ValueError(
            f"{name}: its layers, called by themselves, do not give what they give in the model"
            f" ({shown})"
        )

    if causal is None or causal == own_causal:
        return own, own_causal

    _set_causal(layers, causal)
    other = _with_mask(layer, replace(call, causal=causal), tokens, None)
    if other is None:
        direction = "back" if own_causal else "both ways"
        raise ValueError(
            f"{name}: causal: {str(causal).lower()} is not possible: its layers look {direction} by"
            " themselves"
        )

    return other, own_causal


def count_no_front(layer: nn.Module) -> None:
    """Let a layer of timm turn all tokens: how many stand in front of the others is not as in the
    model.
    """
    for module in layer.modules():
        if hasattr(module, "num_prefix_tokens"):
            module.num_prefix_tokens = 0  # type: ignore[assignment]


def _set_causal(layers: list[nn.Module], causal: bool) -> None:
    for layer in layers:
        for module in layer.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = causal  # type: ignore[assignment]


def _plain(given: Mapping[str, Any]) -> LayerCall:
    """All arguments that are no tensors as they are; none of what generating text needs."""
    constants: dict[str, Any] = {}
    for name, value in given.items():
        if name in OF_GENERATION:
            constants[name] = False
        else:
            constants[name] = value if _is_plain(value) else None

    mask = next(
        (name for name in ("attention_mask", "attn_mask", "mask") if name in given), ""
    )
    constants.pop(mask, None)
    return LayerCall(constants, mask_argument=mask)


def _is_plain(value: Any) -> bool:
    """Numbers, words, and tuples of numbers."""
    if isinstance(value, tuple):
        return all(isinstance(item, (int, float)) for item in value)

    return value is None or isinstance(value, (bool, int, float, str))


def _with_positions(call: LayerCall, given: Mapping[str, Any], heads: int) -> LayerCall:
    """The call with the argument that carries positions."""
    pair = given.get("position_embeddings")
    if _is_pair_of_tensors(pair):
        kind = ROTARY if pair[0].dim() == 3 else GRID_ROTARY
        return _carried_by(call, "position_embeddings", kind, tuple(pair), heads)

    rope = given.get("rope")
    if isinstance(rope, Tensor) and rope.dim() == 2:
        sines, cosines = rope.chunk(2, dim=-1)
        carried = _carried_by(call, "rope", GRID_ROTARY, (cosines, sines), heads)
        return replace(carried, packed=True)

    for name in ("alibi", "position_bias"):
        if _is_slopes(given.get(name), heads):
            return _carried_by(call, name, ALIBI, given[name], heads)

    bias = given.get("position_bias")
    if isinstance(bias, Tensor) and bias.dim() == 4:
        return _carried_by(call, "position_bias", RELATIVE, bias, bias.shape[1])

    constants = dict(call.constants)
    if isinstance(bias, Tensor):  # WavLM's, which each layer weighs by what it reads
        constants["position_bias"] = lambda x: x.new_zeros(
            len(x) * heads, x.shape[1], x.shape[1]
        )
        return replace(call, constants=constants, positions=UNPLACED, heads=heads)

    table = given.get("rel_embeddings")
    if isinstance(table, Tensor):  # DeBERTa's
        constants["rel_embeddings"] = lambda x: x.new_zeros(table.shape)
        constants["relative_pos"] = lambda x: torch.zeros(
            1, x.shape[1], x.shape[1], dtype=torch.long, device=x.device
        )
        return replace(call, constants=constants, positions=UNPLACED, heads=heads)

    return replace(call, heads=heads)


def _is_pair_of_tensors(value: Any) -> TypeGuard[Sequence[Tensor]]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return False
    return all(isinstance(item, Tensor) for item in value)


def _carried_by(
    call: LayerCall, argument: str, kind: str, example: Any, heads: int
) -> LayerCall:
    constants = dict(call.constants)
    constants.pop(argument, None)
    return replace(
        call,
        constants=constants,
        positions=kind,
        position_argument=argument,
        example=example,
        heads=heads,
    )


def _neutral(call: LayerCall) -> LayerCall:
    """The call with positions that say nothing, of a model whose positions cannot be placed."""
    constants = dict(call.constants)
    example = call.example

    if call.positions in (ROTARY, GRID_ROTARY):
        cosines, sines = example
        width = cosines.shape[-1]
        # of no rotation
        ones = cosines.new_ones(1).expand(1, width)
        zeros = sines.new_zeros(1).expand(1, width)

        def unrotated(x: Tensor) -> tuple[Tensor, Tensor]:
            num_tokens = x.shape[1]
            return (
                ones.to(x).expand(num_tokens, -1),
                zeros.to(x).expand(num_tokens, -1),
            )

        constants[call.position_argument] = unrotated
    elif isinstance(example, Tensor):
        constants[call.position_argument] = lambda x: torch.zeros_like(
            example, dtype=x.dtype, device=x.device
        )

    return replace(call, constants=constants, positions=UNPLACED, position_argument="")


def _is_slopes(value: Any, heads: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dim() == 3
        and value.shape[1] == 1
        and value.shape[0] == heads
    )


@torch.no_grad()
def _first_sees_last(
    layer: nn.Module, tokens: Tensor, given: Mapping[str, Any]
) -> bool:
    changed = tokens.clone()
    changed[:, -1] += torch.randn_like(changed[:, -1])
    fresh = {name: None if "past" in name else value for name, value in given.items()}
    before, after = (first(layer(x, **fresh)) for x in (tokens, changed))

    return bool((after[:, 0] - before[:, 0]).abs().max() > 1e-9)


def own_arguments(call: LayerCall, x: Tensor) -> dict[str, Any]:
    """Arguments for tokens with the positions that the model's own program gave them, as far as
    there are as many.
    """
    num_clouds, num_tokens = x.shape[:2]
    bias: Any = None

    if call.packed:
        tables = [table[:num_tokens] for table in call.example]
        bias = (tuple(table.expand(num_clouds, -1, -1) for table in tables),)
    elif call.positions in (ROTARY, GRID_ROTARY):
        tables = []
        for table in call.example:
            of_clouds = table if table.dim() == 3 else table.unsqueeze(0)
            tables.append(of_clouds[:, :num_tokens])

        bias = (tuple(table.expand(num_clouds, -1, -1) for table in tables),)
    elif call.positions == RELATIVE:
        bias = call.example[:, :, :num_tokens, :num_tokens]
    elif call.positions == ALIBI:
        distances = torch.arange(num_tokens, dtype=x.dtype)
        bias = own_slopes(call)[None, :, None, None] * distances
        bias = bias.expand(-1, -1, num_tokens, -1)

    return call.arguments(x, bias)


def own_slopes(call: LayerCall) -> Tensor:
    """The slopes (H,) of a model with ALiBi."""
    slopes: Tensor = call.example[: call.heads, 0]
    return slopes[:, 1] - slopes[:, 0]


def _with_mask(
    layer: nn.Module, call: LayerCall, tokens: Tensor, expected: Tensor | None
) -> LayerCall | None:
    """Return `call` with the first kind of mask under which the layer attends to the right tokens
    and gives `expected` (None: whatever it gives), or None if there is no such kind.
    """
    kinds: tuple[str, ...] = MASKS if call.mask_argument else ("none",)
    if call.positions == ALIBI:
        kinds = ("added",)  # the biases are a mask that is added to the scores

    if "is_causal" in call.constants:
        call = replace(call, constants={**call.constants, "is_causal": call.causal})

    spare_axes = (False, True) if call.positions == GRID_ROTARY else (False,)

    for kind in kinds:
        # A mask that closes everything gives the same as one that opens everything. A causal mask
        # tells which of its two values opens.
        if not call.causal and kind != "none":
            causal = replace(call, causal=True, mask_kind=kind)
            if not _fits(layer, causal, tokens, expected=None):
                continue

        for spare_axis in spare_axes:
            tried = replace(call, mask_kind=kind, spare_axis=spare_axis)
            if _fits(layer, tried, tokens, expected):
                return tried

    return None


@torch.no_grad()
def _fits(
    layer: nn.Module, call: LayerCall, tokens: Tensor, expected: Tensor | None
) -> bool:
    # a second sample, which must not change the first
    pair = torch.cat([tokens, tokens.flip(1)])

    def of(x: Tensor) -> Tensor:
        given = own_arguments(call, x)
        result: Tensor = first(layer(x, **given))
        return result

    try:
        alone, both = of(tokens), of(pair)
        if (
            expected is not None
            and call.positions != UNPLACED
            and not torch.allclose(alone, expected, atol=CLOSE, rtol=CLOSE)
        ):
            return False
        if both.shape != pair.shape or not torch.allclose(
            both[:1], alone, atol=CLOSE, rtol=CLOSE
        ):
            return False
        if not call.causal:
            return _looks(of, tokens, 0, -1)

        return (
            not _looks(of, tokens, 0, -1)
            and not _looks(of, tokens, 1, 2)
            and _looks(of, tokens, -1, 0)
        )
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        # it does not take such a mask
        return False


def _looks(of: Callable[[Tensor], Tensor], tokens: Tensor, at: int, token: int) -> bool:
    """Return whether what comes out at one token depends on another."""
    changed = tokens.clone()
    changed[:, token] += torch.linspace(-1.0, 1.0, tokens.shape[2], dtype=tokens.dtype)
    return bool((of(changed)[:, at] - of(tokens)[:, at]).abs().max() > 1e-7)
