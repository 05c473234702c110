"""Searches on a recorded grid of real trials: what a sampler or a scheduler saves against random search."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from pathlib import Path

import pytest
import yaml

from pointsweep.sweep.search_space import lookup
from pointsweep.sweep.sweep import load

FILE = Path(__file__).parents[2] / "benchmarks" / "searchers.py"
spec = importlib.util.spec_from_file_location("searchers", FILE)
searchers = importlib.util.module_from_spec(spec)
sys.modules["searchers"] = searchers  # its dataclass looks there for the types of its fields
spec.loader.exec_module(searchers)


@pytest.mark.parametrize(
    ("name", "cells", "epochs", "good"), [("adapter_dropout_grid", 270, 18, (14, 17)), ("adapter_grid", 120, 9, (6, 8))]
)
def test_the_table_is_that_of_the_grid(name, cells, epochs, good):
    grid = searchers.GRIDS[name]
    table = searchers.read_table(grid)
    plain = [trial.config.to_dict() for trial in load(grid.sweep).trials()]
    assert list(table) == [tuple(lookup(config, key) for key in grid.scales) for config in plain]
    assert {len(curve) for curve in table.values()} == {epochs}
    assert len(table) == cells
    # The best 5 %, and what ties with the last of them.
    assert good[0] <= sum(curve[-1] >= searchers.goal(table) for curve in table.values()) <= good[1]


@pytest.mark.parametrize("name", searchers.GRIDS)
def test_every_cell_stands_for_itself_and_is_as_likely_as_any_other(name):
    grid = searchers.GRIDS[name]
    table = searchers.read_table(grid)
    assert all(searchers.nearest(grid, table, dict(zip(grid.scales, cell, strict=True))) == cell for cell in table)
    drawn = {"train.lr": 1.3e-3, "train.weight_decay": 0.5, "method.bottleneck": 8, "head.dropout": 0.25}
    assert searchers.nearest(grid, table, drawn)[:3] == (1e-3, 1.0, 8)
    space = yaml.safe_load(grid.space)
    for index, (key, scale) in enumerate(grid.scales.items()):
        values = sorted({scale(cell[index]) for cell in table})
        if isinstance(space[key], dict) and "step" not in space[key]:
            low, high = map(scale, space[key]["float"])
            step = (values[-1] - values[0]) / (len(values) - 1)
            assert (values[0] - low, high - values[-1]) == pytest.approx((step / 2, step / 2), rel=0.05)


@pytest.mark.parametrize("name", ["adapter_grid", pytest.param("adapter_dropout_grid", marks=pytest.mark.slow)])
def test_tpe_with_asha_trains_at_most_half_of_what_random_search_does(name):
    """Median of 50 seeds, until one of the best 5 % of the recorded trials has run to its end."""
    grid = searchers.GRIDS[name]
    plain, both = (statistics.median(searchers.costs(each, grid, 50)) for each in ("random", "tpe + asha"))
    assert both <= 0.5 * plain


@pytest.mark.slow
@pytest.mark.parametrize("name", searchers.GRIDS)
def test_what_a_sampler_or_a_scheduler_saves_is_what_the_docs_say(name):
    grid = searchers.GRIDS[name]
    text = (FILE.parents[1] / "docs" / "searches.md").read_text()
    printed = text.partition(f"\n{len(searchers.read_table(grid))} cells, ")[2].partition("```")[0]
    for searcher in searchers.SEARCHERS:
        median = statistics.median(searchers.costs(searcher, grid, 200))
        assert f"\n{searcher:24}{median:6.1f}  " in printed
