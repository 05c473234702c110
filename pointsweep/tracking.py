"""MLflow as the live mirror of the trials' folders. The only file with mlflow.

`sync_trial` brings one run up to what stands in its folder, whatever was sent before: called again it changes nothing, and a
process killed between any two of its calls leaves nothing that the next one would double. Everything else calls it.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.metadata
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pointsweep.data.cache import cache_folder
from pointsweep.history import Event, TrialFolder, epochs_of
from pointsweep.records import Layout, Record, from_json, layout_from_json
from pointsweep.store import FileStore, Store
from pointsweep.workdir import read_folder

T = TypeVar("T")

PAUSES_S = (0.2, 0.5, 1.0, 1.0, 2.0)  # between attempts of what a sweep waits for at its begin and end
PATIENCE_S = 15.0  # after which no new attempt begins
CHUNK = 4000  # characters of a record in one tag; servers cut off or refuse longer ones
BATCH = 1000  # metrics in one call, MLflow's limit
MEASURES = ("accuracy", "instance_miou", "class_miou")  # of a record, shown beside the run
STEPS = "test/accuracy"  # the metric whose steps say which epochs a run has


class TrackerAway(RuntimeError):
    """MLflow cannot be reached, or refuses. Nothing is lost: the store has it all, the next run mirrors it."""


@dataclass(frozen=True)
class Target:
    """Where a sweep is mirrored: server or database, experiment and parent run.

    `fresh`: the experiment had no trial's run when the launch began, and all its workers see the same folders.
    """

    uri: str
    experiment_id: str
    parent_run_id: str
    sweep: str
    fresh: bool = False


@dataclass(frozen=True)
class TrialTags:
    """A trial's place in the table."""

    sweep: str
    row: str
    column: str
    seed: int

    @property
    def cell(self) -> str:
        """The name of the trial's run and of its line in a log."""
        return f"{self.row} / {self.column} / seed {self.seed}"


def default_uri(store: Store) -> str:
    """A database in the store; none for a store on S3, where only a server serves all nodes."""
    return f"sqlite:///{store.path('mlflow.db')}" if isinstance(store, FileStore) else "none"


def masked(uri: str) -> str:
    """A URI without the password in it."""
    return re.sub(r"//[^/\s]*@", "//***@", uri)


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Turns what MLflow and its connection raise into TrackerAway, without secrets."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise TrackerAway(f"MLflow at {masked(uri)}: {type(error).__name__}: {masked(str(error))[:300]}") from error


def reachable(uri: str) -> str:
    """What is wrong with a server or database; empty if it answers."""
    try:
        with _told(uri):
            _client(uri).search_experiments(max_results=1)
    except TrackerAway as error:
        return str(error)
    return ""


def prepare(uri: str, store: Store, layout: Layout) -> Target:
    """Once, before workers start: the database, the experiment and the parent run of a sweep. Raises TrackerAway."""
    disk = store if isinstance(store, FileStore) else None
    own = disk if uri.startswith("sqlite") else None

    def made() -> Target:
        with _one_at_a_time(disk):
            if own is not None:
                _ready_made(uri)
            client = _client(uri)
            experiment = _experiment(client, layout.name, own)
            parent = _parent(client, experiment, layout)
        client.log_text(parent, layout.to_json(), "layout.json")
        client.update_run(parent, status="RUNNING")
        empty = not client.search_runs([experiment], "tags.`pointsweep.kind` = 'trial'", max_results=1)
        return Target(uri, experiment, parent, layout.name, empty and isinstance(store, FileStore))

    with _told(uri):
        return _patiently(made)


def _patiently(work: Callable[[], T]) -> T:
    """What `work`, which may be done twice, returns; tried again for a while, as a server may be busy or its line bad."""
    from mlflow.exceptions import MlflowException

    begun = time.monotonic()
    for pause_s in PAUSES_S:
        try:
            return work()
        except (MlflowException, OSError):
            if time.monotonic() - begun > PATIENCE_S:
                raise
            time.sleep(pause_s)
    return work()


@contextmanager
def _one_at_a_time(store: FileStore | None) -> Iterator[None]:
    """Two that open a fresh SQLite database at once break its creation, and on a server each would make a parent run."""
    if store is not None:
        store.root.mkdir(parents=True, exist_ok=True)
    with _locked(store.path("mlflow.lock")) if store is not None else nullcontext(False):
        yield


def _ready_made(uri: str) -> None:
    """A new SQLite database as a copy of an empty one that this machine keeps: making it takes MLflow's migrations seconds."""
    name = uri.removeprefix("sqlite:///")
    path = Path(name)
    if name == uri or "?" in name or path.exists():
        return
    template = cache_folder() / "mlflow" / f"{importlib.metadata.version('mlflow')}.db"
    template.parent.mkdir(parents=True, exist_ok=True)
    if not template.exists():
        fresh = template.with_name(f"{template.name}.{os.getpid()}.tmp")
        _client(f"sqlite:///{fresh}").search_experiments(max_results=1)
        fresh.replace(template)
    copied = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.copyfile(template, copied)
    copied.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Holds the lock; whether this is the first time that anybody does."""
    try:
        path.touch(exist_ok=False)
        first = True
    except FileExistsError:
        first = False
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield first


@functools.cache
def _client(uri: str) -> Any:
    # What is asked again is decided here, by what the server has: MLflow would create a run twice whose answer was lost.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Else the end of every run asks a server for the run once more, to print where it is.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow.tracking import MlflowClient

    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(uri)


def _experiment(client: Any, name: str, store: FileStore | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        place = store.path("mlartifacts").as_uri() if store is not None else None
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException:
            # Another driver was faster.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _parent(client: Any, experiment: str, layout: Layout) -> str:
    found = client.search_runs([experiment], "tags.`pointsweep.kind` = 'sweep'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {"pointsweep.kind": "sweep", "pointsweep.sweep": layout.name, "mlflow.note.content": layout.title}
    return str(client.create_run(experiment, tags=tags, run_name=f"sweep {layout.name}").info.run_id)


class Runs:
    """What this process knows of the runs of one target, so that it need not ask again. Every call costs, however little it says."""

    def __init__(self, target: Target) -> None:
        self.target, self.client = target, _client(target.uri)
        self.ids: dict[str, str] = {}
        self.sent: dict[str, set[int]] = {}  # trial key -> epochs that MLflow has
        self.running: set[str] = set()  # runs that MLflow shows as such

    def open(self, key: str, events: Sequence[Event], tags: TrialTags, new: bool) -> tuple[str, list[Any]]:
        """The run of a trial, found by its key or created, and the parameters that it does not have yet. `new`: there is none."""
        if key in self.ids:
            return self.ids[key], []
        wanted = f"tags.`pointsweep.key` = '{key}'"
        found = self._only([] if new else self.client.search_runs([self.target.experiment_id], wanted))
        start = next((event for event in events if event["type"] == "start"), None)
        if found is not None:
            run_id = str(found.info.run_id)
            self.sent[key] = {metric.step for metric in self.client.get_metric_history(run_id, STEPS)}
            (self.running.add if found.info.status == "RUNNING" else self.running.discard)(run_id)
        else:
            run_id = self._create(key, events, start, tags)
            self.sent[key] = set()
            self.running.add(run_id)
        params = self._describe(run_id, start) if start is not None else []
        self.ids[key] = run_id
        return run_id, params

    def _only(self, runs: Iterable[Any]) -> Any:
        """The one run of a trial, None if there is none. A server that was slow may have made a second one: it is deleted."""
        found = sorted(runs, key=lambda run: str(run.info.run_id))
        for more in found[1:]:
            self.client.delete_run(more.info.run_id)
        return found[0] if found else None

    def _create(self, key: str, events: Sequence[Event], start: Event | None, tags: TrialTags) -> str:
        origin = start["origin"] if start is not None else {}
        marks = {
            "mlflow.parentRunId": self.target.parent_run_id, "pointsweep.kind": "trial", "pointsweep.key": key,
            "pointsweep.sweep": self.target.sweep, "row": tags.row, "column": tags.column, "seed": str(tags.seed),
            "cell": f"{tags.row} / {tags.column}", "mlflow.source.git.commit": origin.get("code", "").rstrip("+"),
            **{f"origin.{name}": value for name, value in origin.items()},
        }  # fmt: skip
        begun = int(1000 * events[0]["time"]) if events else None
        run = self.client.create_run(self.target.experiment_id, start_time=begun, tags=marks, run_name=tags.cell)
        return str(run.info.run_id)

    def _describe(self, run_id: str, start: Event) -> list[Any]:
        """The data; the same again are no change. Returns the parameters, which travel with the first metrics."""
        from mlflow.entities import Dataset, DatasetInput, Param
        from mlflow.exceptions import MlflowException

        data = start["dataset"]
        source = json.dumps({"folder": start["config"]["dataset"].get("folder", "generated")})
        dataset = Dataset(data["name"], data["digest"][:36], "pointsweep", source, profile=json.dumps(data))
        try:
            self.client.log_inputs(run_id, [DatasetInput(dataset)])
        except MlflowException as error:
            # Of several writers that enter a data set at once a server on PostgreSQL lets one succeed; then it is there for all.
            if not re.search("unique|duplicate", str(error), re.IGNORECASE):
                raise
            self.client.log_inputs(run_id, [DatasetInput(dataset)])
        return [Param(name, value) for name, value in flat(start["config"])]

    def send(self, key: str, events: Sequence[Event], tags: TrialTags, record: Record | None, new: bool) -> str:
        """All that the run lacks but its end. An epoch's metrics travel in one call: it is there whole or not at all."""
        from mlflow.entities import Metric

        run_id, params = self.open(key, events, tags, new)
        sent = self.sent[key]
        metrics, marks = _summary(record) if record is not None else ([], [])
        for event in epochs_of(events):
            if event["epoch"] in sent:
                continue
            values = {**event["metrics"], **{name: event[name] for name in ("lr", "seconds", "peak_memory_bytes")}}
            points = [Metric(name, value, int(1000 * event["time"]), event["epoch"]) for name, value in values.items()]
            if len(metrics) + len(params) + len(marks) + len(points) > BATCH:
                self.client.log_batch(run_id, metrics=metrics, params=params, tags=marks)
                metrics, params, marks = [], [], []
            metrics += points
            sent.add(event["epoch"])
        if metrics or params or marks:
            self.client.log_batch(run_id, metrics=metrics, params=params, tags=marks)
        return run_id

    def close(self, run_id: str, events: Sequence[Event], record: Record | None) -> None:
        """The end, if the trial has one."""
        last = events[-1] if events else {"type": ""}
        if record is not None:
            self._end(run_id, "FINISHED")
        elif last["type"] == "failed":
            self.client.set_tag(run_id, "pointsweep.failure", str(last["reason"])[:CHUNK])
            self._end(run_id, "FAILED")
        elif last["type"] == "pruned":
            self._end(run_id, "KILLED")
        elif run_id not in self.running:
            self.client.update_run(run_id, status="RUNNING")
            self.running.add(run_id)

    def _end(self, run_id: str, status: str) -> None:
        self.client.set_terminated(run_id, status)
        self.running.discard(run_id)


def _summary(record: Record) -> tuple[list[Any], list[Any]]:
    """A record as metrics and tags: what a table compares, and the whole of it in pieces."""
    from mlflow.entities import Metric

    text = record.to_json()
    chunks = {f"pointsweep.record.{i}": text[at : at + CHUNK] for i, at in enumerate(range(0, len(text), CHUNK))}
    values = {
        f"{protocol}/{measure}": chosen[f"test/{measure}"]
        for protocol, chosen in record.metrics.items()
        for measure in MEASURES
        if f"test/{measure}" in chosen
    }
    values |= {f"parameters/{name}": float(count) for name, count in record.parameters.items()}
    values |= {"clouds_per_s": record.clouds_per_s, "attempts": float(record.attempts)}
    tags = _tags({**chunks, "weights": record.weights_origin, "marks": ", ".join(record.marks), "pointsweep.done": "1"})
    return [Metric(name, value, 0, 0) for name, value in values.items()], tags


def _tags(values: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(name, value) for name, value in values.items()]


def flat(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of a nested config; parts that are not there are left out."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}{name}.")
        elif value is not None:
            yield f"{path}{name}", str(value)


def sync_trial(runs: Runs, folder: TrialFolder, tags: TrialTags) -> None:
    """Brings a trial's run up to its folder. Raises what MLflow raises; nothing is lost or doubled if it is called again."""
    # The trial's worker and the driver at the end may both be at it: unlocked, each would find no run and create one.
    # The first one at it in a fresh experiment need not look for a run.
    with _locked(folder.path / "mlflow.lock") as first:
        try:
            events, record = folder.events(), folder.record()
            run_id = runs.send(folder.path.name, events, tags, record, first and runs.target.fresh)
            runs.close(run_id, events, record)
        except BaseException:
            # Whether it arrived is not known: the next time it is asked.
            runs.ids.pop(folder.path.name, None)
            raise


def finish(target: Target, store: Store, tags: Mapping[str, TrialTags]) -> None:
    """At the end of a sweep: sends what is not there yet, and closes the parent run. Raises TrackerAway."""
    with _told(target.uri):
        runs = Runs(target)
        done = _patiently(lambda: _done(runs))
        for key, place in tags.items():
            if key not in done and (folder := read_folder(store, key)).events():
                _patiently(functools.partial(sync_trial, runs, folder, place))
        _patiently(lambda: runs.client.set_terminated(target.parent_run_id, "FINISHED"))


def _done(runs: Runs) -> set[str]:
    """The trials that need no more sending; each has one run when this returns."""
    found: dict[str, list[Any]] = {}
    for run in _trial_runs(runs.target.uri, runs.target.experiment_id):
        found.setdefault(run.data.tags["pointsweep.key"], []).append(run)
    kept = {key: runs._only(several) for key, several in found.items()}
    # The tag travels with the last metrics, before the end: a process killed between the two leaves a run that seems to go on.
    return {key for key, run in kept.items() if "pointsweep.done" in run.data.tags and run.info.status == "FINISHED"}


def _trial_runs(uri: str, experiment: str) -> Iterable[Any]:
    """All trial runs of an experiment, page by page."""
    client, token = _client(uri), None
    while True:
        page = client.search_runs([experiment], "tags.`pointsweep.kind` = 'trial'", max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def read_table(uri: str, sweep: str) -> tuple[Layout, dict[str, Record], dict[str, str]]:
    """Layout, records and failures of a sweep from MLflow alone. Raises ValueError if it is not there."""
    from mlflow.artifacts import load_text

    client = _client(uri)
    experiment = client.get_experiment_by_name(sweep)
    if experiment is None:
        known = ", ".join(sorted(found.name for found in client.search_experiments())) or "none"
        raise ValueError(f"MLflow at {masked(uri)} has no experiment {sweep!r}; it has: {known}")
    parents = client.search_runs([experiment.experiment_id], "tags.`pointsweep.kind` = 'sweep'", max_results=1)
    if not parents:
        raise ValueError(f"MLflow experiment {sweep!r} holds no run of a sweep")
    with _tracking_uri(uri):
        layout = layout_from_json(load_text(f"runs:/{parents[0].info.run_id}/layout.json"))
    records, failures = {}, {}
    for run in _trial_runs(uri, experiment.experiment_id):
        key = run.data.tags["pointsweep.key"]
        text = _joined(run.data.tags)
        if text:
            records[key] = from_json(text)
        elif "pointsweep.failure" in run.data.tags:
            failures[key] = run.data.tags["pointsweep.failure"]
    return layout, records, failures


def steps_by_run(uri: str, sweep: str) -> list[tuple[str, list[int]]]:
    """The trial's key and the steps that were sent, for every trial run of a sweep: what chaos.py looks at."""
    client = _client(uri)
    experiment = client.get_experiment_by_name(sweep)
    runs = _trial_runs(uri, experiment.experiment_id) if experiment is not None else []
    return [(r.data.tags["pointsweep.key"], [m.step for m in client.get_metric_history(r.info.run_id, STEPS)]) for r in runs]


def rename(uri: str, sweep: str, name: str) -> None:
    """Gives a sweep's experiment another name, so that the sweep begins a new one."""
    experiment = _client(uri).get_experiment_by_name(sweep)
    if experiment is not None:
        _client(uri).rename_experiment(experiment.experiment_id, name)


def _joined(tags: Mapping[str, str]) -> str:
    names = sorted((name for name in tags if name.startswith("pointsweep.record.")), key=lambda name: int(name.rpartition(".")[2]))
    return "".join(tags[name] for name in names)


@contextmanager
def _tracking_uri(uri: str) -> Iterator[None]:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
