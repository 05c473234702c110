"""Roles of the modules inside one layer of a transformer, found by experiments on a small copy and
not by their names.

The layer is run once as its own program runs it. Then outputs are moved and gradients looked at:

- The feed-forward branch is the last module whose output, moved by d, moves the layer's output by d
  (in a post-norm layer: what goes into its last norm), and which is zero when the last projection
  is.
- A projection is the query where one token alone does not feel it and other tokens do not either,
  the key where other tokens alone feel it, the value where both do. Rows of a fused matrix are told
  apart in the same way.

Letters: N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

ROLES = ("q", "k", "v", "out", "fc1", "fc2")
FELT = 1e-9  # of the largest gradient: less is rounding in double precision


@dataclass(frozen=True, eq=False)
class LayerRoles:
    """Roles of modules: paths inside a layer, by what they do."""

    branch: str  # the feed-forward branch is this module's output
    branch_calls: int  # it is called so often in a forward; the last call counts
    ffn_input: str  # what goes into the branch is this module's input
    post_norm: bool
    projections: Mapping[str, tuple[str, ...]]  # by role; a gated branch has two of fc1
    norms: tuple[str, ...]  # over the tokens' width
    # path -> rows of q, k, v
    fused: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


Run = Callable[
    [Tensor], Tensor
]  # the layer on tokens (1, N, C), with all that it takes beside


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm over channels, of torch's or of a library's own."""
    return "Norm" in type(module).__name__ and not any(True for _ in module.children())


def first(output: Any) -> Any:
    """Return a layer's tokens: its output, or the first of several."""
    if isinstance(output, (tuple, list)):
        return output[0]

    return output


def find_roles(layer: nn.Module, run: Run, hidden: Tensor) -> LayerRoles:
    """Find what the modules of `layer` do. Raises ValueError naming what cannot be found.

    The layer must be in double precision, with weights that are drawn.
    """
    calls, seen, output = _executed(layer, run, hidden)
    linears = _linears(layer, calls, seen)
    last_norm = _last_norm(layer, calls, seen, output)
    width = hidden.shape[-1]
    closing = [i for i, name in enumerate(linears) if seen[name][1].shape[-1] == width]

    if not closing or len(linears) < 2:
        raise ValueError("its layers have no feed-forward branch of linear layers")

    fc2 = closing[-1]
    run_of_layer = _Seen(
        calls=calls,
        tensors=seen,
        output=output,
        down=linears[fc2],
        last_norm=last_norm,
    )

    branch = _branch(layer, run, hidden, run_of_layer)
    fc1 = fc2 - 1  # the first of several where the branch has a gate beside it

    while fc1 > 0 and _same_input(seen, linears[fc1 - 1], linears[fc1]):
        fc1 -= 1

    projections, fused = _attention_roles(layer, run, hidden, linears[:fc1])
    projections["fc1"] = tuple(linears[fc1:fc2])
    projections["fc2"] = (linears[fc2],)
    norms = [name for name in calls if _is_token_norm(layer, name, seen, width)]

    return LayerRoles(
        branch=branch,
        branch_calls=calls.count(branch),
        ffn_input=linears[fc1],
        post_norm=last_norm is not None,
        projections=projections,
        norms=tuple(dict.fromkeys(norms)),
        fused=fused,
    )


@dataclass(frozen=True)
class _Seen:
    """One run of a layer: modules in the order of their calls, inputs and outputs by path, and what
    came out.
    """

    calls: list[str]
    tensors: dict[str, tuple[Tensor, Tensor]]
    output: Tensor
    down: str  # the last projection of the feed-forward branch
    last_norm: str | None


@torch.no_grad()
def _executed(
    layer: nn.Module, run: Run, hidden: Tensor
) -> tuple[list[str], dict[str, tuple[Tensor, Tensor]], Tensor]:
    calls: list[str] = []
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    names = {module: name for name, module in layer.named_modules() if name}

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        name = names[module]
        calls.append(name)
        arguments = (*args, *kwargs.values())
        tensors = [value for value in arguments if isinstance(value, Tensor)]

        if isinstance(output, Tensor) and tensors:
            seen[name] = (tensors[0], output)

    handles = [
        module.register_forward_hook(record, with_kwargs=True) for module in names
    ]
    try:
        layer_output = run(hidden)
    finally:
        for handle in handles:
            handle.remove()

    return calls, seen, layer_output


def _linears(
    layer: nn.Module, calls: list[str], seen: Mapping[str, tuple[Tensor, Tensor]]
) -> list[str]:
    """Return the linear layers over tokens, in the order of their calls."""
    names: dict[str, None] = {}
    for name in calls:
        if name in seen and isinstance(layer.get_submodule(name), nn.Linear):
            names[name] = None

    return list(names)


def _last_norm(
    layer: nn.Module,
    calls: list[str],
    seen: Mapping[str, tuple[Tensor, Tensor]],
    layer_output: Tensor,
) -> str | None:
    """Return the norm whose output is the layer's, of a post-norm layer."""
    for name in reversed(calls):
        if (
            name in seen
            and is_norm(layer.get_submodule(name))
            and torch.equal(seen[name][1], layer_output)
        ):
            return name

    return None


def _is_token_norm(
    layer: nn.Module, name: str, seen: Mapping[str, tuple[Tensor, Tensor]], width: int
) -> bool:
    module = layer.get_submodule(name)
    return (
        is_norm(module)
        and name in seen
        and seen[name][1].shape[-1] == width
        and getattr(module, "weight", None) is not None
    )


def _same_input(
    seen: Mapping[str, tuple[Tensor, Tensor]], one: str, other: str
) -> bool:
    return torch.equal(seen[one][0], seen[other][0])


@contextmanager
def _changed(
    layer: nn.Module, name: str, calls: int, change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Change the output of a module at the last of its calls."""
    count = 0

    def act(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal count
        count += 1
        return change(output) if count == calls else output

    handle = layer.get_submodule(name).register_forward_hook(act)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _watched(
    layer: nn.Module, name: str | None, of_input: bool
) -> Iterator[list[Tensor]]:
    """Collect what goes into a module, or comes out of it, while a layer runs."""
    outputs: list[Tensor] = []
    if name is None:
        yield outputs
        return

    module = layer.get_submodule(name)
    if of_input:
        handle = module.register_forward_pre_hook(
            lambda _, args: outputs.append(args[0])
        )
    else:
        handle = module.register_forward_hook(
            lambda _, args, output: outputs.append(output)
        )

    try:
        yield outputs
    finally:
        handle.remove()


@torch.no_grad()
def _branch(layer: nn.Module, run: Run, hidden: Tensor, seen: _Seen) -> str:
    """Return the module whose output is the feed-forward branch, all its scales and norms
    included.
    """
    delta = torch.randn_like(hidden)
    with _watched(layer, seen.last_norm, of_input=True) as base:
        run(hidden)

    for name in dict.fromkeys(reversed(seen.calls)):
        if (
            name not in seen.tensors
            or seen.tensors[name][1].numel() != hidden.numel()
            or name == seen.last_norm
        ):
            continue

        count = seen.calls.count(name)
        if name != seen.down and not _is_zero_without(layer, run, hidden, seen, name):
            continue

        with (
            _changed(
                layer, name, count, lambda output: output + delta.reshape(output.shape)
            ),
            _watched(layer, seen.last_norm, of_input=True) as moved,
        ):
            output = run(hidden)

        change = moved[-1] - base[-1] if seen.last_norm else output - seen.output
        if torch.allclose(change.reshape(delta.shape), delta, atol=1e-8):
            return name

    raise ValueError("no module's output is the feed-forward branch of its layers")


def _is_zero_without(
    layer: nn.Module, run: Run, hidden: Tensor, seen: _Seen, name: str
) -> bool:
    """Return whether a module gives zero when the branch's last projection does: then no residual
    is in it.
    """
    with (
        _changed(layer, seen.down, seen.calls.count(seen.down), torch.zeros_like),
        _watched(layer, name, of_input=False) as outputs,
    ):
        run(hidden)

    last = outputs[-1]
    return isinstance(last, Tensor) and float(last.abs().max()) < 1e-9


def _attention_roles(
    layer: nn.Module, run: Run, hidden: Tensor, linears: list[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, dict[str, Tensor]]]:
    """Tell queries, keys, values and the output projection apart; and the rows of fused
    matrices.
    """
    felt_alone = _felt(layer, run, hidden[:, :1], linears)
    felt_by_others = _felt(layer, run, hidden, linears)
    names_of: dict[str, list[str]] = {role: [] for role in ("q", "k", "v", "out")}
    fused: dict[str, dict[str, Tensor]] = {}

    for name in linears:
        if name not in felt_alone or name not in felt_by_others:
            continue

        alone, by_others = felt_alone[name], felt_by_others[name]
        rows_of = {
            "q": ~alone & ~by_others,
            "k": ~alone & by_others,
            "v": alone & by_others,
            "out": alone & ~by_others,
        }

        present: dict[str, Tensor] = {}

        for role, rows in rows_of.items():
            if rows.any():
                names_of[role].append(name)
                present[role] = rows.nonzero().flatten()

        if len(present) > 1:
            fused[name] = present

    # The first layer behind the last one of values is the attention's output projection.
    outputs: list[str] = []
    if names_of["v"]:
        last_value = max(linears.index(name) for name in names_of["v"])
        outputs = [name for name in names_of["out"] if linears.index(name) > last_value]

    names_of["out"] = outputs[:1]
    return {role: tuple(names) for role, names in names_of.items()}, fused


def _felt(
    layer: nn.Module, run: Run, hidden: Tensor, linears: list[str]
) -> dict[str, Tensor]:
    """Return which outputs of each linear layer at the first token the last token's own output
    feels, (out,) each.

    Of one token alone these are the same token.
    """
    outputs: dict[str, Tensor] = {}
    num_tokens = hidden.shape[1]

    def recorder_of(name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, output: Tensor) -> None:
            if output.dim() == 3 and output.shape[1] == num_tokens:
                output.retain_grad()
                outputs[name] = output

        return record

    handles = []
    for name in linears:
        linear = layer.get_submodule(name)
        handles.append(linear.register_forward_hook(recorder_of(name)))

    try:
        with torch.enable_grad():
            output = run(hidden.detach().clone().requires_grad_(True))
            weights = torch.randn(output.shape[-1], dtype=output.dtype)
            (output[0, -1] * weights).sum().backward()
    finally:
        for handle in handles:
            handle.remove()

    gradients: dict[str, Tensor] = {}
    for name, tensor in outputs.items():
        if tensor.grad is not None:
            gradients[name] = tensor.grad[0, 0].abs()

    maxima = [float(gradient.max()) for gradient in gradients.values()]
    largest = max(maxima, default=0.0)
    layer.zero_grad()

    return {name: gradient > FELT * largest for name, gradient in gradients.items()}
