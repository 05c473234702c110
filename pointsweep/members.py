"""The threads of a pack: each member runs its own trial, as it would alone; only one runs at a time.

On a GPU members meet in two places. At a frozen part the inputs of all members that have come to it are joined, the part runs once,
and each member gets its rows back. At the end of a step the losses of all members are sent backwards together. On a CPU, where
joining gains nothing, they take turns: one runs a batch to its end, and lets go of its activations, before the next. While one waits
for the disk the others go on: what they send there in the meantime the disk takes in one go.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pointsweep import faults

_here = threading.local()

# Where the rows of all members go through a frozen part as one product. On a CPU that gains nothing (products are bound by
# arithmetic either way), a product's last digits depend on its number of rows, and the activations of all members would live at once.
JOINED_ON = {"cuda"}
M_ARENA_MAX = -8  # of glibc's mallopt


def backward(loss: Tensor) -> None:
    """`loss.backward()`, in a pack on a GPU together with those of the other members."""
    member: Member | None = getattr(_here, "member", None)
    if member is not None and loss.device.type in JOINED_ON:
        member.ask(Backward(loss))
    else:
        loss.backward()


def take_turns(device: torch.device) -> None:
    """At the end of a batch, where rows are not joined: the others' turn. So those that see the same clouds see them together."""
    member: Member | None = getattr(_here, "member", None)
    if member is not None and device.type not in JOINED_ON:
        member.ask(Turn())


@dataclass(frozen=True)
class Pass:
    """A member's wish: its rows through a frozen part. `place` orders the parts of one forward."""

    place: tuple[int, ...]
    part: Callable[[Tensor], Tensor]
    rows: Tensor
    modes: tuple[Any, ...]


@dataclass(frozen=True)
class Backward:
    """A member's wish: the gradients of its loss."""

    loss: Tensor


@dataclass(frozen=True)
class Turn:
    """A member's wish: that all others come to the end of their batch."""


@dataclass(frozen=True)
class Call:
    """A member's wish: something done in the thread that runs the pack."""

    work: Callable[[], Any]


@dataclass(frozen=True)
class Wait:
    """A member's wish: its turn again, once `over` is set. Until then its thread waits for the disk."""

    over: threading.Event = field(default_factory=threading.Event)


@dataclass
class Member:
    """One trial's thread. `wish` is what it waits for; None while it runs, or once it has ended."""

    body: Callable[[], Any]
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    wish: Pass | Backward | Turn | Call | Wait | None = None
    answer: Any = None
    failure: BaseException | None = None  # raised in the member in place of an answer
    result: Any = None
    crash: BaseException | None = None  # what the body raised
    ended: bool = False

    def start(self, threads: int) -> None:
        threading.Thread(target=self._run, args=(threads,), daemon=True, name="pack-member").start()

    def _run(self, threads: int) -> None:
        self.turn.acquire()
        _here.member, faults.waits.aside = self, self.aside
        torch.set_num_threads(threads)
        try:
            self.result = self.body()
        except BaseException as error:  # handed to the thread that runs the pack
            self.crash = error
        self.ended = True
        self.back.release()

    def ask(self, wish: Pass | Backward | Turn | Call) -> Any:
        """In the member's thread: waits until the wish is met. Raises what went wrong with it."""
        self.wish = wish
        self.back.release()
        self.turn.acquire()
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        return self.answer

    @contextmanager
    def aside(self) -> Iterator[None]:
        """In the member's thread: the others go on while the body of this runs, which must touch nothing of theirs."""
        self.wish = wait = Wait()
        self.back.release()
        try:
            yield
        finally:
            wait.over.set()
            self.turn.acquire()

    def resume(self) -> None:
        """In the pack's thread: lets the member run until it wishes for something or ends."""
        self.wish = None
        self.turn.release()
        self.back.acquire()


def _one_heap() -> None:
    """Lets the threads of all members take memory from one heap, so that what one lets go of serves the next. With glibc alone."""
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def run_together(bodies: Sequence[Callable[[], Any]], threads: int) -> list[Any]:
    """Runs the members to their ends; their results. Raises the first exception that a body raised, once all have ended."""
    _one_heap()
    members = [Member(body) for body in bodies]
    for member in members:
        member.start(threads)
        member.resume()
    while waiting := [member for member in members if not member.ended]:
        for member in _meet(waiting):
            member.resume()
    for member in members:
        if member.crash is not None:
            raise member.crash
    return [member.result for member in members]


def _meet(waiting: Sequence[Member]) -> Sequence[Member]:
    """Meets the wishes that come first: a turn after the disk, a call, the earliest frozen part, and gradients or turns at last."""
    aside = [(member, member.wish) for member in waiting if isinstance(member.wish, Wait)]
    for _, wish in aside:
        wish.over.wait()
    if aside:
        return [member for member, _ in aside]
    calls = [member for member in waiting if isinstance(member.wish, Call)]
    if calls:
        return [_call(member) for member in calls]
    passes = [member for member in waiting if isinstance(member.wish, Pass)]
    if not passes:
        return _backward(waiting)
    # Whoever is behind goes first, so that all come to the next part together.
    first = min((member.wish for member in passes if isinstance(member.wish, Pass)), key=lambda wish: wish.place)
    return _pass([member for member in passes if _alike(member.wish, first)])


def _call(member: Member) -> Member:
    assert isinstance(member.wish, Call)
    try:
        member.answer = member.wish.work()
    except BaseException as error:  # the member's own, raised where it asked
        member.failure = error
    return member


def _alike(wish: Any, first: Pass) -> bool:
    if not isinstance(wish, Pass):
        return False
    return (wish.place, wish.modes, wish.rows.shape[1:]) == (first.place, first.modes, first.rows.shape[1:])


def _pass(group: Sequence[Member]) -> Sequence[Member]:
    wishes = [member.wish for member in group if isinstance(member.wish, Pass)]
    try:
        with _modes(wishes[0].modes):
            joined = wishes[0].part(torch.cat([wish.rows for wish in wishes]))
            parts = joined.split([len(wish.rows) for wish in wishes])
    except Exception as error:  # out of memory, say: each member hears of it
        for member in group:
            member.failure = error
        return group
    for member, part in zip(group, parts, strict=True):
        member.answer = part
    return group


def _backward(group: Sequence[Member]) -> Sequence[Member]:
    losses = [member.wish.loss for member in group if isinstance(member.wish, Backward)]
    try:
        if losses:
            torch.autograd.backward(losses)
    except Exception as error:  # likewise each hears of it
        for member in group:
            member.failure = error
    return group


def _current_modes(device: str) -> tuple[Any, ...]:
    return torch.is_grad_enabled(), device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _modes(modes: tuple[Any, ...]) -> ExitStack:
    """The grad and autocast modes of a member, which belong to its thread."""
    grad, device, cast, dtype = modes
    stack = ExitStack()
    stack.enter_context(torch.set_grad_enabled(grad))
    stack.enter_context(torch.autocast(device, dtype=dtype, enabled=cast))
    return stack


def meet(place: tuple[int, ...], part: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """rows (n, ...) through a frozen part that works on each row alone; in a pack on a GPU together with the other members' rows."""
    member: Member | None = getattr(_here, "member", None)
    if member is None or rows.device.type not in JOINED_ON:
        return part(rows)
    found: Tensor = member.ask(Pass(place, part, rows, _current_modes(rows.device.type)))
    return found


def in_pack_thread(work: Callable[[], Any]) -> Any:
    """Does something in the thread that runs the pack; outside a pack at once."""
    member: Member | None = getattr(_here, "member", None)
    return work() if member is None else member.ask(Call(work))
