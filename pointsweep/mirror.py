"""A worker's one writer to MLflow: a thread that syncs the trials it is told of. Training never waits for it."""

from __future__ import annotations

import functools
import logging
import threading
import time
from pathlib import Path

from pointsweep.history import TrialFolder
from pointsweep.tracking import Runs, Target, TrialTags, masked, sync_trial

SHARE = 0.03  # of the time at most goes into one trial's mirror while it trains
LONGEST_S = 5.0  # to rest

log = logging.getLogger("pointsweep.mirror")


class Mirror:
    """Started once per worker process and kept over its packs."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.waiting: dict[Path, tuple[TrialFolder, TrialTags]] = {}
        self.changed = threading.Condition()
        self.warned: set[str] = set()
        self.behind_since: float | None = None
        threading.Thread(target=self._run, name="mlflow-mirror", daemon=True).start()

    def poke(self, folder: TrialFolder, tags: TrialTags) -> None:
        """Something new stands in a folder."""
        with self.changed:
            self.waiting[folder.path] = (folder, tags)
            self.behind_since = self.behind_since or time.monotonic()
            self.changed.notify()

    def lag_s(self) -> float:
        """Since when something waits to be sent; 0 if nothing does."""
        since = self.behind_since
        return time.monotonic() - since if since is not None else 0.0

    def _run(self) -> None:
        runs: Runs | None = None
        pause = 1.0
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting)
                folder, tags = self.waiting.pop(next(iter(self.waiting)))
            try:
                begun = time.thread_time()
                runs = runs or Runs(self.target)
                sync_trial(runs, folder, tags)
                pause = 1.0
                rest_s = min(LONGEST_S, (time.thread_time() - begun) / SHARE)
                with self.changed:
                    self.behind_since = time.monotonic() if self.waiting else None
                    # Short epochs of one trial go together: each call takes processor time that its training wants.
                    self.changed.wait_for(functools.partial(self._others, folder), timeout=rest_s)
            except Exception as error:  # the tracker's trouble is never the trial's: said once, tried again
                self._warn(error)
                runs = None
                with self.changed:
                    self.waiting.setdefault(folder.path, (folder, tags))
                time.sleep(pause)
                pause = min(2 * pause, 30.0)

    def _others(self, folder: TrialFolder) -> bool:
        """Whether another trial waits than this one, or this one has ended."""
        return bool(self.waiting.keys() - {folder.path}) or (folder.path / "record.json").is_file()

    def _warn(self, error: Exception) -> None:
        if type(error).__name__ not in self.warned:
            self.warned.add(type(error).__name__)
            log.warning("MLflow at %s: %s; training goes on, the mirror catches up", masked(self.target.uri), type(error).__name__)
