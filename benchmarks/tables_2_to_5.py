"""P12: Any2Point's Tables 2 to 5 as one invocation: how many trials run, and what a second run of
the same command costs.

    python -m benchmarks.tables_2_to_5 [--rounds 3]

In the smoke size (synthetic clouds, tiny backbones): the cells and which of them are equal are
those of the full files.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
from pathlib import Path

from benchmarks.common import machine, measure, python

FILES = ["any2point_table2", "any2point_table3", "any2point_table4", "ablation_table5"]


def main() -> None:
    """Prints the counts and the times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    print(machine())
    sweeps = Path(__file__).parents[1] / "sweeps"

    with tempfile.TemporaryDirectory() as store:
        command = [
            "-m",
            "pointsweep.run",
            *(sweeps / f"{name}.yaml" for name in FILES),
            "profile=smoke",
            "--store",
            store,
            "--inline",
        ]

        first = measure(lambda: python(*command))
        print(told(first.value), f"in {first.wall_s:.0f} s")
        again = [measure(lambda: python(*command)) for _ in range(args.rounds)]
        wall, cpu = (
            statistics.median(values)
            for values in zip(
                *((each.wall_s, each.cpu_s) for each in again), strict=True
            )
        )

        print(
            f"{told(again[0].value)} in {wall:.2f} s, {cpu:.2f} CPU-s (median of {args.rounds})"
        )


def told(output: str) -> str:
    """The line about all files together."""
    found = re.search(r"^all \d+ together: (.*)$", output, re.MULTILINE)
    assert found is not None, output
    return found[1]


if __name__ == "__main__":
    main()
