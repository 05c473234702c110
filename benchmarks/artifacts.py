"""The time that a finished trial's files take into MLflow, beside the time of the trial.

python -m benchmarks.artifacts STORE SWEEP
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from pointsweep.reporting.build import read
from pointsweep.results.working_copy import read_folder
from pointsweep.storage.base import FileStore
from pointsweep.tracking.mlflow.artifacts import send_trial
from pointsweep.tracking.mlflow.client import connected


def main(url: str, sweep: str) -> None:
    """Send every trial of a sweep into a fresh database and print the share of its time that this
    took.
    """
    store = FileStore(Path(url))
    _, records, _ = read(store, sweep)

    with tempfile.TemporaryDirectory() as folder:
        client = connected(f"sqlite:///{folder}/mlflow.db")
        experiment = client.create_experiment(
            sweep, artifact_location=f"file://{folder}/artifacts"
        )
        for mode in ("small", "all"):
            shares = []
            seconds = []
            for key, record in records.items():
                run = client.create_run(experiment).info.run_id
                trial = read_folder(store, key)
                begun = time.perf_counter()
                send_trial(client, (experiment, run), trial, record, mode)
                seconds.append(time.perf_counter() - begun)
                shares.append(seconds[-1] / record.seconds["total"])

            share = (
                f"{100 * statistics.median(shares):.2f} % of its trial's time (median of"
                f" {len(shares)})"
            )

            print(
                f"{mode:6} {1000 * statistics.median(seconds):.0f} ms a trial, {share}"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
