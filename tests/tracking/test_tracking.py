"""MLflow mirrors the store: real databases, a real server that goes away, processes that are killed."""

from __future__ import annotations

import contextlib
import getpass
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pointsweep.results.records import SCHEMA, CellLayout, Layout, Record, from_json
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore
from pointsweep.testing import chaos_flaky_proxy as chaos_tracker
from pointsweep.testing.chaos_flaky_proxy import Line
from pointsweep.tracking.background import Mirror
from pointsweep.tracking.mirroring import mirrored
from pointsweep.tracking.mlflow import client as tracking
from pointsweep.tracking.mlflow.client import Runs, connected, finish, prepare, sync_trial
from pointsweep.tracking.mlflow.payload import marks
from pointsweep.tracking.mlflow.reader import read_table, steps_by_run
from pointsweep.tracking.target import NotMirroredError, Target, TrackerUnavailableError, TrialTags
from pointsweep.tracking.trackers import uri_mistake
from pointsweep.training.runner import Job, Task, run_pack
from pointsweep.utils.masking import masked
from tests.training.test_trial import config

OLDER = from_json((Path(__file__).parents[1] / "results" / "stored" / "record_v1.json").read_text())
RECORD = replace(OLDER, schema=SCHEMA)
KEY = RECORD.key
TAGS = TrialTags("tiny", "lora", "line", 1)
LAYOUT = Layout("tiny", "A tiny sweep", ("method",), (("lora",),), ("line",), (CellLayout(0, 0, ((1, KEY),)),))


def trial(store: FileStore, epochs: int = 3, key: str = KEY) -> TrialFolder:
    """A folder as a worker leaves it after some epochs."""
    folder = TrialFolder(store.path(f"trials/{key}"))
    facts = {"name": "synthetic", "digest": "d" * 64, "num_train": 4, "num_test": 2, "num_val": 0, "num_classes": 10}
    folder.start(config=dict(RECORD.config), dataset=facts, origin={"code": "abc+", "host": "h"})
    for epoch in range(1, epochs + 1):
        add_epoch(folder, epoch)
    return folder


def without_files(records: dict[str, Record]) -> dict[str, Record]:
    """The records without the digests of the files beside them, which differ from one test to the next."""
    return {key: replace(record, files={}) for key, record in records.items()}


def add_epoch(folder: TrialFolder, epoch: int, **more: object) -> None:
    metrics = {"train/loss": 1 / epoch, "test/accuracy": epoch / 10}
    folder.append(
        {
            "type": "epoch",
            "epoch": epoch,
            "metrics": metrics,
            "lr": 0.1,
            "seconds": 1.0,
            "time": 1000.0 + epoch,
            "peak_memory_bytes": 5,
            **more,
        }
    )


def steps(target: Target, key: str = KEY) -> list[int]:
    """The epochs that MLflow has of a trial; fails if the trial has more than one run."""
    client = connected(target.uri)
    runs = client.search_runs([target.experiment_id], f"tags.`pointsweep.key` = '{key}'")
    assert len(runs) == 1
    return [metric.step for metric in client.get_metric_history(runs[0].info.run_id, "test/accuracy")]


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory) -> tuple[FileStore, str]:
    """One database for the module: its creation takes seconds."""
    store = FileStore(tmp_path_factory.mktemp("store"))
    uri = f"sqlite:///{store.path('mlflow.db')}"
    prepare(uri, store, LAYOUT)
    return store, uri


def test_a_run_is_brought_up_to_its_folder_and_syncing_again_changes_nothing(sqlite):
    store, uri = sqlite
    target = prepare(uri, store, LAYOUT)
    folder = trial(store, epochs=2)
    sync_trial(Runs(target), folder, TAGS)
    assert steps(target) == [1, 2]
    add_epoch(folder, 3)
    for _ in range(3):  # each with a Runs of its own: as after a restart
        sync_trial(Runs(target), folder, TAGS)
    assert sorted(steps(target)) == [1, 2, 3]
    run = connected(uri).search_runs([target.experiment_id], f"tags.`pointsweep.key` = '{KEY}'")[0]
    assert run.info.status == "RUNNING"
    assert run.data.tags["pointsweep.sweep_run"] == target.parent_run_id
    assert (run.data.tags["row"], run.data.tags["column"], run.data.tags["seed"]) == ("lora", "line", "1")
    assert run.data.params["method.rank"] == "4"
    assert run.inputs.dataset_inputs[0].dataset.digest == ("d" * 36)
    folder.finish(RECORD)
    sync_trial(Runs(target), folder, TAGS)
    run = connected(uri).get_run(run.info.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/accuracy_at_best_test"] == 0.55
    assert run.data.metrics["parameters/trainable"] == 20000


def test_system_metrics_have_the_names_of_mlflows_page_and_a_value_an_epoch(sqlite):
    store, uri = sqlite
    target, key = prepare(uri, store, LAYOUT), "5" * 16
    folder = trial(store, epochs=1, key=key)  # an epoch of an earlier version has none
    for epoch in (2, 3):
        add_epoch(folder, epoch, system={"cpu_utilization_percentage": 10.5 * epoch, "gpu_0_utilization_percentage": 97.0})
    sync_trial(Runs(target), folder, TAGS)
    client = connected(uri)
    [run] = client.search_runs([target.experiment_id], f"tags.`pointsweep.key` = '{key}'")
    kept = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics if name.startswith("system/")}
    assert set(kept) == {"system/cpu_utilization_percentage", "system/gpu_0_utilization_percentage"}
    assert sorted((one.step, one.value) for one in kept["system/cpu_utilization_percentage"]) == [(2, 21.0), (3, 31.5)]


def test_a_run_names_its_user_command_and_data_and_only_a_commit_that_is_one():
    target = Target("sqlite://", "1", "parent", "tiny")
    commit = "0123456789abcdef" * 2 + "01234567"
    known = marks(target, KEY, {"origin": {"code": f"{commit}+"}}, TAGS)
    assert known["mlflow.source.git.commit"] == commit
    assert known["mlflow.source.name"] == "pointsweep run tiny"
    assert known["mlflow.user"] == getpass.getuser()
    assert known["mlflow.note.content"].startswith("**lora / line**, seed 1 of the sweep tiny.")
    assert "pointsweep replay tiny lora line" in known["mlflow.note.content"]
    assert "mlflow.source.git.commit" not in marks(target, KEY, {"origin": {"code": "tree 0123456789abcdef"}}, TAGS)
    assert "mlflow.source.git.commit" not in marks(target, KEY, None, TAGS)


def test_the_runs_of_an_earlier_version_are_taken_out_of_their_parent(sqlite):
    """MLflow's page hides a nested run until its parent is unfolded."""
    store, uri = sqlite
    key = "e" * 16
    target = prepare(uri, store, Layout("nested", "", ("m",), (("a",),), ("b",), ()))
    trial(store, key=key).finish(replace(RECORD, key=key))
    finish(target, store, {key: TAGS})
    client = connected(uri)
    [run] = client.search_runs([target.experiment_id], f"tags.`pointsweep.key` = '{key}'")
    client.set_tag(run.info.run_id, "mlflow.parentRunId", target.parent_run_id)
    finish(target, store, {key: TAGS})
    [after] = client.search_runs([target.experiment_id], f"tags.`pointsweep.key` = '{key}'")
    assert "mlflow.parentRunId" not in after.data.tags
    assert after.data.tags["pointsweep.sweep_run"] == target.parent_run_id
    assert sorted(steps(target, key)) == [1, 2, 3]


def test_an_experiment_has_the_view_that_the_printed_link_opens(sqlite):
    store, uri = sqlite
    layout = replace(LAYOUT, name="viewed", metric="test/macro_f1", protocol="best_val")
    target = prepare(uri, store, layout)
    tags = connected(uri).get_experiment(target.experiment_id).tags
    view = json.loads(tags["mlflow.sharedViewState.trials"])
    # Macro F1 is computed from predictions when a table asks for it, so it is no metric in MLflow.
    assert view["selectedColumns"][:2] == ["metrics.`test/accuracy_at_best_val`", "metrics.`test/accuracy`"]
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_layout_and_records_are_read_back_from_mlflow_alone(sqlite):
    store, uri = sqlite
    target = prepare(uri, store, LAYOUT)
    folder = TrialFolder(store.path(f"trials/{KEY}"))
    if folder.record() is None:
        trial(store).finish(RECORD)
    finish(target, store, {KEY: TAGS})
    layout, records, failures = read_table(uri, "tiny")
    assert layout == LAYOUT
    assert without_files(records) == {KEY: RECORD}
    assert failures == {}
    with pytest.raises(ValueError, match="has no experiment 'other'; it has: .*tiny"):
        read_table(uri, "other")


def test_a_failed_trial_is_failed_there_too_and_finished_after_its_retry(sqlite):
    store, uri = sqlite
    target = prepare(uri, store, Layout("failing", "", ("m",), (("a",),), ("b",), ()))
    folder = trial(store, epochs=1, key="f" * 16)
    folder.append({"type": "failed", "reason": "DivergedError: loss is nan", "time": 1.0})
    sync_trial(Runs(target), folder, TAGS)
    assert read_table(uri, "failing")[2] == {"f" * 16: "DivergedError: loss is nan"}
    folder.start()
    sync_trial(Runs(target), folder, TAGS)
    client = connected(uri)
    assert client.search_runs([target.experiment_id], f"tags.`pointsweep.key` = '{'f' * 16}'")[0].info.status == "RUNNING"


def test_a_finished_trial_whose_metrics_did_not_arrive_gets_them_at_the_end(sqlite, monkeypatch):
    """Its record is there with the creation of the run already, so the mark of a sent record alone must not be believed."""
    store, uri = sqlite
    key = "c" * 16
    target = prepare(uri, store, Layout("cut", "", ("m",), (("a",),), ("b",), ()))
    folder = trial(store, key=key)
    folder.finish(replace(RECORD, key=key))
    runs = Runs(target)

    def cut(*args: object, **options: object) -> None:
        raise OSError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(runs.client, "log_batch", cut)
        with pytest.raises(OSError, match="cut off"):
            sync_trial(runs, folder, TAGS)
    assert steps(target, key) == []
    finish(target, store, {key: TAGS})
    assert sorted(steps(target, key)) == [1, 2, 3]
    [run] = connected(uri).search_runs([target.experiment_id], f"tags.`pointsweep.key` = '{key}'")
    assert (run.info.status, run.data.tags["pointsweep.done"], run.data.metrics["test/accuracy_at_best_test"]) == (
        "FINISHED",
        "1",
        0.55,
    )
    assert without_files(read_table(uri, "cut")[1]) == {key: replace(RECORD, key=key)}
    again = replace(RECORD, key=key, attempts=2)  # a run at its end, of another record: the trial was trained anew
    folder.finish(again)
    sync_trial(Runs(target), folder, TAGS)
    assert without_files(read_table(uri, "cut")[1]) == {key: again}


def test_eight_processes_on_a_fresh_database_at_once_all_succeed(tmp_path):
    code = f"""
from pathlib import Path
from pointsweep.results.records import SCHEMA, Record, Layout
from pointsweep.storage.base import FileStore
from pointsweep.tracking.mlflow.client import prepare
store = FileStore(Path({str(tmp_path)!r}))
target = prepare("sqlite:///{tmp_path}/mlflow.db", store, Layout("together", "", ("m",), (("a",),), ("b",), ()))
print(target.experiment_id, target.parent_run_id)
"""
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(8)
    ]
    outputs = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0] * 8, [error[-2000:] for _, error in outputs]
    assert len({out for out, _ in outputs}) == 1


@pytest.fixture(scope="module")
def server(tmp_path_factory, sqlite) -> Iterator[int]:
    """The port of a real MLflow server."""
    folder = tmp_path_factory.mktemp("server")
    with chaos_tracker.server(folder, sqlite[0].path("mlflow.db")) as port:
        yield port


@pytest.fixture
def line(server) -> Iterator[Line]:
    """A line to the server, and its address: good until told otherwise."""
    line = Line(server)
    with line.served() as line.address:
        yield line


def layout(name: str, keys: list[str]) -> Layout:
    cells = tuple(CellLayout(row, 0, ((1, key),)) for row, key in enumerate(keys))
    return Layout(name, "", ("method",), tuple((key,) for key in keys), ("line",), cells)


def runs_of(target: Target) -> dict[str, list[list[int]]]:
    """trial key -> the epochs of each of its runs."""
    found: dict[str, list[list[int]]] = {}
    for key, epochs in steps_by_run(target.uri, target.sweep):
        found.setdefault(key, []).append(sorted(epochs))
    return found


def until_it_ends(target: Target, store: FileStore, places: dict[str, TrialTags]) -> None:
    """As the command given again and again."""
    for _ in range(30):
        with contextlib.suppress(TrackerUnavailableError):
            return finish(target, store, places)
    pytest.fail("the line was too bad for 30 commands")


def test_a_server_that_goes_away_and_comes_back_has_everything_once(tmp_path, line):
    store = FileStore(tmp_path / "store")
    target = prepare(line.address, store, layout("away", [KEY]))
    folder = trial(store, epochs=2)
    mirror = Mirror(target)
    mirror.poke(folder, TAGS)
    wait_for(lambda: runs_of(target).get(KEY) == [[1, 2]])
    line.share, line.kinds = 1.0, ("refused",)
    for epoch in (3, 4):
        add_epoch(folder, epoch)
        mirror.poke(folder, TAGS)
    with pytest.raises(TrackerUnavailableError, match=line.address):
        finish(target, store, {KEY: TAGS})
    assert mirror.lag_s() > 0
    line.share = 0.0
    folder.finish(RECORD)
    finish(target, store, {KEY: TAGS})
    wait_for(lambda: mirror.lag_s() == 0)  # the mirror's own retries double nothing
    assert runs_of(target) == {KEY: [[1, 2, 3, 4]]}
    assert without_files(read_table(line.address, "away")[1]) == {KEY: RECORD}


def test_at_the_end_the_writer_sends_what_is_not_due_yet_and_gives_up_where_it_is_not_taken(tmp_path, line):
    store = FileStore(tmp_path / "store")
    target = prepare(line.address, store, layout("drained", [KEY]))
    folder, mirror = trial(store, epochs=2), Mirror(target)
    mirror.pace_s = 3600.0
    mirror.poke(folder, TAGS)
    mirror.drain()
    assert (runs_of(target), mirror.lag_s()) == ({KEY: [[1, 2]]}, 0)
    line.share, line.kinds = 1.0, ("refused",)
    mirror.pace_s = 3600.0
    add_epoch(folder, 3)
    mirror.poke(folder, TAGS)
    mirror.drain()
    assert mirror.failing and mirror.lag_s() > 0


@pytest.mark.parametrize("kind", ["lost", "429", "500"])
def test_over_a_bad_line_nothing_is_lost_or_doubled(tmp_path, line, monkeypatch, kind):
    monkeypatch.setattr(tracking, "PAUSES_S", (0.0,) * 5)
    store, keys = FileStore(tmp_path / "store"), [f"{number:016x}" for number in range(3)]
    places = dict.fromkeys(keys, TAGS)
    target = prepare(line.address, store, layout(f"bad {kind}", keys))
    line.share, line.kinds = 0.3, (kind,)
    for key in keys:
        trial(store, epochs=3, key=key).finish(replace(RECORD, key=key))
    until_it_ends(target, store, places)
    assert line.met[kind] > 0
    line.share = 0.0
    assert runs_of(target) == {key: [[1, 2, 3]] for key in keys}
    assert without_files(read_table(line.address, f"bad {kind}")[1]) == {key: replace(RECORD, key=key) for key in keys}


def test_a_lost_answer_to_the_creation_of_a_run_makes_no_second_one(tmp_path, line):
    store = FileStore(tmp_path / "store")
    target = prepare(line.address, store, layout("created", [KEY]))
    folder = trial(store)
    line.share, line.kinds, line.only = 1.0, ("lost",), "runs/create"
    for _ in range(2):
        with contextlib.suppress(Exception):
            sync_trial(Runs(target), folder, TAGS)
    line.share = 0.0
    assert line.met["lost"] == 1
    assert runs_of(target) == {KEY: [[1, 2, 3]]}


def test_a_finished_trial_is_sent_in_five_requests(tmp_path, line):
    """Looked for, made, its data, all of its epochs, its end: MLflow itself would ask for the run once more, to print its address."""
    store = FileStore(tmp_path / "store")
    target = prepare(line.address, store, layout("counted", [KEY]))
    folder = trial(store)
    folder.finish(RECORD)
    before = line.met[""]
    sync_trial(Runs(replace(target, fresh=False)), folder, TAGS)
    assert line.met[""] - before == 5
    sync_trial(Runs(target), folder, TAGS)
    assert line.met[""] - before == 6, "whoever finds it sent to its end leaves it"


def test_a_second_run_that_a_slow_server_made_after_all_is_deleted(tmp_path, line):
    store = FileStore(tmp_path / "store")
    target = prepare(line.address, store, layout("late", [KEY]))
    folder = trial(store)
    runs = Runs(target)
    sync_trial(runs, folder, TAGS)
    for _ in range(2):
        runs._create(KEY, folder.events(), None, TAGS, {})
    assert len(runs_of(target)[KEY]) == 3
    finish(target, store, {KEY: TAGS})
    assert runs_of(target) == {KEY: [[1, 2, 3]]}


def test_training_does_not_wait_for_a_server_that_does_not_answer(tmp_path, line, monkeypatch):
    store, wanted = FileStore(tmp_path / "store"), config()
    target = prepare(line.address, store, layout("hanging", [wanted.key()]))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    line.share, line.kinds, line.slow_s = 1.0, ("slow",), 3600.0
    ended = run_pack([Task(wanted, TAGS)], Job(store.url, {TAGS.sweep: target}), lambda result: None)[0]
    assert ended.status == "finished"
    wait_for(lambda: line.met.get("slow"))
    line.share = 0.0
    assert runs_of(target) == {}
    finish(target, store, {wanted.key(): TAGS})
    assert runs_of(target) == {wanted.key(): [[1, 2, 3, 4]]}


def test_the_mirror_and_the_driver_at_once_open_one_run(tmp_path):
    store = FileStore(tmp_path)
    target = prepare(f"sqlite:///{tmp_path}/mlflow.db", store, LAYOUT)
    folders = [trial(store, key=f"{i:016x}") for i in range(5)]
    threads = [threading.Thread(target=lambda: [sync_trial(Runs(target), folder, TAGS) for folder in folders]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = connected(target.uri).search_runs([target.experiment_id], "tags.`pointsweep.kind` = 'trial'")
    assert sorted(run.data.tags["pointsweep.key"] for run in runs) == [folder.path.name for folder in folders]


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_secrets_in_an_address_are_masked(tmp_path):
    assert masked("postgresql://user:secret@host/db") == "postgresql://***@host/db"
    uri = f"http://user:secret@127.0.0.1:{chaos_tracker.free_port()}"
    with pytest.raises(TrackerUnavailableError) as error:
        prepare(uri, FileStore(tmp_path), LAYOUT)
    assert "secret" not in str(error.value)


class Answers(http.server.BaseHTTPRequestHandler):
    """A program that is no MLflow: the same page for everything."""

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html><body>some portal</body></html>")

    do_POST = do_GET

    def log_message(self, *words: object) -> None:
        pass


@pytest.mark.parametrize("status", [200, 302, 403, 404, 500, 503])
def test_a_server_that_is_no_mlflow_is_away(tmp_path, monkeypatch, status):
    monkeypatch.setattr(tracking, "PAUSES_S", (0.0,))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.status = status
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with pytest.raises(TrackerUnavailableError, match=uri):
            prepare(uri, FileStore(tmp_path), LAYOUT)
        with pytest.raises((TrackerUnavailableError, NotMirroredError), match=uri):
            read_table(uri, "tiny")
    finally:
        server.shutdown()
        server.server_close()


def test_an_experiment_deleted_in_the_ui_is_said_with_the_ways_back_and_comes_back(sqlite):
    store, uri = sqlite
    target = prepare(uri, store, layout("gone", [KEY]))
    client = connected(uri)
    client.delete_experiment(target.experiment_id)
    command = f"experiments restore --experiment-id {target.experiment_id}"
    for deed in (
        lambda: prepare(uri, store, layout("gone", [KEY])),
        lambda: finish(target, store, {}),
        lambda: read_table(uri, "gone"),
    ):
        with pytest.raises(TrackerUnavailableError, match=command):
            deed()
    client.restore_experiment(target.experiment_id)
    assert prepare(uri, store, layout("gone", [KEY])).experiment_id == target.experiment_id
    assert read_table(uri, "gone")[0] == layout("gone", [KEY])


def test_runs_deleted_in_the_ui_are_made_again_and_trials_go_to_the_new_run_of_the_sweep(sqlite):
    store, uri = sqlite
    keys = [f"{number:015x}d" for number in range(2)]
    places = dict.fromkeys(keys, TAGS)
    target = prepare(uri, store, layout("thinned", keys))
    for key in keys:
        trial(store, key=key).finish(replace(RECORD, key=key))
    finish(target, store, places)
    client = connected(uri)
    [first] = client.search_runs([target.experiment_id], f"tags.`pointsweep.key` = '{keys[0]}'")
    client.delete_run(first.info.run_id)
    client.delete_run(target.parent_run_id)
    again = prepare(uri, store, layout("thinned", keys))
    assert again.parent_run_id != target.parent_run_id
    finish(again, store, places)
    assert runs_of(again) == {key: [[1, 2, 3]] for key in keys}
    found = client.search_runs([target.experiment_id], "tags.`pointsweep.kind` = 'trial'")
    assert {run.data.tags["pointsweep.sweep_run"] for run in found} == {again.parent_run_id}
    assert read_table(uri, "thinned")[0] == layout("thinned", keys)


def test_a_long_layout_is_read_back_and_a_part_of_it_is_not_believed(sqlite):
    """A sweep of a thousand trials; then a tag of its layout is lost."""
    store, uri = sqlite
    long = layout("long", [f"{number:016x}" for number in range(1000)])
    target = prepare(uri, store, long)
    assert read_table(uri, "long")[0] == long
    connected(uri).delete_tag(target.parent_run_id, "pointsweep.layout.3")
    with pytest.raises(NotMirroredError, match="pointsweep.sync STORE mends it"):
        read_table(uri, "long")


def test_a_database_that_is_moved_away_while_a_sweep_runs_is_behind(tmp_path):
    store = FileStore(tmp_path / "store")
    uri = f"sqlite:///{store.path('mlflow.db')}"
    with mirrored(uri, store, LAYOUT, {KEY: TAGS}, to_run=True) as mirror:
        trial(store).finish(RECORD)
        store.path("mlflow.db").rename(store.path("moved.db"))
    assert "was moved or replaced while the sweep ran" in mirror.problem
    assert "pointsweep.sync" in mirror.lines()[0]
    assert not store.exists("sweeps/tiny/mirrored.json")


def test_a_database_damaged_while_a_sweep_runs_is_behind_and_training_goes_on(tmp_path):
    store, wanted = FileStore(tmp_path / "store"), config()
    uri = f"sqlite:///{store.path('mlflow.db')}"
    places = {wanted.key(): TAGS}
    with mirrored(uri, store, layout("hit", [wanted.key()]), places, to_run=True) as mirror:
        assert mirror.target is not None
        store.path("mlflow.db").write_bytes(b"x" * 5000)
        ended = run_pack([Task(wanted, TAGS)], Job(store.url, {TAGS.sweep: mirror.target}), lambda result: None)[0]
        assert ended.status == "finished"
    assert "is damaged" in mirror.problem
    assert f"mv {store.path('mlflow.db')}" in mirror.lines()[0]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("htp://host", "unknown scheme 'htp'. Did you mean 'http'?"),
        ("http:/host", "names no host"),
        ("http://host:99x", "names no host"),
        ("postgresq://u@h/db", "Did you mean 'postgresql'?"),
        ("http://host:5000/path", ""),
        ("postgresql+psycopg2://u:p@h/db", ""),
        ("databricks", ""),
        ("none", ""),
        ("/a/folder", ""),
        ("mlruns", ""),
    ],
)
def test_a_tracking_uri_that_can_name_no_mlflow_is_a_mistake(uri, words):
    found = uri_mistake(uri)
    assert words in found
    assert bool(found) == bool(words)
