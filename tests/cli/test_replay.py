"""A cell trained again by the real command: bit-equal on a CPU; and the verdicts on runs that differ, by hand."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pointsweep.cli.replay import EQUAL, OUTSIDE, WITHIN, Run, compare, further, kept, main
from pointsweep.results.agreement import packed
from pointsweep.results.records import Layout
from pointsweep.storage.base import FileStore
from tests.reporting.test_tables import record
from tests.support.resealed import forget_files, rewrite

LAYOUT = Layout("t", "T", ("method",), (("a",),), ("all",), ())
PREDICTED = np.arange(30, dtype=np.uint8) % 5


def run(accuracy: float, flips: int = 0, loss: float = 1.0) -> Run:
    said = PREDICTED.copy()
    said[:flips] += 1
    made = record("k", accuracy, accuracy)
    metrics = {name: {**values, "test/loss": loss} for name, values in made.metrics.items()}
    return Run(replace(made, metrics=metrics), {"last": said, "best_test": said})


def keys(store: Path) -> dict[tuple[int, int], str]:
    """(row, seed) -> key."""
    layout = json.loads((store / "sweeps/tiny/plan.json").read_text())["layout"]
    return {(cell["row"], seed): key for cell in layout["cells"] for seed, key in cell["keys"]}


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "store"))


def test_a_trial_on_a_cpu_is_bit_equal_when_it_is_trained_again_elsewhere(trained: Path, tmp_path: Path):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "pointsweep.replay", "tiny", "lora", "1d", "--store", str(trained), "--exact"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for seed, line in enumerate(lines):
        assert line.startswith(f"seed {seed} ({keys(trained)[0, seed]}): equal: test/accuracy ")
        assert line.endswith("all 40 predictions and every metric bit for bit")  # 20 of the last epoch, 20 of the best
    assert len(lines) == 2
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before, "the store is only read"


def right(data: dict, count: int) -> None:
    """A record that says of so many of its 20 objects that they were right."""
    data["metrics"]["last"]["test/accuracy"] = count / 20
    data["correct"]["last"] = packed(np.arange(20) < count)


def test_a_record_that_training_does_not_give_is_outside(copy: Path, capsys):
    key = keys(copy)[1, 0]
    path = copy / f"trials/{key}/record.json"

    def better(data: dict) -> None:
        right(data, 20)
        data["origin"]["version.torch"] = "1.0"

    rewrite(path, better)
    other = copy / f"trials/{keys(copy)[1, 1]}/record.json"
    rewrite(other, lambda data: right(data, 19))
    assert main(["tiny", "head_only", "1d", "--seed", "0", "--store", str(copy)]) == 1
    said = capsys.readouterr().out
    assert f"seed 0 ({key}): outside: test/accuracy " in said
    assert "recorded 100.0; 0 of 20 predictions differ" in said
    assert "different too: torch " in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, "reads its configuration as another trial's"),
        ({"train": {"epochs": 0}}, "reads its configuration as another trial's"),
    ],
)
def test_a_configuration_that_is_another_trials_is_not_trained(copy: Path, capsys, change, message):
    path = copy / f"trials/{keys(copy)[1, 0]}/record.json"
    rewrite(path, lambda data: data["config"].update(change))
    assert main(["tiny", "head_only", "1d", "--seed", "0", "--store", str(copy)]) == 1
    assert message in capsys.readouterr().out


def test_other_data_are_no_replay(copy: Path, capsys):
    path = copy / f"trials/{keys(copy)[1, 0]}/record.json"
    rewrite(path, lambda data: data["dataset"].update(digest="e" * 64))
    assert main(["tiny", "head_only", "1d", "--seed", "0", "--store", str(copy)]) == 1
    assert (
        f"outside: other data: digest {kept(FileStore(copy), keys(copy)[1, 1]).record.dataset['digest'][:16]}"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tinny", "lora", "1d"], "unknown sweep 'tinny'. Did you mean 'tiny'?"),
        (["tiny", "lorra", "1d"], "unknown row 'lorra'. Did you mean 'lora'? Rows: head_only, lora"),
        (["tiny", "lora", "2d"], "unknown column '2d'. Did you mean '1d'?"),
        (["tiny", "lora", "1d", "--seed", "5"], "lora / 1d: unknown seed '5'. Finished: 0, 1"),
    ],
)
def test_names_that_are_none_end_with_2(trained: Path, capsys, arguments, message):
    assert main([*arguments, "--store", str(trained)]) == 2
    assert message in capsys.readouterr().err


def test_a_trial_without_predictions_says_which_file_is_missing(copy: Path, capsys):
    folder = copy / f"trials/{keys(copy)[0, 0]}"
    (folder / "predictions.npz").unlink()
    forget_files(folder / "record.json")
    assert main(["tiny", "lora", "1d", "--store", str(copy)]) == 2
    assert "predictions.npz is missing" in capsys.readouterr().err


def test_equal_is_every_prediction_and_every_metric():
    assert compare(run(0.8), run(0.8), LAYOUT, (0.7, 0.9)).verdict == EQUAL
    for other in (run(0.8, flips=1), run(0.8, loss=1.0000000000000002)):
        assert compare(run(0.8), other, LAYOUT, (0.7, 0.9)).verdict == WITHIN
    lacking = Run(run(0.8).record, {"last": PREDICTED})
    assert compare(run(0.8), lacking, LAYOUT, (0.7, 0.9)).verdict == WITHIN
    longer = compare(run(0.8), run(0.95, flips=4), LAYOUT, (0.7, 0.9))
    assert longer.verdict == OUTSIDE
    assert longer.words == (
        "test/accuracy 95.0, recorded 80.0; 4 of 30 predictions differ; 95 % of further runs are expected from 70.0 to 90.0"
    )


def test_a_further_run_is_expected_in_the_prediction_interval():
    values = [0.80, 0.82, 0.85]
    half = scipy_stats.t.ppf(0.975, 2) * statistics.stdev(values) * math.sqrt(1 + 1 / 3)
    mean = statistics.mean(values)
    assert further(values, 400) == (pytest.approx(mean - half), pytest.approx(mean + half))
    for lone in ([0.8], [0.8, 0.8]):
        exact = scipy_stats.binomtest(320, 400).proportion_ci(method="wilson")
        assert further(lone, 400) == (pytest.approx(exact.low), pytest.approx(exact.high))


def test_a_metric_below_zero_has_an_interval():
    """Of Cohen's kappa in [-1, 1]: that of a share, stretched."""
    exact = scipy_stats.binomtest(150, 400).proportion_ci(method="wilson")
    assert further([-0.25], 400) == (pytest.approx(2 * exact.low - 1), pytest.approx(2 * exact.high - 1))


def test_the_prediction_interval_holds_what_it_says():
    generator = np.random.default_rng(0)
    drawn = generator.normal(0.8, 0.02, (2000, 4))
    inside = [low <= row[3] <= high for row in drawn for low, high in [further(list(row[:3]), 400)]]
    assert abs(np.mean(inside) - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)
