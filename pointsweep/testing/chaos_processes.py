"""Processes of chaos.py: a sweep's command as a copy of itself or as a command of its own, with
orders to die, or killed from outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pointsweep.cli import run
from pointsweep.utils import fault_injection as faults

LIMIT_S = 300.0  # for one command; what takes longer has hung
TIMED_OUT = 124


@dataclass(frozen=True)
class Killer:
    """Killer of one process of the command's, chosen at random: driver, worker, or what Ray has
    started; after `delay_s`.
    """

    delay_s: float
    chance: random.Random

    def strike(self, root: int) -> None:
        """Kills now."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.chance.choice(tree(root)), signal.SIGKILL)


def inline(
    arguments: Sequence[str],
    folder: Path,
    deaths: Mapping[int, str],
    killer: Killer | None = None,
) -> int:
    """The exit code of the sweep's command without Ray, that of a signal negative."""

    def work() -> int:
        return run.main([*arguments, "--inline"])

    return forked(work, folder / "log", orders(folder, deaths), killer)


def on_ray(
    arguments: Sequence[str],
    folder: Path,
    deaths: Mapping[int, str],
    killer: Killer | None = None,
) -> int:
    """The exit code of the sweep's command on a Ray of its own."""
    with (folder / "log").open("ab") as log:
        line = [sys.executable, "-m", "pointsweep.run", *arguments]
        process = subprocess.Popen(
            line, env=os.environ | orders(folder, deaths), stdout=log, stderr=log
        )
        return watched(process.pid, process.poll, killer)


def at_once(*works: Callable[[], int]) -> int:
    """The first exit code that is not 0 of several, each done in a copy of this process, all at the
    same time.
    """
    pids = []
    for work in works:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os._exit(work())

        pids.append(pid)

    first_failure = 0
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        first_failure = first_failure or os.waitstatus_to_exitcode(status)

    return first_failure


def orders(folder: Path, deaths: Mapping[int, str]) -> dict[str, str]:
    """The variables that tell a command's processes at which writes to die."""
    text = json.dumps({"ledger": str(folder / "ledger"), "deaths": dict(deaths)})
    return {faults.VARIABLE: text}


def forked(
    work: Callable[[], int],
    log: Path,
    variables: Mapping[str, str],
    killer: Killer | None = None,
) -> int:
    """The exit code of `work`, done in a copy of this process: what it needs is imported already,
    and it may be killed.
    """
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        code = 99
        try:
            with log.open("ab") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)

            sys.stdout = os.fdopen(1, "w")
            sys.stderr = os.fdopen(2, "w")
            os.environ.update(variables)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def ended() -> int | None:
        ended_pid, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended_pid else None

    return watched(pid, ended, killer)


def watched(pid: int, ended: Callable[[], int | None], killer: Killer | None) -> int:
    """The exit code of a process, which `ended` tells; killed with all it has started when it has
    hung.
    """
    begun = time.monotonic()
    while True:
        code = ended()
        if code is not None:
            return code

        passed_s = time.monotonic() - begun
        if killer is not None and passed_s > killer.delay_s:
            killer.strike(pid)
            killer = None

        if passed_s > LIMIT_S:
            for each in tree(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)

            while ended() is None:
                time.sleep(0.01)

            return TIMED_OUT

        time.sleep(0.01)


def tree(root: int) -> list[int]:
    """A process and all that it and its children have started."""
    children: dict[int, list[int]] = defaultdict(list)
    for child, parent in _parents():
        children[parent].append(child)

    pids = [root]
    for pid in pids:  # grows while it is read
        pids += children[pid]

    return pids


def _parents() -> Iterator[tuple[int, int]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The second field, the name in brackets, may hold blanks; behind it state and parent.
            _, _, fields = path.read_text().rpartition(")")
            _, parent, *_ = fields.split()
            yield int(path.parent.name), int(parent)
