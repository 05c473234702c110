"""How the trials of a launch ended, as their packs tell the driver."""

from __future__ import annotations

import json

import pytest

from pointsweep.config.validation import trial_from_dict
from pointsweep.execution import ray_tune as launch
from pointsweep.execution.launch import run_all
from pointsweep.execution.launchers import Event
from pointsweep.execution.outcomes import OutcomeCollector, WorkerReporter
from pointsweep.execution.prometheus import Gauges, cells_of
from pointsweep.results.events import read_failure_kind
from pointsweep.storage.base import FileStore
from pointsweep.tracking.target import TrialTags
from pointsweep.training.runner import Job, Task
from pointsweep.training.supervisor import Outcome

BASE = {"dataset": "synthetic", "tokenizer": "point_pn_light", "backbone": "tiny", "method": "head_only"}


@pytest.fixture
def tasks() -> list[Task]:
    return [Task(trial_from_dict({**BASE, "seed": seed}), TrialTags("s", "row", "column", seed)) for seed in range(4)]


def test_every_trial_gets_its_own_outcome_and_the_listener_every_event_but_of_held_ones(tasks, tmp_path):
    heard: list[Event] = []
    first, second, third, fourth = (task.config.key() for task in tasks)
    ends = OutcomeCollector(
        [tasks[:3], tasks[3:]], Job(str(tmp_path), wait_s=0.1), heard.append, Gauges(cells_of([tasks])), lambda: None
    )
    epoch = {"key": first, "epoch": 1, "epochs": 2, "test/accuracy": 0.5}
    ends.result({"epochs": json.dumps([epoch]), "outcomes": "[]"})
    told = [
        {"key": first, "status": "finished"},
        {"key": second, "status": "held", "reason": "another process"},
        {"key": third, "status": "failed", "reason": "ValueError: x", "kind": "bug"},
    ]
    ends.result({"epochs": "[]", "outcomes": json.dumps(told)})
    ends.lost(tasks[3:], "worker died")
    assert [(event.kind, event.key) for event in heard] == [
        ("epoch", first), ("finished", first), ("failed", third), ("failed", fourth),
    ]  # fmt: skip
    statuses = [(outcome.key, outcome.status, outcome.kind) for outcome in ends.outcomes(lambda: True)]
    assert statuses == [(first, "finished", ""), (second, "held", ""), (third, "failed", "bug"), (fourth, "failed", "lost_node")]
    assert read_failure_kind(FileStore(tmp_path), fourth) == "lost_node", "what the worker could not say stands in the history"


@pytest.mark.parametrize("left, status", [(True, "failed"), (False, "waiting")])
def test_what_was_never_told_of_is_lost_or_waits_for_a_larger_budget(tasks, tmp_path, left, status):
    ends = OutcomeCollector([tasks], Job(str(tmp_path)), lambda event: None, Gauges(cells_of([tasks])), lambda: None)
    assert {outcome.status for outcome in ends.outcomes(lambda: left)} == {status}


def test_a_pack_reaches_its_worker_as_it_was_and_is_named_by_its_first_trial(tasks):
    text = launch._encode(tasks)
    assert launch._decode(text) == tasks

    class Trial:
        trial_id, config = "00007", {"pack": text}

    assert launch._trial_name(Trial) == f"{tasks[0].config.key()}-00007"


def test_quick_epochs_are_told_together_and_none_is_lost(tasks, tmp_path, monkeypatch):
    """Each report waits for the driver; what it counts is the same."""
    heard: list[Event] = []
    gauges = Gauges(cells_of([tasks]))
    ends = OutcomeCollector([tasks], Job(str(tmp_path)), heard.append, gauges, lambda: None)
    reports: list[dict] = []
    now = [100.0]
    monkeypatch.setattr("pointsweep.execution.outcomes.time.monotonic", lambda: now[0])
    told = WorkerReporter(lambda report: (reports.append(report), ends.result(report)))
    first, second = tasks[0].config.key(), tasks[1].config.key()
    for epoch in range(1, 11):
        now[0] += 0.3
        for key in (first, second):
            told({"key": key, "epoch": epoch, "epochs": 10, "test/accuracy": epoch / 10})
    told.end([Outcome(first, "finished"), Outcome(second, "finished")])
    assert len(reports) < 8
    assert gauges.values()["pointsweep_epochs", "s", ""] == 20
    assert [event.epoch for event in heard if event.key == first and event.kind == "epoch"][-1] == 10
    assert [event.key for event in heard if event.kind == "finished"] == [first, second]


def test_the_driver_mirrors_what_its_workers_do_not(tasks, tmp_path, monkeypatch):
    poked: list[str] = []

    class Mirror:
        def poke(self, folder, tags) -> None:
            assert (folder.path.parent, tags.sweep) == (tmp_path / "trials", "s")
            poked.append(folder.path.name)

        def lag_s(self) -> float:
            return 7.0

    mirrors = {"there": Mirror()}
    monkeypatch.setattr("pointsweep.execution.outcomes.mirror_to", mirrors.__getitem__)
    gauges = Gauges(cells_of([tasks]))
    ends = OutcomeCollector([tasks], Job(str(tmp_path)), lambda event: None, gauges, lambda: None, {"s": "there"})
    first, second = tasks[0].config.key(), tasks[1].config.key()
    epoch = {"key": first, "epoch": 1, "epochs": 2, "tracker_lag_s": 0.0}
    ends.result({"epochs": json.dumps([epoch]), "outcomes": json.dumps([{"key": second, "status": "held"}])})
    assert poked == [first]
    assert gauges.values()["pointsweep_tracker_lag_seconds", "s", ""] == 7.0
    ends.end(Outcome(first, "finished"))
    assert poked == [first, first], "not those that another process works on"


def test_a_pack_of_which_another_process_has_a_trial_says_whom_it_waits_for_and_comes_last(tasks, tmp_path):
    held = {tasks[1].config.key()}
    rounds: list[int] = []

    def run(packs, job):
        rounds.append(len(packs))
        outcomes = []
        for task in (task for pack in packs for task in pack):
            key = task.config.key()
            is_held = key in held and len(rounds) == 1
            outcomes.append(Outcome(key, "held", f"{key} is held") if is_held else Outcome(key, "finished"))
        return outcomes

    said: list[str] = []
    ended = run_all([tasks[:2], tasks[2:]], Job(str(tmp_path)), run, said.append)
    assert said == [f"waiting: {tasks[1].config.key()} is held"]
    assert rounds == [2, 1]
    assert {outcome.status for outcome in ended} == {"finished"}
