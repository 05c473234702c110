"""The files that MLflow keeps of a finished sweep, as MLflow's own functions list and load them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pointsweep.cli import sync
from pointsweep.cli.run import main
from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import check_trial
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore, establish
from pointsweep.tracking.mlflow.client import connected
from pointsweep.training.runner import load_dataset

SWEEP = """
name: kept
title: A kept sweep
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 32, test_limit: 16}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  train: {epochs: 1, batch_size: 16, warmup_epochs: 0, lr: 2.0e-3}
rows: {method: [lora, head_only]}
seeds: 2
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A sweep that was run once: its store and the address of its database."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "kept.yaml").write_text(SWEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("POINTSWEEP_STORE", str(folder / "store"))
        assert main([str(folder / "kept.yaml"), "--inline"]) == 0
    return folder / "store", f"sqlite:///{folder / 'store' / 'mlflow.db'}"


def runs_of(uri: str, kind: str):
    client = connected(uri)
    experiment = client.get_experiment_by_name("kept").experiment_id
    return client.search_runs([experiment], f"tags.`pointsweep.kind` = '{kind}'")


def test_a_trial_keeps_its_configuration_history_record_and_predictions(kept):
    _, uri = kept
    client = connected(uri)
    runs = runs_of(uri, "trial")
    assert len(runs) == 4
    for run in runs:
        names = {item.path for item in client.list_artifacts(run.info.run_id)}
        assert {"config.yaml", "history.jsonl", "record.json", "predictions.npz"} <= names


def test_a_logged_model_predicts_what_the_trial_predicted(kept, monkeypatch):
    import mlflow

    store, uri = kept
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    run = next(run for run in runs_of(uri, "trial") if run.data.tags["row"] == "lora")
    model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")

    trial = TrialFolder(store / "trials" / run.data.tags["pointsweep.key"])
    config, _ = check_trial(dict(trial.record().config))
    assert isinstance(config, TrialConfig)
    dataset = load_dataset(config.dataset)
    clouds = np.array(dataset.test.points[dataset.test.index], dtype=np.float32)  # as they are stored
    predicted = model.predict(clouds)
    assert predicted["class"].tolist() == trial.predictions()["last"].tolist()
    assert set(predicted["label"]) <= set(dataset.class_names)
    chances = predicted[[name for name in predicted if name.startswith("probability of ")]].to_numpy()
    assert chances.shape == (16, 10)
    assert chances.sum(axis=1) == pytest.approx(np.ones(16), abs=1e-5)
    one = model.predict(clouds[:1])
    assert one["class"].tolist() == predicted["class"].tolist()[:1]


def test_a_model_is_neither_a_pickle_nor_code(kept):
    store, _ = kept
    folder = next(store.rglob("MLmodel")).parent
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["MLmodel", "data/trial.json", "data/weights.safetensors", "requirements.txt"]


def test_the_run_of_the_sweep_has_its_table_report_file_and_the_numbers_of_its_cells(kept):
    store, uri = kept
    [parent] = runs_of(uri, "sweep")
    names = {item.path for item in connected(uri).list_artifacts(parent.info.run_id)}
    tables = {"table.txt", "table.md", "table.tex", "table.csv", "table.json", "table.html"}
    assert tables | {"report.html", "sweep.yaml", "layout.json"} <= names
    cells = json.loads((store / "sweeps" / "kept" / "table.json").read_text())
    means = {cells["rows"][cell["row"]][0]: cell["mean"] for cell in cells["cells"]}
    [column] = cells["columns"]
    for row, mean in means.items():
        assert parent.data.metrics[f"mean/{row}/{column}"] == mean
        assert parent.data.metrics[f"n/{row}/{column}"] == 2
    assert parent.data.metrics["best_mean"] == max(means.values())


def test_sending_again_makes_no_second_model(kept, capsys):
    store, uri = kept
    client = connected(uri)
    experiment = client.get_experiment_by_name("kept").experiment_id
    before = {model.model_id for model in client.search_logged_models([experiment])}
    assert len(before) == 4
    for run in runs_of(uri, "trial"):
        client.delete_tag(run.info.run_id, "pointsweep.artifacts")
    assert sync.main([str(store)]) == 0, capsys.readouterr().err
    assert {model.model_id for model in client.search_logged_models([experiment])} == before


def test_artifacts_that_cannot_be_written_leave_runs_and_metrics_and_the_end_says_so(tmp_path, monkeypatch, capsys):
    """A folder stands where MLflow would make the one for artifacts: a file, which nobody can write below."""
    store = tmp_path / "store"
    establish(FileStore(store))
    (store / "mlartifacts").write_text("no folder")
    monkeypatch.setenv("POINTSWEEP_STORE", str(store))
    (tmp_path / "kept.yaml").write_text(SWEEP)
    assert main([str(tmp_path / "kept.yaml"), "--inline"]) == 0
    said = capsys.readouterr()
    assert "has all runs and metrics, but 4 trials have no files there: " in said.out
    assert "pointsweep.sync" in said.out
    assert "Traceback" not in said.out + said.err
    uri = f"sqlite:///{store / 'mlflow.db'}"
    runs = runs_of(uri, "trial")
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert all("test/accuracy_at_last" in run.data.metrics for run in runs)

    # Mended, the same command, or sync, sends what is missing.
    (store / "mlartifacts").unlink()
    assert sync.main([str(store)]) == 0
    assert {item.path for item in connected(uri).list_artifacts(runs[0].info.run_id)} >= {"config.yaml", "record.json"}


def test_artifacts_can_be_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("POINTSWEEP_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("POINTSWEEP_MLFLOW_ARTIFACTS", "none")
    (tmp_path / "kept.yaml").write_text(SWEEP.replace("seeds: 2", "seeds: 1"))
    assert main([str(tmp_path / "kept.yaml"), "--inline"]) == 0
    uri = f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    client = connected(uri)
    for run in [*runs_of(uri, "trial"), *runs_of(uri, "sweep")]:
        assert client.list_artifacts(run.info.run_id) == []
    monkeypatch.setenv("POINTSWEEP_MLFLOW_ARTIFACTS", "smal")
    assert sync.main([str(tmp_path / "store")]) == 6
    assert "POINTSWEEP_MLFLOW_ARTIFACTS: unknown mode 'smal'. Did you mean 'small'?" in capsys.readouterr().err
