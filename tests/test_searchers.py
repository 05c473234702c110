"""Searches on a recorded grid of real trials: what a sampler or a scheduler saves against random search."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path

import pytest

from pointsweep.sweep import load

FILE = Path(__file__).parents[1] / "benchmarks" / "searchers.py"
spec = importlib.util.spec_from_file_location("searchers", FILE)
searchers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(searchers)


def test_the_table_is_that_of_the_grid():
    table = searchers.read_table()
    plain = [trial.config.to_dict() for trial in load(searchers.GRID).trials()]
    assert list(table) == [(c["train"]["lr"], c["train"]["weight_decay"], c["method"]["bottleneck"]) for c in plain]
    assert {len(curve) for curve in table.values()} == {9}
    good = sum(curve[-1] >= searchers.goal(table) for curve in table.values())
    assert len(table) == 120 and 6 <= good <= 8  # the best 5 %, and what ties with the last of them


def test_every_cell_stands_for_itself_and_is_as_likely_as_any_other():
    table = searchers.read_table()
    assert all(searchers.nearest(table, dict(zip(searchers.KEYS, cell, strict=True))) == cell for cell in table)
    assert searchers.nearest(table, {"train.lr": 1.3e-3, "train.weight_decay": 0.5, "method.bottleneck": 8}) == (1e-3, 1.0, 8)


@pytest.mark.slow
def test_what_a_sampler_or_a_scheduler_saves_is_what_the_docs_say():
    medians = {name: statistics.median(searchers.costs(name, 50)) for name in searchers.SEARCHERS}
    text = (FILE.parents[1] / "docs" / "searches.md").read_text()
    for name, median in medians.items():
        assert f"{name:24}{median:6.1f}  " in text
