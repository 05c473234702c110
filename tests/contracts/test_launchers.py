"""What every launcher must hold: those that are registered, and one that only the tests know."""

from __future__ import annotations

import math

import pytest

from pointsweep.execution import launchers, ray_cluster
from pointsweep.execution.launchers import Event, Resources
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.stores import open_store
from pointsweep.tracking.target import TrialTags
from pointsweep.training.runner import Job, Task
from tests.training.test_pack import config

OURS = {"processes": "tests.support.process_launcher:ProcessLauncher"}


@pytest.fixture(scope="module", autouse=True)
def no_ray_is_left():
    yield
    ray_cluster.leave()


@pytest.fixture(params=sorted({**launchers.LAUNCHERS, **OURS}))
def launcher(request, monkeypatch, tmp_path):
    monkeypatch.setattr(launchers, "LAUNCHERS", {**launchers.LAUNCHERS, **OURS})
    return launchers.load(request.param)


def root(number: float) -> float:
    return math.sqrt(number)


def packs():
    """A pack of two and one of one."""
    tags = TrialTags("s", "row", "column", 0)
    made = [Task(config("lora", seed=seed), tags) for seed in (0, 1, 2)]
    return [made[:2], made[2:]]


def test_each_trial_is_told_of_from_its_start_to_its_end_and_has_the_record_of_any_other_launcher(launcher, tmp_path):
    heard: list[Event] = []
    ended = launcher.run(packs(), Job(str(tmp_path / "store")), Resources(), heard.append)
    keys = {task.config.key() for pack in packs() for task in pack}
    assert {outcome.key: outcome.status for outcome in ended} == dict.fromkeys(keys, "finished")
    epochs = packs()[0][0].config.train.epochs
    for key in keys:
        order = [event.kind for event in heard if event.key == key]
        assert order[0] == "started" and order[-1] == "finished" and set(order[1:-1]) == {"epoch"}
        told = [event.epoch for event in heard if event.key == key and event.kind == "epoch"]
        assert told == sorted(set(told)) and told[-1] == epochs, "quick epochs may be told together"
    plain = launchers.load("inline")
    plain.run(packs(), Job(str(tmp_path / "plain")), Resources(), lambda event: None)
    for key in keys:
        a, b = (open_store(str(tmp_path / name)).read(f"trials/{key}/predictions.npz") for name in ("store", "plain"))
        assert a == b


def test_a_pack_that_may_not_start_is_not_begun(launcher, tmp_path):
    heard: list[Event] = []
    ended = launcher.run(packs(), Job(str(tmp_path)), Resources(), heard.append, lambda: False)
    assert {outcome.status for outcome in ended} == {"waiting"}
    assert not (tmp_path / "trials").exists()
    assert {event.kind for event in heard} <= {"phase"}


def test_a_trial_that_another_process_holds_is_no_failure_and_nothing_is_said_of_its_end(launcher, tmp_path):
    [task] = packs()[1]
    key = task.config.key()
    heard: list[Event] = []
    with TrialFolder(tmp_path / "trials" / key).lock():
        [ended] = launcher.run([[task]], Job(str(tmp_path), wait_s=0.1), Resources(), heard.append)
    assert ended.status == "held"
    assert not {"finished", "failed"} & {event.kind for event in heard}


def test_something_is_measured_where_packs_would_run(launcher):
    assert launcher.measure(root, 9.0, Resources()) == 3.0
