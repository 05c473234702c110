"""Files that MLflow keeps of a trial and of a sweep, beside names and numbers.

Of a finished trial: its configuration, history, record and predictions, and a logged model of its
trained weights, which `mlflow.pyfunc.load_model` loads (training/predictor.py). Of a sweep: its
table in every format, report, file and layout. POINTSWEEP_MLFLOW_ARTIFACTS says how much: `all`,
`small` (no weights, so no model), or `none`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pointsweep.config.datasets import FEATURE_CHANNELS
from pointsweep.errors import unknown
from pointsweep.results.records import HISTORY, PREDICTIONS, WEIGHTS, Record
from pointsweep.tracking.target import TrackerUnavailableError

if TYPE_CHECKING:
    from pointsweep.results.trial_dir import TrialFolder

VARIABLE = "POINTSWEEP_MLFLOW_ARTIFACTS"
MODES = ("all", "small", "none")
# the tag of a run whose artifacts are there, with their mode and what they are of
SENT = "pointsweep.artifacts"
MODEL = "model"
LOADER = "pointsweep.training.predictor"
TRIAL = "trial.json"


def signature(dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a cloud is to mlflow.pyfunc: (clouds, points, 3), any number of both; with
    features as many more as the data set has.
    """
    width = 3
    for name in dataset.get("features") or ():
        width += FEATURE_CHANNELS.get(name, 0)

    spec = {"dtype": "float32", "shape": [-1, -1, width]}
    return [{"type": "tensor", "tensor-spec": spec}]


def artifact_mode() -> str:
    """Return how much is sent. Raises TrackerUnavailableError for a value that says nothing."""
    mode = os.environ.get(VARIABLE, "all")
    if mode not in MODES:
        raise TrackerUnavailableError(
            f"{VARIABLE}: {unknown('mode', mode, MODES, 'Allowed')}"
        )

    return mode


def mark_of(record: Record, mode: str) -> str:
    """Return what a run says of its artifacts once they are all there."""
    digest = hashlib.sha256(record.to_json().encode()).hexdigest()
    return f"{mode} {digest[:16]}"


def send_trial(
    client: Any, run: tuple[str, str], folder: TrialFolder, record: Record, mode: str
) -> None:
    """Send a finished trial's files; `run` is its experiment and its run. Called again it makes no
    second model.
    """
    experiment, run_id = run
    with tempfile.TemporaryDirectory(prefix="pointsweep-") as temporary:
        upload_folder = Path(temporary)
        for name in (HISTORY, PREDICTIONS):
            if (folder.path / name).is_file():
                shutil.copyfile(folder.path / name, upload_folder / name)

        (upload_folder / "record.json").write_text(record.to_json(), encoding="utf-8")
        # By way of JSON, as YAML's safe form has no tuples.
        config = json.loads(json.dumps(dict(record.config)))
        config_file = upload_folder / "config.yaml"
        config_file.write_text(yaml.safe_dump(config), encoding="utf-8")

        client.log_artifacts(run_id, str(upload_folder))

    if mode == "all" and _is_loadable(folder, record):
        _send_model(client, experiment, run_id, folder, record)

    client.set_tag(run_id, SENT, mark_of(record, mode))


def _is_loadable(folder: TrialFolder, record: Record) -> bool:
    """Tell whether a trial's weights are a classifier of clouds: not of parts, and not of a network
    that remembers its clouds.
    """
    return (
        (folder.path / WEIGHTS).is_file()
        and bool(record.correct)
        and bool(record.parameters.get("trainable"))
    )


def _send_model(
    client: Any, experiment: str, run_id: str, folder: TrialFolder, record: Record
) -> None:
    from mlflow.entities import LoggedModelOutput

    models = client.search_logged_models(
        [experiment], filter_string=f"source_run_id = '{run_id}'", max_results=1
    )
    if models:
        model_id = models[0].model_id
    else:
        tags = {"pointsweep.key": record.key}
        model = client.create_logged_model(
            experiment, name=MODEL, source_run_id=run_id, tags=tags
        )
        model_id = model.model_id
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])

    with tempfile.TemporaryDirectory(prefix="pointsweep-") as temporary:
        model_folder = Path(temporary)
        _write_model(model_folder, model_id, run_id, folder, record)
        client.log_model_artifacts(model_id, str(model_folder))

    client.log_model_artifact(model_id, str(folder.path / WEIGHTS), "data")
    client.finalize_logged_model(model_id, "READY")


def _write_model(
    model_folder: Path, model_id: str, run_id: str, folder: TrialFolder, record: Record
) -> None:
    """Write a model's folder in MLflow's format, but for its weights."""
    class_names: list[str] = []
    if (folder.path / PREDICTIONS).is_file():
        truth = folder.truth()
        if truth is not None:
            class_names = list(truth[1])

    facts = {
        "config": dict(record.config),
        "num_classes": record.dataset["num_classes"],
        "class_names": class_names,
    }

    (model_folder / "data").mkdir()
    (model_folder / "data" / TRIAL).write_text(json.dumps(facts), encoding="utf-8")

    requirement = "pointsweep"
    version = record.origin.get("version.pointsweep", "")

    if version:
        requirement += f"=={version}"

    requirements = model_folder / "requirements.txt"
    requirements.write_text(f"{requirement}\n", encoding="utf-8")

    flavor = {
        "loader_module": LOADER,
        "data": "data",
        "python_version": record.origin.get("python", ""),
        "env": {"virtualenv": "requirements.txt"},
    }

    inputs = signature(record.config["dataset"])
    described = {
        "flavors": {"python_function": flavor},
        "mlflow_version": _mlflow_version(),
        "model_id": model_id,
        "model_uuid": model_id,
        "run_id": run_id,
        "utc_time_created": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "signature": {"inputs": json.dumps(inputs), "outputs": None, "params": None},
    }

    (model_folder / "MLmodel").write_text(yaml.safe_dump(described), encoding="utf-8")


def _mlflow_version() -> str:
    import mlflow

    return str(mlflow.__version__)


def send_sweep(
    client: Any, run_id: str, files: Mapping[str, bytes], metrics: Mapping[str, float]
) -> None:
    """Send a sweep's files and the summary metrics of its cells to its run; the same again replace
    those before.
    """
    from mlflow.entities import Metric

    if metrics:
        now_ms = int(1000 * time.time())
        points = [Metric(name, value, now_ms, 0) for name, value in metrics.items()]
        client.log_batch(run_id, metrics=points)

    if not files:
        return

    with tempfile.TemporaryDirectory(prefix="pointsweep-") as temporary:
        for name, data in files.items():
            (Path(temporary) / name).write_bytes(data)
        client.log_artifacts(run_id, temporary)
