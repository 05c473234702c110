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
    return forked(
        lambda: run.main([*arguments, "--inline"]),
        folder / "log",
        orders(folder, deaths),
        killer,
    )


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

    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return next((code for code in codes if code), 0)


def orders(folder: Path, deaths: Mapping[int, str]) -> dict[str, str]:
    """The variables that tell a command's processes at which writes to die."""
    deaths_by_text = {str(number): way for number, way in deaths.items()}
    return {
        faults.VARIABLE: json.dumps(
            {"ledger": str(folder / "ledger"), "deaths": deaths_by_text}
        )
    }


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
        found, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if found else None

    return watched(pid, ended, killer)


def watched(pid: int, ended: Callable[[], int | None], killer: Killer | None) -> int:
    """The exit code of a process, which `ended` tells; killed with all it has started when it has
    hung.
    """
    begun = time.monotonic()
    while (code := ended()) is None:
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

    return code


def tree(root: int) -> list[int]:
    """A process and all that it and its children have started."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)

    pids = [root]
    for pid in pids:  # grows while it is read
        pids += children.get(pid, [])

    return pids


def _parents() -> Iterator[tuple[int, int]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The second field, the name in brackets, may hold blanks.
            yield (
                int(path.parent.name),
                int(path.read_text().rpartition(")")[2].split()[1]),
            )
