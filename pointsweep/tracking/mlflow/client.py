"""MLflow as the live mirror of the trials' folders.

`sync_trial` brings one run up to what stands in its folder, whatever was sent before: called again
it changes nothing, and a process killed between any two of its calls leaves nothing that the next
one would double. Everything else calls it.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pointsweep.errors import RecordError
from pointsweep.results.events import Event, epochs_of
from pointsweep.results.records import (
    HISTORY,
    PREDICTIONS,
    WEIGHTS,
    Layout,
    Record,
    from_json,
)
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.results.working_copy import read_folder
from pointsweep.storage.base import FileStore, Store
from pointsweep.storage.stores import folder_of
from pointsweep.tracking.mlflow.address import (
    is_database,
    target_problem,
    uri_mistake,
    way_back,
)
from pointsweep.tracking.mlflow.artifacts import (
    SENT,
    artifact_mode,
    mark_of,
    send_sweep,
    send_trial,
)
from pointsweep.tracking.mlflow.payload import (
    CHUNK,
    LAYOUT_DIGEST,
    NESTED,
    SWEEP_RUN,
    epoch_values,
    experiment_tags,
    flat,
    joined,
    layout_tags,
    marks,
    source_tags,
    summary,
)
from pointsweep.tracking.mlflow.sqlite_bootstrap import (
    locked,
    one_at_a_time,
    ready_made,
    take_artifacts_along,
)
from pointsweep.tracking.target import (
    NotMirroredError,
    Target,
    TrackerUnavailableError,
    TrialTags,
)
from pointsweep.utils.masking import masked, scrubbed
from pointsweep.utils.sqlite_files import sqlite_path, sqlite_problem

T = TypeVar("T")

# between attempts of what a sweep waits for at its begin and end
PAUSES_S = (0.2, 0.5, 1.0, 1.0, 2.0)
PATIENCE_S = 15.0  # after which no new attempt begins
BATCH = 1000  # metrics in one call, MLflow's limit
TAG_BATCH = 100  # tags in one call, MLflow's limit
PYTHON = shlex.quote(sys.executable)
MOST_REFUSED = 3  # trials whose files MLflow does not take, before no more are tried
STEPS = "test/accuracy"  # the metric whose steps say which epochs a run has


@contextmanager
def tracker_errors(uri: str) -> Iterator[None]:
    """Turn whatever MLflow, its database layer and its connection raise into
    TrackerUnavailableError, without secrets.
    """
    try:
        yield
    except (TrackerUnavailableError, NotMirroredError):
        raise
    except Exception as error:  # MLflow has no common base of what it raises
        message = " ".join(scrubbed(str(error), uri).split())[:300]
        path = sqlite_path(uri)
        mend = ""

        if path is not None and path.exists() and not _is_locked(error):
            mend = (
                "; if another version of MLflow made it, use that one; else"
                f" {way_back(path, 'damaged')}"
            )

        raise TrackerUnavailableError(
            f"MLflow at {masked(uri)}: {type(error).__name__}: {message}{mend}"
        ) from error


def _is_locked(error: Exception) -> bool:
    return "database is locked" in str(error)


def reachable(uri: str) -> str:
    """Return what is wrong with a server or database; empty if it answers."""
    try:
        with tracker_errors(uri):
            require_usable(uri)
            connected(uri).search_experiments(max_results=1)
    except TrackerUnavailableError as error:
        return str(error)

    return ""


def require_usable(uri: str, writes: bool = True) -> None:
    """Raise TrackerUnavailableError for a database that cannot be used, at once: MLflow would try
    it again for minutes.
    """
    problem = uri_mistake(uri) or target_problem(uri)
    if problem:
        raise TrackerUnavailableError(problem)

    path = sqlite_path(uri)
    if path is not None:
        problem = sqlite_problem(path, writes)
        if problem:
            raise TrackerUnavailableError(
                f"MLflow's database {path} {problem}; {way_back(path, problem)}"
            )
    elif is_database(uri):
        import sqlalchemy

        engine = sqlalchemy.create_engine(uri)
        try:
            engine.connect().close()
        finally:
            engine.dispose()


def prepare(uri: str, store: Store, layout: Layout) -> Target:
    """Prepare a sweep once, before workers start: the database, the experiment and the parent run.
    Raises TrackerUnavailableError.
    """
    disk = folder_of(store)
    own_store = disk if uri.startswith("sqlite") else None

    def create_database(fresh_uri: str) -> None:
        connected(fresh_uri).search_experiments(max_results=1)

    def set_up() -> Target:
        with one_at_a_time(disk):
            require_usable(uri)
            if own_store is not None:
                ready_made(uri, create_database)
                take_artifacts_along(uri, own_store.path("mlartifacts"))

            client = connected(uri)
            experiment = _experiment(client, layout.name, own_store, uri)
            parent = _parent(client, experiment, layout)

        _describe_sweep(client, parent, layout)
        _describe_experiment(client, experiment, layout)
        client.update_run(parent, status="RUNNING")
        trials = client.search_runs(
            [experiment], "tags.`pointsweep.kind` = 'trial'", max_results=1
        )

        return Target(
            uri=uri,
            experiment_id=experiment,
            parent_run_id=parent,
            sweep=layout.name,
            fresh=not trials and disk is not None,
        )

    with tracker_errors(uri):
        return _patiently(set_up, uri)


def set_runs_aside(uri: str, name: str, keys: Iterable[str]) -> None:
    """Take the runs of trials that are trained again out of a sweep: they keep what they hold,
    under another key.

    Else the mirror would take their epochs for those of the new trial. Raises
    TrackerUnavailableError.
    """
    with tracker_errors(uri):
        require_usable(uri)
        client = connected(uri)
        experiment = client.get_experiment_by_name(name)

        if experiment is None:
            return

        for key in keys:
            runs = client.search_runs(
                [experiment.experiment_id], f"tags.`pointsweep.key` = '{key}'"
            )
            for run in runs:
                client.set_tag(run.info.run_id, "pointsweep.key", f"{key}-stale")
                client.set_tag(run.info.run_id, "pointsweep.kind", "stale")


def _describe_experiment(client: Any, experiment: str, layout: Layout) -> None:
    """Tell MLflow's pages what kind of experiment this is, and which columns the link that a launch
    prints shows.
    """
    stored_tags = client.get_experiment(experiment).tags
    for name, value in experiment_tags(layout).items():
        if stored_tags.get(name) != value:
            client.set_experiment_tag(experiment, name, value)


def _describe_sweep(client: Any, parent: str, layout: Layout) -> None:
    """Write the layout into tags of the parent run. Tags move with the database, a folder of
    artifacts does not.
    """
    from mlflow.entities import RunTag

    tags = layout_tags(layout.to_json())
    stored_tags = client.get_run(parent).data.tags

    if stored_tags.get(LAYOUT_DIGEST) == tags[LAYOUT_DIGEST]:
        return

    run_tags = [RunTag(name, value) for name, value in tags.items()]
    for start in range(0, len(run_tags), TAG_BATCH):
        client.log_batch(parent, tags=run_tags[start : start + TAG_BATCH])


def _patiently(work: Callable[[], T], uri: str) -> T:
    """Return what `work`, which may be done twice, returns; tried again for a while, as a server
    may be busy or its line bad.

    What a database in a file says stays so, unless it is locked.
    """
    started_at = time.monotonic()
    for pause_s in PAUSES_S:
        try:
            return work()
        except TrackerUnavailableError:
            raise  # its cause stays
        except Exception as error:  # as in tracker_errors
            lasting = sqlite_path(uri) is not None and not _is_locked(error)
            if lasting or time.monotonic() - started_at > PATIENCE_S:
                raise

            time.sleep(pause_s)

    return work()


@functools.cache
def connected(uri: str) -> Any:
    """The client of a server or database, one for a process."""
    # What is asked again is decided here, by what the server has: MLflow would create a run twice
    # whose answer was lost.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Else the end of every run asks a server for the run once more, to print where it is.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow.tracking import MlflowClient

    # What MLflow logs of an error, with its traceback, is said in one line where the error is met.
    for noisy in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)

    return MlflowClient(uri)


def require_active(experiment: Any, uri: str) -> None:
    """Raise TrackerUnavailableError, with the ways back, for an experiment that somebody has
    deleted in MLflow's UI.
    """
    if experiment.lifecycle_stage != "deleted":
        return

    address = shlex.quote(masked(uri))
    number = experiment.experiment_id
    raise TrackerUnavailableError(
        f"MLflow's experiment {experiment.name!r} is deleted there. It comes back by:"
        f" MLFLOW_TRACKING_URI={address} {PYTHON} -m mlflow experiments restore --experiment-id"
        f" {number}; or delete it for good, and a new one is made: {PYTHON} -m mlflow gc"
        f" --backend-store-uri {address} --experiment-ids {number}"
    )


def _experiment(client: Any, name: str, store: FileStore | None, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    existing = client.get_experiment_by_name(name)
    if existing is None:
        location = None
        if store is not None:
            location = store.path("mlartifacts").as_uri()

        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            # Another driver was faster.
            existing = client.get_experiment_by_name(name)
            if existing is None:
                raise

    require_active(existing, uri)
    return str(existing.experiment_id)


def _parent(client: Any, experiment: str, layout: Layout) -> str:
    existing = client.search_runs(
        [experiment], "tags.`pointsweep.kind` = 'sweep'", max_results=1
    )
    if existing:
        return str(existing[0].info.run_id)

    tags = {
        "pointsweep.kind": "sweep",
        "pointsweep.sweep": layout.name,
        "mlflow.note.content": layout.title,
    }

    tags |= source_tags(layout.name)
    run = client.create_run(experiment, tags=tags, run_name=f"sweep {layout.name}")

    return str(run.info.run_id)


class Runs:
    """Cache of what this process knows of the runs of one target, so that it need not ask again.
    Every call costs, however little it says.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.client = connected(target.uri)
        self.ids: dict[str, str] = {}
        self.sent: dict[str, set[int]] = {}  # trial key -> epochs that MLflow has
        self.running: set[str] = set()  # runs that MLflow shows as such

    def find(self, key: str) -> Any:
        """The run of a trial; None if MLflow has none, or if it is known here already."""
        if key in self.ids:
            return None

        runs = self.client.search_runs(
            [self.target.experiment_id], f"tags.`pointsweep.key` = '{key}'"
        )
        return self.only(runs)

    def open(
        self,
        key: str,
        events: Sequence[Event],
        tags: TrialTags,
        existing: Any,
        new_tags: Mapping[str, str],
    ) -> tuple[str, list[Any], Mapping[str, str]]:
        """The run of a trial, `existing` or created, and the parameters and `new_tags` that it does
        not have yet.

        Tags given to a run that is created cost no transaction of their own.
        """
        if key in self.ids:
            return self.ids[key], [], new_tags

        start = next((event for event in events if event["type"] == "start"), None)
        if existing is not None:
            run_id = str(existing.info.run_id)
            history = self.client.get_metric_history(run_id, STEPS)
            self.sent[key] = {metric.step for metric in history}

            if existing.data.tags.get(SWEEP_RUN) != self.target.parent_run_id:
                # The sweep's run was deleted in the UI, and another one made.
                new_tags = {**new_tags, SWEEP_RUN: self.target.parent_run_id}

            if NESTED in existing.data.tags:
                self.client.delete_tag(run_id, NESTED)

            if existing.info.status == "RUNNING":
                self.running.add(run_id)
            else:
                self.running.discard(run_id)
        else:
            run_id = self._create(key, events, start, tags, new_tags)
            new_tags = {}
            self.sent[key] = set()
            self.running.add(run_id)

        params = self._describe(run_id, start) if start is not None else []
        self.ids[key] = run_id
        return run_id, params, new_tags

    def only(self, runs: Iterable[Any]) -> Any:
        """The one run of a trial, None if there is none. A server that was slow may have made a
        second one: it is deleted.
        """
        ordered = sorted(runs, key=lambda run: str(run.info.run_id))
        if not ordered:
            return None

        first, *duplicates = ordered
        for duplicate in duplicates:
            self.client.delete_run(duplicate.info.run_id)

        return first

    def _create(
        self,
        key: str,
        events: Sequence[Event],
        start: Event | None,
        tags: TrialTags,
        new_tags: Mapping[str, str],
    ) -> str:
        run_tags = {**marks(self.target, key, start, tags), **new_tags}
        started_ms = int(1000 * events[0]["time"]) if events else None
        run = self.client.create_run(
            self.target.experiment_id,
            start_time=started_ms,
            tags=run_tags,
            run_name=tags.cell,
        )

        return str(run.info.run_id)

    def _describe(self, run_id: str, start: Event) -> list[Any]:
        """The data; the same again are no change. Returns the parameters, which travel with the
        first metrics.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param
        from mlflow.exceptions import MlflowException

        data = start["dataset"]
        section = start["config"]["dataset"]
        folder = section.get("folder", section.get("root", "generated"))
        dataset = Dataset(
            name=data["name"],
            digest=data["digest"][:36],
            source_type="pointsweep",
            source=json.dumps({"folder": folder}),
            profile=json.dumps(data),
        )

        context = [InputTag("mlflow.data.context", "training and test")]
        inputs = [DatasetInput(dataset, context)]

        try:
            self.client.log_inputs(run_id, inputs)
        except MlflowException as error:
            # Of several writers that enter a data set at once a server on PostgreSQL lets one
            # succeed; then it is there for all.
            if not re.search("unique|duplicate", str(error), re.IGNORECASE):
                raise

            self.client.log_inputs(run_id, inputs)

        return [Param(name, value) for name, value in flat(start["config"])]

    def send(
        self,
        key: str,
        events: Sequence[Event],
        tags: TrialTags,
        record: Record | None,
        existing: Any,
    ) -> str:
        """All that the run lacks but its end. An epoch's metrics travel in one call: it is there
        whole or not at all.
        """
        from mlflow.entities import Metric, RunTag

        values: Mapping[str, float] = {}
        final_tags: Mapping[str, str] = {}

        if record is not None:
            values, final_tags = summary(record)

        run_id, params, missing_tags = self.open(
            key, events, tags, existing, final_tags
        )
        sent = self.sent[key]
        metrics = [Metric(name, value, 0, 0) for name, value in values.items()]
        run_tags = [RunTag(name, value) for name, value in missing_tags.items()]

        for event in epochs_of(events):
            epoch = event["epoch"]
            if epoch in sent:
                continue

            time_ms = int(1000 * event["time"])
            points = []
            for name, value in epoch_values(event).items():
                points.append(Metric(name, value, time_ms, epoch))

            if len(metrics) + len(params) + len(run_tags) + len(points) > BATCH:
                self.client.log_batch(
                    run_id, metrics=metrics, params=params, tags=run_tags
                )
                metrics = []
                params = []
                run_tags = []

            metrics += points
            sent.add(epoch)

        if metrics or params or run_tags:
            self.client.log_batch(run_id, metrics=metrics, params=params, tags=run_tags)

        return run_id

    def close(
        self, run_id: str, events: Sequence[Event], record: Record | None
    ) -> None:
        """The end, if the trial has one."""
        last = events[-1] if events else {"type": ""}
        if record is not None:
            self._end(run_id, "FINISHED")
        elif last["type"] == "failed":
            self.client.set_tag(
                run_id, "pointsweep.failure", str(last["reason"])[:CHUNK]
            )
            self._end(run_id, "FAILED")
        elif last["type"] == "pruned":
            self._end(run_id, "KILLED")
        elif run_id not in self.running:
            self.client.update_run(run_id, status="RUNNING")
            self.running.add(run_id)

    def _end(self, run_id: str, status: str) -> None:
        self.client.set_terminated(run_id, status)
        self.running.discard(run_id)


def sync_trial(runs: Runs, folder: TrialFolder, tags: TrialTags) -> None:
    """Bring a trial's run up to its folder. Raises what MLflow raises; nothing is lost or doubled
    if it is called again.
    """
    # The trial's worker and the driver at the end may both be at it: unlocked, each would find no
    # run and create one. The first one at it in a fresh experiment need not look for a run.
    key = folder.path.name
    with locked(folder.path / "mlflow.lock") as first:
        try:
            events = folder.events()
            record = _record_of(folder)
            existing = None

            if not first or not runs.target.fresh:
                existing = runs.find(key)

            if _is_sent(existing, record, runs.target):
                return  # by the other one

            run_id = runs.send(key, events, tags, record, existing)
            runs.close(run_id, events, record)
        except BaseException:
            # Whether it arrived is not known: the next time it is asked.
            runs.ids.pop(key, None)
            raise


def _is_sent(run: Any, record: Record | None, target: Target) -> bool:
    """Tell whether a run, None if there is none, has all of a record, and its end."""
    if run is None or record is None:
        return False
    if not _belongs_to(run, target) or not _ended(run):
        return False

    return joined(run.data.tags) == record.to_json()


def _belongs_to(run: Any, target: Target) -> bool:
    """Tell whether a run belongs to the sweep's run, and is not nested in it as earlier versions
    had it.
    """
    tags = run.data.tags
    return tags.get(SWEEP_RUN) == target.parent_run_id and NESTED not in tags


def _record_of(folder: TrialFolder) -> Record | None:
    """A trial's record; None too for one that cannot be believed, which the launch has set aside or
    named.
    """
    try:
        return folder.record()
    except RecordError:
        return None


def finish(target: Target, store: Store, tags: Mapping[str, TrialTags]) -> str:
    """End a sweep: send what is not there yet, and close the parent run. Raises
    TrackerUnavailableError.

    Return why some trials' files are not there, "" if they all are: runs and metrics do not depend
    on them.
    """
    uri = target.uri
    with tracker_errors(uri):
        mode = artifact_mode()
        require_usable(uri)
        runs = Runs(target)

        def check_experiment() -> None:
            require_active(runs.client.get_experiment(target.experiment_id), uri)

        def end_sweep() -> None:
            runs.client.set_terminated(target.parent_run_id, "FINISHED")

        _patiently(check_experiment, uri)
        done = _patiently(functools.partial(_done, runs), uri)

        for key, trial_tags in tags.items():
            if key in done:
                continue

            folder = read_folder(store, key)
            if folder.events():
                sync = functools.partial(sync_trial, runs, folder, trial_tags)
                _patiently(sync, uri)

        problem = ""
        if mode != "none":
            problem = _send_artifacts(runs, store, tags, mode)

        _patiently(end_sweep, uri)
        return problem


def _send_artifacts(
    runs: Runs, store: Store, tags: Mapping[str, TrialTags], mode: str
) -> str:
    """Send the files of finished trials that are not there yet; return why some are missing."""
    missing: list[str] = []
    reason = ""

    for run in list(trial_runs(runs.target.uri, runs.target.experiment_id)):
        key = run.data.tags["pointsweep.key"]
        text = joined(run.data.tags)
        if key not in tags or not text:
            continue

        record = from_json(text)
        if run.data.tags.get(SENT) == mark_of(record, mode):
            continue

        if len(missing) >= MOST_REFUSED:
            missing.append(key)
            continue

        try:
            folder = read_folder(store, key, HISTORY, PREDICTIONS, WEIGHTS)
            experiment_and_run = runs.target.experiment_id, run.info.run_id
            send_trial(runs.client, experiment_and_run, folder, record, mode)
        except Exception as error:
            # each artifact store of MLflow raises its own; the end of the launch says it
            missing.append(key)
            message = " ".join(scrubbed(str(error), runs.target.uri).split())[:200]
            reason = reason or f"{type(error).__name__}: {message}"

    if missing:
        return f"{len(missing)} trials have no files there: {reason}"

    return ""


def publish(
    target: Target, files: Mapping[str, bytes], metrics: Mapping[str, float]
) -> None:
    """Send a sweep's files and the numbers of its cells to its run. Raises
    TrackerUnavailableError.
    """
    with tracker_errors(target.uri):
        published = files if artifact_mode() != "none" else {}
        send_sweep(connected(target.uri), target.parent_run_id, published, metrics)


def _done(runs: Runs) -> set[str]:
    """The trials that need no more sending; each has one run when this returns."""
    runs_by_key: dict[str, list[Any]] = defaultdict(list)
    for run in trial_runs(runs.target.uri, runs.target.experiment_id):
        runs_by_key[run.data.tags["pointsweep.key"]].append(run)

    done = set()
    for key, key_runs in runs_by_key.items():
        run = runs.only(key_runs)
        if _ended(run) and _belongs_to(run, runs.target):
            done.add(key)

    return done


def _ended(run: Any) -> bool:
    # The tag travels with the last metrics or before them: a process killed before the end leaves a
    # run that seems to go on.
    return "pointsweep.done" in run.data.tags and run.info.status == "FINISHED"


def trial_runs(uri: str, experiment: str) -> Iterable[Any]:
    """All trial runs of an experiment, page by page."""
    client = connected(uri)
    token = None

    while True:
        page = client.search_runs(
            [experiment],
            "tags.`pointsweep.kind` = 'trial'",
            max_results=1000,
            page_token=token,
        )

        yield from page
        token = page.token

        if not token:
            return
