"""What a launch shows to Prometheus, counted by hand; and that dashboards and alerts ask for nothing else."""

from __future__ import annotations

import random

import pytest

from pointsweep.execution.prometheus import GAUGES, Gauges

CELLS = {"a0": "lora / tiny", "a1": "lora / tiny", "b0": "full / tiny"}


def test_trials_cells_and_time_left_are_counted():
    now = [100.0]
    gauges = Gauges(CELLS, lambda: now[0])
    now[0] = 110.0
    for epoch in (1, 2):
        gauges.epoch({"key": "a0", "epoch": epoch, "epochs": 2, "clouds_per_s": 50.0, "tracker_lag_s": 3.0})
    gauges.end("a0", "finished", "")
    gauges.epoch({"key": "a1", "epoch": 1, "epochs": 2, "clouds_per_s": 40.0, "tracker_lag_s": 2.0})
    values = gauges.values()
    assert [values["pointsweep_trials", state] for state in ("waiting", "running", "finished", "failed")] == [1, 1, 1, 0]
    assert [values["pointsweep_cells", state] for state in ("complete", "open")] == [0, 2]
    assert values["pointsweep_epochs", ""] == 3
    assert values["pointsweep_clouds_per_second", ""] == 40.0
    assert values["pointsweep_tracker_lag_seconds", ""] == 2.0
    assert values["pointsweep_eta_seconds", ""] == 10.0 * 1.5 / 1.5  # half of a1 and all of b0 after 1.5 trials
    gauges.end("a1", "finished", "")
    assert gauges.values()["pointsweep_cells", "complete"] == 1


def test_a_result_does_not_cost_more_in_a_longer_launch():
    """`values` of a launch looks at what runs, not at all trials; and says what a count over all trials would."""
    generator = random.Random(0)
    cells = {f"{i:03}": f"row {i % 40} / column" for i in range(300)}
    gauges = Gauges(cells)
    for key in generator.choices(sorted(cells), k=900):
        if generator.random() < 0.5:
            gauges.epoch({"key": key, "epoch": generator.randrange(1, 5), "epochs": 4})
        else:
            gauges.end(key, generator.choice(["finished", "failed", "held"]), "x")
        values = gauges.values()
        still_open = {cell for key, cell in cells.items() if gauges.ended.get(key) != "finished"}
        assert values["pointsweep_cells", "open"] == len(still_open)
        assert values["pointsweep_cells", "complete"] == len(set(cells.values()) - still_open)
        for state in ("finished", "failed"):
            assert values["pointsweep_trials", state] == list(gauges.ended.values()).count(state)
        assert gauges.all_left == pytest.approx(sum(gauges.left.values()), abs=1e-9)


def test_failures_are_counted_by_class():
    gauges = Gauges(CELLS)
    gauges.end("a0", "failed", "OutOfMemoryError: CUDA out of memory")
    gauges.end("a1", "failed", "OutOfMemoryError: again")
    gauges.end("b0", "failed", "")
    values = gauges.values()
    assert values["pointsweep_failures", "OutOfMemoryError"] == 2
    assert values["pointsweep_failures", "unknown"] == 1


def test_every_value_is_a_declared_gauge():
    gauges = Gauges(CELLS)
    gauges.epoch({"key": "a0", "epoch": 1, "epochs": 2})
    gauges.end("b0", "failed", "ValueError: x")
    assert {name for name, _ in gauges.values()} == set(GAUGES)
    assert all(bool(label) == bool(GAUGES[name][0]) for name, label in gauges.values())
