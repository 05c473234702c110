"""A process' one writer to a tracker: a thread that sends the trials it is told of, each with one
call for all that is new.

Training never waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from pointsweep.results.trial_dir import TrialFolder
from pointsweep.tracking.target import Target, TrialTags
from pointsweep.tracking.trackers import TrialWriter, open_tracker
from pointsweep.utils.masking import masked

# Epochs that come faster than this travel together: a call costs the same for one as for many.
PACE_S = 1.0
# of the time at most goes into the mirror while trials train: where calls are dear, more epochs
# travel together
SHARE = 0.03
LONGEST_S = 5.0  # that an epoch waits for others
STUCK_S = 10.0  # without a trial sent: the tracker does not answer

log = logging.getLogger("pointsweep.mirror")

_mirrors: dict[Target, Mirror] = {}


def mirror_to(target: Target) -> Mirror:
    """This process' writer of a sweep, kept over its packs."""
    if target not in _mirrors:
        _mirrors[target] = Mirror(target)

    return _mirrors[target]


def drain(target: Target) -> None:
    """Wait until this process' writer of a sweep, if there is one, has sent what it knows of, or
    the tracker does not take it.
    """
    if target in _mirrors:
        _mirrors[target].drain()


class Mirror:
    """Mirror of one sweep: in the driver, which has loaded the tracker's library anyway, where all
    workers are on its machine; else in every worker.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        # the last is when it falls due
        self.waiting: dict[Path, tuple[TrialFolder, TrialTags, float]] = {}
        self.changed = threading.Condition()
        self.warned: set[str] = set()
        self.pace_s = PACE_S
        self.behind_since: float | None = None
        self.synced = 0
        self.failing = False
        threading.Thread(target=self._run, name="tracker-mirror", daemon=True).start()

    def poke(self, folder: TrialFolder, tags: TrialTags) -> None:
        """Something new stands in a folder."""
        with self.changed:
            now = time.monotonic()
            due_at = now + self.pace_s
            if (folder.path / "record.json").is_file():
                due_at = now
            elif folder.path in self.waiting:
                _, _, due_at = self.waiting[folder.path]

            self.waiting[folder.path] = (folder, tags, due_at)
            self.behind_since = self.behind_since or now
            self.changed.notify_all()

    def drain(self) -> None:
        """Wait until all that waits is sent, whether due or not, or the tracker does not take
        it.
        """
        with self.changed:
            for path, (folder, tags, _) in self.waiting.items():
                self.waiting[path] = (folder, tags, 0.0)

            self.changed.notify_all()
            previous = -1
            while self.behind_since is not None and not self.failing:
                if self.synced == previous:  # the tracker does not answer
                    break

                previous = self.synced
                self.changed.wait(STUCK_S)

    def lag_s(self) -> float:
        """Since when something waits to be sent; 0 if nothing does."""
        since = self.behind_since
        if since is not None:
            return time.monotonic() - since

        return 0.0

    def _run(self) -> None:
        tracker = open_tracker(self.target.uri)
        writer: TrialWriter | None = None
        pause = 1.0

        while True:
            folder, tags = self._next()
            try:
                started_at = time.thread_time()
                writer = writer or tracker.writer(self.target)
                writer.send(folder, tags)
                pause = 1.0
                cpu_s = time.thread_time() - started_at
                self.pace_s = min(max(PACE_S, cpu_s / SHARE), LONGEST_S)

                with self.changed:
                    self.synced += 1
                    self.behind_since = time.monotonic() if self.waiting else None
                    self.failing = False
                    self.changed.notify_all()
            except Exception as error:
                # the tracker's trouble is never the trial's: said once, tried again
                self._warn(tracker.title, error)
                writer = None
                with self.changed:
                    due_now = (folder, tags, time.monotonic())
                    self.waiting.setdefault(folder.path, due_now)
                    self.failing = True
                    self.changed.notify_all()

                time.sleep(pause)
                pause = min(2 * pause, 30.0)

    def _next(self) -> tuple[TrialFolder, TrialTags]:
        """The folder that has been due the longest, once there is one."""
        with self.changed:
            while True:
                if not self.waiting:
                    self.changed.wait()
                    continue

                path = min(self.waiting, key=lambda path: self.waiting[path][2])
                folder, tags, due_at = self.waiting[path]
                wait_s = due_at - time.monotonic()

                if wait_s <= 0:
                    del self.waiting[path]
                    return folder, tags

                self.changed.wait(wait_s)

    def _warn(self, title: str, error: Exception) -> None:
        name = type(error).__name__
        if name not in self.warned:
            self.warned.add(name)
            log.warning(
                "%s at %s: %s; training goes on, the mirror catches up",
                title,
                masked(self.target.uri),
                name,
            )
