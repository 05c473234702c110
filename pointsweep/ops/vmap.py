"""Trained modules of equal structure as one: their tensors stacked, run once under vmap for all
members of a pack.

Where members come to the same part of their models with the same shapes, each operator works on all
of them: one product of stacked matrices, one batch normalisation with statistics for each, not a
small kernel a member. Every member keeps its own parameters, statistics and gradients: these are
the rows of the stacked tensors. What vmap must not see, because it is the members' own (noise) or
no operator of torch's (compiled geometry), leaves it: `folded`, `uniform`, `for_each`; so do
layers, which vmap_layers.py does better. Source: HFTA (arXiv 2102.02344);
https://docs.pytorch.org/docs/stable/func.html. Letters: K members, B clouds.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from pointsweep.ops.vmap_layers import rule_for

_here = threading.local()

T = TypeVar("T")
Inputs = Sequence[Any]  # of one member: tensors, None, and tuples of these


@dataclass(frozen=True)
class Joint:
    """Group of members that run as one in this thread: their generators, and which tensors of
    theirs a tensor under vmap stands for.
    """

    generators: Sequence[torch.Generator | None]
    counter: Tensor  # 0 to K - 1, one for each member
    # by the id of the tensor under vmap, which the entry keeps alive
    own: dict[int, tuple[Tensor, Sequence[Tensor]]]

    def parts(self, tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]] | None:
        """The members' tensors that these stand for, one tuple for each member; None of what was
        worked out under vmap.
        """
        of_members: list[Sequence[Tensor]] = []
        for tensor in tensors:
            entry = self.own.get(id(tensor))
            if entry is None:
                return None

            _, members = entry
            of_members.append(members)

        return zip(*of_members, strict=True)


def current() -> Joint | None:
    """The members that run as one here; None outside."""
    return getattr(_here, "joint", None)


def is_eager_on_cpu(tensor: Tensor) -> bool:
    """Return whether operators that write in place, which have gradients of their own, may work on
    it: single or double precision on a CPU, not under autocast, of one trial alone, outside
    torch.func's transforms.
    """
    if tensor.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    if current() is not None or torch._C._are_functorch_transforms_active():
        return False

    return tensor.dtype in (torch.float32, torch.float64)


class _Outside(torch.autograd.Function):
    """`work` on the tensors of all members, (K, ...) each, as vmap holds them; torch differentiates
    what it does.
    """

    @staticmethod
    def forward(work: Callable[..., Any], *tensors: Tensor) -> Any:
        raise AssertionError("one tensor is always every member's own")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raise AssertionError("one tensor is always every member's own")

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Sequence[int | None],
        work: Callable[..., Any],
        *tensors: Tensor,
    ) -> tuple[Any, Any]:
        """Run `work` on all members' tensors, with the members along the first axis.

        The first entry of `in_dims` is that of `work` itself, and the first tensor the one that
        only makes torch call this: neither is an argument of `work`.
        """
        stacked = []
        for tensor, axis in zip(tensors, in_dims[1:], strict=True):
            if axis is None:  # the members share it
                stacked.append(tensor.expand(info.batch_size, *tensor.shape))
            else:
                stacked.append(tensor.movedim(axis, 0))

        output = work(*stacked[1:])
        out_dims = 0 if isinstance(output, Tensor) else tuple(0 for _ in output)
        return output, out_dims


def _outside(joint: Joint, work: Callable[..., Any], *tensors: Tensor) -> Any:
    def alone(*stacked: Tensor) -> Any:
        _here.joint = None
        try:
            return work(*stacked)
        finally:
            _here.joint = joint

    return _Outside.apply(alone, joint.counter, *tensors)


def folded(work: Callable[..., Tensor], *rows: Tensor | None) -> Tensor:
    """`work(*rows)` of what works on each row (B, ...) alone; of joint members on the rows of all,
    (K B, ...), outside vmap.
    """
    joint = current()
    if joint is None:
        return work(*rows)

    present = {index: tensor for index, tensor in enumerate(rows) if tensor is not None}

    def all_rows(*stacked: Tensor) -> Tensor:
        arguments: list[Tensor | None] = [None] * len(rows)
        for index, tensor in zip(present, stacked, strict=True):
            arguments[index] = tensor.flatten(0, 1)

        return work(*arguments).unflatten(0, stacked[0].shape[:2])

    output: Tensor = _outside(joint, all_rows, *present.values())
    return output


def uniform(
    shape: Sequence[int], generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Uniform numbers in [0, 1); of joint members each one's own, from its own generator."""
    joint = current()
    if joint is None:
        return torch.rand(shape, generator=generator, device=device)

    def stacked() -> Tensor:
        of_members = []
        for own in joint.generators:
            of_members.append(torch.rand(shape, generator=own, device=device))

        return torch.stack(of_members)

    # The counter keeps the numbers under vmap; they are made outside it.
    noise: Tensor = _outside(joint, stacked)
    return noise


def for_each(joint: Joint, make: Callable[[], Sequence[T]]) -> T:
    """Return what `make` gives for every member, of tensors in containers (see `tensors`) -> one,
    of stacked tensors under vmap.
    """
    made: list[T] = []
    columns: list[tuple[Tensor, ...]] = []  # of a tensor of the value, all members'

    def stacked() -> tuple[Tensor, ...]:
        made.extend(make())
        columns.extend(_columns(made))
        return tuple(torch.stack(column) for column in columns)

    outputs = _outside(joint, stacked)
    for tensor, column in zip(outputs, columns, strict=True):
        joint.own[id(tensor)] = (tensor, column)

    value: T = rebuilt(made[0], iter(outputs))
    return value


def _columns(values: Sequence[Any]) -> list[tuple[Tensor, ...]]:
    """Return the tensors of values of one structure: of each tensor that of all values."""
    return list(zip(*(tensors(value) for value in values), strict=True))


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in tuples, lists, dictionaries and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif is_dataclass(value):
        yield from tensors([getattr(value, each.name) for each in fields(value)])


def rebuilt(value: Any, leaves: Iterator[Tensor]) -> Any:
    """The value with other tensors, in the order of `tensors`."""
    if isinstance(value, Tensor):
        return next(leaves)
    if isinstance(value, (tuple, list)):
        values = [rebuilt(part, leaves) for part in value]
        return (
            type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
        )
    if isinstance(value, dict):
        return {key: rebuilt(part, leaves) for key, part in value.items()}

    if is_dataclass(value) and not isinstance(value, type):
        arguments = {}
        for field in fields(value):
            arguments[field.name] = rebuilt(getattr(value, field.name), leaves)

        return type(value)(**arguments)

    return value


class _Rows(torch.autograd.Function):
    """A tensor (K, ...) whose rows are the memory of K parameters -> itself; its gradient's rows
    are theirs. Nothing is copied.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, *parameters: Tensor) -> Tensor:
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        # else every row would be copied by itself
        return None, *gradient.contiguous().unbind(0)


class _Layers(TorchFunctionMode):
    """Mode that takes the functions of layers out of vmap (vmap_layers.py)."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        joint = current()
        named = kwargs or {}
        if joint is None:
            return function(*args, **named)

        rule = rule_for(function, args, named)
        if rule is None:
            return function(*args, **named)

        values = [*args, *named.values()]
        own_tensors = [value for value in values if isinstance(value, Tensor)]

        def all_members(*stacked: Tensor | None) -> Tensor:
            remaining = iter(stacked)
            filled = list(values)
            for index, value in enumerate(values):
                if isinstance(value, Tensor):
                    filled[index] = next(remaining)

            positional, by_name = filled[: len(args)], filled[len(args) :]
            return rule(*positional, **dict(zip(named, by_name, strict=True)))

        return _outside(joint, all_members, *own_tensors)


class Part:
    """A module whose forward may run as one with other members'; `but` is the name of a part of it
    that runs by itself.

    Its own tensors are the parameters that train, the statistics of norms that do, and buffers of
    what `keeps_buffers`.
    """

    def __init__(self, module: nn.Module, but: str | None = None) -> None:
        # which refers to this part: its memory must not wait for a collector
        self._module = weakref.ref(module)
        self.but = but
        # where its own tensors lie since it ran with others
        self.stack: Stack | None = None
        # Frozen parts are other members' too; they draw nothing.
        self.noise: list[nn.Module] = []

        for layer in module.modules():
            if hasattr(layer, "generator") and getattr(layer, "p", 0.0) > 0:
                self.noise.append(layer)

    @property
    def module(self) -> nn.Module:
        """Alive as long as its trial is."""
        module = self._module()
        assert module is not None
        return module

    def forward(self, *inputs: Any) -> Any:
        """Run this member alone."""
        module: Any = self.module
        return type(module).forward(module, *inputs)

    @property
    def generator(self) -> torch.Generator | None:
        """Return the generator of all its noise."""
        return self.noise[0].generator if self.noise else None  # type: ignore[return-value]

    @cached_property
    def own(self) -> dict[str, Tensor]:
        """Return this member's tensors by name; looked up at the first forward pass, when
        everything is in its place.
        """
        own: dict[str, Tensor] = {}
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                own[name] = parameter

        for prefix, layer in self.module.named_modules():
            is_norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
            trains = is_norm and layer.weight.requires_grad  # type: ignore[union-attr]
            if trains or getattr(layer, "keeps_buffers", False):
                for name, buffer in layer.named_buffers(recurse=False):
                    own[f"{prefix}.{name}".lstrip(".")] = buffer

        if self.but is not None:
            for name in list(own):
                if name.startswith(f"{self.but}."):
                    del own[name]

        return own

    @cached_property
    def shapes(self) -> tuple[Any, ...]:
        """Return what must be equal, beside the modules' code and settings, for two parts to run as
        one.
        """
        shapes = []
        for name, tensor in self.own.items():
            shapes.append((name, tensor.shape, tensor.dtype))

        return tuple(shapes)


class Stack:
    """The own tensors of K parts of equal structure in one memory: rows of tensors (K, ...),
    whoever reads or writes them.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self.rows: dict[str, Tensor] = {}
        for name in parts[0].own:
            of_parts = [part.own[name] for part in parts]
            self.rows[name] = torch.stack([tensor.detach() for tensor in of_parts])
            for tensor, row in zip(of_parts, self.rows[name].unbind(0), strict=True):
                tensor.data = row

        for part in parts:
            part.stack = self

    def state(self) -> dict[str, Tensor]:
        """Return the stacked tensors for functional_call, through which gradients reach each
        member's parameters.
        """
        state: dict[str, Tensor] = {}
        for name, rows in self.rows.items():
            parameters = [part.own[name] for part in self.parts]
            if parameters[0].requires_grad:
                rows = _Rows.apply(rows, *parameters)  # type: ignore[no-untyped-call]

            state[name] = rows

        return state


def _stack_of(parts: Sequence[Part]) -> Stack:
    """The stack of exactly these parts, made anew where one of them has come from another."""
    stack = parts[0].stack
    if stack is None or stack.parts != list(parts):
        return Stack(parts)
    if any(part.stack is not stack for part in parts):
        return Stack(parts)

    return stack


def run(parts: Sequence[Part], inputs: Sequence[Inputs]) -> list[Any]:
    """Return what each part gives for its own inputs, all of equal structure and shapes, as one
    call of the first.
    """
    columns = _columns(inputs)
    generators = [part.generator for part in parts]

    def call(state: dict[str, Tensor], counter: Tensor, *values: Tensor) -> Any:
        own: dict[int, tuple[Tensor, Sequence[Tensor]]] = {}
        for value, column in zip(values, columns, strict=True):
            own[id(value)] = (value, column)

        arguments = rebuilt(tuple(inputs[0]), iter(values))
        _here.joint = Joint(generators, counter, own)
        try:
            return functional_call(parts[0].module, state, arguments)
        finally:
            _here.joint = None

    counter = torch.arange(len(parts), device=columns[0][0].device)
    stacked_inputs = [torch.stack(column) for column in columns]
    state = _stack_of(parts).state()

    with _Layers():
        output = vmap(call)(state, counter, *stacked_inputs)

    rows = zip(*(tensor.unbind(0) for tensor in tensors(output)), strict=True)
    return [rebuilt(output, iter(row)) for row in rows]
