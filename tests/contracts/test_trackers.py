"""What every tracker must hold: those that are registered, and one that only the tests know."""

from __future__ import annotations

import pickle
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pointsweep.cli.run import main
from pointsweep.cli.sync import mirror_sweep
from pointsweep.reporting.stored import read_stored
from pointsweep.results.records import CellLayout, Layout
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore
from pointsweep.tracking import trackers
from pointsweep.tracking.mirroring import mirrored
from pointsweep.tracking.mlflow.reader import steps_by_run
from pointsweep.tracking.target import NotMirroredError, TrackerUnavailableError, TrialTags
from pointsweep.tracking.trackers import open_tracker, uri_mistake
from pointsweep.training.runner import Job, Task, run_pack
from tests.end_to_end.test_command import SWEEP, table
from tests.support.lines_tracker import LinesTracker
from tests.tracking.test_tracking import KEY, LAYOUT, RECORD, TAGS, add_epoch, trial, without_files
from tests.training.test_trial import config

# What each is called with, an address that cannot be used, and one that can name no tracker of its kind.
ADDRESSES = {"mlflow": "sqlite:///{}/runs.db", "jsonl": "jsonl:{}/lines"}
UNUSABLE = {"mlflow": "sqlite:///{}/file/runs.db", "jsonl": "jsonl:{}/file/lines"}
MISTAKES = {"mlflow": ("http:/host", "names no host"), "jsonl": ("jsonl:lines", "is relative")}


@pytest.fixture(params=sorted(ADDRESSES))
def kind(request, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "jsonl", "tests.support.lines_tracker:LinesTracker")
    return request.param


@pytest.fixture
def uri(kind, tmp_path):
    return ADDRESSES[kind].format(tmp_path)


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path / "store")


def epochs(uri: str, sweep: str) -> dict[str, list[int]]:
    """The epochs that a tracker has, by trial; fails if it has two runs of one trial."""
    if uri.startswith("jsonl:"):
        return LinesTracker(uri).epochs(sweep)
    runs = steps_by_run(uri, sweep)
    assert len(dict(runs)) == len(runs)
    return dict(runs)


def test_every_tracker_is_in_these_tests(kind):
    assert set(trackers.TRACKERS) == set(ADDRESSES)


def test_an_address_is_judged_without_opening_anything(kind, uri, tmp_path):
    assert uri_mistake(uri) == "" and uri_mistake("none") == ""
    wrong, words = MISTAKES[kind]
    assert words in uri_mistake(wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_trial_is_sent_as_it_grows_and_again_without_change(uri, store):
    tracker = open_tracker(uri)
    target = pickle.loads(pickle.dumps(tracker.begin(store, LAYOUT)))
    assert target.uri == uri and target.sweep == LAYOUT.name
    folder, writer = trial(store, epochs=1), tracker.writer(target)
    for number in (2, 3):
        writer.send(folder, TAGS)
        add_epoch(folder, number)
    tracker.writer(target).send(folder, TAGS)
    assert epochs(uri, LAYOUT.name) == {KEY: [1, 2, 3]}
    assert tracker.read_table(LAYOUT.name) == (LAYOUT, {}, {})
    folder.finish(RECORD)
    for _ in range(2):
        assert tracker.end(target, store, {KEY: TAGS}) == ""
    layout, records, failures = open_tracker(uri).read_table(LAYOUT.name)
    assert (layout, without_files(records), failures) == (LAYOUT, {KEY: RECORD}, {})
    assert epochs(uri, LAYOUT.name) == {KEY: [1, 2, 3]}
    assert tracker.is_there()
    assert tracker.problem() == ""


def test_several_writers_at_once_leave_one_run_of_a_trial(uri, store):
    tracker = open_tracker(uri)
    target = tracker.begin(store, LAYOUT)
    folder = trial(store)
    threads = [threading.Thread(target=lambda: tracker.writer(target).send(folder, TAGS)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert epochs(uri, LAYOUT.name) == {KEY: [1, 2, 3]}


def test_a_failure_is_kept_until_the_trial_goes_on(uri, store):
    tracker = open_tracker(uri)
    target = tracker.begin(store, LAYOUT)
    folder = trial(store, epochs=1)
    folder.append({"type": "failed", "reason": "DivergedError: loss is nan", "time": 1.0})
    tracker.writer(target).send(folder, TAGS)
    assert tracker.read_table(LAYOUT.name)[2] == {KEY: "DivergedError: loss is nan"}
    folder.start()
    add_epoch(folder, 2)
    folder.finish(RECORD)
    tracker.end(target, store, {KEY: TAGS})
    assert set(tracker.read_table(LAYOUT.name)[1]) == {KEY}
    assert epochs(uri, LAYOUT.name) == {KEY: [1, 2]}


def test_a_trial_that_is_trained_again_is_not_taken_for_its_stale_run(uri, store, tmp_path):
    tracker = open_tracker(uri)
    target = tracker.begin(store, LAYOUT)
    trial(store).finish(RECORD)
    tracker.end(target, store, {KEY: TAGS})
    tracker.set_aside(LAYOUT.name, [KEY])
    assert tracker.read_table(LAYOUT.name) == (LAYOUT, {}, {})
    again = trial(FileStore(tmp_path / "again"), epochs=2)
    target = tracker.begin(store, LAYOUT)
    tracker.writer(target).send(again, TAGS)
    assert epochs(uri, LAYOUT.name) == {KEY: [1, 2]}


def test_a_layout_that_grew_replaces_the_one_before(uri, store):
    tracker = open_tracker(uri)
    tracker.begin(store, LAYOUT)
    cells = (*LAYOUT.cells, CellLayout(0, 1, ((1, "b" * 16),)))
    grown = replace(LAYOUT, columns=("line", "plane"), cells=cells)
    tracker.begin(store, grown)
    assert tracker.read_table(LAYOUT.name)[0] == grown


def test_what_is_not_there_is_said_to_be_missing(uri, store):
    open_tracker(uri).begin(store, LAYOUT)
    with pytest.raises(NotMirroredError, match="other"):
        open_tracker(uri).read_table("other")


def test_a_tracker_that_cannot_be_used_stops_no_training_and_the_end_says_how_it_is_mended(kind, store, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    unusable, wanted = UNUSABLE[kind].format(tmp_path), config()
    with pytest.raises(TrackerUnavailableError):
        open_tracker(unusable).begin(store, LAYOUT)
    tags = TrialTags("tiny", "row", "column", 0)
    layout = Layout("tiny", "", ("m",), (("row",),), ("column",), (CellLayout(0, 0, ((0, wanted.key()),)),))
    with mirrored(unusable, store, layout, {wanted.key(): tags}, to_run=True) as mirror:
        [ended] = run_pack([Task(wanted, tags)], Job(store.url), lambda result: None)
    assert ended.status == "finished"
    assert "training goes on without it" in capsys.readouterr().err
    [line] = mirror.lines()
    assert line.startswith(f"{open_tracker(unusable).title:<8} is behind: ")
    assert "pointsweep.sync" in line and unusable in line


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, bytes]:
    """The table of a sweep that is tracked nowhere."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "tiny.yaml").write_text(SWEEP)
    assert main([str(folder / "tiny.yaml"), "--inline", "--tracking-uri", "none", "--store", str(folder / "store")]) == 0
    return table(folder / "store")


def test_a_sweep_trains_to_the_same_table_and_the_tracker_alone_gives_it_back(plain, uri, store, tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(SWEEP)
    words = [str(file), "--inline", "--tracking-uri", uri, "--store", store.url]
    assert main(words) == 0
    title = open_tracker(uri).title
    assert f"\n{title:<8} " in capsys.readouterr().out
    assert table(store.root) == plain
    layout, records, failures = read_stored("tiny", store)
    assert read_stored("tiny", store, "mlflow", uri) == (layout, records, failures)
    assert epochs(uri, "tiny") == {key: [1, 2] for key in records}
    kept = {path: path.read_bytes() for path in Path(tmp_path).glob("lines/*")}
    assert main(words) == 0
    assert {path: path.read_bytes() for path in Path(tmp_path).glob("lines/*")} == kept, "all is there already"
    assert mirror_sweep(store, "tiny", uri) == len(records)
    assert epochs(uri, "tiny") == {key: [1, 2] for key in records}


def test_every_worker_sends_its_trials_and_the_folder_is_read_while_it_trains(uri, store):
    """Without a driver beside it: what a worker on another machine does."""
    wanted = config()
    tags = TrialTags("tiny", "row", "column", 0)
    layout = Layout("tiny", "", ("m",), (("row",),), ("column",), (CellLayout(0, 0, ((0, wanted.key()),)),))
    with mirrored(uri, store, layout, {wanted.key(): tags}, to_run=True) as mirror:
        assert mirror.target is not None
        [ended] = run_pack([Task(wanted, tags)], Job(store.url, {"tiny": mirror.target}), lambda result: None)
    assert ended.status == "finished"
    assert mirror.problem == ""
    record = TrialFolder(store.path(f"trials/{wanted.key()}")).record()
    assert open_tracker(uri).read_table("tiny")[1] == {wanted.key(): record}


def test_a_scheme_is_not_taken_twice(kind):
    with pytest.raises(ValueError, match="jsonl: is taken"):
        trackers.register("jsonl", "other:Tracker")
