"""Metrics: numbers worked out by hand and by scikit-learn on stored predictions; in tables of trials that are finished already."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

import pointsweep
from pointsweep.errors import ComputedMetricError
from pointsweep.results.computed_metrics import with_metric
from pointsweep.results.metrics import METRICS, balanced_accuracy, computed_names, macro_f1, table_metrics
from pointsweep.results.records import from_json
from pointsweep.storage.base import FileStore

SWEEP = """name: metrics
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 100, test_limit: 24, val_fraction: 0.2}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  train: {epochs: 4, batch_size: 8, warmup_epochs: 0, lr: 1.0e-2}
rows: {method: [head_only, lora]}
seeds: 2
metric: test/accuracy
"""
SKLEARN = {"balanced_accuracy": balanced_accuracy_score, "macro_f1": lambda labels, found: f1_score(labels, found, average="macro")}


def test_numbers_worked_out_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 1, 3])
    # Right of class 0: 2 of 3, of class 1: 2 of 2, of class 2: 0 of 1. Class 3 is predicted, but true of nothing.
    assert balanced_accuracy(predicted, labels) == pytest.approx((2 / 3 + 1 + 0) / 3)
    # F1 = 2 tp / (2 tp + fp + fn): class 0: 4/5, class 1: 4/5, classes 2 and 3: 0.
    assert macro_f1(predicted, labels) == pytest.approx((4 / 5 + 4 / 5) / 4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", computed_names())
def test_every_computed_metric_is_one_for_perfect_predictions_and_warns_of_nothing(name):
    labels = np.array([0, 1, 2, 2], dtype=np.uint8)
    compute = METRICS[name].from_predictions
    assert compute(labels, labels) == 1.0
    assert 0 <= compute(np.full(4, 5, dtype=np.uint8), labels) < 0.5


def test_the_page_on_statistics_lists_every_metric():
    text = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| ([^|;]+)", text.split("## Metrics")[1], re.M))
    assert set(listed) == set(METRICS)
    for name, metric in METRICS.items():
        assert listed[name].strip() == metric.meaning.partition(";")[0]


def test_tables_show_fractions_alone_and_predictions_are_of_the_test_split():
    assert "val/accuracy" in table_metrics()
    assert "test/macro_f1" in table_metrics()
    assert not {"test/loss", "val/macro_f1"} & set(table_metrics())


def command(name: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", f"pointsweep.{name}", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """A store with a finished sweep whose table shows the accuracy, and the sweep's file."""
    folder = tmp_path_factory.mktemp("metrics")
    file = folder / "metrics.yaml"
    file.write_text(SWEEP)
    ended = command("run", str(file), "--inline", "--store", str(folder / "store"), "--tracking-uri", f"sqlite:///{folder}/mlflow.db")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "store", file


def by_sklearn(store: Path, table: dict, name: str, protocol: str) -> None:
    """Compare every value of a table with scikit-learn's on the predictions in the trial's folder."""
    number = 0
    for cell in table["cells"]:
        keys = dict(cell["keys"])
        for seed, value in cell["values"]:
            with np.load(store / "trials" / keys[seed] / "predictions.npz") as arrays:
                assert value == pytest.approx(SKLEARN[name](arrays["labels"], arrays[protocol]), abs=1e-12)
            number += 1
    assert number == 4


@pytest.mark.parametrize("protocol", ["last", "best_test", "best_val"])
@pytest.mark.parametrize("name", computed_names())
def test_a_finished_sweep_is_shown_by_a_metric_that_it_never_recorded(finished, name, protocol):
    store, _ = finished
    ended = command("tables", "metrics", "--store", str(store), "--metric", name, "--protocol", protocol, "--format", "json")
    assert ended.returncode == 0, ended.stderr
    table = json.loads(ended.stdout)
    assert table["metric"] == f"test/{name}"
    by_sklearn(store, table, name, protocol)
    assert all(cell["interval"] in ("seeds", "") and cell["verdict"] is None for cell in table["cells"])


def test_a_file_that_asks_for_it_trains_nothing_anew(finished, tmp_path):
    store, _ = finished
    other = tmp_path / "balanced.yaml"
    other.write_text(SWEEP.replace("name: metrics", "name: balanced").replace("test/accuracy", "test/balanced_accuracy"))
    ended = command("run", str(other), "--inline", "--store", str(store), "--tracking-uri", "none")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "4 finished, 0 to run" in ended.stdout
    assert "test/balanced_accuracy in %" in ended.stdout
    assert re.search(r"balanced accuracy +params", ended.stdout)
    by_sklearn(store, json.loads((store / "sweeps/balanced/table.json").read_text()), "balanced_accuracy", "last")
    assert "test/balanced_accuracy" in (store / "sweeps/balanced/report.html").read_text()
    # Fresh trials: a third seed trains, and is counted with the others.
    more = command("run", str(other), "seeds=3", "--inline", "--store", str(store), "--tracking-uri", "none", "--log-format", "json")
    events = [json.loads(line) for line in more.stdout.splitlines() if line.startswith("{")]
    values = [event["value"] for event in events if event.get("event") == "finished"]
    assert len(values) == 2
    assert all(value is not None for value in values)
    # Each cell is replayed by its own metric.
    again = command("replay", "balanced", "lora", "all", "--seed", "0", "--store", str(store), "--exact")
    assert again.returncode == 0, again.stdout + again.stderr


def test_a_bundle_of_a_computed_metric_is_verified_from_its_predictions(finished, tmp_path):
    store, _ = finished
    file = tmp_path / "table.zip"
    made = command("tables", "metrics", "--store", str(store), "--metric", "macro_f1", "--bundle", str(file))
    assert made.returncode == 0, made.stderr
    checked = command("verify", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with zipfile.ZipFile(file) as bundle:
        names = [name for name in bundle.namelist() if name.endswith("record.json")]
        records = [json.loads(bundle.read(name)) for name in names]
    assert len(records) == 4
    assert all("test/macro_f1" not in chosen for record in records for chosen in record["metrics"].values())


def test_python_reads_the_same_table(finished):
    store, _ = finished
    printed = command("tables", "metrics", "--store", str(store), "--metric", "macro_f1", "--format", "json")
    table = pointsweep.read_table("metrics", store=store, metric="macro_f1")
    assert table.metric == "test/macro_f1"
    assert [cell["mean"] for cell in json.loads(printed.stdout)["cells"]] == [cell.mean for cell in table.cells]


def test_a_name_that_is_no_metric_is_refused_with_the_nearest(finished):
    store, _ = finished
    ended = command("tables", "metrics", "--store", str(store), "--metric", "balanced_acuracy")
    assert ended.returncode == 2
    assert "unknown metric 'test/balanced_acuracy'. Did you mean 'test/balanced_accuracy'?" in ended.stderr


def test_mlflow_alone_does_not_have_it(finished):
    store, file = finished
    source = ["--source", "mlflow", "--tracking-uri", f"sqlite:///{file.parent}/mlflow.db", "--store", str(store)]
    ended = command("tables", "metrics", *source, "--metric", "macro_f1")
    assert ended.returncode == 2
    assert "test/macro_f1 is computed from predictions, which MLflow does not hold; use --source store" in ended.stderr
    shown = command("tables", "metrics", *source, "--metric", "val/accuracy", "--format", "json")
    assert json.loads(shown.stdout)["metric"] == "val/accuracy"


def test_trials_without_true_classes_or_with_others_are_named(finished, tmp_path, monkeypatch):
    """A record without checksums and digests, as early versions wrote them, beside predictions without true classes."""
    store, _ = finished
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "empty"))
    plan = json.loads((store / "sweeps/metrics/plan.json").read_text())
    key = plan["layout"]["cells"][0]["keys"][0][1]
    folder = store / "trials" / key
    record, predictions = folder / "record.json", folder / "predictions.npz"
    before = record.read_bytes(), predictions.read_bytes()
    data = json.loads(before[0])
    old = {name: value for name, value in data.items() if name not in ("checksum", "files")} | {"schema": 1}
    with np.load(predictions) as file:
        arrays = dict(file)
    truth = {name: arrays.pop(name) for name in ("labels", "class_names")}
    show = ("tables", "metrics", "--store", str(store), "--metric", "macro_f1")
    try:
        record.write_text(json.dumps(old))
        np.savez(predictions, **arrays)
        ended = command(*show)
        assert ended.returncode == 2
        assert f"trial {key}: no true classes beside its predictions" in ended.stderr
        # The others are not believed at all where records are read; a record that is at hand already is looked at here.
        believed = {key: from_json(json.dumps(old))}
        np.savez(predictions, **arrays, **truth | {"labels": (truth["labels"] + 1) % 10})
        with pytest.raises(
            ComputedMetricError, match=f"trial {key}: the predictions of protocol .* do not give the recorded accuracy"
        ):
            with_metric(FileStore(store), believed, "test/macro_f1")
        predictions.unlink()
        with pytest.raises(ComputedMetricError, match=f"trial {key}: it has no predictions.npz"):
            with_metric(FileStore(store), believed, "test/macro_f1")
    finally:
        record.write_bytes(before[0])
        predictions.write_bytes(before[1])
    assert command(*show).returncode == 0


def test_a_data_set_of_parts_has_no_class_metrics(tmp_path):
    file = tmp_path / "parts.yaml"
    text = SWEEP.replace("name: synthetic", "name: synthetic_parts").replace("test/accuracy", "test/macro_f1")
    file.write_text(text.replace("point_pn_light", "patch").replace("modality: 1d", "modality: 3d"))
    ended = command("run", str(file), "--plan", "--store", str(tmp_path / "store"))
    assert ended.returncode == 2
    assert (
        "synthetic_parts has no test/macro_f1; it has, of each split: instance_miou, class_miou, accuracy"
        in ended.stdout + ended.stderr
    )
