"""Thousands of tiny trials through the real command on Ray, in packs: what each costs the driver in
memory, and all in bookkeeping.

    python benchmarks/soak.py [--trials 1000] [--workers 2] [--pack 20]

A trial is one step of one epoch of a tiny network, so nearly all of a worker's time is bookkeeping:
build, checkpoint, record, mirror, Ray. It is told whole, training in it: members of a pack wait for
each other, so their own seconds overlap and cannot be taken off. That time, and the memory of the
driver (VmRSS), are fitted by a line over the trials that have ended, without the first tenth.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SWEEP = """
name: soak
base:
  dataset: {{name: synthetic, num_points: 32, presample: 32, train_limit: 16, test_limit: 8}}
  tokenizer: {{name: point_pn_light, num_tokens: 4, neighbours: 4}}
  backbone: {{name: tiny, modality: 1d}}
  method: head_only
  train: {{epochs: 1, batch_size: 16, warmup_epochs: 0}}
rows: {{method: [head_only]}}
seeds: {trials}
resources: {{cpus: 1, pack: {pack}}}
"""
ENDED = re.compile(r"\[(\d+)/\d+\] finished")


def soak(
    folder: Path, trials: int, workers: int, pack: int, arguments: Sequence[str] = ()
) -> dict[str, float]:
    """Runs the sweep in a fresh store below `folder`; what it cost. Raises RuntimeError, with the
    log, if it does not end well.
    """
    sweep, store = folder / "soak.yaml", folder / "store"
    sweep.write_text(SWEEP.format(trials=trials, pack=pack))
    line = [
        sys.executable,
        "-u",
        "-m",
        "pointsweep.run",
        str(sweep),
        "--store",
        str(store),
        "--workers",
        str(workers),
        *arguments,
    ]

    begun = time.monotonic()
    driver = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    ended, sizes, times, said = [], [], [], []
    assert driver.stdout is not None

    for text in driver.stdout:
        said.append(text)
        match = ENDED.search(text)
        if match:
            ended.append(int(match[1]))
            sizes.append(resident_bytes(driver.pid))
            times.append(time.monotonic() - begun)

    if driver.wait() != 0:
        raise RuntimeError("".join(said[-50:]))

    late = len(ended) // 10
    bytes_a_trial, seconds_a_trial = (
        float(np.polyfit(ended[late:], values[late:], 1)[0])
        for values in (sizes, times)
    )
    return {
        "trials": len(ended), "records": len(list(store.glob("trials/*/record.json"))),
        "seconds": time.monotonic() - begun,
        "driver_bytes_a_trial": bytes_a_trial, "driver_bytes": max(sizes),
        "worker_s_a_trial": workers * seconds_a_trial,
    }  # fmt: skip


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in use."""
    return 1024 * int(
        Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]
    )


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pack", type=int, default=20)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), args.trials, args.workers, args.pack)

    machine = f"{platform.machine()} CPU, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}"
    print(f"{machine}: {args.workers} workers, packs of {args.pack}")
    print(
        f"{found['trials']:.0f} trials, {found['records']:.0f} records in {found['seconds']:.0f} s"
    )
    print(
        f"driver: {found['driver_bytes_a_trial'] / 1e3:+.1f} kB a trial,"
        f" {found['driver_bytes'] / 1e6:.0f} MB at most"
    )

    worker_s = found["worker_s_a_trial"]
    print(
        f"a worker's time: {worker_s:.3f} s a trial, so bookkeeping is at most {worker_s:.0%} of a"
        " trial of one second"
    )


if __name__ == "__main__":
    main()
