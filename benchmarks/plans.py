"""S5: what `--plan` costs, cold: of many arms of a few structures, of many cells, and of files that
are named.

    python -m benchmarks.plans [--arms 1000] [--cells 100000] [--files sweeps/any2point_table6.yaml
    ...]

Each plan is the command in a process of its own, with an empty cache and an empty store: CPU
seconds of that process with all of its imports, and its peak memory. The two made files have 10
structures; further arms differ in the learning rate, further cells in the weight decay too. The
first line is what the imports cost by themselves, which is a part of every other one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import machine

BASE = """
name: {name}
base:
  dataset: {{name: synthetic, num_points: 128, presample: 128, source_points: 128,
            train_per_class: 8, test_per_class: 4, val_fraction: 0.25}}
  tokenizer: {{name: point_pn_light, num_tokens: 16, neighbours: 8}}
  backbone: {{name: tiny}}
  train: {{epochs: 4, batch_size: 8, warmup_epochs: 0}}
rows:
  - {{label: head, method: head_only}}
  - {{label: biases, method: bitfit}}
  - {{label: all, method: full}}
  - {{label: 5 prompts, method: {{name: prompt, num_prompts: 5}}}}
  - {{label: 10 prompts, method: {{name: prompt, num_prompts: 10}}}}
  - {{label: adapter 8, method: {{name: adapter, bottleneck: 8}}}}
  - {{label: adapter 16, method: {{name: adapter, bottleneck: 16}}}}
  - {{label: rank 4, method: {{name: lora, rank: 4}}}}
  - {{label: rank 8, method: {{name: lora, rank: 8}}}}
  - {{label: any2point, method: any2point}}
axes: {{train.weight_decay: [{decays}]}}
columns: {{train.lr: [{rates}]}}
seeds: [0]
"""
STRUCTURES = 10
DECAYS = 10
# Prints CPU seconds and peak memory of the command behind it, as one line on standard error.
METER = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, file=sys.stderr)
sys.exit(done.returncode)
"""


def numbers(count: int, step: float) -> str:
    """Return so many distinct numbers, as a YAML list has them."""
    return ", ".join(f"{step * number:.6g}" for number in range(1, count + 1))


def made_file(folder: Path, name: str, decays: int, rates: int) -> Path:
    """Write a sweep of 10 structures x decays x rates."""
    path = folder / f"{name}.yaml"
    path.write_text(
        BASE.format(name=name, decays=numbers(decays, 0.01), rates=numbers(rates, 1e-6))
    )

    return path


def cost(command: Sequence[str]) -> tuple[float, float]:
    """Return CPU seconds and peak MiB of a command that starts with an empty cache and store."""
    with tempfile.TemporaryDirectory() as folder:
        empty = {
            "POINTSWEEP_CACHE": f"{folder}/cache",
            "POINTSWEEP_STORE": f"{folder}/store",
            "OMP_NUM_THREADS": "1",
        }
        line = [sys.executable, "-c", METER, sys.executable, *command]
        run = subprocess.run(
            line, env=os.environ | empty, stderr=subprocess.PIPE, text=True, check=False
        )

    # Code 2: data or weights are not here, which the plan says when it has done all else.
    if run.returncode not in (0, 2):
        raise RuntimeError(
            f"{' '.join(command)} ended with {run.returncode}: {run.stderr}"
        )

    cpu_s, memory = run.stderr.splitlines()[-1].split()
    return float(cpu_s), float(memory)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", type=int, default=1000)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument(
        "--files", nargs="*", default=[], metavar="FILE", help="further sweep files"
    )
    arguments = parser.parse_args()
    print(machine())
    imports = (
        "import torch, pointsweep.planning.dry_run, pointsweep.ops.point_ops_numba"
    )
    lines: list[tuple[str, Sequence[str]]] = [("imports alone", ["-c", imports])]

    with tempfile.TemporaryDirectory() as folder:
        if arguments.arms:
            path = made_file(Path(folder), "arms", 1, arguments.arms // STRUCTURES)
            lines.append(
                (
                    f"{arguments.arms:,} arms",
                    ["-m", "pointsweep.run", str(path), "--plan"],
                )
            )

        if arguments.cells:
            path = made_file(
                Path(folder), "cells", DECAYS, arguments.cells // STRUCTURES // DECAYS
            )
            lines.append(
                (
                    f"{arguments.cells:,} cells",
                    ["-m", "pointsweep.run", str(path), "--plan"],
                )
            )

        lines += [
            (file, ["-m", "pointsweep.run", file, "--plan"]) for file in arguments.files
        ]
        for name, command in lines:
            cpu_s, memory = cost(command)
            print(f"{name:40}{cpu_s:8.1f} CPU-s {memory:8.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
