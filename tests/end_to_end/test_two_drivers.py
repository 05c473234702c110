"""Two commands on one store at once, and a store that is mirrored to an empty MLflow."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pointsweep.cli import sync
from pointsweep.tracking.mlflow.reader import read_table
from tests.end_to_end.test_command import SWEEP, command, epochs_in_mlflow


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_commands_that_start_at_once_on_a_fresh_store_share_the_work_and_double_nothing(store, tmp_path, count):
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP.replace("seeds: 2", "seeds: 1"))
    line = [sys.executable, "-m", "pointsweep.run", str(sweep), "--inline"]
    drivers = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(count)]
    outputs = [driver.communicate(timeout=600)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0] * count, outputs
    for path in (store / "trials").iterdir():
        events = [json.loads(line)["event"] for line in (path / "history.jsonl").read_text().splitlines()]
        assert [event["type"] for event in events] == ["start", "epoch", "epoch"], path
    steps = epochs_in_mlflow(store)
    assert sorted(steps.values()) == [[1, 2]] * 4


def test_a_store_is_mirrored_to_an_empty_mlflow_and_again_without_change(store, tmp_path, capsys):
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP.replace("seeds: 2", "seeds: 1").replace("[lora, head_only]", "[lora]"))
    assert command(sweep, "--inline", "--tracking-uri", "none").returncode == 0
    (store / "trials" / "unfinished").mkdir()
    uri = f"sqlite:///{store}/mlflow.db"
    for _ in range(2):
        assert sync.main([str(store), "--tracking-uri", uri]) == 0
        assert sorted(epochs_in_mlflow(store).values()) == [[1, 2]] * 2
    assert "tiny: 2 trials are in MLflow" in capsys.readouterr().out
    _, records, failures = read_table(uri, "tiny")
    assert {key: record.to_json() for key, record in records.items()} == {
        path.parent.name: path.read_text() for path in (store / "trials").glob("*/record.json")
    }
    assert failures == {}


def test_sync_says_what_it_cannot_do(tmp_path, capsys):
    assert sync.main([str(tmp_path), "--tracking-uri", f"sqlite:///{tmp_path}/m.db"]) == 2
    assert "holds no sweep" in capsys.readouterr().err
