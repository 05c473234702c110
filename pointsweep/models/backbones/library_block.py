"""A layer of a library's transformer under the contract of a block; the layer itself runs as the
library wrote it.

What a method needs is put in from outside: hooks on the modules that `layer_roles` has found, and
matrices that are plain ones. Letters: B clouds, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pointsweep.models.backbones.base import TransformerBlock
from pointsweep.models.backbones.find_call import count_no_front
from pointsweep.models.backbones.layer_call import LayerCall
from pointsweep.models.backbones.layer_roles import LayerRoles, first
from pointsweep.models.layers import DropPath, Linear


class SplitLinear(nn.Module):
    """A fused projection as its parts q, k and v, so that a method can reach each of them; the
    outputs in their old order.
    """

    order: Tensor | None

    def __init__(self, fused: nn.Linear, rows: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.parts = tuple(rows)
        for name, own in rows.items():
            part = Linear(
                fused.in_features,
                len(own),
                bias=fused.bias is not None,
                device=fused.weight.device,
                dtype=fused.weight.dtype,
            )
            with torch.no_grad():
                part.weight.copy_(fused.weight[own])
                if fused.bias is not None:
                    part.bias.copy_(fused.bias[own])

            setattr(self, name, part)

        stacked = torch.cat(list(rows.values()))
        in_order = bool((stacked.diff() == 1).all())
        self.register_buffer(
            "order", None if in_order else stacked.argsort(), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.cat([getattr(self, name)(x) for name in self.parts], dim=-1)
        if self.order is None:
            return outputs

        return outputs.index_select(-1, self.order)


def plain_linears(layer: nn.Module) -> None:
    """Put torch's linear layers in the place of GPT-2's, whose matrices (in, out) lie the other way
    round.
    """
    for owner in list(layer.modules()):
        for name, module in list(owner.named_children()):
            if type(module).__name__ == "Conv1D" and not isinstance(module, nn.Conv1d):
                weight, bias = module.weight, module.bias
                linear = nn.Linear(weight.shape[0], weight.shape[1], device="meta")  # type: ignore[index,arg-type]
                linear.weight = nn.Parameter(weight.detach().t().contiguous())  # type: ignore[operator]
                linear.bias = nn.Parameter(bias.detach().clone())  # type: ignore[operator]
                setattr(owner, name, linear)


def own_linears(layer: nn.Module) -> None:
    """Put our linear layers, which multiply faster on some CPUs, in the place of torch's; they keep
    their tensors.
    """
    for owner in list(layer.modules()):
        for name, module in list(owner.named_children()):
            if type(module) is nn.Linear:
                setattr(owner, name, Linear.of(module))


def without_grid_biases(layer: nn.Module) -> None:
    """Take biases out that are tied to the places of an image's patches (BEiT): our tokens are not
    on these places.
    """
    for module in layer.modules():
        if isinstance(getattr(module, "relative_position_bias", None), nn.Module):
            module.relative_position_bias = None  # type: ignore[assignment]
            module.has_relative_position_bias = False  # type: ignore[assignment]
        if getattr(module, "relative_position_bias_table", None) is not None:
            module.relative_position_bias_table = None  # type: ignore[assignment]


def joined_biases(layer: nn.Module) -> None:
    """Put the biases of queries and values, which BEiT and EVA keep beside their fused matrix, into
    it.
    """
    for module in layer.modules():
        fused = getattr(module, "qkv", None)
        query = getattr(module, "q_bias", None)
        value = getattr(module, "v_bias", None)

        if not isinstance(query, Tensor) or not isinstance(value, Tensor):
            continue

        if isinstance(fused, nn.Linear):
            key = getattr(module, "k_bias", None)
            key = torch.zeros_like(query) if key is None else key.to(query.device)
            biases = [query.detach(), key.detach(), value.detach()]
            fused.bias = nn.Parameter(torch.cat(biases))

            for name in ("q_bias", "k_bias", "v_bias"):
                setattr(module, name, None)


def without_noise(layer: nn.Module) -> None:
    """Turn the library's dropout off: it draws from torch's own generator, which no trial can set
    back.
    """
    for module in layer.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if type(module).__name__ == "DropPath" and hasattr(module, "drop_prob"):
            module.drop_prob = 0.0  # type: ignore[assignment]


def prepare(layer: nn.Module) -> None:
    """Change what stands in the way of tokens and methods of ours, before a layer is looked at."""
    plain_linears(layer)
    joined_biases(layer)
    without_grid_biases(layer)
    own_linears(layer)


class LibraryBlock(TransformerBlock):
    """One layer of a library. `variant`: which of several rotations it takes."""

    def __init__(
        self,
        layer: nn.Module,
        roles: LayerRoles,
        call: LayerCall,
        rate: float,
        variant: int = 0,
    ) -> None:
        super().__init__()
        prepare(layer)
        without_noise(layer)

        for path, rows in roles.fused.items():
            owner, name = _owner_and_name(layer, path)
            setattr(owner, name, SplitLinear(getattr(owner, name), rows))

        if call.packed:
            count_no_front(layer)

        for module in layer.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = call.causal  # type: ignore[assignment]

        self.layer = layer
        self.roles = roles
        self.call = call
        self.variant = variant
        self.post_norm = roles.post_norm
        self.drop_path = DropPath(rate)

    def projections(self, role: str) -> list[tuple[nn.Module, str]]:
        projections = self.roles.projections
        if not projections.get(role):
            known = ", ".join(name for name in projections if projections[name])
            raise ValueError(
                f"no projection {role} was found in a {type(self.layer).__name__}; found:"
                f" {known or 'none'}"
            )

        attributes = []
        for path in projections[role]:
            if role in self.roles.fused.get(path, ()):
                attributes.append((self.layer.get_submodule(path), role))
            else:
                attributes.append(_owner_and_name(self.layer, path))

        return attributes

    def norms(self) -> list[tuple[nn.Module, str]]:
        paths = [path for path in self.roles.norms if _has(self.layer, path)]
        return [_owner_and_name(self.layer, path) for path in paths]

    def attention(self) -> tuple[nn.Module, str]:
        return self.projections("out")[0]

    def forward(
        self,
        x: Tensor,
        after_ffn: Callable[[Tensor, Tensor], Tensor],
        bias: Any = None,
        after_attention: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        if after_attention is not None:
            raise ValueError(
                "a library's layers do not show the stream between their branches"
            )

        inputs: list[Tensor] = []
        calls = 0

        def keep(module: nn.Module, args: Any) -> None:
            inputs.append(args[0])

        def change(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls != self.roles.branch_calls:
                return output

            # OPT's branch has its tokens in one row
            of_branch = output.view(*x.shape[:2], output.shape[-1])
            branch_inputs = inputs[-1].view(*x.shape[:2], -1)
            changed = after_ffn(self.drop_path(of_branch), branch_inputs)

            return changed.view(output.shape)

        ffn_input = self.layer.get_submodule(self.roles.ffn_input)
        branch = self.layer.get_submodule(self.roles.branch)
        handles = [
            ffn_input.register_forward_pre_hook(keep),
            branch.register_forward_hook(change),
        ]

        if self.drop_path.p > 0:
            owner, name = self.attention()
            handles.append(
                getattr(owner, name).register_forward_hook(
                    lambda module, args, output: self.drop_path(output)
                )
            )

        try:
            output = self.layer(x, **self.call.arguments(x, bias, self.variant))
        finally:
            for handle in handles:
                handle.remove()

        tokens: Tensor = first(output)
        return tokens


def _owner_and_name(layer: nn.Module, path: str) -> tuple[nn.Module, str]:
    owner, _, name = path.rpartition(".")
    return layer.get_submodule(owner), name


def _has(layer: nn.Module, path: str) -> bool:
    """Return whether a layer has a norm there: the first of ModernBERT has none in front of its
    attention.
    """
    owner, name = _owner_and_name(layer, path)
    return getattr(getattr(owner, name, None), "weight", None) is not None
