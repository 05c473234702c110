"""Runs packs as a list of Ray Tune trials, on what ray_cluster.py has joined.

Ray retries a pack whose worker or node died; what a trial itself raises is dealt with in the worker (guard.py).
"""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

from pointsweep import ray_cluster
from pointsweep.checks import trial_from_dict
from pointsweep.config import TrialConfig
from pointsweep.console import guard_streams
from pointsweep.data.cache import cache_folder
from pointsweep.ends import RETRIES, Ends, Told
from pointsweep.follow import follow
from pointsweep.gauges import GAUGES, Gauges, cells_of
from pointsweep.group import Group, alone, joined, meeting
from pointsweep.guard import Outcome
from pointsweep.inline import Listener, Pack, Resources, always
from pointsweep.store import FileStore, Store, open_store
from pointsweep.target import Target, TrialTags
from pointsweep.trial import Job, Task, run_pack

USUAL = (700, 10, 10)  # of Python, when it looks for garbage
SHOW_S = 1.0  # between two updates of the gauges; Prometheus looks less often


def run_ray(
    packs: Sequence[Pack], job: Job, resources: Resources, listen: Listener, may_start: Callable[[], bool] = always
) -> list[Outcome]:
    """The packs as Ray Tune trials with reused workers, on the cluster RAY_ADDRESS names or on one started here.

    Once `may_start` says no, those that run are trained to their end, and one that waits for a worker.
    Raises Unfit if that cluster is this machine alone and has not what one pack asks for.
    """
    ray_cluster.connect()
    ray_cluster.check_fits(resources.cpus, resources.gpus)
    from ray import tune

    store = open_store(job.store)
    job, here = _with_one_writer(job, store)
    exported = _Exported(Gauges(cells_of(packs)))
    ends = Ends(packs, job, listen, exported.gauges, exported.soon, here)
    # Tune wants a folder; nothing in it is read again.
    folder = (store.path("ray") if isinstance(store, FileStore) else cache_folder() / "ray") / uuid.uuid4().hex[:12]
    share = {"CPU": resources.cpus / resources.processes, "GPU": resources.gpus / resources.processes}
    bundles = tune.PlacementGroupFactory([share] * resources.processes)
    trainable = tune.with_resources(tune.with_parameters(_pack_trial, job=job), bundles)
    tuner = tune.Tuner(
        trainable,
        param_space={"pack": tune.grid_search([_encode(pack) for pack in packs])},
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            search_alg=_queue(resources.max_concurrent, may_start),
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            callbacks=[_callback(ends)],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
    try:
        with _queued_ahead(not_at_all=may_start is not always):
            tuner.fit()
    finally:
        exported()
        shutil.rmtree(folder, ignore_errors=True)
    return ends.outcomes(may_start)


def _with_one_writer(job: Job, store: Store) -> tuple[Job, dict[str, Target]]:
    """The job, and where this process mirrors trials to: with all workers on its machine and a store on a disk it does so alone."""
    if isinstance(store, FileStore) and not ray_cluster.elsewhere():
        return replace(job, tracking={}), dict(job.tracking)
    return job, {}


@contextmanager
def _queued_ahead(not_at_all: bool) -> Iterator[None]:
    """How many trials Tune hands to the cluster before there is room for them: 200, or one."""
    queued = {"TUNE_MAX_PENDING_TRIALS_PG": "1"} if not_at_all else {}
    before = {name: os.environ.get(name, "auto") for name in queued}
    os.environ.update(queued)
    try:
        yield
    finally:
        os.environ.update(before)


def _queue(max_concurrent: int, may_start: Callable[[], bool]) -> Any:
    """Tune's own list of trials, that ends early when no further one may start."""
    from ray import tune

    class Queue(tune.search.BasicVariantGenerator):  # type: ignore[misc]
        def next_trial(self) -> Any:
            if not may_start():
                self.set_finished()
            return super().next_trial()

    return Queue(max_concurrent=max_concurrent)


def _pack_trial(config: Mapping[str, Any], job: Job) -> None:
    """The body of a Tune trial. It does not raise for a trial's own failure, so that Ray retries lost workers only."""
    from ray import tune

    _settled()
    told = Told(tune.report)
    told.end(run_pack(_decode(config["pack"]), job, told, _gather if job.processes > 1 else alone))


@cache
def _settled() -> None:
    """A worker has loaded what it needs: that is never looked at for garbage, all else as usual."""
    guard_streams(outlives=True)
    gc.freeze()
    gc.set_threshold(*USUAL)


@contextmanager
def _gather(config: TrialConfig, job: Job) -> Iterator[Group]:
    """Starts the trial's other processes, each in a bundle of its own of what Tune has reserved for the trial, and joins them."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    reserved = ray.util.get_current_placement_group()
    host = ray.util.get_node_ip_address()
    store = meeting(host, job.processes)
    started = []
    for rank, bundle in enumerate(reserved.bundle_specs[1:], start=1):
        task = ray.remote(num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0), max_retries=0)(follow)
        place = PlacementGroupSchedulingStrategy(reserved, placement_group_bundle_index=rank)
        options = task.options(scheduling_strategy=place)
        started.append(options.remote(config.to_dict(), job, rank, job.processes, host, store.port))
    try:
        with joined(store, 0, job.processes) as group:
            yield group
    finally:
        for other in started:
            ray.cancel(other, force=True)


def _encode(pack: Pack) -> str:
    # One string: Tune would read dicts of its search space in its own way. The first trial's key stands before, for the pack's name.
    tasks = [{"config": task.config.to_dict(), "tags": vars(task.tags)} for task in pack]
    return f"{pack[0].config.key()} {json.dumps(tasks)}"


def _decode(text: str) -> list[Task]:
    return [Task(trial_from_dict(item["config"]), TrialTags(**item["tags"])) for item in json.loads(text.partition(" ")[2])]


def _trial_name(trial: Any) -> str:
    return f"{trial.config['pack'].partition(' ')[0]}-{trial.trial_id}"


class _Exported:
    """Hands the gauges to Ray, which serves them to Prometheus on every node."""

    def __init__(self, gauges: Gauges) -> None:
        from ray.util.metrics import Gauge

        self.gauges = gauges
        self.shown_at = -math.inf
        self.made = {name: Gauge(name, text, tag_keys=(label,) if label else ()) for name, (label, text) in GAUGES.items()}

    def soon(self) -> None:
        """As often as Prometheus could notice: of thousands of quick trials a call for each would take longer than some of them."""
        if time.monotonic() - self.shown_at > SHOW_S:
            self()

    def __call__(self) -> None:
        self.shown_at = time.monotonic()
        for (name, value), number in self.gauges.values().items():
            label = GAUGES[name][0]
            self.made[name].set(number, {label: value} if label else None)


def _callback(ends: Ends) -> Any:
    from ray import tune

    class Listen(tune.Callback):  # type: ignore[misc]
        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
            ends.result(result)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            ends.lost(_decode(trial.config["pack"]), str(trial.error_file or "unknown"))

    return Listen()
