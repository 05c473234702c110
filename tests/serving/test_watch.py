"""The state of a sweep as its folders say it, looked at again only where something changed, without anything written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pointsweep.cli.tables import html
from pointsweep.errors import StoreError
from pointsweep.reporting.build import build, curves, read
from pointsweep.reporting.html.page import plotly_file
from pointsweep.reporting.stored import compared
from pointsweep.results import record_index
from pointsweep.results.records import CellLayout, Layout, plan_json
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.serving import watch as module
from pointsweep.serving.reading import ReadOnlyStore
from pointsweep.storage.base import FileStore
from tests.reporting.test_tables import record
from tests.serving.made import EPOCHS, KEYS, append, at_once, begin, damage, fail, finish, hold, layout, look, plan, watched

FIRST, SECOND, THIRD, FOURTH = KEYS.values()


class Counting(FileStore):
    """A folder that counts what is read of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened: list[str] = []

    def read(self, name: str) -> bytes:
        self.opened.append(name)
        return super().read(name)


@pytest.fixture
def disk(tmp_path: Path) -> Counting:
    store = Counting(tmp_path / "store")
    plan(store)
    return store


def files(root: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}


def words(disk: FileStore) -> list[str]:
    state = look(watched(disk))
    return [state.state, *(trial.state for trial in state.standing.trials)]


def test_a_sweeps_state_follows_from_its_trials(disk):
    assert words(disk) == ["waiting", "open", "open", "open", "open"]
    begin(disk, FIRST, 2)
    hold(disk, FIRST)
    assert words(disk) == ["running", "running", "open", "open", "open"]
    disk.delete(f"trials/{FIRST}/lease.json")
    assert words(disk) == ["interrupted", "open", "open", "open", "open"]
    finish(disk, FIRST)
    fail(disk, SECOND)
    assert words(disk) == ["interrupted", "finished", "failed", "open", "open"]
    finish(disk, THIRD)
    finish(disk, FOURTH)
    assert words(disk) == ["failed", "finished", "failed", "finished", "finished"]
    finish(disk, SECOND)
    assert words(disk) == ["done", "finished", "finished", "finished", "finished"]


def test_between_two_trials_a_sweep_is_not_interrupted(disk, monkeypatch):
    hold(disk, FIRST)
    begin(disk, FIRST, 3)
    found = watched(disk)
    assert look(found).state == "running"
    finish(disk, FIRST)
    assert look(found).state == "running", "nobody works on a trial, since a moment"
    assert look(found).state == "running"
    monkeypatch.setattr(module, "SETTLING_S", -100.0)
    assert look(found).state == "interrupted"


def test_a_running_trial_has_its_epoch_its_values_and_its_process(disk):
    begin(disk, SECOND, 3)
    hold(disk, SECOND)
    [trial] = look(watched(disk)).running
    assert (trial.label, trial.epoch, trial.epochs) == ("lora / tiny / seed 1", 3, EPOCHS)
    assert trial.values == [0.1, 0.2, 0.3]
    assert trial.worker.startswith(f"process {os.getpid()} on ")


def test_the_time_left_counts_what_running_trials_have_trained_and_how_many_run_at_once(disk):
    assert look(watched(disk)).left_s is None
    begin(disk, FIRST, 1)
    hold(disk, FIRST)
    # four epochs of 10 s a trial: three quarters of one trial, and three trials
    assert look(watched(disk)).left_s == pytest.approx(40 * 3.75)
    finish(disk, SECOND, seconds={"total": 100.0})
    assert look(watched(disk)).left_s == pytest.approx(100 * 2.75)
    begin(disk, THIRD, 2)
    hold(disk, THIRD)
    assert look(watched(disk)).left_s == pytest.approx(100 * (0.75 + 0.5 + 1) / 2)


def test_devices_cost_what_finished_and_unfinished_trials_took(disk):
    finish(disk, FIRST, seconds={"total": 1800.0, "device": 3600.0})
    begin(disk, SECOND, 3)
    state = look(watched(disk))
    assert state.device_hours == pytest.approx((3600 + 30) / 3600)
    assert state.price is None
    plan(disk, per_hour=2.5)
    assert look(watched(disk)).price == pytest.approx(2.5 * (3600 + 30) / 3600)


def test_only_what_changed_is_read_again(disk):
    for key in (FIRST, SECOND):
        finish(disk, key)
    begin(disk, THIRD, 1)
    found = watched(disk)
    look(found)
    disk.opened.clear()
    look(found)
    assert disk.opened == []
    append(disk, THIRD, {"type": "epoch", "epoch": 2, "metrics": {"test/accuracy": 0.2}, "seconds": 10.0})
    assert look(found).standing.trials[2].epoch == 2
    assert disk.opened == [f"trials/{THIRD}/history.jsonl"]
    disk.opened.clear()
    finish(disk, THIRD)
    assert look(found).standing.count("finished") == 3
    assert disk.opened == [f"trials/{THIRD}/record.json"]


def test_of_a_history_that_grew_only_the_new_lines_are_parsed(disk, monkeypatch):
    from pointsweep.serving import reading

    begin(disk, FIRST, 2)
    found = watched(disk)
    look(found)
    parsed: list[bytes] = []
    real = reading.parse
    monkeypatch.setattr(reading, "parse", lambda data: parsed.append(data) or real(data))
    append(disk, FIRST, {"type": "epoch", "epoch": 3, "metrics": {}, "seconds": 10.0})
    assert look(found).standing.trials[0].epoch == 3
    assert len(parsed) == 1 and parsed[0].count(b"\n") == 1
    begin(disk, FIRST, 1)  # taken back by a resume: another beginning
    assert look(found).standing.trials[0].epoch == 1


def test_a_torn_line_is_read_when_it_is_whole(disk):
    begin(disk, FIRST, 1)
    path = disk.path(f"trials/{FIRST}/history.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    found = watched(disk)
    assert look(found).standing.trials[0].epoch == 0
    path.write_bytes(whole)
    assert look(found).standing.trials[0].epoch == 1


def test_the_report_is_the_page_that_the_command_report_writes(trained):
    found = watched(FileStore(trained))
    look(found, "tiny")
    made = found.sweep("tiny").make_report()
    store = FileStore(trained)
    layout, records, failures = read(store, "tiny")
    layout, records = compared(layout, records, store)
    beside = f"/assets/{plotly_file()}"
    assert made.data.decode() == html(build(layout, records, failures), records, store, beside)
    assert made.problem == ""


def test_a_report_is_made_again_only_after_a_change(disk):
    finish(disk, FIRST)
    found = watched(disk)
    look(found)
    sweep = found.sweep("made")
    first = sweep.make_report()
    at_once(sweep)
    look(found)
    assert not sweep.report_due()
    assert sweep.make_report() is first
    finish(disk, SECOND, 0.7)
    look(found)
    assert sweep.report_due()
    assert sweep.make_report().version != first.version


def test_the_reports_curves_come_from_what_is_kept(disk):
    finish(disk, FIRST)
    begin(disk, SECOND, 2)
    found = watched(disk)
    look(found)
    layout, records, _ = read(disk, "made")
    table = build(layout, records, {})
    expected = curves(FileStore(disk.root), table)
    assert expected[FIRST] == [0.1, 0.2, 0.3, 0.4] and expected[SECOND] == [0.1, 0.2]
    assert curves(found.store, table) == expected
    disk.opened.clear()
    assert curves(found.store, table) == expected
    assert disk.opened == []


def test_predictions_are_read_once(trained, monkeypatch):
    store = ReadOnlyStore(FileStore(trained))
    [key, *_] = sorted(path.name for path in (trained / "trials").iterdir())
    folder = TrialFolder(trained / "trials" / key)
    kept = store.trial_folder(key, ())
    assert kept.predictions().keys() == folder.predictions().keys()
    assert kept.truth()[1] == folder.truth()[1]
    monkeypatch.setattr(TrialFolder, "predictions", lambda self: pytest.fail("read again"))
    assert (kept.predictions()["last"] == store.predictions(key)[0]["last"]).all()


@pytest.mark.parametrize("few", [0, 500])
def test_nothing_is_written_and_a_store_that_may_only_be_read_is_shown(disk, monkeypatch, few):
    """With and without an index of records, which `tables` would write here."""
    monkeypatch.setattr(record_index, "FEW", few)
    for key in (FIRST, SECOND):
        finish(disk, key)
    begin(disk, THIRD, 1)
    hold(disk, THIRD)
    before = files(disk.root)
    folders = [path for path in disk.root.rglob("*") if path.is_dir()]
    for folder in (*folders, disk.root):
        folder.chmod(0o555)
    try:
        found = watched(disk)
        assert look(found).standing.count("finished") == 2
        assert b"<table" in found.sweep("made").make_report().data
    finally:
        for folder in (*folders, disk.root):
            folder.chmod(0o755)
    assert files(disk.root) == before
    assert {path for path in disk.root.rglob("*") if path.is_dir()} == set(folders)
    for write in (lambda: found.store.write("x", b""), lambda: found.store.delete("x")):
        with pytest.raises(StoreError, match="as this store is only read"):
            write()


def test_a_damaged_record_is_a_failed_trial_and_the_rest_is_shown(disk):
    finish(disk, FIRST)
    finish(disk, SECOND)
    damage(disk.path(f"trials/{SECOND}/record.json"))
    found = watched(disk)
    state = look(found)
    assert [trial.state for trial in state.standing.trials[:2]] == ["finished", "failed"]
    assert "damaged record" in state.standing.trials[1].reason and "checksum" in state.standing.trials[1].reason
    assert "damaged record" in found.sweep("made").make_report().data.decode()
    finish(disk, SECOND)
    assert look(found).standing.count("finished") == 2


def test_a_sweep_that_cannot_be_read_has_a_line_and_leaves_the_others_alone(disk):
    disk.write("sweeps/broken/plan.json", b"{")
    disk.write("sweeps/searching/study.db", b"")
    found = watched(disk)
    at_once(found)
    states = {state.name: state for state in found.look_at_all()}
    assert list(states) == ["broken", "made", "searching"]
    assert "plan.json: " in states["broken"].problem and "\n" not in states["broken"].problem
    assert states["searching"].problem == "no table yet: a search that has not ended"
    assert states["made"].problem == "" and states["made"].state == "waiting"
    plan(disk, "broken")
    assert look(found, "broken").problem == ""


def test_what_was_seen_stays_while_the_store_cannot_be_read(disk, monkeypatch):
    finish(disk, FIRST)
    found = watched(disk)
    seen = look(found)

    def away(name: str) -> list[str]:
        raise StoreError("the store cannot be read: connection refused")

    monkeypatch.setattr(disk, "list", away)
    state = look(found)
    assert state.problem == "the store cannot be read: connection refused"
    assert (state.standing, state.seen_at) == (seen.standing, seen.seen_at)
    at_once(found)
    assert found.names() == ["made"] and found.problem == state.problem
    monkeypatch.undo()
    assert look(found).problem == ""


def test_what_nobody_foresaw_is_a_line_too(disk, monkeypatch):
    monkeypatch.setattr(module, "settle", lambda *args: 1 / 0)
    assert look(watched(disk)).problem == "ZeroDivisionError: division by zero"


def test_code_of_a_plugin_is_not_run_and_its_sweep_is_followed_all_the_same(disk):
    own = {"name": "own", "folder": "/somewhere", "files": ["own.py"]}
    disk.write("sweeps/made/plan.json", plan_json(layout(metric="test/own_metric"), plugins=[own]))
    disk.write("sweeps/made/plugins/own.py", b"raise SystemExit(1)")
    finish(disk, FIRST)
    found = watched(disk)
    assert look(found).standing.count("finished") == 1
    assert "was run with Python code of its user" in found.sweep("made").make_report().problem


def test_secrets_in_reasons_are_masked(disk, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "planted-hub-30b6")
    fail(disk, FIRST, "http://user:planted-uri@host/x refused planted-hub-30b6")
    [failed] = look(watched(disk)).standing.of("failed")
    assert "planted" not in failed.reason and "***" in failed.reason


def test_a_look_at_many_trials_reads_none_of_those_that_are_finished(tmp_path):
    """Two thousand, as a sweep of the largest kind has them: its first look reads each once, the next ones none."""
    store = Counting(tmp_path)
    keys = [f"{number:016x}" for number in range(2000)]
    for key in keys[:-1]:
        store.path(f"trials/{key}").mkdir(parents=True)
        store.path(f"trials/{key}/record.json").write_text(record(key, 0.5).to_json())
    begin(store, keys[-1], 1)
    cells = (CellLayout(0, 0, tuple(enumerate(keys))),)
    many = Layout("many", "Many", ("row",), (("a",),), ("b",), cells)
    store.write("sweeps/many/plan.json", plan_json(many))
    found = watched(store)
    assert look(found, "many").standing.count("finished") == 1999
    assert not store.path("sweeps/many/records.index").exists()
    store.opened.clear()
    append(store, keys[-1], {"type": "epoch", "epoch": 2, "metrics": {}, "seconds": 1.0})
    assert look(found, "many").standing.trials[-1].epoch == 2
    assert store.opened == [f"trials/{keys[-1]}/history.jsonl"]


def spend(seconds: float, clock: Callable[[], float]) -> None:
    """Pass so many seconds by a clock; by that of the processor they have to be worked."""
    begun = clock()
    while clock() - begun < seconds:
        if clock is time.monotonic:
            time.sleep(0.05)


def test_looks_are_so_far_apart_that_they_cost_little(disk, monkeypatch):
    found = watched(disk)
    sweep = found.sweep("made")
    sweep.look()
    now = module.time.monotonic()
    assert 0.5 < sweep._next_look - now <= 1.5
    for work_s, clock, pause_s in ((0.2, time.thread_time, 2.0), (1.5, time.monotonic, 1.5)):
        monkeypatch.setattr(sweep, "_look", lambda begun, work_s=work_s, clock=clock: spend(work_s, clock))
        at_once(sweep)
        sweep.look()
        assert sweep._next_look - time.monotonic() > 0.9 * pause_s
    monkeypatch.setattr(sweep, "_look", lambda begun: pytest.fail("too early"))
    sweep.look()


def test_a_store_on_s3_is_asked_little(monkeypatch):
    """A finished trial is never asked for again; a running one with a listing, its lease, and its history where that grew."""
    from pointsweep.storage.s3 import S3Store
    from tests.support.s3 import BUCKET, served

    with served():
        store = S3Store(f"s3://{BUCKET}/watched")
        plan(store)
        finish(store, FIRST)
        begin(store, SECOND, 1)
        hold(store, SECOND)
        asked: list[str] = []
        store.client.meta.events.register("before-call.s3", lambda model, **more: asked.append(model.name))
        found = watched(store)
        state = look(found)
        assert [trial.state for trial in state.standing.trials] == ["finished", "running", "open", "open"]
        assert b"50.0 (n=1/2)" in found.sweep("made").make_report().data
        asked.clear()
        assert look(found).state == "running"
        # that of the sweep's plan; of the trials, and the running one's folder; its lease
        assert sorted(asked) == ["GetObject", "HeadObject", "ListObjectsV2", "ListObjectsV2"]
        begin(store, SECOND, 3)
        asked.clear()
        assert look(found).running[0].epoch == 3
        assert asked.count("GetObject") == 2
        assert found.sweep("made").pause_s == 15.0
        curve = curves(found.store, build(layout(), {}, {}))[SECOND]
        assert curve == [0.1, 0.2, 0.3]
