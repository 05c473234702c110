"""A trial on a store on S3: the working copy of a node and what of it is in the store at any moment."""

from __future__ import annotations

import contextlib

import pytest
import torch

from pointsweep.errors import StoreError
from pointsweep.results import working_copy as workdir
from pointsweep.results.events import read_failure, read_failure_kind
from pointsweep.results.failures import Failure
from pointsweep.results.record_index import trial_status
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.results.working_copy import Copy, read_folder, work_folder
from pointsweep.storage import s3 as s3_store
from pointsweep.storage.base import walk
from pointsweep.storage.s3 import S3Store
from pointsweep.storage.stores import open_store
from pointsweep.tracking.target import TrialTags
from pointsweep.training.runner import Job, Task, run_pack
from pointsweep.training.supervisor import record_loss
from tests.support.s3 import BUCKET, served
from tests.training.test_trial import config

KEY = "0123456789abcdef"


@contextlib.contextmanager
def worked_on(store, key):
    """What guard.py does about a copy, around whatever a test does in it."""
    folder = work_folder(store, key)
    with folder.lock():
        copy = Copy(store, folder)
        copy.fetch()
        try:
            yield copy
        finally:
            copy.close()


@pytest.fixture(scope="module")
def server():
    with served() as faults:
        yield faults


@pytest.fixture
def made(server, tmp_path, monkeypatch) -> S3Store:
    """A store of the test's own, and a node without any copies."""
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "node"))
    monkeypatch.setattr(s3_store, "PAUSE_S", (0.01, 0.05))
    monkeypatch.setattr(workdir, "PAUSE_S", 0.05)
    server.share = 0.0
    yield S3Store(f"s3://{BUCKET}/{tmp_path.name}")
    server.share = 0.0


def train(folder: TrialFolder, epochs: range) -> None:
    for epoch in epochs:
        tensors = {"model.w": torch.full((3,), float(epoch))}
        folder.commit_epoch({"type": "epoch", "epoch": epoch}, lambda t=tensors, e=epoch: (t, {"epoch": e}), last=True)


def on_another_node(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "another"))


def test_another_node_goes_on_from_the_last_upload(made, monkeypatch, tmp_path):
    with worked_on(made, KEY) as copy:
        copy.folder.start(config={})
        train(copy.folder, range(1, 4))
        copy.poke()
    assert trial_status(made, KEY) == "resumable"
    on_another_node(monkeypatch, tmp_path)
    with worked_on(made, KEY) as copy:
        tensors, state = copy.folder.resume()
        assert (state["epoch"], tensors["model.w"].tolist()) == (3, [3.0] * 3)
        assert [event["epoch"] for event in copy.folder.epochs()] == [1, 2, 3]
    assert [event["epoch"] for event in read_folder(made, KEY).epochs()] == [1, 2, 3]


def test_that_a_worker_was_lost_is_seen_by_every_node(made, monkeypatch, tmp_path):
    with worked_on(made, KEY) as copy:
        copy.folder.start(config={})
        train(copy.folder, range(1, 4))
    on_another_node(monkeypatch, tmp_path)  # that of the command
    failure = record_loss(made, KEY, Failure("lost_node", "its worker was lost"), "launch", 1.0)
    assert failure.reason == read_failure(made, KEY) == "its worker was lost"
    assert read_failure_kind(made, KEY) == "lost_node"
    assert [event["epoch"] for event in read_folder(made, KEY).epochs()] == [1, 2, 3]
    with worked_on(made, KEY) as copy:  # the next launch goes on from the checkpoint
        assert copy.folder.resume()[1]["epoch"] == 3


def test_a_loss_that_cannot_be_noted_ends_nothing(made, server):
    server.share = 1.0
    assert record_loss(made, KEY, Failure("lost_node", "its worker was lost"), "launch", 1.0).reason == "its worker was lost"


def test_every_moment_of_an_upload_is_one_that_can_be_resumed(made, monkeypatch, tmp_path):
    """The process is cut off before each of its writes to the store in turn; another node continues without a gap."""
    write, done = S3Store.write, []
    for allowed in range(6):
        key = f"{allowed:016d}"

        def limited(self, name, data, allowed=allowed, count=[0]):  # noqa: B006 - one counter for each `allowed`
            if count[0] == allowed:
                raise StoreError("cut off")
            count[0] += 1
            write(self, name, data)

        folder = work_folder(made, key)
        copy = workdir.Copy(made, folder)
        monkeypatch.setattr(S3Store, "write", limited)
        folder.start(config={})
        for last in (2, 4, 6):
            train(folder, range(last - 1, last + 1))
            try:
                copy.upload()
            except StoreError:
                break
        monkeypatch.setattr(S3Store, "write", write)
        with monkeypatch.context() as patch:
            patch.setenv("POINTSWEEP_CACHE", str(tmp_path / f"another{allowed}"))
            with worked_on(made, key) as other:
                found = other.folder.resume()
                done.append(found[1]["epoch"] if found else 0)
                assert [event["epoch"] for event in other.folder.epochs()] == list(range(1, done[-1] + 1))
    assert done == [0, 0, 2, 2, 4, 4]


def test_what_a_killed_process_had_not_uploaded_is_used_on_its_node(made):
    folder = work_folder(made, KEY)
    folder.start(config={})
    train(folder, range(1, 3))
    workdir.Copy(made, folder).upload()
    train(folder, range(3, 6))
    with worked_on(made, KEY) as copy:
        assert copy.folder.resume()[1]["epoch"] == 5


def test_a_trial_that_was_deleted_from_the_store_begins_anew(made):
    with worked_on(made, KEY) as copy:
        copy.folder.start(config={})
        train(copy.folder, range(1, 3))
    for name in walk(made, f"trials/{KEY}"):
        made.delete(name)
    with worked_on(made, KEY) as copy:
        assert copy.folder.resume() is None
        assert copy.folder.events() == []


def test_the_store_may_be_away_while_a_trial_trains(made, server):
    with worked_on(made, KEY) as copy:
        copy.folder.start(config={})
        server.share = 1.0
        train(copy.folder, range(1, 3))
        copy.poke()
        server.share = 0.0
    assert len(read_folder(made, KEY).epochs()) == 2


def test_a_trial_gives_the_same_record_as_on_a_disk(made, tmp_path):
    trial = config()
    tags = TrialTags("s", "row", "column", 0)
    stores = [made.url, str(tmp_path / "disk")]
    for url in stores:
        [outcome] = run_pack([Task(trial, tags)], Job(url), lambda _: None)
        assert outcome.status == "finished", outcome.reason
    key = trial.key()
    records = [read_folder(open_store(url), key).record() for url in stores]
    assert records[0].metrics == records[1].metrics
    assert trial_status(made, key) == "finished"
    assert {"history.jsonl", "predictions.npz", "record.json", "weights.safetensors"} == set(made.list(f"trials/{key}"))
    [again] = run_pack([Task(trial, tags)], Job(made.url), lambda _: None)
    assert again.status == "finished"
