"""The threads of a pack: each member runs its own trial, as it would alone; only one runs at a
time.

On a GPU members are joined in three ways. Those whose models are of equal structure run their parts
as one: the first to come runs the part for all of them (ops/vmap.py). At a frozen part the rows of
all members that have come to it, whatever their structure, are joined, and each gets its own back.
At the end of a step all losses are sent backwards together, and the optimisers step as one. On a
CPU, where joining gains nothing, they take turns: one runs a batch to its end, and lets go of its
activations, before the next. While one waits for the disk the others go on: what they send there in
the meantime the disk takes in one go.
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
    at_disk: list[Member] = []
    calls: list[Member] = []
    served: list[Member] = []
    parts: list[Pass | BatchedCall] = []

    for member in waiting:
        request = member.request
        if isinstance(request, DiskWait):
            request.over.wait()
            at_disk.append(member)
        elif isinstance(request, Call):
            calls.append(member)
        elif isinstance(request, FollowerResult) and request.over:
            served.append(member)
        elif isinstance(request, (Pass, BatchedCall)):
            parts.append(request)

    if at_disk:
        return at_disk
    if calls:
        return [_call(member) for member in calls]
    if served:
        return served
    if not parts:
        return _end_of_step(waiting)

    # Whoever is behind goes first, so that all come to the next part together.
    first = min(parts, key=lambda request: request.order)
    group = [member for member in waiting if _same_kind(member.request, first)]
    return _pass(group) if isinstance(first, Pass) else _lead(group)


def _call(member: Member) -> Member:
    assert isinstance(member.request, Call)
    try:
        member.answer = member.request.work()
    except BaseException as error:  # the member's own, raised where it asked
        member.failure = error

    return member


def _same_kind(request: Any, first: Pass | BatchedCall) -> bool:
    if isinstance(request, Pass) and isinstance(first, Pass):
        same_call = (request.order, request.modes) == (first.order, first.modes)
        return same_call and request.rows.shape[1:] == first.rows.shape[1:]

    if isinstance(request, BatchedCall) and isinstance(first, BatchedCall):
        return (request.order, request.kind) == (first.order, first.kind)

    return False


def _lead(group: Sequence[Member]) -> Sequence[Member]:
    """Let the first go on and run the part for all, in its own thread: on the way it may request
    passes.
    """
    leader, *followers = group
    requests = [member.request for member in group]
    calls = [request for request in requests if isinstance(request, BatchedCall)]
    leader.answer = LeaderTurn(followers, calls)

    for member in followers:
        member.request = FollowerResult()

    return [leader]


def _pass(group: Sequence[Member]) -> Sequence[Member]:
    passes = [member.request for member in group if isinstance(member.request, Pass)]
    try:
        with _modes(passes[0].modes):
            rows = torch.cat([request.rows for request in passes])
            outputs = passes[0].part(rows)
            answers = outputs.split([len(request.rows) for request in passes])
    except Exception as error:  # out of memory, say: each member hears of it
        for member in group:
            member.failure = error
        return group

    for member, answer in zip(group, answers, strict=True):
        member.answer = answer

    return group


def _end_of_step(waiting: Sequence[Member]) -> Sequence[Member]:
    """Gradients first, then the optimisers' steps."""
    losses: list[Tensor] = []
    steps: list[Step] = []
    before_step: list[Member] = []

    for member in waiting:
        if isinstance(member.request, Step):
            steps.append(member.request)
            continue

        before_step.append(member)
        if isinstance(member.request, Backward):
            losses.append(member.request.loss)

    # Who waits for its step waits on until all have their gradients.
    group = before_step if losses else waiting
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


def run_joined(
    order: tuple[int, ...], part: Callable[[Tensor], Tensor], rows: Tensor
) -> Tensor:
    """rows (n, ...) through a frozen part that works on each row alone; in a pack on a GPU together
    with the other members' rows.
    """
    member: Member | None = getattr(_local, "member", None)
    if member is None or rows.device.type not in JOINED_ON:
        return part(rows)

    def request(member_rows: Tensor) -> Any:
        modes = _current_modes(member_rows.device.type)
        return member.ask(Pass(order, part, member_rows, modes))

    # Those who run as one bring the rows of all.
    return folded(request, rows)


def run_batched(
    order: tuple[int, ...], part: Part, inputs: Inputs, kind: Hashable
) -> Any:
    """Return what the part gives; in a pack on a GPU worked out with those of members whose part is
    of the same kind and shapes.
    """
    member: Member | None = getattr(_local, "member", None)
    shapes = []

    for tensor in tensors(inputs):
        shapes.append((tensor.shape, tensor.dtype, tensor.device.type))

    _, _, device = shapes[0]
    if member is None or device not in JOINED_ON:
        return part.forward(*inputs)

    signature = (
        kind,
        part.shapes,
        part.module.training,
        tuple(shapes),
        _current_modes(device),
    )

    answer = member.ask(BatchedCall(order, part, inputs, signature))
    return _run_for_all(answer) if isinstance(answer, LeaderTurn) else answer


def _run_for_all(turn: LeaderTurn) -> Any:
    """Run the calls of a leader and of those who follow it; return the leader's own result."""
    try:
        if turn.followers:
            parts = [call.part for call in turn.calls]
            results = run(parts, [call.inputs for call in turn.calls])
        else:
            (call,) = turn.calls
            results = [call.part.forward(*call.inputs)]
    except BaseException as error:  # those who wait for it hear of it too
        for member in turn.followers:
            member.failure = error
        raise
    finally:
        for member in turn.followers:
            member.request = FollowerResult(over=True)

    for member, result in zip(turn.followers, results[1:], strict=True):
        member.answer = result

    return results[0]


def in_pack_thread(work: Callable[[], Any]) -> Any:
    """Do something in the thread that runs the pack; outside a pack at once."""
    member: Member | None = getattr(_local, "member", None)
    return work() if member is None else member.ask(Call(work))
