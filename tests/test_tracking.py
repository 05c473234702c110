"""MLflow mirrors the store: real databases, a real server that goes away, processes that are killed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pointsweep.history import TrialFolder
from pointsweep.mirror import Mirror
from pointsweep.records import CellLayout, Layout, from_json
from pointsweep.store import FileStore
from pointsweep.tracking import (
    Runs,
    Target,
    TrackerAway,
    TrialTags,
    _client,
    finish,
    masked,
    prepare,
    read_table,
    sync_trial,
)

RECORD = from_json((Path(__file__).parent / "stored" / "record_v1.json").read_text())
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


def add_epoch(folder: TrialFolder, epoch: int) -> None:
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
        }
    )


def steps(target: Target, key: str = KEY) -> list[int]:
    """The epochs that MLflow has of a trial; fails if the trial has more than one run."""
    client = _client(target.uri)
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
    run = _client(uri).search_runs([target.experiment_id], f"tags.`pointsweep.key` = '{KEY}'")[0]
    assert run.info.status == "RUNNING"
    assert run.data.tags["mlflow.parentRunId"] == target.parent_run_id
    assert (run.data.tags["row"], run.data.tags["column"], run.data.tags["seed"]) == ("lora", "line", "1")
    assert run.data.params["method.rank"] == "4"
    assert run.inputs.dataset_inputs[0].dataset.digest == ("d" * 36)
    folder.finish(RECORD)
    sync_trial(Runs(target), folder, TAGS)
    run = _client(uri).get_run(run.info.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["best_test/accuracy"] == 0.55
    assert run.data.metrics["parameters/trainable"] == 20000


def test_layout_and_records_are_read_back_from_mlflow_alone(sqlite):
    store, uri = sqlite
    target = prepare(uri, store, LAYOUT)
    folder = TrialFolder(store.path(f"trials/{KEY}"))
    if folder.record() is None:
        trial(store).finish(RECORD)
    finish(target, store, {KEY: TAGS})
    layout, records, failures = read_table(uri, "tiny")
    assert layout == LAYOUT
    assert records == {KEY: RECORD}
    assert failures == {}
    with pytest.raises(ValueError, match="has no experiment 'other'; it has: .*tiny"):
        read_table(uri, "other")


def test_a_failed_trial_is_failed_there_too_and_finished_after_its_retry(sqlite):
    store, uri = sqlite
    target = prepare(uri, store, Layout("failing", "", ("m",), (("a",),), ("b",), ()))
    folder = trial(store, epochs=1, key="f" * 16)
    folder.append({"type": "failed", "reason": "Diverged: loss is nan", "time": 1.0})
    sync_trial(Runs(target), folder, TAGS)
    assert read_table(uri, "failing")[2] == {"f" * 16: "Diverged: loss is nan"}
    folder.start()
    sync_trial(Runs(target), folder, TAGS)
    client = _client(uri)
    assert client.search_runs([target.experiment_id], f"tags.`pointsweep.key` = '{'f' * 16}'")[0].info.status == "RUNNING"


def test_eight_processes_on_a_fresh_database_at_once_all_succeed(tmp_path):
    code = f"""
from pathlib import Path
from pointsweep.records import Layout
from pointsweep.store import FileStore
from pointsweep.tracking import prepare
store = FileStore(Path({str(tmp_path)!r}))
target = prepare("sqlite:///{tmp_path}/mlflow.db", store, Layout("together", "", ("m",), (("a",),), ("b",), ()))
print(target.experiment_id, target.parent_run_id)
"""
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(8)
    ]
    outputs = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0] * 8, [error[-500:] for _, error in outputs]
    assert len({out for out, _ in outputs}) == 1


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """A real MLflow server with its own database and artifacts."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db",
            "--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200:
                    break
            time.sleep(0.3)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def test_a_server_that_goes_away_and_comes_back_has_everything_once(tmp_path):
    store, port = FileStore(tmp_path / "store"), free_port()
    uri = f"http://127.0.0.1:{port}"
    with server(tmp_path / "server", port):
        target = prepare(uri, store, LAYOUT)
        folder = trial(store, epochs=2)
        mirror = Mirror(target)
        mirror.poke(folder, TAGS)
        wait_for(lambda: _epochs_or_none(target) == [1, 2])
    for epoch in (3, 4):  # away: training goes on, poking costs nothing
        add_epoch(folder, epoch)
        begun = time.monotonic()
        mirror.poke(folder, TAGS)
        assert time.monotonic() - begun < 2  # it waits for nothing; a loaded machine does
    with pytest.raises(TrackerAway, match=str(port)):
        finish(target, store, {KEY: TAGS})
    with server(tmp_path / "server", port):
        folder.finish(RECORD)
        finish(target, store, {KEY: TAGS})
        wait_for(lambda: sorted(_epochs_or_none(target) or []) == [1, 2, 3, 4])
        time.sleep(2)  # the mirror's own retries must not double anything
        assert sorted(steps(target)) == [1, 2, 3, 4]
        assert read_table(uri, "tiny")[1] == {KEY: RECORD}


def test_the_mirror_and_the_driver_at_once_open_one_run(tmp_path):
    store = FileStore(tmp_path)
    target = prepare(f"sqlite:///{tmp_path}/mlflow.db", store, LAYOUT)
    folders = [trial(store, key=f"{i:016x}") for i in range(5)]
    threads = [threading.Thread(target=lambda: [sync_trial(Runs(target), folder, TAGS) for folder in folders]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = _client(target.uri).search_runs([target.experiment_id], "tags.`pointsweep.kind` = 'trial'")
    assert sorted(run.data.tags["pointsweep.key"] for run in runs) == [folder.path.name for folder in folders]


def _epochs_or_none(target: Target) -> list[int] | None:
    try:
        return steps(target)
    except AssertionError:
        return None


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_secrets_in_an_address_are_masked(tmp_path):
    assert masked("postgresql://user:secret@host/db") == "postgresql://***@host/db"
    uri = f"http://user:secret@127.0.0.1:{free_port()}"
    with pytest.raises(TrackerAway) as error:
        prepare(uri, FileStore(tmp_path), LAYOUT)
    assert "secret" not in str(error.value)
