"""The end of a sweep with more to send than one process should: everything once, whatever becomes of the helpers."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from subprocess import PIPE

import pytest

from pointsweep import level
from pointsweep.level import finish, helped
from pointsweep.records import Layout
from pointsweep.s3_store import S3Store
from pointsweep.store import FileStore
from pointsweep.target import Target, TrialTags
from pointsweep.tracked import read_table
from pointsweep.tracking import connected, prepare
from tests.test_tracking import RECORD, trial

KEYS = [f"{i:016x}" for i in range(6)]
PLACES = {key: TrialTags("many", "a", "b", i) for i, key in enumerate(KEYS)}


@pytest.fixture
def store(tmp_path, monkeypatch) -> FileStore:
    monkeypatch.setattr(level, "WORTH", 2)
    monkeypatch.setattr(level.os, "cpu_count", lambda: 2)
    found = FileStore(tmp_path / "store")
    for key in KEYS:
        trial(found, epochs=2, key=key).finish(replace(RECORD, key=key))
    return found


def prepared(store: FileStore) -> Target:
    return prepare(f"sqlite:///{store.path('mlflow.db')}", store, Layout("many", "", ("m",), (("a",),), ("b",), ()))


def sent(target: Target) -> list[tuple[str, str, int]]:
    """Of every run of a trial: its key, its status, and how many epochs it has."""
    client = connected(target.uri)
    runs = client.search_runs([target.experiment_id], "tags.`pointsweep.kind` = 'trial'")
    steps = [len(client.get_metric_history(run.info.run_id, "test/accuracy")) for run in runs]
    return sorted((run.data.tags["pointsweep.key"], run.info.status, n) for run, n in zip(runs, steps, strict=True))


def test_helpers_send_all_trials_and_name_them(store):
    target = prepared(store)
    with helped(target, store, list(PLACES.items())) as told:
        deadline = time.monotonic() + 120
        while told != set(KEYS) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert told == set(KEYS)
    assert sent(target) == [(key, "FINISHED", 2) for key in KEYS]
    finish(target, store, PLACES)
    assert sent(target) == [(key, "FINISHED", 2) for key in KEYS]
    assert read_table(target.uri, "many")[1] == {key: replace(RECORD, key=key) for key in KEYS}


def test_helpers_that_die_are_not_missed(store, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    target = prepared(store)
    finish(target, store, PLACES)
    assert sent(target) == [(key, "FINISHED", 2) for key in KEYS]
    assert connected(target.uri).get_run(target.parent_run_id).info.status == "FINISHED"


def test_a_store_on_s3_has_no_helpers(monkeypatch):
    """There each process would take its own copy of a trial to the same place on this node."""
    monkeypatch.setattr(level, "WORTH", 1)
    monkeypatch.setattr(level, "_started", lambda *_: pytest.fail("a helper was started"))
    monkeypatch.setattr(level.os, "cpu_count", lambda: 8)
    with helped(Target("sqlite:///x", "1", "p", "many"), S3Store("s3://bucket"), list(PLACES.items())) as sent:
        assert not sent


@pytest.mark.slow
def test_a_helper_ends_when_nobody_reads_it_any_more(store):
    """As after a kill of the command that has started it."""
    text = level.order(prepared(store), store, list(PLACES.items()) * 1000)
    helper = subprocess.Popen(
        [sys.executable, "-m", "pointsweep.level"], stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL, text=True
    )
    helper.stdin.write(text)
    helper.stdin.close()
    assert helper.stdout.readline().strip() == KEYS[0]
    helper.stdout.close()
    assert helper.wait(timeout=120) != 0
