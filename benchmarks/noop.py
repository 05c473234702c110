"""P2 and P14: what a trial that does nothing costs, with its whole record in the store and in
MLflow.

    python -m benchmarks.noop [--trials 200] [--pack 16] [--sides fresh reused hydra ours]
    python -m benchmarks.noop --queue 100 1000 10000
    python -m benchmarks.noop --driver 100 1000 10000

`fresh` is plain Ray Tune with a worker for every trial, `reused` with reused workers, `hydra` a
multirun of the joblib launcher: none of these keeps or logs anything, but all import what a trial
needs, torch and MLflow, which takes most of a fresh worker's time. `ours` is the launch of the
command, on Ray: lease, history, checkpoint, record, and a complete run in MLflow; only building and
training are left out. The dear sides run fewer trials; costs are per trial. `first` is with the
cold start of the workers, `later` the cost of the trials after the first tenth. `--queue` compares
the later cost at several lengths; `--driver` what of it is this command's own in the driver,
without Ray: processor time of taking in all results and ends.

The launcher is no dependency of this project: pip install --no-deps hydra-joblib-launcher==1.2.0
"joblib>=1.4". To leave this environment as it is, install both into a new one (python -m venv NEW),
write the path of this one's site-packages into NEW/lib/python3.11/site-packages/base.pth, and
measure with NEW/bin/python -m benchmarks.noop. Without it that side is left out.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.common import machine, python

SHARE = {
    "fresh": 25,
    "reused": 1,
    "hydra": 4,
    "ours": 1,
}  # a side runs so many times fewer trials
LAUNCHER = "hydra-joblib-launcher"
HYDRA = """
import time, hydra, torch, mlflow
@hydra.main(version_base=None)
def noop(config):
    open({ends!r} + str(config.x), "w").close()
noop()
"""


def noop_trials() -> None:
    """In every worker: a trial is one epoch in which nothing is computed."""
    import torch

    from pointsweep.results.records import Record
    from pointsweep.training import runner as trial
    from pointsweep.utils.provenance import origin

    class Noop(trial.Trial):
        def __init__(
            self,
            config: Any,
            folder: Any,
            device: Any,
            report: Any,
            notify: Any,
            *_: Any,
        ) -> None:
            self.config, self.folder, self.device, self.report, self.notify = (
                config,
                folder,
                device,
                report,
                notify,
            )

        def run(self) -> None:
            facts = {
                "name": "none",
                "digest": "0" * 64,
                "num_train": 0,
                "num_test": 0,
                "num_val": 0,
                "num_classes": 0,
            }

            config, began = self.config.to_dict(), time.time()
            self.folder.start(config=config, dataset=facts, origin=origin("cpu"))
            metrics = {
                "train/loss": 0.0,
                "train/accuracy": 0.0,
                "test/loss": 0.0,
                "test/accuracy": 0.0,
            }

            event = {
                "type": "epoch", "epoch": 1, "metrics": metrics, "time": began, "seconds": 0.0,
                "train_s": 0.0, "lr": 0.0,
                "peak_memory_bytes": 1,
            }  # fmt: skip

            self.folder.commit_epoch(
                event,
                lambda: ({"x": torch.zeros(1)}, {"epoch": 1, "best": {}}),
                last=True,
            )

            self.notify()
            self.report({"key": self.config.key(), "epoch": 1, "epochs": 1, **metrics})
            best = {"epoch": 1, **metrics}
            self.folder.finish(Record(
                key=self.config.key(), config=config, metrics={"last": best, "best_test": best},
                parameters={"trainable": 0, "trainable_without_head": 0, "total": 0}, dataset=facts,
                weights_origin="none",
                marks=(),
                seconds={"total": 0.0, "train": 0.0}, peak_memory_bytes=1, clouds_per_s=0.0,
                origin=origin("cpu"),
                attempts=1, correct={},
            ))  # fmt: skip

    trial.Trial = Noop  # type: ignore[misc]


def ends_to_costs(begun: float, ends: Sequence[float]) -> dict[str, float]:
    """Times of the trials' ends -> seconds a trial: over all of them, and over those after the
    first tenth.
    """
    ordered, cut = sorted(ends), max(1, len(ends) // 10)
    return {
        "first": (ordered[-1] - begun) / len(ends),
        "later": (ordered[-1] - ordered[cut - 1]) / max(1, len(ends) - cut),
    }


def ray_tune(count: int, reuse: bool) -> dict[str, float]:
    """Plain Ray Tune over an empty function."""
    import ray
    from ray import tune

    def noop(config: dict[str, Any]) -> None:
        import mlflow  # noqa: F401
        import torch  # noqa: F401

        tune.report({"end": time.time()})

    ray.init(
        num_cpus=os.cpu_count(),
        log_to_driver=False,
        logging_level="ERROR",
        include_dashboard=False,
    )

    begun = time.time()
    with tempfile.TemporaryDirectory() as folder:
        results = tune.Tuner(
            tune.with_resources(noop, {"cpu": 1}),
            param_space={"x": tune.grid_search(list(range(count)))},
            tune_config=tune.TuneConfig(reuse_actors=reuse),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()

    return ends_to_costs(begun, [result.metrics["end"] for result in results])


def hydra(count: int) -> dict[str, float]:
    """A multirun of Hydra's joblib launcher over an empty function."""
    with tempfile.TemporaryDirectory() as folder:
        ends = Path(folder, "ends")
        ends.mkdir()
        script = Path(folder, "noop.py")
        script.write_text(HYDRA.format(ends=f"{ends}/"))
        numbers = ",".join(map(str, range(count)))
        begun = time.time()
        command = [
            sys.executable,
            script,
            "-m",
            "hydra/launcher=joblib",
            f"hydra.launcher.n_jobs={os.cpu_count()}",
            f"+x={numbers}",
        ]

        subprocess.run(
            [*map(str, command), f"hydra.sweep.dir={folder}/out"],
            check=True,
            capture_output=True,
        )

        return ends_to_costs(begun, [path.stat().st_mtime for path in ends.iterdir()])


def ours(count: int, pack: int) -> dict[str, float]:
    """Our launch, from the plan's trials to the last run in MLflow."""
    import ray

    from pointsweep.config.validation import trial_from_dict
    from pointsweep.execution.launchers import Event, Resources
    from pointsweep.execution.ray_tune import run_ray
    from pointsweep.results.records import Layout
    from pointsweep.storage.stores import open_store
    from pointsweep.tracking.mlflow.client import finish, prepare
    from pointsweep.tracking.mlflow.reader import read_table
    from pointsweep.tracking.target import TrialTags, default_uri
    from pointsweep.training.fusion.pack import packs_of
    from pointsweep.training.runner import Job, Task

    base = {
        "dataset": {"name": "synthetic"},
        "tokenizer": "point_pn_light",
        "backbone": "tiny",
        "method": "head_only",
    }

    ray.init(
        num_cpus=os.cpu_count(), log_to_driver=False, logging_level="ERROR",
        include_dashboard=False,
        runtime_env={"worker_process_setup_hook": noop_trials},
    )  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        target = prepare(
            default_uri(store),
            store,
            Layout("noop", "noop", ("m",), (("r",),), ("c",), ()),
        )

        ends: list[float] = []

        def listen(event: Event) -> None:
            if event.kind == "finished":
                ends.append(time.time())

        begun = time.time()
        configs = [trial_from_dict({**base, "seed": seed}) for seed in range(count)]
        packs = [
            [Task(config, TrialTags("noop", "r", "c", config.seed)) for config in each]
            for each in packs_of(configs, pack)
        ]

        run_ray(packs, Job(store.url, {"noop": target}), Resources(), listen)
        finish(
            target,
            store,
            {task.config.key(): task.tags for tasks in packs for task in tasks},
        )

        # The last trial has ended when all runs are complete; the mirror's part is told to all of
        # them alike.
        behind = time.time() - max(ends)
        costs = {
            name: cost + behind / count
            for name, cost in ends_to_costs(begun, ends).items()
        }

        assert len(read_table(target.uri, "noop")[1]) == count

        return costs


def driver(count: int, pack: int) -> float:
    """Processor seconds a trial of what the driver does with each: names, results, ends, gauges, a
    log's lines.
    """
    from pointsweep.config.validation import trial_from_dict
    from pointsweep.execution import ray_tune as launch
    from pointsweep.execution.outcomes import OutcomeCollector, WorkerReporter
    from pointsweep.execution.progress import Display, Label, Progress
    from pointsweep.execution.prometheus import Gauges, cells_of
    from pointsweep.tracking.target import TrialTags
    from pointsweep.training.runner import Job, Task
    from pointsweep.training.supervisor import Outcome

    base = {
        "dataset": {"name": "synthetic"},
        "tokenizer": "point_pn_light",
        "backbone": "tiny",
        "method": "head_only",
    }

    configs = [trial_from_dict({**base, "seed": seed}) for seed in range(count)]
    tasks = [
        Task(config, TrialTags("noop", f"r{config.seed // 3}", "c", config.seed))
        for config in configs
    ]

    packs = [tasks[at : at + pack] for at in range(0, count, pack)]
    metrics = dict.fromkeys(
        ("train/loss", "train/accuracy", "test/loss", "test/accuracy"), 0.0
    )
    begun = time.process_time()
    labels = {
        task.config.key(): Label(task.tags.cell, "test/accuracy") for task in tasks
    }
    exported = launch._Exported(Gauges(cells_of(packs)))

    with Progress(Display(io.StringIO()), labels, 0, count) as progress:
        ends = OutcomeCollector(
            packs, Job("nowhere"), progress, exported.gauges, exported.soon
        )
        for tasks in packs:
            trial = SimpleNamespace(
                trial_id="0", config={"pack": launch._encode(tasks)}
            )
            launch._trial_name(trial)
            keys, told = (
                [task.config.key() for task in tasks],
                WorkerReporter(ends.result),
            )

            for key in keys:
                told({"key": key, "epoch": 1, "epochs": 1, **metrics})

            told.end([Outcome(key, "finished") for key in keys])

    return (time.process_time() - begun) / count


def side(name: str, count: int, pack: int) -> dict[str, float]:
    """A side in a process of its own."""
    arguments = [
        "-m",
        "benchmarks.noop",
        "--side",
        name,
        "--trials",
        count,
        "--pack",
        pack,
    ]
    return dict(
        json.loads(python(*arguments, RAY_USAGE_STATS_ENABLED="0").splitlines()[-1])
    )


def main() -> None:
    """Prints the costs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--pack", type=int, default=16)
    parser.add_argument(
        "--sides",
        nargs="+",
        default=["ours", "reused", "hydra", "fresh"],
        choices=list(SHARE),
    )

    parser.add_argument("--queue", nargs="+", type=int)
    parser.add_argument("--driver", nargs="+", type=int)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", MLFLOW_DISABLE_TELEMETRY="true")

    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)

    if args.side:
        made = {
            "ours": lambda: ours(args.trials, args.pack),
            "hydra": lambda: hydra(args.trials),
        }
        print(
            "\n"
            + json.dumps(
                made.get(
                    args.side, lambda: ray_tune(args.trials, args.side == "reused")
                )()
            )
        )
        return

    print(machine())
    if args.driver:
        driver(args.pack, args.pack)  # what is imported at its first use

    for count in args.driver or []:
        print(
            f"driver   {count:6} trials: {1e3 * driver(count, args.pack):.3f} CPU-ms a trial",
            flush=True,
        )

    if args.driver:
        return

    wanted = (
        [("ours", count) for count in args.queue]
        if args.queue
        else [(s, max(4, args.trials // SHARE[s])) for s in args.sides]
    )
    for name, count in wanted:
        if name == "hydra" and LAUNCHER not in {
            each.name.replace("_", "-") for each in distributions()
        }:
            print(
                f"hydra    not measured: {LAUNCHER} is not installed (--help says how)"
            )
            continue

        try:
            costs = side(name, count, args.pack)
        except subprocess.CalledProcessError as error:
            print(f"{name:8} not measured: it ended with {error.returncode}")
            continue

        print(
            f"{name:8} {count:6} trials: first {1e3 * costs['first']:8.1f} ms, later"
            f" {1e3 * costs['later']:8.1f} ms a trial",
            flush=True,
        )


if __name__ == "__main__":
    main()
