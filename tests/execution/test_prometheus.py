"""What a launch shows to Prometheus, counted by hand."""

from __future__ import annotations

import random

import pytest

from pointsweep.execution.prometheus import GAUGES, Gauges, TrialCell

PLACES = {
    "a0": TrialCell("s", "lora / tiny"),
    "a1": TrialCell("s", "lora / tiny"),
    "b0": TrialCell("s", "full / tiny"),
}


def of(gauges: Gauges, sweep: str = "s") -> dict[tuple[str, str], float]:
    values = gauges.values()
    return {(name, label): number for (name, of, label), number in values.items() if of == sweep}


def test_trials_cells_and_time_left_are_counted():
    now = [100.0]
    gauges = Gauges(PLACES, lambda: now[0])
    now[0] = 110.0
    for epoch in (1, 2):
        result = {"key": "a0", "epoch": epoch, "epochs": 2}
        gauges.epoch({**result, "clouds_per_s": 50.0, "tracker_lag_s": 3.0})
    gauges.end("a0", "finished", "")
    result = {"key": "a1", "epoch": 1, "epochs": 2}
    gauges.epoch({**result, "clouds_per_s": 40.0, "tracker_lag_s": 2.0})
    values = of(gauges)
    states = ("waiting", "running", "finished", "failed")
    assert [values["pointsweep_trials", state] for state in states] == [1, 1, 1, 0]
    assert [values["pointsweep_cells", state] for state in ("complete", "open")] == [0, 2]
    assert values["pointsweep_epochs", ""] == 3
    assert values["pointsweep_clouds_per_second", ""] == 40.0
    assert values["pointsweep_tracker_lag_seconds", ""] == 2.0
    # Half of a1 and all of b0 after 1.5 trials.
    assert values["pointsweep_eta_seconds", ""] == 10.0 * 1.5 / 1.5
    gauges.end("a1", "finished", "")
    assert of(gauges)["pointsweep_cells", "complete"] == 1


def test_gauges_are_there_before_any_trial_has_a_worker():
    values = of(Gauges(PLACES, began=1000.0))
    assert values["pointsweep_trials", "waiting"] == 3
    assert values["pointsweep_trials", "running"] == 0
    assert values["pointsweep_progress_timestamp_seconds", ""] == 1000.0
    later = {"pointsweep_eta_seconds", "pointsweep_failures"}  # known once something has happened
    assert {name for name, _ in values} == set(GAUGES) - later


def test_a_trial_runs_from_its_start_and_waits_again_when_its_worker_is_lost():
    gauges = Gauges(PLACES)
    gauges.start("a0")
    assert of(gauges)["pointsweep_trials", "running"] == 1
    gauges.wait("a0")
    assert of(gauges)["pointsweep_trials", "running"] == 0
    assert of(gauges)["pointsweep_trials", "waiting"] == 3
    gauges.end("a0", "failed", "ValueError: x")
    gauges.start("a0")
    assert of(gauges)["pointsweep_trials", "running"] == 0, "it has ended"


def test_progress_and_the_longest_epoch_are_told():
    now = [0.0]
    gauges = Gauges(PLACES, lambda: now[0], began=1000.0)

    def told() -> tuple[float, float]:
        values = of(gauges)
        at = values["pointsweep_progress_timestamp_seconds", ""]
        return at, values["pointsweep_epoch_seconds", ""]

    now[0] = 30.0
    gauges.start("a0")
    assert told() == (1030.0, 0.0)
    now[0] = 90.0
    gauges.epoch({"key": "a0", "epoch": 1, "epochs": 9})
    assert told() == (1090.0, 60.0)
    now[0] = 110.0
    gauges.epoch({"key": "a0", "epoch": 5, "epochs": 9, "trained": 4})
    assert told() == (1110.0, 60.0)
    now[0] = 150.0
    assert told() == (1110.0, 60.0), "time alone is no progress"
    gauges.start("a1")
    assert told() == (1150.0, 0.0), "how long an epoch of a1 takes is not known"
    now[0] = 180.0
    gauges.epoch({"key": "a1", "epoch": 1, "epochs": 9})
    assert told() == (1180.0, 60.0)
    gauges.end("a0", "finished", "")
    assert told() == (1180.0, 30.0)


def test_sweeps_of_one_launch_are_counted_apart():
    gauges = Gauges({**PLACES, "x": TrialCell("other", "lora / tiny")})
    gauges.epoch({"key": "a0", "epoch": 1, "epochs": 2, "clouds_per_s": 5.0})
    gauges.end("x", "failed", "ValueError: x")
    assert of(gauges)["pointsweep_epochs", ""] == 1
    assert of(gauges)["pointsweep_trials", "failed"] == 0
    assert of(gauges, "other")["pointsweep_epochs", ""] == 0
    assert of(gauges, "other")["pointsweep_trials", "failed"] == 1
    assert of(gauges, "other")["pointsweep_failures", "ValueError"] == 1


def test_a_launch_that_is_over_neither_waits_nor_runs_nor_lags():
    gauges = Gauges(PLACES)
    lags = {"tracker_lag_s": 9.0, "store_lag_s": 8.0, "clouds_per_s": 7.0}
    gauges.epoch({"key": "a0", "epoch": 1, "epochs": 2, **lags})
    gauges.end("a1", "finished", "")
    gauges.close()
    values = of(gauges)
    for name, label in (
        ("trials", "waiting"),
        ("trials", "running"),
        ("clouds_per_second", ""),
        ("tracker_lag_seconds", ""),
        ("store_lag_seconds", ""),
        ("eta_seconds", ""),
    ):
        assert values[f"pointsweep_{name}", label] == 0, name
    assert values["pointsweep_trials", "finished"] == 1


def test_a_result_does_not_cost_more_in_a_longer_launch():
    """`values` of a launch looks at what runs, not at all trials; and says what a count over all trials would."""
    generator = random.Random(0)
    places = {f"{i:03}": TrialCell("s", f"row {i % 40} / column") for i in range(300)}
    gauges = Gauges(places)
    counted = gauges.sweeps["s"]
    for key in generator.choices(sorted(places), k=900):
        if generator.random() < 0.5:
            gauges.epoch({"key": key, "epoch": generator.randrange(1, 5), "epochs": 4})
        else:
            gauges.end(key, generator.choice(["finished", "failed", "held"]), "x")
        values = of(gauges)
        still_open = {place.cell for key, place in places.items() if counted.ended.get(key) != "finished"}
        assert values["pointsweep_cells", "open"] == len(still_open)
        cells = {place.cell for place in places.values()}
        assert values["pointsweep_cells", "complete"] == len(cells - still_open)
        for state in ("finished", "failed"):
            ended = list(counted.ended.values())
            assert values["pointsweep_trials", state] == ended.count(state)
        assert counted.all_left == pytest.approx(sum(counted.left.values()), abs=1e-9)


def test_failures_are_counted_by_class():
    gauges = Gauges(PLACES)
    gauges.end("a0", "failed", "OutOfMemoryError: CUDA out of memory")
    gauges.end("a1", "failed", "OutOfMemoryError: again")
    gauges.end("b0", "failed", "")
    values = of(gauges)
    assert values["pointsweep_failures", "OutOfMemoryError"] == 2
    assert values["pointsweep_failures", "unknown"] == 1


def test_every_value_is_a_declared_gauge():
    gauges = Gauges(PLACES)
    gauges.epoch({"key": "a0", "epoch": 1, "epochs": 2})
    gauges.end("b0", "failed", "ValueError: x")
    values = of(gauges)
    assert {name for name, _ in values} == set(GAUGES)
    assert all(bool(label) == bool(GAUGES[name][0]) for name, label in values)
