"""Anatomy of a library's transformer: its layers, norms, positions and class token, found on a
small copy.

The copy has the model's first two layers, random weights and few words. It is run on inputs of its
own; what stands in front of the first layer and behind the last is read from the order of
execution, and what a table does from what moves when it is moved. The layers are then run by
themselves and compared with what they gave in the model, so that nothing is taken for granted.

Letters: N tokens, C channels, H heads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pointsweep.models.backbones.find_call import (
    arguments_of,
    find_call,
    own_arguments,
    tokens_of,
)
from pointsweep.models.backbones.layer_call import RELATIVE, ROTARY, LayerCall
from pointsweep.models.backbones.layer_roles import (
    LayerRoles,
    find_roles,
    first,
    is_norm,
)

EXAMINED = 2  # layers
WORDS = 64  # rows of the copy's table of words


@dataclass(frozen=True, eq=False)
class LibraryModel:
    """A model of a library, and how it is run: its own inputs, its table of words if it reads
    words, its heads.
    """

    module: nn.Module
    inputs: Callable[[], dict[str, Tensor]]
    heads: int
    name: str
    words: str = ""  # path of the table of words
    reads_images: bool = False
    layer_types: tuple[str, ...] = ()  # of each layer, where they are of several kinds
    context: int | None = None  # how many words it was made for
    # what was found of it, by configuration
    found: dict[Any, Anatomy] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Table:
    """A position table: the rows of a tensor that tokens get, and rows of others that every token
    gets as well.
    """

    name: str
    rows: Tensor  # (N,) of tokens in order, without those in front
    grid: tuple[int, int] | None  # rows and columns of the tokens' grid
    added: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Anatomy of a model, as it was found."""

    stack: str
    num_layers: int
    dim: int
    mlp: int
    roles: LayerRoles
    call: LayerCall
    own_causal: bool
    grid: tuple[int, int] | None  # of patches; None: tokens lie on a line
    patch: tuple[int, int] | None  # height and width of one, in pixels
    num_front: int  # tokens that stand in front of the others: class token, registers
    start_norm: str = ""
    final_norm: str = ""
    rotary: str = ""  # the module that makes rotations
    bias_owner: str = ""  # the module that has a table of biases by distance
    class_token: str = ""
    table: Table | None = None


class _StopError(Exception):
    """Exception that ends a run in front of the first layer."""


@dataclass
class _Run:
    """Record of what happened while the copy ran."""

    # path, module, inputs, output; of layers: path of the stack
    order: list[tuple[str, nn.Module, Any, Any]]
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]]  # of layers

    @property
    def hidden(self) -> Tensor:
        """Return what goes into the first layer, (1, N, C)."""
        return tokens_of(*self.calls[0][:2])


def stack_of(model: LibraryModel) -> str:
    """Return the path of the list of layers with the most parameters. Raises ValueError where there
    is none.
    """
    best, most = "", -1
    for path, module in model.module.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) < 2:
            continue
        if len({type(layer) for layer in module}) > 1 or not list(module[0].children()):
            continue

        size = sum(parameter.numel() for parameter in module.parameters())
        if size > most:
            best, most = path, size

    if most <= 0:
        raise ValueError(
            f"{model.name}: it has no list of at least two equal layers (layers that share their"
            " weights are none)"
        )

    return best


def small_copy(model: LibraryModel, stack: str, seed: int = 0) -> LibraryModel:
    """Return a copy with the first layers, drawn weights in double precision, and few words."""
    module = copy.deepcopy(model.module)
    owner, _, name = stack.rpartition(".")
    layers = module.get_submodule(stack)
    first: list[nn.Module] = list(layers)[:EXAMINED]  # type: ignore[call-overload]
    cut: nn.Module = nn.ModuleList(first)

    if isinstance(layers, nn.Sequential):
        cut = type(layers)(*first)

    setattr(module.get_submodule(owner), name, cut)

    if model.words:
        table = module.get_submodule(model.words)
        assert isinstance(table, nn.Embedding)
        table.weight = nn.Parameter(
            torch.empty(WORDS, table.embedding_dim, device="meta")
        )
        table.num_embeddings = WORDS
        table.padding_idx = None

    generator = torch.Generator().manual_seed(seed)
    fill(module, lambda tensor: _draw(tensor, generator))
    return replace(model, module=module.double().eval().requires_grad_(True))


def _draw(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Values about 1 for vectors, so that no scale hides a branch, and of a layer's usual size for
    matrices.
    """
    drawn = torch.randn(tensor.shape, generator=generator)
    if tensor.dim() < 2:
        return 1.0 + 0.1 * drawn

    return drawn * max(tensor[0].numel(), 1) ** -0.5


def to_meta(module: nn.Module) -> None:
    """Put all parameters of a model on the meta device; buffers stay what they are, as they are
    constants.
    """
    moved: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                if id(parameter) not in moved:
                    moved[id(parameter)] = nn.Parameter(
                        torch.empty_like(parameter, device="meta"), requires_grad=False
                    )

                owner._parameters[name] = moved[id(parameter)]


def fill(module: nn.Module, values: Callable[[Tensor], Tensor]) -> None:
    """Give every parameter that is on the meta device values; parameters that are one stay one."""
    filled: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in filled:
                    filled[id(parameter)] = nn.Parameter(
                        values(parameter), requires_grad=parameter.requires_grad
                    )

                owner._parameters[name] = filled[id(parameter)]


@torch.no_grad()
def run(model: LibraryModel, stack: str, until_first: bool = False) -> _Run:
    """Run a model on inputs of its own; of `until_first` to the first layer alone."""
    seen = _Run([], [])
    handles = _watched(
        model.module, model.module.get_submodule(stack), seen, until_first
    )
    inputs = {}

    for name, value in model.inputs().items():
        inputs[name] = value.double() if value.is_floating_point() else value

    try:
        model.module(**inputs)
    except _StopError:
        pass
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        _check_shapes(model, seen, 0)
        text = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{model.name}: its first layers cannot be run on inputs of its own: {text}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()

    return seen


def _watched(
    module: nn.Module, layers: nn.Module, seen: _Run, until_first: bool
) -> list[Any]:
    """Hooks that note in `seen` what happens."""

    def note(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs, output: seen.order.append(
            (path, module, (args, kwargs), output)
        )

    def note_layer(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen.calls.append((args, kwargs, output))
        seen.order.append(("LAYER", module, (args, kwargs), output))

    def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.calls.append((args, kwargs, None))
        raise _StopError

    inside = set(layers.modules())
    handles: list[Any] = []
    for path, part in module.named_modules():
        if part not in inside and path:
            handles.append(part.register_forward_hook(note(path), with_kwargs=True))

    for layer in layers.children():
        handles.append(layer.register_forward_hook(note_layer, with_kwargs=True))

    if until_first:
        handles.append(
            next(layers.children()).register_forward_pre_hook(stop, with_kwargs=True)
        )

    return handles


def examine(
    model: LibraryModel,
    causal: bool | None = None,
    prepare: Callable[[nn.Module], None] | None = None,
) -> Anatomy:
    """Find the parts of a model whose parameters may be on the meta device. Raises ValueError
    saying what it cannot be used for.

    `causal`: how its layers shall be called; None: as its own program does. `prepare` makes a
    layer's matrices plain ones.
    """
    stack = stack_of(model)
    small = small_copy(model, stack)
    layers = list(small.module.get_submodule(stack).children())
    _check_shapes(model, run(small, stack), len(layers))

    if prepare is not None:
        for layer in layers:
            prepare(layer)

    seen = run(small, stack)
    hidden = seen.hidden
    norms = _around(small, seen)
    grid, patch, num_front = _patches(seen, hidden)
    rotary = _maker_of(
        seen, arguments_of(layers[0], *seen.calls[0][:2]).get("position_embeddings")
    )
    call, own_causal = find_call(
        model.name, model.heads, layers, seen.calls[len(layers) - 1], causal
    )
    bias_owner = _bias_owner(small, call)

    try:
        roles = find_roles(
            layers[-1], lambda x: first(layers[-1](x, **own_arguments(call, x))), hidden
        )
    except ValueError as error:
        raise ValueError(f"{model.name}: {error}") from error
    except (RuntimeError, IndexError) as error:
        text = (
            f"{model.name}: its layers cannot be run with another number of tokens:"
            f" {' '.join(str(error).split())[:200]}"
        )
        raise ValueError(text) from error

    table, class_token = _tables(
        small, stack, seen, norms["start_norm"], grid, num_front
    )
    down = layers[-1].get_submodule(roles.projections["fc2"][-1])
    return Anatomy(
        stack=stack,
        num_layers=len(list(model.module.get_submodule(stack).children())),
        dim=hidden.shape[2],
        mlp=int(down.in_features),  # type: ignore[arg-type]
        roles=roles,
        call=call,
        own_causal=own_causal,
        grid=grid,
        patch=patch,
        num_front=num_front,
        rotary=rotary if call.positions == ROTARY else "",
        bias_owner=bias_owner,
        class_token=class_token,
        table=table,
        **norms,
    )


def _check_shapes(model: LibraryModel, seen: _Run, num_layers: int) -> None:
    if len(seen.calls) < num_layers:
        raise ValueError(
            f"{model.name}: its layers are not all run one after the other"
        )

    shapes = [tuple(tokens_of(args, kwargs).shape) for args, kwargs, _ in seen.calls]
    for _, _, output in seen.calls:
        if output is not None:
            shapes.append(tuple(first(output).shape))

    if shapes and len(shapes[0]) != 3:
        raise ValueError(
            f"{model.name}: its layers take tensors {shapes[0]}, not tokens (B, N, C): it is no"
            " plain transformer"
        )
    if len(set(shapes)) > 1:
        raise ValueError(
            f"{model.name}: a hierarchy, whose layers have tokens"
            f" {' then '.join(map(str, dict.fromkeys(shapes)))}"
        )


def _around(model: LibraryModel, seen: _Run) -> dict[str, str]:
    """The norm whose output goes into the first layer, and the one behind the last."""
    layers = [index for index, entry in enumerate(seen.order) if entry[0] == "LAYER"]
    before, behind = seen.order[: layers[0]], seen.order[layers[-1] + 1 :]
    start_norm = ""

    for path, module, _, output in before:
        if is_norm(module) and _equal(output, seen.hidden):
            start_norm = path

    final_norm = ""
    last = first(seen.calls[-1][2])
    for path, module, (args, _), _ in behind:
        if final_norm or not is_norm(module) or not args:
            continue
        if _equal(args[0], last) or _equal(args[0], last[:, 0]):
            final_norm = path

    return {"start_norm": start_norm, "final_norm": final_norm}


def _equal(value: Any, tensor: Tensor) -> bool:
    """Return whether a value is a tensor with the same shape and numbers."""
    return (
        isinstance(value, Tensor)
        and value.shape == tensor.shape
        and torch.equal(value, tensor)
    )


def _patches(
    seen: _Run, hidden: Tensor
) -> tuple[tuple[int, int] | None, tuple[int, int] | None, int]:
    """The rows and columns of a model of patches, a patch's size, and how many tokens stand in
    front of them.
    """
    grid = patch = None
    for _, module, _, output in seen.order:
        if (
            isinstance(module, nn.Conv2d)
            and isinstance(output, Tensor)
            and output.dim() == 4
        ):
            grid = (int(output.shape[2]), int(output.shape[3]))
            patch = (int(module.stride[0]), int(module.stride[1]))

    if grid is None or grid[0] * grid[1] > hidden.shape[1]:
        return None, None, 0

    return grid, patch, hidden.shape[1] - grid[0] * grid[1]


def _maker_of(seen: _Run, pair: Any) -> str:
    """The module outside the layers that made the rotations of the first."""
    if not isinstance(pair, (tuple, list)):
        return ""

    for path, _, _, output in seen.order:
        if (
            isinstance(output, (tuple, list))
            and len(output) == 2
            and output[0] is pair[0]
        ):
            return path

    return ""


def _bias_owner(model: LibraryModel, call: LayerCall) -> str:
    """The module with the table of biases by distance, whose own function puts a distance into a
    bucket.
    """
    if call.positions != RELATIVE:
        return ""

    for path, module in model.module.named_modules():
        if (
            isinstance(getattr(module, "relative_attention_bias", None), nn.Embedding)
            and bucket_of(module) is not None
        ):
            return path

    return ""


def bucket_of(module: nn.Module) -> Any:
    """The function of a module of relative biases that gives a distance its row."""
    return getattr(module, "_relative_position_bucket", None) or getattr(
        module, "relative_position_bucket", None
    )


# Tables


def _tables(
    model: LibraryModel,
    stack: str,
    seen: _Run,
    start_norm: str,
    grid: tuple[int, int] | None,
    num_front: int,
) -> tuple[Table | None, str]:
    """The table whose rows tokens get by their place, and the class token's tensor: found by moving
    each tensor.
    """
    before = _in_front(model, stack, start_norm, seen)
    width, num_tokens = before.shape[2], before.shape[1]
    tables: list[tuple[str, Tensor]] = []
    added: list[tuple[str, int]] = []
    class_token = ""

    for name, tensor in _outside(model, stack):
        if (
            tensor.numel() == 0
            or tensor.dim() == 0
            or tensor.shape[-1] != width
            or not tensor.is_floating_point()
        ):
            continue

        delta = torch.randn(
            tensor.shape, dtype=tensor.dtype, generator=torch.Generator().manual_seed(1)
        )
        tensor.data += delta
        moved = (_in_front(model, stack, start_norm, None) - before)[0]  # (N, C)
        tensor.data -= delta
        is_moved = moved.abs().amax(dim=1) > 1e-9

        if (
            tensor.numel() == width
            and num_front
            and bool(is_moved[0])
            and not bool(is_moved[1:].any())
        ):
            class_token = name
            continue

        rows = _rows(moved[num_front:], delta.reshape(-1, width))
        if rows is None or tensor.dim() < 2:
            continue

        # On a grid places follow each other row by row; what is in another order cannot be put on a
        # plane.
        if len(rows.unique()) == num_tokens - num_front and (
            grid is None or bool((rows.diff() == 1).all())
        ):
            tables.append((name, rows))
        elif len(rows.unique()) == 1:
            added.append((name, int(rows[0])))

    if not tables:
        return None, class_token

    name, rows = tables[0]
    return Table(
        name, _extended(rows, model, name, width, grid), grid, tuple(added)
    ), class_token


def _extended(
    rows: Tensor,
    model: LibraryModel,
    name: str,
    width: int,
    grid: tuple[int, int] | None,
) -> Tensor:
    """Extend a table of places: on a line the rows go on to the end of the table, as places in a
    row do.
    """
    if grid is not None or len(rows) < 2 or not bool((rows.diff() == 1).all()):
        return rows

    total = dict(_tensors(model.module))[name].numel() // width
    return torch.arange(int(rows[0]), total)


def _rows(moved: Tensor, delta: Tensor) -> Tensor | None:
    """The row of `delta` that each token of `moved` (N, C) has moved by; None where they have moved
    otherwise.
    """
    rows = (moved @ delta.t()).argmax(dim=1)
    if torch.allclose(moved, delta[rows], atol=1e-8):
        return rows

    return None


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _outside(model: LibraryModel, stack: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are not the layers' and not the table of words."""
    for name, tensor in _tensors(model.module):
        if not name.startswith(f"{stack}.") and name != f"{model.words}.weight":
            yield name, tensor


def _in_front(
    model: LibraryModel, stack: str, start_norm: str, seen: _Run | None
) -> Tensor:
    """Return what goes into the first layer, or into the norm that stands in front of it, (1, N,
    C).
    """
    if seen is None:
        seen = run(model, stack, until_first=True)

    for path, _, (args, _), output in seen.order:
        if start_norm and path == start_norm and isinstance(output, Tensor) and args:
            hidden: Tensor = args[0]

    return hidden if start_norm else seen.hidden
