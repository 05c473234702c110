"""What is read for the report from trials' folders and this machine's cache: old and new trials, borrowed and wrong truths."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pointsweep.reporting.build import build, read
from pointsweep.reporting.html.evidence import curves, gather
from pointsweep.reporting.html.page import page
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore
from pointsweep.storage.s3 import S3Store
from pointsweep.utils.array_cache import cached_arrays
from tests.reporting.test_tables import failures, layout, record, records
from tests.support.s3 import BUCKET, served

LABELS = np.arange(30, dtype=np.int64) % 10
CLOUDS = np.random.default_rng(0).normal(size=(30, 64, 3)).astype(np.float32)


def predicted(accuracy: float) -> np.ndarray:
    """The true classes with as many errors as the accuracy says."""
    values = LABELS.astype(np.uint8)
    wrong = 30 - round(30 * accuracy)
    values[:wrong] = (values[:wrong] + 1) % 10
    return values


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "cache"))
    made = FileStore(tmp_path / "store")
    for key in records():
        TrialFolder(made.path(f"trials/{key}")).path.mkdir(parents=True)
    return made


def exact(digest: str = "d" * 64) -> dict:
    """The records with accuracies that 30 objects can have."""
    data = {"name": "synthetic", "digest": digest, "num_train": 60, "num_val": 0, "num_test": 30, "num_classes": 10}
    return {key: record(key, round(30 * r.metrics["last"]["test/accuracy"]) / 30, dataset=data) for key, r in records().items()}


def save(store: FileStore, found: dict, *with_truth: str) -> None:
    for key, one in found.items():
        truth = (LABELS, [f"kind {i}" for i in range(10)]) if key in with_truth else ()
        TrialFolder(store.path(f"trials/{key}")).save_predictions({"last": predicted(one.metrics["last"]["test/accuracy"])}, *truth)


def test_a_trial_keeps_the_true_classes_beside_its_predictions(store):
    folder = TrialFolder(store.path("trials/full/a/0"))
    folder.save_predictions({"last": predicted(0.5)}, LABELS, ["a", "b"])
    assert set(folder.predictions()) == {"last"}
    labels, names = folder.truth()
    assert (labels.tolist(), names) == (LABELS.tolist(), ("a", "b"))
    folder.save_predictions({"last": predicted(0.5)})
    assert folder.truth() is None, "as older trials are"


def test_trials_of_one_data_set_share_a_truth(store):
    found = exact()
    save(store, found, "full/a/1")
    evidence = gather(store, build(layout(), found, failures()), found)
    assert evidence.truths.keys() == found.keys()
    assert len({id(truth) for truth in evidence.truths.values()}) == 1
    assert evidence.truths["adapter/a/0"].class_names[3] == "kind 3"
    assert evidence.truths["adapter/a/0"].clouds is None


def test_old_trials_borrow_the_truth_of_the_data_set_at_hand(store):
    arrays, digest = cached_arrays("made", lambda: {"test_labels": LABELS, "test_points": CLOUDS})
    found = exact(digest)
    save(store, found)
    evidence = gather(store, build(layout(), found, failures()), found)
    assert evidence.truths["full/a/0"].labels.tolist() == LABELS.tolist()
    assert np.array_equal(evidence.truths["full/a/0"].clouds, arrays["test_points"])


def test_a_truth_that_does_not_give_the_recorded_accuracy_is_refused(store):
    digest = cached_arrays("made", lambda: {"test_labels": LABELS[::-1].copy(), "test_points": CLOUDS})[1]
    found = exact(digest)
    save(store, found)
    assert gather(store, build(layout(), found, failures()), found).truths == {}


def test_the_page_says_where_true_classes_or_predictions_are_lacking(store):
    found = exact()
    save(store, found)
    table = build(layout(), found, failures())
    source = page(table, found, {}, gather(store, table, found))
    assert "These trials kept no true classes" in source
    assert 'id="confusion"' not in source
    save(store, found, "full/a/0")
    for seed in range(3):
        store.path(f"trials/adapter/a/{seed}/predictions.npz").write_bytes(b"PK damaged")
    source = page(table, found, {}, gather(store, table, found))
    assert "or without the true classes of theirs: adapter / a.</p>" in source
    assert 'id="confusion"' in source


def test_curves_hold_the_metric_of_every_epoch(store):
    folder = TrialFolder(store.path("trials/full/a/0"))
    for epoch, value in ((1, 0.25), (2, 0.5)):
        folder.append({"type": "epoch", "epoch": epoch, "metrics": {"test/accuracy": value}})
    found = curves(store, build(layout(), records(), failures()))
    assert found["full/a/0"] == [0.25, 0.5]
    assert found["full/a/1"] == []


def test_histories_hold_accuracies_losses_and_the_rate_of_every_trial_that_has_begun(store):
    folder = TrialFolder(store.path("trials/full/a/0"))
    for epoch, value in ((1, 0.25), (2, 0.5)):
        metrics = {"test/accuracy": value, "test/loss": 2 - value, "test/macro_f1": 0.1, "train/loss": float("nan")}
        folder.append({"type": "epoch", "epoch": epoch, "metrics": metrics, "lr": 1 / 2**epoch})
    histories = gather(store, build(layout(), {}, {}), {}).histories
    kept = {name: values.tolist() for name, values in histories["full/a/0"].items()}
    assert kept == {"test/accuracy": [0.25, 0.5], "test/loss": [1.75, 1.5], "learning rate": [0.5, 0.25]}


def test_runs_link_to_the_mlflow_that_has_them(store):
    mark = {"uri": "https://tracking.example.org/", "experiment": "7", "keys": ["full/a/0"], "version": 2, "files": "all"}
    store.write("sweeps/made_up/mirrored.json", json.dumps(mark).encode())
    [(key, address)] = gather(store, build(layout(), {}, {}), {}).links.items()
    assert key == "full/a/0"
    assert address.startswith("https://tracking.example.org/#/experiments/7/runs?searchFilter=")
    store.write("sweeps/made_up/mirrored.json", b"{damaged")
    assert gather(store, build(layout(), {}, {}), {}).links == {}


def test_the_report_of_a_store_on_s3_has_the_predictions(trained):
    disk = FileStore(trained)
    names, made, failed = read(disk, "tiny")
    here = gather(disk, build(names, made, failed), made)
    with served():
        remote = S3Store(f"s3://{BUCKET}/report")
        for path in trained.glob("trials/*/predictions.npz"):
            remote.write(str(path.relative_to(trained)), path.read_bytes())
        there = gather(remote, build(names, made, failed), made)
    assert set(there.predictions) == set(here.predictions) == set(there.truths) == set(made)
    assert all(np.array_equal(there.predictions[key], values) for key, values in here.predictions.items())
    assert all(np.array_equal(there.truths[key].labels, truth.labels) for key, truth in here.truths.items())
