"""MLflow level with the store at the end of a sweep: what it lacks is sent, by several processes where it is much.

Trials that take no time end sooner than MLflow takes their runs in, and a store that is mirrored to an empty MLflow has them all at
once. Each call keeps a processor busy, so that threads would not help. A helper is this file run as a command: it reads what it
is to send, and names each trial that it has sent. It ends when nobody reads that any more. Whatever it does not do is done here.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from pointsweep.store import FileStore, Store, open_store
from pointsweep.target import Target, TrialTags
from pointsweep.tracking import Runs, patiently, sync_trial, told, trials_done
from pointsweep.workdir import read_folder

WORTH = 64  # trials that are sent in the time in which a helper starts
MOST = 3  # helpers: more of them wait for the database

Late = Sequence[tuple[str, TrialTags]]  # trials by key that MLflow does not have to their end


def finish(target: Target, store: Store, tags: Mapping[str, TrialTags]) -> None:
    """At the end of a sweep: sends what is not there yet, and closes the parent run. Raises TrackerAway."""
    with told(target.uri):
        runs = Runs(target)
        done = patiently(lambda: trials_done(runs))
        late = [(key, place) for key, place in tags.items() if key not in done]
        with helped(target, store, late) as sent:
            for key, place in reversed(late):  # a helper begins with the first
                if key not in sent:
                    send(runs, store, key, place)
        patiently(lambda: runs.client.set_terminated(target.parent_run_id, "FINISHED"))


def send(runs: Runs, store: Store, key: str, place: TrialTags) -> None:
    """One trial, if it has begun."""
    folder = read_folder(store, key)
    if folder.events():
        patiently(functools.partial(sync_trial, runs, folder, place))


@contextmanager
def helped(target: Target, store: Store, late: Late) -> Iterator[set[str]]:
    """Meanwhile helpers send trials too; the keys of those that they have sent, as they tell them."""
    count = min(MOST, (os.cpu_count() or 1) - 1, len(late) // WORTH)
    if not isinstance(store, FileStore):
        count = 0  # a reader's copy of a folder on S3 is one for the node, and each takes it anew
    sent: set[str] = set()
    helpers = [_started(target, store, late[at::count], sent) for at in range(count)]
    try:
        yield sent
    finally:
        for helper in helpers:
            helper.kill()
            helper.wait()


def _started(target: Target, store: Store, late: Late, sent: set[str]) -> subprocess.Popen[str]:
    # A session of its own: at Ctrl-C it has nothing to say.
    helper = subprocess.Popen(
        [sys.executable, "-m", "pointsweep.level"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    threading.Thread(target=_talk, args=(helper, order(target, store, late), sent), name="level", daemon=True).start()
    return helper


def order(target: Target, store: Store, late: Late) -> str:
    """What a helper reads."""
    return json.dumps({"target": asdict(target), "store": store.url, "late": [(key, asdict(place)) for key, place in late]})


def _talk(helper: subprocess.Popen[str], text: str, sent: set[str]) -> None:
    assert helper.stdin is not None and helper.stdout is not None
    try:
        with helper.stdin:
            helper.stdin.write(text)
    except BrokenPipeError:
        return
    with helper.stdout:
        sent.update(line.strip() for line in helper.stdout)


def main() -> None:
    """A helper's work."""
    told_to = json.load(sys.stdin)
    runs, store = Runs(Target(**told_to["target"])), open_store(told_to["store"])
    for key, place in told_to["late"]:
        send(runs, store, key, TrialTags(**place))
        print(key, flush=True)


if __name__ == "__main__":
    main()
