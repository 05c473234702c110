"""Classes of failures of a trial, and what is done about each: the policy stands here and nowhere
else.

A retry starts at the trial's last checkpoint. Every failure is an event of the trial's history with
its class; how many of one class a launch has seen is counted there, so that a retry in another
process is counted too. The next launch counts from zero.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from pointsweep.errors import (
    ConfigError,
    MissingDataError,
    MissingWeightsError,
    ResourcesError,
    StoreError,
    StoreUnavailableError,
)


@dataclass(frozen=True)
class Policy:
    """Retry policy: how often one launch tries again after a failure of a class, and why."""

    retries: int
    why: str


POLICIES = {
    "out_of_memory": Policy(
        5, "every retry computes the batch in twice as many parts, to the same gradient"
    ),
    "diverged": Policy(0, "the same numbers would come again"),
    "data": Policy(1, "a network disk may have hiccuped; broken files stay broken"),
    "config": Policy(0, "the sweep file or the machine has to change first"),
    "store": Policy(0, "a full or read-only disk needs a person"),
    "lost_node": Policy(
        3,
        "the process was killed or its machine is gone; another goes on from the checkpoint",
    ),
    "preempted": Policy(
        3, "the machine was taken away on purpose; another goes on from the checkpoint"
    ),
    "hang": Policy(
        2, "a lock or a driver may be stuck; the stacks lie beside the history"
    ),
    "bug": Policy(0, "it would come again; the arm's other seeds are not started"),
}


class DivergedError(ArithmeticError):
    """A loss, a metric, a gradient or a trained weight stopped being a finite number."""


class DataError(ValueError):
    """A data set is at hand and cannot be used."""


class HungError(RuntimeError):
    """A trial made no progress for far longer than its epochs take."""


class ProcessLostError(RuntimeError):
    """Another process of the same trial has ended."""


@dataclass(frozen=True)
class Failure:
    """One failure: its class, one line for tables and logs, and the stack for the history."""

    kind: str
    reason: str
    trace: str = ""


# Of torch, when a step's numbers leave the range of its type.
OVERFLOW_WORDS = ("without overflow", "is non-finite")
MEMORY_WORDS = ("out of memory", "can't allocate memory", "alloc_failed")
NO_SPACE = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
# An error is of the first class that it is an instance of.
KINDS: dict[type[BaseException], str] = {
    DivergedError: "diverged",
    HungError: "hang",
    DataError: "data",
    OSError: "data",
    MissingDataError: "data",
    MissingWeightsError: "data",
    ProcessLostError: "lost_node",
    ConfigError: "config",
    ResourcesError: "config",
    StoreError: "store",
}


def classify(error: BaseException) -> str:
    """The class of what a trial raised, one of POLICIES; what is nothing else is a bug."""
    # By its name: torch is not imported here.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out_of_memory"
    if _is_runtime_error(error, MEMORY_WORDS):
        return "out_of_memory"
    if isinstance(error, StoreUnavailableError):
        return "store"
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return "store"
    if _is_runtime_error(error, OVERFLOW_WORDS):
        return "diverged"

    for error_class, kind in KINDS.items():
        if isinstance(error, error_class):
            return kind

    return "bug"


def _is_runtime_error(error: BaseException, words: tuple[str, ...]) -> bool:
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(text in message for text in words)
