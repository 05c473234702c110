"""CPU seconds of what starts again and again: --help, a second --plan, a fresh MLflow store, a
second trial in a warm worker.

    python benchmarks/startup.py [--rounds 5] [--sweep sweeps/quickstart.yaml]

The command runs in processes of its own, with bytecode in a cache as an installed package has it;
medians over the rounds. The second trial is timed from the first one's record to its own first
optimiser step, in one process.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SWEEP = Path(__file__).parent.parent / "sweeps" / "quickstart.yaml"

FRESH_STORE = """
import time
from pathlib import Path
import sys
import mlflow.tracking
from pointsweep.storage.base import FileStore
from pointsweep.sweep.sweep import load
from pointsweep.tracking.target import default_uri
from pointsweep.tracking.mlflow.client import prepare
layout, store = load(sys.argv[1]).layout(), FileStore(Path(sys.argv[2]))
begun = time.process_time()
prepare(default_uri(store), store, layout)
print(time.process_time() - begun)
"""

SECOND_TRIAL = """
import statistics, sys, tempfile, time
import torch
from pointsweep.config.validation import trial_from_dict
from pointsweep.training.adamw import AdamW
from pointsweep.tracking.target import TrialTags
from pointsweep.training.runner import Job, Task, run_pack
torch.set_num_threads(1)
steps, ends = [], []
step = AdamW.step
AdamW.step = lambda self, *rest: (step(self, *rest), steps.append(time.process_time()))[0]
with tempfile.TemporaryDirectory() as folder:
    for seed in range(6):
        config = trial_from_dict({
            "dataset": {"name": "synthetic", "num_points": 128, "presample": 128,
                        "train_limit": 32, "test_limit": 16},
            "tokenizer": {"name": "point_pn_light", "num_tokens": 16, "neighbours": 8},
            "backbone": {"name": "tiny", "modality": "1d"}, "method": "any2point",
            "train": {"epochs": 1, "batch_size": 8, "warmup_epochs": 0}, "seed": seed,
        })
        ends.append((len(steps), time.process_time()))
        task = Task(config, TrialTags("s", "r", "c", seed))
        [outcome] = run_pack([task], Job(f"file://{folder}"), lambda result: None)
        assert outcome.status == "finished", outcome
print(statistics.median(steps[at] - begun for at, begun in ends[1:]))
"""


def cpu_seconds(command: list[str], environment: dict[str, str]) -> float:
    """Of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def printed(code: str, environment: dict[str, str], *arguments: str) -> float:
    """The number that a program prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sweep", default=str(SWEEP))
    args = parser.parse_args()
    print(
        f"{platform.machine()} CPU, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python"
        f" {platform.python_version()}\n"
    )

    with tempfile.TemporaryDirectory() as folder:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name != "PYTHONDONTWRITEBYTECODE"
        }

        environment |= {
            "POINTSWEEP_CACHE": f"{folder}/cache",
            "POINTSWEEP_STORE": f"{folder}/store",
            "PYTHONPYCACHEPREFIX": f"{folder}/pyc",
        }

        run = [sys.executable, "-m", "pointsweep.run"]
        plan = [*run, args.sweep, "--plan"]
        first = cpu_seconds(plan, environment)
        rows = {f"--plan of {Path(args.sweep).name}, the first": first}

        for name, command in {
            "--help": [*run, "--help"],
            "--plan, again": plan,
        }.items():
            cpu_seconds(command, environment)
            rows[name] = statistics.median(
                cpu_seconds(command, environment) for _ in range(args.rounds)
            )

        times = [
            printed(FRESH_STORE, environment, args.sweep, f"{folder}/mlflow{number}")
            for number in range(args.rounds + 1)
        ]

        rows["MLflow ready on a fresh store, the first of the machine"] = times[0]
        rows["MLflow ready on a fresh store, again"] = statistics.median(times[1:])
        rows["first optimiser step of a second trial after the first one's end"] = (
            printed(SECOND_TRIAL, environment)
        )

    print("| what | seconds |\n| --- | --- |")
    for name, value in rows.items():
        print(f"| {name} | {value:.3f} |")


if __name__ == "__main__":
    main()
