"""What the benchmarks share: sides in interleaved rounds, medians, CPU seconds, and the machine
that they ran on.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h


@dataclass(frozen=True)
class Measured(Generic[T]):
    """What a side gave, and what it cost: seconds on the clock, and of processors in this process
    and all that it started.
    """

    value: T
    wall_s: float
    cpu_s: float


def machine() -> str:
    """One line: day, processor, cores, load."""
    found = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]

    name = found[0] if found else platform.machine()

    return (
        f"{date.today()}, {name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python"
        f" {platform.python_version()}"
    )


def measure(work: Callable[[], T]) -> Measured[T]:
    """Calls `work`."""
    with Descendants() as descendants:
        cpu_s, begun = _cpu_s(), time.perf_counter()
        value = work()
        wall_s = time.perf_counter() - begun
        _reap()

    waited_s, seen_s = (
        _cpu_s() - cpu_s,
        sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        - descendants.own_s
        + descendants.cpu_s(),
    )
    # Both are too low: the one misses what nobody waited for (Ray's daemon ignores its workers'
    # ends), the other last moments.
    return Measured(value, wall_s, max(waited_s, seen_s))


class Descendants:
    """A thread that looks at all processes below this one, and keeps the processor seconds of each
    as last seen.
    """

    def __init__(self, period_s: float = 0.1) -> None:
        self.period_s, self.ended, self.last = (
            period_s,
            threading.Event(),
            dict[tuple[int, int], int](),
        )
        self.own_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        self.before = self._look()

    def __enter__(self) -> Descendants:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def cpu_s(self) -> float:
        """What the processes have used since the beginning."""
        ticks = sum(
            used - self.before.get(process, 0) for process, used in self.last.items()
        )
        return ticks / os.sysconf("SC_CLK_TCK")

    def _run(self) -> None:
        while not self.ended.wait(self.period_s):
            self.last |= self._look()

    def _look(self) -> dict[tuple[int, int], int]:
        """(process, when it began) -> clock ticks of all below this process."""
        parents, used = {}, {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                number = int(path.parent.name)
                parents[number] = int(fields[1])
                used[number] = (int(fields[19]), int(fields[11]) + int(fields[12]))

        found, below = {}, {os.getpid()}
        while below := {
            number for number, parent in parents.items() if parent in below
        }:
            found.update(
                {(number, used[number][0]): used[number][1] for number in below}
            )

        return found


def interleaved(
    sides: Mapping[str, Callable[[], T]], rounds: int
) -> dict[str, list[Measured[T]]]:
    """Every side once a round, ABAB, so that what else the machine does meets all of them."""
    # What outlives the process that started it (Ray's workers) becomes a child of this one, and its
    # time is counted.
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    found: dict[str, list[Measured[T]]] = {name: [] for name in sides}

    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(measure(side))

    return found


def table(found: Mapping[str, list[Measured[T]]], count: int, ours: str) -> str:
    """Median cost per trial of every side, and its ratio to ours: by the clock, and by processor
    seconds.
    """
    wall = {
        name: statistics.median(each.wall_s for each in sides)
        for name, sides in found.items()
    }

    cpu = {
        name: statistics.median(each.cpu_s for each in sides)
        for name, sides in found.items()
    }

    lines = [
        f"{name:34} {1e3 * wall[name] / count:9.1f} ms  {1e3 * cpu[name] / count:9.1f} CPU-ms  "
        f"{wall[name] / wall[ours]:6.2f}x  {cpu[name] / max(cpu[ours], 1e-9):6.2f}x"
        for name in found
    ]

    return "\n".join(lines)


def python(*arguments: object, **environment: str) -> str:
    """Runs this interpreter on arguments; its output. Raises CalledProcessError with what it
    said.
    """
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout


def _cpu_s() -> float:
    return sum(
        sum(resource.getrusage(who)[:2])
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def _reap(wait_s: float = 10.0) -> None:
    """Waits for what was left behind, so that its processor time is counted."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.05)
        except ChildProcessError:
            return
