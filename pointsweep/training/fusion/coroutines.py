"""The threads of a pack: each member runs its own trial, as it would alone; only one runs at a
time.

On a GPU members meet in three places. Those whose models are of equal structure visit them
together: the first one runs the part for all of them, as one (joint.py). At a frozen part the rows
of all members that have come to it, whatever their structure, are joined, and each gets its own
back. At the end of a step all losses are sent backwards together, and the optimisers step as one.
On a CPU, where joining gains nothing, they take turns: one runs a batch to its end, and lets go of
its activations, before the next. While one waits for the disk the others go on: what they send
there in the meantime the disk takes in one go.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pointsweep.ops.vmap import Inputs, Part, folded, run, tensors
from pointsweep.training.adamw import AdamW
from pointsweep.training.fusion.fused_step import Step, take_together
from pointsweep.training.fusion.requests import (
    Backward,
    BatchBarrier,
    BatchedCall,
    Call,
    DiskWait,
    FollowerResult,
    LeaderTurn,
    Pass,
)
from pointsweep.utils import fault_injection as faults

_local = threading.local()

# Where members are joined. On a CPU that gains nothing (products are bound by arithmetic either
# way), a product's last digits depend on its number of rows, and the activations of all members
# would live at once.
JOINED_ON = {"cuda"}
M_ARENA_MAX = -8  # of glibc's mallopt
Request = Pass | BatchedCall | Backward | Step | BatchBarrier | Call


def backward(loss: Tensor) -> None:
    """`loss.backward()`, in a pack on a GPU together with those of the other members."""
    member: Member | None = getattr(_local, "member", None)
    if member is not None and loss.device.type in JOINED_ON:
        member.ask(Backward(loss))
    else:
        loss.backward()


def take_step(optimizer: AdamW, trained: Sequence[Tensor], clip_norm: float) -> None:
    """Clips the gradients of what is trained and steps, in a pack on a GPU together with the other
    members.
    """
    member: Member | None = getattr(_local, "member", None)
    step = Step(optimizer, trained, clip_norm)

    if member is not None and trained[0].device.type in JOINED_ON:
        member.ask(step)
    else:
        step.take()


def take_turns(device: torch.device) -> None:
    """Give the others their turn at the end of a batch, where rows are not joined: who sees the
    same clouds sees them together.
    """
    member: Member | None = getattr(_local, "member", None)
    if member is not None and device.type not in JOINED_ON:
        member.ask(BatchBarrier())


@dataclass
class Member:
    """One trial's thread. `request` is what it waits for; None while it runs or after its end."""

    body: Callable[[], Any]
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    request: Request | FollowerResult | DiskWait | None = None
    answer: Any = None
    failure: BaseException | None = None  # raised in the member in place of an answer
    result: Any = None
    crash: BaseException | None = None  # what the body raised
    ended: bool = False

    def start(self, threads: int) -> None:
        threading.Thread(
            target=self._run, args=(threads,), daemon=True, name="pack-member"
        ).start()

    def _run(self, threads: int) -> None:
        self.turn.acquire()
        _local.member = self
        faults.waits.aside = self.aside
        torch.set_num_threads(threads)

        try:
            self.result = self.body()
        except BaseException as error:  # handed to the thread that runs the pack
            self.crash = error

        self.ended = True
        self.back.release()

    def ask(self, request: Request) -> Any:
        """Wait in the member's thread until the request is served. Raises the error that it met."""
        self.request = request
        self.back.release()
        self.turn.acquire()
        failure = self.failure
        self.failure = None

        if failure is not None:
            raise failure

        return self.answer

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let the others go on while the body of this runs in the member's thread, which must touch
        nothing of theirs.
        """
        self.request = wait = DiskWait()
        self.back.release()

        try:
            yield
        finally:
            wait.over.set()
            self.turn.acquire()

    def resume(self) -> None:
        """Let the member run, from the pack's thread, until its next request or its end."""
        self.request = None
        self.turn.release()
        self.back.acquire()


def _one_heap() -> None:
    """Let the threads of all members take memory from one heap, so that what one lets go of serves
    the next. With glibc alone.

    MALLOC_ARENA_MAX=1 in the environment says the same, but glibc reads it as a process begins: a
    launch in this process, and workers that were started by somebody else, would not have it.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def run_together(bodies: Sequence[Callable[[], Any]], threads: int) -> list[Any]:
    """Run the members to their ends; return their results. Raises the first exception of a body,
    once all have ended.
    """
    _one_heap()
    members = [Member(body) for body in bodies]

    for member in members:
        member.start(threads)
        member.resume()

    while waiting := [member for member in members if not member.ended]:
        for member in _serve(waiting):
            member.resume()

    for member in members:
        if member.crash is not None:
            raise member.crash

    return [member.result for member in members]


def _serve(waiting: Sequence[Member]) -> Sequence[Member]:
    """Serve the requests that come first: a turn after the disk, a call, the earliest part, and
    gradients, steps or turns at last.
    """
    aside = [
        (member, member.request)
        for member in waiting
        if isinstance(member.request, DiskWait)
    ]
    for _, request in aside:
        request.over.wait()

    if aside:
        return [member for member, _ in aside]

    calls = [member for member in waiting if isinstance(member.request, Call)]
    if calls:
        return [_call(member) for member in calls]

    served = [
        member
        for member in waiting
        if isinstance(member.request, FollowerResult) and member.request.over
    ]
    if served:
        return served

    pending_parts = [
        member.request
        for member in waiting
        if isinstance(member.request, (Pass, BatchedCall))
    ]
    if not pending_parts:
        return _end_of_step(waiting)

    # Whoever is behind goes first, so that all come to the next part together.
    first = min(pending_parts, key=lambda request: request.place)
    group = [member for member in waiting if _same_kind(member.request, first)]
    return _pass(group) if isinstance(first, Pass) else _visit(group)


def _call(member: Member) -> Member:
    assert isinstance(member.request, Call)
    try:
        member.answer = member.request.work()
    except BaseException as error:  # the member's own, raised where it asked
        member.failure = error

    return member


def _same_kind(request: Any, first: Pass | BatchedCall) -> bool:
    if isinstance(request, Pass) and isinstance(first, Pass):
        return (request.place, request.modes, request.rows.shape[1:]) == (
            first.place,
            first.modes,
            first.rows.shape[1:],
        )

    return (
        isinstance(request, BatchedCall)
        and isinstance(first, BatchedCall)
        and (request.place, request.kind) == (first.place, first.kind)
    )


def _visit(group: Sequence[Member]) -> Sequence[Member]:
    """Let the first go on and run the part for all, in its own thread: on the way it may request
    passes.
    """
    group[0].answer = LeaderTurn(
        group,
        [member.request for member in group if isinstance(member.request, BatchedCall)],
    )
    for member in group[1:]:
        member.request = FollowerResult()

    return group[:1]


def _pass(group: Sequence[Member]) -> Sequence[Member]:
    passes = [member.request for member in group if isinstance(member.request, Pass)]
    try:
        with _modes(passes[0].modes):
            joined = passes[0].part(torch.cat([request.rows for request in passes]))
            parts = joined.split([len(request.rows) for request in passes])
    except Exception as error:  # out of memory, say: each member hears of it
        for member in group:
            member.failure = error
        return group

    for member, part in zip(group, parts, strict=True):
        member.answer = part

    return group


def _end_of_step(waiting: Sequence[Member]) -> Sequence[Member]:
    """Gradients first, then the optimisers' steps."""
    losses = [
        member.request.loss
        for member in waiting
        if isinstance(member.request, Backward)
    ]

    steps = [member.request for member in waiting if isinstance(member.request, Step)]
    group = [
        member
        for member in waiting
        if not losses or not isinstance(member.request, Step)
    ]

    try:
        if losses:
            torch.autograd.backward(losses)
        elif steps:
            take_together(steps)
    except Exception as error:  # likewise each hears of it
        for member in group:
            member.failure = error

    return group


def _current_modes(device: str) -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        device,
        torch.is_autocast_enabled(device),
        torch.get_autocast_dtype(device),
    )


def _modes(modes: tuple[Any, ...]) -> ExitStack:
    """The grad and autocast modes of a member, which belong to its thread."""
    grad, device, cast, dtype = modes
    stack = ExitStack()
    stack.enter_context(torch.set_grad_enabled(grad))
    stack.enter_context(torch.autocast(device, dtype=dtype, enabled=cast))

    return stack


def meet(
    place: tuple[int, ...], part: Callable[[Tensor], Tensor], rows: Tensor
) -> Tensor:
    """rows (n, ...) through a frozen part that works on each row alone; in a pack on a GPU together
    with the other members' rows.
    """
    member: Member | None = getattr(_local, "member", None)
    if member is None or rows.device.type not in JOINED_ON:
        return part(rows)

    # Those who run as one bring the rows of all.
    return folded(
        lambda member_rows: member.ask(
            Pass(place, part, member_rows, _current_modes(member_rows.device.type))
        ),
        rows,
    )


def visit(place: tuple[int, ...], part: Part, inputs: Inputs, kind: Hashable) -> Any:
    """Return what the part gives; in a pack on a GPU worked out with those of members whose part is
    of the same kind and shapes.
    """
    member: Member | None = getattr(_local, "member", None)
    shapes = tuple(
        (tensor.shape, tensor.dtype, tensor.device.type) for tensor in tensors(inputs)
    )

    if member is None or shapes[0][2] not in JOINED_ON:
        return part.forward(*inputs)

    signature = (
        kind,
        part.shapes,
        part.module.training,
        shapes,
        _current_modes(shapes[0][2]),
    )

    answer = member.ask(BatchedCall(place, part, inputs, signature))
    return _lead(answer) if isinstance(answer, LeaderTurn) else answer


def _lead(lead: LeaderTurn) -> Any:
    first, followers = lead.visits[0], lead.group[1:]
    try:
        results = (
            run([v.part for v in lead.visits], [v.inputs for v in lead.visits])
            if followers
            else [first.part.forward(*first.inputs)]
        )
    except BaseException as error:  # those who wait for it hear of it too
        for member in followers:
            member.failure = error
        raise
    finally:
        for member in followers:
            member.request = FollowerResult(over=True)

    for member, result in zip(followers, results[1:], strict=True):
        member.answer = result

    return results[0]


def in_pack_thread(work: Callable[[], Any]) -> Any:
    """Do something in the thread that runs the pack; outside a pack at once."""
    member: Member | None = getattr(_local, "member", None)
    return work() if member is None else member.ask(Call(work))
