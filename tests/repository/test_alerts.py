"""The alerts on the numbers of made-up sweeps, as `Gauges` tells them: which fire, which do not, and when."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from pointsweep.execution.prometheus import Gauges, TrialCell

RULES = Path(__file__).parents[2] / "dashboards" / "rules.yml"
MINUTE = 60
CELLS = {f"k{number}": TrialCell("t1", f"row {number} / column") for number in range(4)}
ALERTS = {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}

# promtool is in Debian's package prometheus; no registry of Python packages has it.
pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool")

Story = Callable[[Gauges, int], None]  # what happens in a sweep in one minute


def nobody_has_a_worker(gauges: Gauges, minute: int) -> None:
    pass


def slow_epochs(gauges: Gauges, minute: int) -> None:
    """Two trials whose epochs take 50 minutes each."""
    for key in ("k0", "k1"):
        if minute == 2:
            gauges.start(key)
        elif minute > 2 and (minute - 2) % 50 == 0:
            gauges.epoch({"key": key, "epoch": (minute - 2) // 50, "epochs": 300})


def hang(gauges: Gauges, minute: int) -> None:
    """A trial with epochs of a minute that tells nothing more after minute 10."""
    if minute == 0:
        gauges.start("k0")
    elif minute <= 10:
        gauges.epoch({"key": "k0", "epoch": minute, "epochs": 300})


def lost_worker(gauges: Gauges, minute: int) -> None:
    """The node of the one trial that runs is lost in minute 10 and none comes in its place."""
    hang(gauges, minute)
    if minute == 11:
        gauges.wait("k0")


def quick_trial_before_a_slow_one(gauges: Gauges, minute: int) -> None:
    """A trial with quick epochs, then one whose first epoch is not over."""
    if minute < 5:
        hang(gauges, minute)
    elif minute == 5:
        gauges.end("k0", "finished", "")
        gauges.start("k1")


def first_epoch_never_ends(gauges: Gauges, minute: int) -> None:
    if minute == 0:
        gauges.start("k0")


def all_done(gauges: Gauges, minute: int) -> None:
    if minute == 3:
        for key in CELLS:
            gauges.end(key, "finished", "")
        gauges.close()


def interrupted(gauges: Gauges, minute: int) -> None:
    """Ended by its user in minute 12; its series may stay for a while."""
    hang(gauges, minute)
    if minute == 12:
        gauges.close()


def most_fail(gauges: Gauges, minute: int) -> None:
    if minute < 3:
        gauges.end(f"k{minute}", "failed", "ValueError: x")


def one_fails(gauges: Gauges, minute: int) -> None:
    if minute < 3:
        gauges.end(f"k{minute}", "failed" if minute == 1 else "finished", "ValueError: x")


def lags(gauges: Gauges, minute: int) -> None:
    if minute % 2 == 0:
        late = {"tracker_lag_s": 60.0 * minute, "store_lag_s": 20.0 * minute}
        gauges.epoch({"key": "k0", "epoch": 1 + minute // 2, "epochs": 300, **late})


def series(sweep: str, story: Story, minutes: int) -> list[dict[str, str]]:
    """What Prometheus would have scraped of a sweep, a value a minute."""
    now = [0.0]
    cells = {key: TrialCell(sweep, cell.cell) for key, cell in CELLS.items()}
    gauges = Gauges(cells, lambda: now[0], began=0.0)
    seen: dict[str, list[str]] = {}
    for minute in range(minutes + 1):
        now[0] = float(minute * MINUTE)
        story(gauges, minute)
        for (name, of, value), number in gauges.values().items():
            label = {"pointsweep_failures": "class"}.get(name, "state")
            more = f',{label}="{value}"' if value else ""
            one = f'ray_{name}{{sweep="{of}"{more}}}'
            # A series that begins later is absent before.
            seen.setdefault(one, ["_"] * minute).append(f"{number:g}")
    return [{"series": name, "values": " ".join(values)} for name, values in seen.items()]


def run_promtool(folder: Path, stories: Mapping[str, Story], expected: Mapping[int, list]) -> str:
    """Run `promtool test rules`; returns what it found wrong. `expected`: minute -> (alert, sweep) that fire then."""
    numbers = [one for sweep, story in stories.items() for one in series(sweep, story, max(expected))]
    checks = []
    for minute, firing in expected.items():
        for alert in ALERTS:
            labels = [sweep for name, sweep in firing if name == alert]
            severity = ALERTS[alert]["labels"]["severity"]
            found = [{"exp_labels": {"sweep": sweep, "severity": severity}} for sweep in labels]
            checks.append({"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": found})
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]  # promtool compares them too; their words are not the subject
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    test = {"interval": "1m", "input_series": numbers, "alert_rule_test": checks}
    whole = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}
    (folder / "test.yml").write_text(yaml.safe_dump(whole))
    done = subprocess.run(["promtool", "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


NO_WORKER = ("SweepMakesNoProgress", "s")
HANGS = ("TrialsHang", "s")


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        (nobody_has_a_worker, {7: [], 14: [], 18: [NO_WORKER], 600: [NO_WORKER]}),
        (slow_epochs, {7: [], 49: [], 90: [], 130: [], 400: []}),
        (hang, {9: [], 30: [], 38: [], 45: [HANGS], 500: [HANGS]}),
        (lost_worker, {20: [], 24: [], 30: [NO_WORKER]}),
        (quick_trial_before_a_slow_one, {4: [], 40: [], 360: [], 370: [HANGS]}),
        (first_epoch_never_ends, {7: [], 120: [], 359: [], 365: [HANGS]}),
        (all_done, {2: [], 60: [], 600: []}),
        (interrupted, {10: [], 60: [], 600: []}),
        (most_fail, {1: [], 2: [("TrialsFail", "s")]}),
        (one_fails, {2: []}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_alert_fires_when_it_should_and_not_before(story, expected, tmp_path):
    assert run_promtool(tmp_path, {"s": story}, expected) == ""


def test_lags_are_told_after_five_minutes_beyond_five(tmp_path):
    tracker, store = ("TrackerLagsBehind", "s"), ("StoreLagsBehind", "s")
    expected = {9: [], 10: [], 12: [tracker], 20: [tracker], 24: [tracker, store]}
    assert run_promtool(tmp_path, {"s": lags}, expected) == ""


def test_a_busy_sweep_does_not_hide_one_that_waits(tmp_path):
    stories = {"busy": slow_epochs, "waits": nobody_has_a_worker}
    expected = {10: [], 30: [("SweepMakesNoProgress", "waits")]}
    assert run_promtool(tmp_path, stories, expected) == ""


def test_a_wrong_expectation_is_found(tmp_path):
    assert "SweepMakesNoProgress" in run_promtool(tmp_path, {"s": nobody_has_a_worker}, {30: []})
