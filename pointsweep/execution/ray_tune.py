"""Launcher that runs packs as a list of Ray Tune trials, on the cluster that ray_cluster.py has
joined.

Ray retries a pack whose worker or node died; what a trial itself raises is dealt with in the worker
(supervisor.py).
"""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pointsweep.config import plugins
from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.errors import RayLostError
from pointsweep.execution import ray_cluster
from pointsweep.execution.cluster_nodes import (
    Demand,
    joined_cluster,
    launch_line,
    waiting_line,
)
from pointsweep.execution.launchers import (
    Listener,
    Pack,
    Resources,
    always,
    notice,
    phase,
)
from pointsweep.execution.outcomes import RETRIES, OutcomeCollector, WorkerReporter
from pointsweep.execution.prometheus import GAUGES, Gauges, cells_of
from pointsweep.execution.waiting import GATHER_S, Lost, PackCount, cause_of, lost_lines
from pointsweep.results.events import epochs_of, read_events
from pointsweep.storage.base import Store
from pointsweep.storage.lease import machine, read_holder
from pointsweep.storage.stores import folder_of, open_store
from pointsweep.tracking.target import Target, TrialTags
from pointsweep.training.data_parallel import Group, alone, joined, meeting
from pointsweep.training.data_parallel_worker import follow
from pointsweep.training.runner import Gather, Job, Report, Task, run_pack
from pointsweep.training.supervisor import Outcome, failure_of, record_loss
from pointsweep.utils import interruption
from pointsweep.utils.array_cache import cache_folder
from pointsweep.utils.console import guard_streams
from pointsweep.utils.interruption import InterruptionError

USUAL = (700, 10, 10)  # of Python, when it looks for garbage
SAVE_S = 1.0  # for the workers' checkpoints when the command is interrupted
SHOW_S = 1.0  # between two updates of the gauges; Prometheus looks less often


class RayLauncher:
    """Launcher that runs packs as trials of Ray Tune, on this machine or on the cluster that
    RAY_ADDRESS names.
    """

    divides = True

    def run(
        self,
        packs: Sequence[Pack],
        job: Job,
        resources: Resources,
        listen: Listener,
        may_start: Callable[[], bool] = always,
    ) -> list[Outcome]:
        """Run the packs, as many at once as the cluster has room for."""
        return run_ray(packs, job, resources, listen, may_start)

    def measure(
        self, function: Callable[[Any], Any], argument: Any, resources: Resources
    ) -> Any:
        """Return function(argument), called by a worker that has what a pack gets."""
        return ray_cluster.on_worker(function, argument, resources.cpus, resources.gpus)


def run_ray(
    packs: Sequence[Pack],
    job: Job,
    resources: Resources,
    listen: Listener,
    may_start: Callable[[], bool] = always,
) -> list[Outcome]:
    """Run the packs as Ray Tune trials, on the cluster RAY_ADDRESS names or on one started here.

    Once `may_start` says no, those that run are trained to their end, and one that waits for a
    worker. Raises ResourcesError if that cluster is this machine alone and has not what one pack
    asks for.
    """
    listen(phase("starting Ray"))
    ray_cluster.connect()
    ray_cluster.check_fits(resources.cpus, resources.gpus)
    demand = Demand(resources.cpus, resources.gpus, resources.processes)

    if ray_cluster.elsewhere():
        shortage = launch_line(demand, joined_cluster())
        if shortage:
            listen(notice(shortage))

    store = open_store(job.store)
    job, targets = _with_one_writer(job, store)
    exported = _Exported(Gauges(cells_of(packs)))
    exported()  # who waits for workers is seen from here on
    collector = OutcomeCollector(
        packs=packs,
        job=job,
        listen=listen,
        gauges=exported.gauges,
        show=exported.soon,
        targets=targets,
    )

    # Tune wants a folder; nothing in it is read again.
    name = uuid.uuid4().hex[:12]
    disk = folder_of(store)
    parent = disk.path("ray") if disk is not None else cache_folder() / "ray"
    folder = parent / name
    running = _Running(collector, may_start, demand, PackCount(len(packs)))
    _running[name] = running

    try:
        tuner = _tuner(name, folder, packs, job, resources)
        listen(phase("starting workers"))
        with _queued_ahead(not_at_all=may_start is not always):
            tuner.fit()
    except InterruptionError:
        _end_workers(collector, store)
        exported.close()
        raise
    except _TuneAbandonedError as error:
        raise error.reason from None
    except tune.TuneError as error:
        if running.error is None:
            raise ray_cluster.lost(
                f"Ray Tune failed while trials ran: {_last_line(error)}"
            ) from error

        raise running.error from None
    except ray.exceptions.RayError as error:
        raise ray_cluster.lost(
            f"Ray failed while trials ran: {_last_line(error)}"
        ) from error
    finally:
        del _running[name]
        shutil.rmtree(folder, ignore_errors=True)

    exported.close()
    return collector.outcomes(may_start)


def _tuner(
    name: str, folder: Path, packs: Sequence[Pack], job: Job, resources: Resources
) -> tune.Tuner:
    """Return the Tuner of a launch: a trial of Tune for each pack, on workers that are reused."""
    share = {
        "CPU": resources.cpus / resources.processes,
        "GPU": resources.gpus / resources.processes,
    }

    bundles = tune.PlacementGroupFactory([share] * resources.processes)
    trainable = tune.with_resources(tune.with_parameters(_pack_trial, job=job), bundles)

    tune_config = tune.TuneConfig(
        reuse_actors=True,
        search_alg=_Queue(name, resources.max_concurrent),
        trial_name_creator=_trial_name,
        trial_dirname_creator=_trial_name,
    )

    run_config = tune.RunConfig(
        name=name,
        storage_path=str(folder.parent),
        callbacks=[_Callback(name)],
        failure_config=tune.FailureConfig(max_failures=RETRIES),
        verbose=0,
    )

    encoded_packs = [_encode(pack) for pack in packs]

    return tune.Tuner(
        trainable,
        param_space={"pack": tune.grid_search(encoded_packs)},
        tune_config=tune_config,
        run_config=run_config,
    )


def _last_line(error: Exception) -> str:
    """Return what an exception says, of a traceback in it the last line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:300]


def _end_workers(collector: OutcomeCollector, store: Store) -> None:
    """Ask the workers on this machine to end, and wait until they have saved their checkpoints.

    Ray would ask them too when it is left, and kill them a moment later.
    """
    disk = folder_of(store)
    if disk is None:
        return

    pids = set()
    for key in collector.running():
        holder = read_holder(disk.path(f"trials/{key}/lease.json"))
        if holder is not None and holder.machine == machine():
            pids.add(holder.pid)

    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)

    deadline = time.monotonic() + SAVE_S
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            break

        time.sleep(0.02)


def _with_one_writer(job: Job, store: Store) -> tuple[Job, dict[str, Target]]:
    """The job, and where this process mirrors trials to: with all workers on its machine and a
    store on a disk it does so alone.
    """
    if folder_of(store) is not None and not ray_cluster.elsewhere():
        return replace(job, tracking={}), dict(job.tracking)

    return job, {}


@contextmanager
def _queued_ahead(not_at_all: bool) -> Iterator[None]:
    """Return how many trials Tune hands to the cluster before there is room for them: 200, or
    one.
    """
    queued = {"TUNE_MAX_PENDING_TRIALS_PG": "1"} if not_at_all else {}
    before = {name: os.environ.get(name, "auto") for name in queued}
    os.environ.update(queued)

    try:
        yield
    finally:
        os.environ.update(before)


@dataclass
class _Running:
    """State of a launch, which Tune's hooks change, and the exception that one of them
    ended in.
    """

    ends: OutcomeCollector
    may_start: Callable[[], bool]
    demand: Demand
    packs: PackCount
    error: Exception | None = None
    waits_for: str = ""  # what was said last of packs that wait
    # workers of which nothing was said yet
    lost: list[Lost] = field(default_factory=list)
    lost_at: float = 0.0

    @contextmanager
    def keeping_errors(self) -> Iterator[None]:
        """Keep an exception: Tune puts the text of its traceback into one of its own."""
        try:
            yield
        except Exception as error:
            self.error = error
            raise

    def start(self, trial: Any) -> None:
        """A pack has got a worker."""
        self.packs.start(trial.trial_id)
        if self.waits_for:
            self.waits_for = ""
            self.ends.listen(phase("starting workers"))

        for task in _decode(trial.config["pack"]):
            self.ends.start(task.config.key())

    def recover(self, trial: Any) -> None:
        """A pack has lost its worker and waits for another."""
        self.packs.stop(trial.trial_id, ended=False)
        node, cause = cause_of(_last_failure(trial.error_file))

        if not self.lost:
            self.lost_at = time.monotonic()

        for task in _decode(trial.config["pack"]):
            key = task.config.key()
            if key in self.ends.ended:
                continue

            self.ends.wait(key)
            epochs = epochs_of(read_events(self.ends.store, key))
            epoch = int(epochs[-1]["epoch"]) if epochs else 0
            self.lost.append(Lost(task.tags.cell, epoch, node, cause))

    def say(self, head_answers: bool) -> None:
        """Say what was lost, once it is all there, and what packs wait for."""
        if self.lost and time.monotonic() - self.lost_at >= GATHER_S:
            for line in lost_lines(self.lost):
                self.ends.listen(notice(line))
            self.lost.clear()

        # Ray waits long for a head that is away.
        if head_answers and ray_cluster.elsewhere() and self.packs.is_stuck():
            text = waiting_line(self.packs.waiting, self.demand, joined_cluster())
            if text != self.waits_for:
                self.waits_for = text
                self.ends.listen(phase(text))
                self.ends.listen(notice(text))


def _last_failure(path: str | None) -> str:
    """Return what Ray wrote of a pack's last failure."""
    try:
        text = Path(path or "").read_text(errors="replace")
    except OSError:
        return ""

    if "Failure #" in text:
        return text[text.rfind("Failure #") :]

    return text


# Tune pickles its hooks with all that they reach. They hold the name of their launch and nothing
# else; the rest, a terminal and open databases among it, is looked up here.
_running: dict[str, _Running] = {}


class _Queue(tune.search.BasicVariantGenerator):  # type: ignore[misc]
    """Tune's own list of trials, which ends early when no further one may start."""

    def __init__(self, launch: str, max_concurrent: int) -> None:
        super().__init__(max_concurrent=max_concurrent)
        self.launch = launch

    def next_trial(self) -> Any:
        running = _running[self.launch]
        with running.keeping_errors():
            if not running.may_start():
                self.set_finished()

        return super().next_trial()


class _TuneAbandonedError(BaseException):
    """Exception that ends Tune's loop as it stands: what Tune does after an Exception waits for a
    Ray that is no more.
    """

    def __init__(self, reason: RayLostError) -> None:
        super().__init__(reason)
        self.reason = reason


class _Callback(tune.Callback):  # type: ignore[misc]
    """Tune callback that passes on what is reported, and looks at every step of Tune's whether the
    command is to end.
    """

    def __init__(self, launch: str) -> None:
        self.launch = launch
        self.watch = ray_cluster.Watch()

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        interruption.check()
        try:
            self.watch.check()
        except RayLostError as error:
            raise _TuneAbandonedError(error) from error

        running = _running[self.launch]
        with running.keeping_errors():
            running.say(head_answers=self.watch.silent_since is None)

    def on_trial_start(
        self, iteration: int, trials: list[Any], trial: Any, **_: Any
    ) -> None:
        running = _running[self.launch]
        with running.keeping_errors():
            running.start(trial)

    def on_trial_recover(
        self, iteration: int, trials: list[Any], trial: Any, **_: Any
    ) -> None:
        running = _running[self.launch]
        with running.keeping_errors():
            running.recover(trial)

    def on_trial_complete(
        self, iteration: int, trials: list[Any], trial: Any, **_: Any
    ) -> None:
        _running[self.launch].packs.stop(trial.trial_id, ended=True)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Any],
        trial: Any,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        interruption.check()
        running = _running[self.launch]
        with running.keeping_errors():
            running.ends.result(result)

    def on_trial_error(
        self, iteration: int, trials: list[Any], trial: Any, **_: Any
    ) -> None:
        running = _running[self.launch]
        running.packs.stop(trial.trial_id, ended=True)
        with running.keeping_errors():
            running.ends.lost(
                _decode(trial.config["pack"]), str(trial.error_file or "unknown")
            )


def _pack_trial(config: Mapping[str, Any], job: Job) -> None:
    """The body of a Tune trial. It does not raise for a trial's own failure, so that Ray retries
    lost workers only.
    """
    _set_up_worker()
    reporter = WorkerReporter(tune.report)
    gather = _gather if job.processes > 1 else alone
    outcomes = run_encoded(config["pack"], job, reporter, gather)
    reporter.end(outcomes)


def run_encoded(
    pack: str, job: Job, report: Report, gather: Gather = alone
) -> list[Outcome]:
    """Run a pack that `_encode` has made, and return how its trials ended.

    An exception beside those of a trial, such as a setting that this worker's code does not know,
    ends the trials of the pack in its own words. Raised, Ray would take it for a lost worker and
    try again.
    """
    try:
        plugins.adopt(job.plugins)
        return run_pack(_decode(pack), job, report, gather)
    except ray.exceptions.RayError:
        raise
    except Exception as error:
        failure = failure_of(error)
        store = open_store(job.store)
        outcomes = []

        for item in _items(pack):
            key = item["key"]
            recorded = record_loss(store, key, failure, job.launch, job.wait_s)
            outcomes.append(Outcome(key, "failed", recorded.reason, recorded.kind))

        return outcomes


@cache
def _set_up_worker() -> None:
    """Set up a worker that has loaded what it needs: that is never looked at for garbage, all else
    as usual.
    """
    guard_streams(outlives=True)
    gc.freeze()
    gc.set_threshold(*USUAL)


@contextmanager
def _gather(config: TrialConfig, job: Job) -> Iterator[Group]:
    """Start the trial's other processes, each in a bundle of its own of what Tune has reserved for
    the trial, and join them.
    """
    reserved = ray.util.get_current_placement_group()
    host = ray.util.get_node_ip_address()
    store = meeting(host, job.processes)
    started = []

    for rank, bundle in enumerate(reserved.bundle_specs[1:], start=1):
        task = ray.remote(
            num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0), max_retries=0
        )(follow)
        strategy = PlacementGroupSchedulingStrategy(
            reserved, placement_group_bundle_index=rank
        )
        options = task.options(scheduling_strategy=strategy)
        started.append(
            options.remote(config.to_dict(), job, rank, job.processes, host, store.port)
        )

    try:
        with joined(store, 0, job.processes) as group:
            yield group
    finally:
        for other in started:
            ray.cancel(other, force=True)


def _encode(pack: Pack) -> str:
    # One string: Tune would read dicts of its search space in its own way. The first trial's key
    # stands before, for the pack's name.
    items = []
    for task in pack:
        items.append(
            {
                "key": task.config.key(),
                "config": task.config.to_dict(),
                "tags": vars(task.tags),
            }
        )

    return f"{items[0]['key']} {json.dumps(items)}"


def _decode(text: str) -> list[Task]:
    tasks = []
    for item in _items(text):
        tasks.append(Task(trial_from_dict(item["config"]), TrialTags(**item["tags"])))

    return tasks


def _items(text: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(text.partition(" ")[2])
    return items


def _trial_name(trial: Any) -> str:
    return f"{trial.config['pack'].partition(' ')[0]}-{trial.trial_id}"


class _Exported:
    """Exporter that hands the gauges to Ray, which serves them to Prometheus on every node."""

    def __init__(self, gauges: Gauges) -> None:
        self.gauges = gauges
        self.shown_at = -math.inf
        self.ray_gauges = {}

        for name, (label, text) in GAUGES.items():
            tags = ("sweep", label) if label else ("sweep",)
            self.ray_gauges[name] = Gauge(name, text, tag_keys=tags)

    def soon(self) -> None:
        """Send the gauges as often as Prometheus could notice: of thousands of quick trials a call
        for each would take longer than some of them.
        """
        if time.monotonic() - self.shown_at > SHOW_S:
            self()

    def __call__(self) -> None:
        self.shown_at = time.monotonic()
        for (name, sweep, value), number in self.gauges.values().items():
            tags = {"sweep": sweep}
            label, _ = GAUGES[name]
            if label:
                tags[label] = value

            self.ray_gauges[name].set(number, tags)

    def close(self) -> None:
        """The launch is over: what waits, runs or lags behind is shown as 0."""
        self.gauges.close()
        self()
