"""Adaptive seeds through the real command: few seeds, a look, more where they are needed; rerun, kill, and the table from MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pointsweep.cli.run import main
from pointsweep.errors import ConfigError
from pointsweep.sweep.sweep import load
from tests.end_to_end.test_command import command, table

SWEEP = """
name: adaptive
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 20, test_limit: 20}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  train: {epochs: 1, batch_size: 16, warmup_epochs: 0, lr: 2.0e-3}
rows:
  - {label: lora, method: lora}
  - {label: head only, method: head_only}
seeds: {min: 2, max: 4, until: decided, against: head only}
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "adaptive.yaml"
    path.write_text(SWEEP)
    return path


def run(sweep: Path, store: Path, capsys, *more: str) -> str:
    assert main([str(sweep), "--inline", "--tracking-uri", "none", "--store", str(store), *more]) == 0
    return capsys.readouterr().out


def test_min_seeds_then_looks_then_nothing(store, sweep, capsys, tmp_path):
    assert "0 finished, 4 to run; adaptive seeds: 4 to 8 trials in all" in run(sweep, store, capsys, "--plan")
    printed = run(sweep, store, capsys)
    assert "further trials for the comparisons that are open" in printed
    cells = json.loads(table(store, "adaptive")["table.json"])["cells"]
    assert all(cell["stopped"] and 2 <= cell["n"] == cell["expected"] <= 4 for cell in cells)
    trained = len(list((store / "trials").glob("*/record.json")))
    assert trained == sum(cell["n"] for cell in cells)
    before = table(store, "adaptive")
    assert f"{trained} finished, 0 to run\n" in run(sweep, store, capsys)
    assert table(store, "adaptive") == before
    # All seeds at once: the same trials and more, and the same table of them.
    run(sweep, store, capsys, "seeds=4")
    run(sweep, store, capsys)
    assert table(store, "adaptive") == before
    # Cut off after any trial, as a kill would: the rest is trained again and the table is the same.
    for number, folder in enumerate(sorted((store / "trials").iterdir())):
        if number % 3:
            (folder / "record.json").unlink()
    run(sweep, store, capsys)
    assert table(store, "adaptive") == before


@pytest.mark.slow
def test_the_table_from_mlflow_alone_is_the_same(store, sweep, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    done = command(sweep, "--inline", "--tracking-uri", uri)
    assert done.returncode == 0, done.stderr
    from pointsweep.reporting.build import build
    from pointsweep.reporting.formats.registry import render
    from pointsweep.tracking.mlflow.reader import read_table

    assert render(build(*read_table(uri, "adaptive")), "json").encode() == table(store, "adaptive")["table.json"]


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ("{min: 1, max: 4, until: decided}", "seeds.min (line 11): must be a whole number from 2 on (one seed has no spread), got 1"),
        ("{min: 4, max: 4, until: decided}", "seeds.max (line 11): must be a whole number above min (4)"),
        ("{min: 2, max: 4, until: decide}", "unknown end 'decide'. Did you mean 'decided'?"),
        ("{min: 2, max: 4}", "seeds.until (line 11): unknown end"),
        ("{min: 2, max: 4, until: decided, by: x}", "seeds.by (line 11): unknown key 'by'"),
        ("{min: 2, max: 4, until: decided, against: head}", "seeds.against (line 11): unknown row 'head'. Did you mean 'head only'?"),
    ],
)
def test_wrong_seeds_are_told_at_their_line(sweep, seeds, text):
    sweep.write_text(SWEEP[: SWEEP.index("seeds:")] + f"seeds: {seeds}\n")
    with pytest.raises(ConfigError) as error:
        load(sweep)
    assert text in str(error.value)


def test_a_part_of_the_table_keeps_the_row_that_all_are_compared_with(sweep):
    assert load(sweep, [], ["seed=1"]).adaptive is None
    assert load(sweep, [], ["head*"]).adaptive.against == 0
    with pytest.raises(ConfigError, match="leaves out head only, with which adaptive seeds compare every row"):
        load(sweep, [], ["lora"])
