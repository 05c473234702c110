"""One pack in one process: seed, build, train, save. What happens stands in the trial's folder
before anything else hears of it.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointsweep.config import registry
from pointsweep.config.datasets import DatasetConfig
from pointsweep.config.plugins import Source
from pointsweep.config.schema import TrialConfig, without_seed
from pointsweep.data.dataset import Dataset, Split
from pointsweep.data.facts import DIGITS, data_stamps
from pointsweep.errors import MissingDataError
from pointsweep.models.activation_checkpointing import recompute_stages
from pointsweep.models.compilation import compile_parts
from pointsweep.models.point_model import PointModel, build, trained_state
from pointsweep.ops.residual_stage import let_memory_go
from pointsweep.results.events import Event
from pointsweep.results.failures import DataError, DivergedError, classify
from pointsweep.results.plugin_origin import plugin_origin, plugins_differ
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.results.working_copy import Copy, work_folder
from pointsweep.storage.lease import LeaseLostError
from pointsweep.storage.stores import folder_of, open_store
from pointsweep.tracking.background import mirror_to
from pointsweep.tracking.target import Target, TrialTags
from pointsweep.training.adamw import AdamW
from pointsweep.training.data_parallel import ALONE, Group, alone, synchronise
from pointsweep.training.fusion.coroutines import in_pack_thread, run_together
from pointsweep.training.fusion.pack import SharedBackbone, shared_part
from pointsweep.training.loop import (
    Evaluation,
    evaluate,
    make_optimizer,
    stream,
    train_epoch,
)
from pointsweep.training.record_builder import (
    Result,
    classifies,
    describe,
    make_record,
    peak_memory_bytes,
)
from pointsweep.training.supervisor import Guard, Outcome, TrialStoppedError
from pointsweep.training.trainer_state import restore, snapshot, to_bytes
from pointsweep.utils import energy
from pointsweep.utils.provenance import origin
from pointsweep.utils.system_metrics import SystemMonitor

Report = Callable[[dict[str, Any]], None]
# brings the processes of a trial together
Gather = Callable[[TrialConfig, "Job"], AbstractContextManager[Group]]

WAIT_S = 5.0  # for a process that is being ended to let go of its trial


@dataclass(frozen=True)
class Job:
    """Job: what all packs of a launch share. `tracking`: where each sweep is mirrored. `device`:
    `auto` takes a GPU where there is one.

    `launch` names one run of the command; `wait_s` is how long a trial that another process works
    on is waited for.
    """

    store: str
    tracking: Mapping[str, Target] = field(default_factory=dict)
    threads: int = 1
    device: str = "auto"
    launch: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    wait_s: float = WAIT_S
    # Of a search with a scheduler: key -> epoch -> the validation accuracy below which the trial is
    # stopped there.
    limits: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    # the tokenizer's stages in the backward pass: less memory, the same numbers
    recompute: bool = False
    processes: int = 1  # of a trial
    # the code of others that workers import before they read a trial
    plugins: tuple[Source, ...] = ()
    # GPUs of a pack, or CPUs where it has no GPU: what its hours are multiplied by
    devices: float = 1.0


@dataclass(frozen=True)
class Task:
    """A trial to run, and what MLflow shall say of its place in the table."""

    config: TrialConfig
    tags: TrialTags


def run_pack(
    pack: Sequence[Task], job: Job, report: Report, gather: Gather = alone
) -> list[Outcome]:
    """Run every trial of the pack to its record. A trial that raises is marked failed; the others
    go on.
    """
    try:
        return _run_pack(pack, job, report, gather)
    finally:
        let_memory_go()


def _run_pack(
    pack: Sequence[Task], job: Job, report: Report, gather: Gather
) -> list[Outcome]:
    torch.set_num_threads(job.threads)
    common = {shared_part(task.config) for task in pack}
    if len(pack) == 1 or len(common) > 1 or None in common:
        return [_run_task(task, job, report, gather=gather) for task in pack]

    # Of the whole pack one thread speaks to Ray.
    report_from_pack: Report = lambda result: in_pack_thread(lambda: report(result))  # noqa: E731
    shared = _shared_backbone(pack[0].config, job)
    member = replace(job, devices=job.devices / len(pack))
    runs = []

    for task in pack:
        run = functools.partial(_run_task, task, member, report_from_pack, shared)
        runs.append(run)

    outcomes: list[Outcome] = run_together(runs, job.threads)
    return outcomes


def _shared_backbone(config: TrialConfig, job: Job) -> SharedBackbone:
    assert config.backbone is not None
    return SharedBackbone(config.backbone, device_of(job.device))


def _run_task(
    task: Task,
    job: Job,
    report: Report,
    shared: SharedBackbone | None = None,
    gather: Gather = alone,
) -> Outcome:
    config, store = task.config, open_store(job.store)
    copy = Copy(store, work_folder(store, config.key()))
    target = job.tracking.get(task.tags.sweep)
    mirror = mirror_to(target) if target is not None else None
    folder = copy.folder
    folder.launch = job.launch

    def notify() -> None:
        copy.poke()
        if mirror is not None:
            mirror.poke(folder, task.tags)

    def body(beat: Callable[[], None]) -> None:
        def report_progress(result: dict[str, Any]) -> None:
            beat()
            lag_s = mirror.lag_s() if mirror is not None else 0.0
            report({**result, "tracker_lag_s": lag_s, "store_lag_s": copy.lag_s()})

        limits = job.limits.get(config.key(), {})
        with gather(config, job) as group:
            trial = Trial(
                config,
                folder,
                device_of(job.device),
                report_progress,
                notify,
                shared,
                limits,
                job.devices,
                group,
            )
            if job.recompute and isinstance(trial.model, PointModel):
                recompute_stages(trial.model.tokenizer)

            trial.run()

    # Of two columns that are two folds each is an arm; where the seeds are the folds all are one.
    arm = hashlib.sha256(
        f"{without_seed(config).key()} {task.tags.row} {task.tags.column}".encode()
    ).hexdigest()[:16]
    # With a store on a server the mark of a bug is this node's alone: other nodes meet the bug once
    # themselves.
    disk = folder_of(store)
    marks = (
        disk.path("launches") if disk is not None else folder.path.parent / "launches"
    )
    guard = Guard(
        folder,
        marks / job.launch / arm,
        functools.partial(_relieve, config, folder, job.processes),
        notify,
        copy,
        config,
    )

    return guard.run(body, job.wait_s)


def _relieve(config: TrialConfig, folder: TrialFolder, processes: int) -> bool:
    """Halve the parts of batches after the memory did not suffice; each keeps two clouds at least
    (batch normalisation).
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

    parts = 2 * folder.parts()
    if 2 * parts * processes > config.train.batch_size:
        return False

    folder.append({"type": "parts", "parts": parts, "time": time.time()})
    return True


def load_dataset(config: DatasetConfig) -> Dataset:
    """The data set, opened once per process while its files do not change; its arrays are
    memory-mapped.

    So the workers of a node share them. Raises MissingDataError, DataError.
    """
    return _open_dataset(config, data_stamps(config))


@functools.lru_cache(maxsize=4)
def _open_dataset(config: DatasetConfig, stamps: tuple[str, ...]) -> Dataset:
    maker = registry.load("datasets", config.name)
    try:
        dataset: Dataset = maker(config)
    except MissingDataError:
        raise
    except (ValueError, OSError) as error:
        raise DataError(f"{config.name}: {error}") from error

    return dataset


def inputs_changed(
    events: Sequence[Event],
    digest: str,
    weights: str,
    code: Mapping[str, str] | None = None,
) -> str:
    """Return how data, weights or plug-ins differ from those of a trial's last attempt; empty if
    they do not, or if it does not say.

    `code`: the digests of the plug-ins, by their names in an origin.
    """
    starts = [event for event in events if event["type"] == "start"]
    if not starts:
        return ""

    previous_digest = starts[-1].get("dataset", {}).get("digest", digest)
    if previous_digest != digest:
        return (
            f"data changed since the last attempt: digest {previous_digest[:DIGITS]},"
            f" now {digest[:DIGITS]}"
        )

    weights_before = starts[-1].get("weights", {}).get("origin", weights)
    if weights_before != weights:
        return (
            f"weights changed since the last attempt: {weights_before}, now {weights}"
        )

    return plugins_differ(starts[-1].get("origin", {}), code or {})


def device_of(name: str) -> torch.device:
    """The device of that name; of `auto` a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"

    return torch.device(name)


def require_finite(metrics: Mapping[str, float], model: nn.Module, epoch: int) -> None:
    """Raise DivergedError, naming it, if a metric of an epoch or a trained weight is not a finite
    number.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise DivergedError(f"{name} of epoch {epoch} is {value}")

    broken = not_finite_weight(model)
    if broken:
        raise DivergedError(f"{broken} is not finite after epoch {epoch}")


def not_finite_weight(model: nn.Module) -> str:
    """Return the name of the first trained weight or batch statistic that is not finite, "" if
    there is none.
    """
    names = []
    all_finite = []

    for name, tensor in trained_state(model).items():
        if tensor.is_floating_point():
            names.append(name)
            all_finite.append(tensor.isfinite().all())

    if not names:
        return ""

    # One transfer from the device in place of one for each tensor.
    answers = torch.stack(all_finite).tolist()
    for name, is_finite in zip(names, answers, strict=True):
        if not is_finite:
            return name

    return ""


class Trial:
    """One trial from its seed, or its last checkpoint, to its record."""

    def __init__(
        self,
        config: TrialConfig,
        folder: TrialFolder,
        device: torch.device,
        report: Report,
        notify: Callable[[], None],
        shared: SharedBackbone | None = None,
        limits: Mapping[int, float] | None = None,
        devices: float = 1.0,
        group: Group = ALONE,
    ) -> None:
        self.limits = limits or {}
        self.devices = devices
        self.group = group
        self.config = config
        self.folder = folder
        self.device = device
        self.report = report
        self.notify = notify
        self.dataset = load_dataset(config.dataset)
        torch.manual_seed(stream(config.seed, "init"))
        build_model = shared.build if shared is not None else build
        self.model = build_model(config, self.dataset.num_classes).to(device)

        if group.size > 1:
            synchronise(self.model)

        if config.train.compile:
            compile_parts(self.model, device)

        self.best: dict[
            str, dict[str, Any]
        ] = {}  # protocol -> {"epoch": int, "metrics": {...}}
        # protocol -> (n_test,) whole numbers, of part segmentation float32
        self.predictions: dict[str, np.ndarray] = {}
        self.parts = folder.parts()

    def run(self) -> None:
        """Train what is left to train, then writes predictions, weights and, last, the record."""
        # The other processes' GPUs cannot be read from here: better no joules than a part of them.
        readable = self.device.type == "cuda" and self.group.size == 1
        gpu = self.device.index or 0 if self.device.type == "cuda" else None
        self.meter = energy.meter(gpu if readable else None)
        self.monitor = SystemMonitor(gpu)
        facts = describe(self.config, self.dataset)
        weights = getattr(self.model, "weights_origin", "none")
        code = plugin_origin(self.config)
        changed = inputs_changed(self.folder.events(), facts["digest"], weights, code)

        if changed:
            self.folder.discard_checkpoint(changed)

        came_from = origin(str(self.device)) | code
        self.folder.start(
            weights={"origin": weights},
            config=self.config.to_dict(),
            dataset=facts,
            origin=came_from,
        )
        try:
            if self.config.trains:
                self._train()
            else:
                self._fit()

            self._finish()
        except (TrialStoppedError, LeaseLostError):
            raise
        except Exception as error:
            # Numbers that are not finite make libraries raise anything; the cause is then not a
            # bug.
            broken = not_finite_weight(self.model) if classify(error) == "bug" else ""
            if not broken:
                raise

            raise DivergedError(
                f"{broken} is not finite: {type(error).__name__}: {error}"
            ) from error

    def _fit(self) -> None:
        """A network without training, or a probe: one look at the training clouds, then the test
        set; kept as epoch 1.
        """
        started_at = time.time()
        with torch.no_grad():
            self.model.fit(self._clouds(self.dataset.train))  # type: ignore[operator]
            tune = getattr(self.model, "tune", None)
            extra = dict(tune(lambda: self._clouds(self.dataset.test))) if tune else {}

        self._end_epoch(1, extra, started_at, 0.0, None)

    def _clouds(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.config.train.eval_batch_size
        order = self.dataset.evaluation_order(split)
        for start in range(0, len(order), size):
            points, *_, labels = self.dataset.eval_batch(
                split, order[start : start + size]
            )
            yield points.to(self.device), labels

    def _train(self) -> None:
        if len(self.dataset.train.labels) < self.config.train.batch_size:
            raise DataError(
                f"{self.config.dataset.name}: its {len(self.dataset.train.labels)} training clouds"
                f" are fewer than train.batch_size {self.config.train.batch_size}"
            )

        if isinstance(self.model, PointModel):
            self.model.method.prepare(
                self.model, (points for points, _ in self._clouds(self.dataset.train))
            )

        optimizer = make_optimizer(self.model, self.config.train)
        first = self._resume(optimizer) + 1
        if self.group.size > 1:
            self.group.share(
                to_bytes(snapshot(self.model, optimizer, {}), first, self.parts)
            )

        for event in self.folder.epochs():
            # the process may have ended between an epoch and the stop after it
            if self._stops(event["epoch"], event["metrics"]):
                raise TrialStoppedError(event["epoch"])

        for epoch in range(first, self.config.train.epochs + 1):
            started_at = time.time()
            metrics = train_epoch(
                self.model,
                optimizer,
                self.dataset,
                self.config,
                epoch,
                self.parts,
                self.group,
            )

            self._end_epoch(
                epoch, metrics, started_at, time.time() - started_at, optimizer
            )

    def _end_epoch(
        self,
        epoch: int,
        metrics: dict[str, float],
        started_at: float,
        train_s: float,
        optimizer: AdamW | None,
    ) -> None:
        test = evaluate(
            self.model, self.dataset, self.dataset.test, self.config, self.parts
        )
        metrics |= test.metrics("test")
        if self.dataset.val is not None:
            metrics |= evaluate(
                self.model, self.dataset, self.dataset.val, self.config, self.parts
            ).metrics("val")

        require_finite(metrics, self.model, epoch)
        self._select(epoch, metrics, test)
        seconds = time.time() - started_at
        event = {
            "type": "epoch", "epoch": epoch, "metrics": metrics, "time": time.time(),
            "seconds": seconds,
            "device_s": self.devices * seconds, "train_s": train_s,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "energy_j": self.meter.read(), "system": self.monitor.read(),
            "lr": optimizer.param_groups[0]["lr"] if optimizer else 0.0,
        }  # fmt: skip

        stops = self._stops(epoch, metrics)
        last = optimizer is None or epoch == self.config.train.epochs or stops
        self.folder.commit_epoch(
            event,
            lambda: (
                snapshot(self.model, optimizer, self.predictions),
                {"epoch": epoch, "best": self.best},
            ),
            last=last,
        )

        self.notify()

        progress: dict[str, Any] = {
            "key": self.config.key(),
            "epoch": epoch,
            "epochs": 1 if optimizer is None else self.config.train.epochs,
        }

        if train_s:
            batch_size = self.config.train.batch_size
            num_steps = len(self.dataset.train.labels) // batch_size
            progress["clouds_per_s"] = num_steps * batch_size / train_s

        self.report(progress | metrics)

        if stops:
            raise TrialStoppedError(epoch)

    def _stops(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Return whether a search's scheduler ends the trial here; it sees the validation split
        alone.
        """
        return (
            epoch < self.config.train.epochs
            and epoch in self.limits
            and metrics["val/accuracy"] < self.limits[epoch]
        )

    def _select(
        self, epoch: int, metrics: Mapping[str, float], test: Evaluation
    ) -> None:
        """Keep the first epoch with the highest accuracy, or instance mIoU, of each protocol
        (design.md, section 7).
        """
        measure = self.config.dataset.metrics[0]
        watched = {"best_test": f"test/{measure}", "best_val": f"val/{measure}"}
        chosen = []

        for protocol, metric in watched.items():
            if metric in metrics and self._better(protocol, metric, metrics):
                chosen.append(protocol)

        for protocol in ["last", *chosen]:
            self.best[protocol] = {"epoch": epoch, "metrics": dict(metrics)}
            self.predictions[protocol] = test.predictions

    def _better(self, protocol: str, metric: str, metrics: Mapping[str, float]) -> bool:
        return (
            protocol not in self.best
            or metrics[metric] > self.best[protocol]["metrics"][metric]
        )

    def _resume(self, optimizer: AdamW) -> int:
        """Restores the last checkpoint; returns its epoch, 0 if there is none."""
        checkpoint = self.folder.resume()
        if checkpoint is None:
            return 0

        tensors, state = checkpoint
        self.predictions = restore(tensors, self.model, optimizer)
        self.best = state["best"]

        return int(state["epoch"])

    def _finish(self) -> None:
        labels = self.dataset.test.labels if classifies(self.predictions) else None
        self.folder.save_predictions(self.predictions, labels, self.dataset.class_names)

        weights = {}

        for name, tensor in trained_state(self.model).items():
            weights[name] = tensor.cpu().contiguous()

        self.folder.save_weights(weights)

        result = Result(
            config=self.config,
            dataset=self.dataset,
            model=self.model,
            best=self.best,
            predictions=self.predictions,
            parts=self.parts,
            device=self.device,
            processes=self.group.size,
        )

        record = make_record(result, self.folder.epochs(), self.folder.attempts())
        self.folder.finish(record)
