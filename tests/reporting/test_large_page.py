"""The report of a large sweep stays small: its bytes for each trial.

`python -m tests.reporting.test_large_page ROWS COLUMNS FILE` writes one, with three seeds a cell, to be looked at, and says how long a browser took to open it.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from pointsweep.reporting.build import build
from pointsweep.reporting.html.evidence import RATE, Evidence
from pointsweep.reporting.html.page import page
from pointsweep.results.records import CellLayout, Layout
from tests.reporting.test_tables import record
from tests.support import browser

SEEDS, EPOCHS = 3, 100
LIMIT_BYTES = 600  # of a trial: its key, its numbers in the table and its exports, twenty points of its curve


def large(num_rows: int, num_columns: int) -> str:
    """The page of so many cells, each with its curves, predictions and settings of its own."""
    rng = np.random.default_rng(0)
    rows = tuple((f"method {i:04d}",) for i in range(num_rows))
    columns = tuple(f"backbone {j:02d}" for j in range(num_columns))
    cells, records, curves, histories, predictions = [], {}, {}, {}, {}
    for i, j in itertools.product(range(num_rows), range(num_columns)):
        keys = tuple((seed, f"{i:06x}{j:06x}{seed:04x}") for seed in range(SEEDS))
        cells.append(CellLayout(i, j, keys))
        for seed, key in keys:
            value = float(rng.integers(40, 90)) / 100
            config = {
                "method": {"name": f"method {i}", "rank": i},
                "backbone": {"name": f"backbone {j}"},
                "seed": seed,
                "train": {"lr": 1e-3},
            }
            records[key] = record(key, value, config=config)
            curve = value * (1 - np.exp(-np.arange(1, EPOCHS + 1) / 20)) + rng.normal(0, 0.01, EPOCHS)
            curves[key] = curve.tolist()
            histories[key] = {"test/accuracy": curve, "train/loss": 2 - curve, RATE: np.linspace(1e-3, 0, EPOCHS)}
            predictions[key] = rng.integers(0, 10, 30).astype(np.uint8)
    table = build(Layout("large", "A large sweep", ("method",), rows, columns, tuple(cells)), records, {})
    return page(table, records, curves, Evidence(predictions, {}, (), histories))


def test_a_page_of_many_trials_has_few_bytes_for_each():
    """What forty more rows add to a page of 1,680 trials: charts show the best rows and do not grow."""
    fewer, more = (len(large(num_rows, 7).encode()) for num_rows in (80, 120))
    assert (more - fewer) / (40 * 7 * SEEDS) < LIMIT_BYTES


async def opened(path: Path) -> list[float]:
    """Seconds until the table can be used and until the first charts stand, in a browser that starts cold, and again."""
    found = []
    async with browser.page(1280, 900) as tab:
        for _ in range(2):
            begun = time.monotonic()
            await tab.call("Page.navigate", url=path.as_uri())
            await tab.wait("!document.getElementById('tools').hidden")
            found.append(time.monotonic() - begun)
            await tab.wait(
                "[...document.querySelectorAll('.plot')].some((plot) => plot.querySelector('.main-svg')) || scrollBy(0, 1e6)"
            )
    return found


def main() -> None:
    num_rows, num_columns, file = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    source = large(num_rows, num_columns)
    file.write_text(source, encoding="utf-8")
    print(f"{num_rows * num_columns * SEEDS} trials, {len(source) / 1e6:.1f} MB")
    parts = Counter()
    for piece in source.split("<section ")[1:]:
        parts[piece.split('"')[1]] = len(piece)
    print({name: f"{size / 1e6:.2f} MB" for name, size in parts.most_common()})
    print("seconds cold, warm:", [round(each, 2) for each in asyncio.run(opened(file))])


if __name__ == "__main__":
    main()
