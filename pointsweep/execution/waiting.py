"""Messages of a launch on a cluster about packs that wait for a worker, and those that have lost
theirs.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

PATIENCE_S = 30.0  # until a launch in which nothing runs says what it waits for
AGAIN_S = 30.0  # until it looks again whether it waits for something else
GATHER_S = 1.0  # for the other packs of a node that has been lost
MOST_NAMED = 3  # trials of a lost node that are named; the others are counted
# Ray's sentences of an actor that died
NODE_ID = re.compile(r"[Nn]ode [Ii][Dd]:?\s*([0-9a-f]{6,})")
NODE_IP = re.compile(r"^\s*ip:\s*(\S+)", re.MULTILINE)
NODE_DIED = re.compile(r"node has died|node was terminated|node.{0,40}(dead|preempted)")
OUT_OF_MEMORY = re.compile(r"OOM|out of memory|memory pressure|low on memory")


@dataclass
class PackCount:
    """Count of the packs of a launch that wait and run, and since when none runs. Plain data, as
    Tune pickles it.
    """

    total: int
    running: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    idle_since: float = field(default_factory=time.monotonic)
    looked_at: float = float("-inf")

    def start(self, trial: str) -> None:
        """A pack has got a worker."""
        self.running.add(trial)

    def stop(self, trial: str, ended: bool) -> None:
        """A pack has ended, or has lost its worker."""
        self.running.discard(trial)
        if ended:
            self.ended.add(trial)

        if not self.running:
            self.idle_since = time.monotonic()

    @property
    def waiting(self) -> int:
        """The packs that have no worker."""
        return self.total - len(self.running) - len(self.ended)

    def is_stuck(self) -> bool:
        """Tell, every half a minute, whether no pack has run for that long while some wait."""
        if self.running or self.waiting <= 0:
            return False

        now = time.monotonic()
        if now - self.idle_since < PATIENCE_S or now - self.looked_at < AGAIN_S:
            return False

        self.looked_at = now
        return True


@dataclass(frozen=True)
class Lost:
    """A trial whose worker was lost, the node of that worker as far as Ray names it, and the last
    epoch that the trial has kept.
    """

    cell: str
    epoch: int
    node: str
    cause: str


def cause_of(text: str) -> tuple[str, str]:
    """Return the node that Ray's words of a dead worker name, and what became of it or of its
    worker.
    """
    names = []
    address = NODE_IP.search(text)

    if address:
        names.append(address[1])

    node_id = NODE_ID.search(text)
    if node_id:
        names.append(node_id[1][:6])

    node = " ".join(names) or "unknown"

    if NODE_DIED.search(text):
        return node, f"node {node} was lost"
    if OUT_OF_MEMORY.search(text):
        return node, f"a worker on node {node} was ended, as the node ran out of memory"

    return node, f"a worker on node {node} was lost"


def lost_lines(lost: Iterable[Lost]) -> Iterator[str]:
    """Yield one sentence for each node: what was lost, which trials go on, and after which epoch.

    "node 10.0.0.3 4fa21c was lost: lora / vit / seed 0 goes on after epoch 12, on another worker"
    """
    by_cause: dict[str, list[Lost]] = defaultdict(list)
    for trial in lost:
        by_cause[trial.cause].append(trial)

    for cause, trials in by_cause.items():
        texts = []
        for trial in trials[:MOST_NAMED]:
            if trial.epoch:
                texts.append(f"{trial.cell} goes on after epoch {trial.epoch}")
            else:
                texts.append(f"{trial.cell} begins again")

        if len(trials) > MOST_NAMED:
            texts.append(f"{len(trials) - MOST_NAMED} more too")

        where = "on another worker" if len(trials) == 1 else "on other workers"
        yield f"{cause}: {', '.join(texts)}, {where}"
