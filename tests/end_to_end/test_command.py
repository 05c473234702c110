"""The real command on a tiny sweep: complete, continue, fail, be killed. In this process and on a real Ray."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pointsweep.cli.run import main

SWEEP = """
name: tiny
title: A tiny sweep
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 40, test_limit: 20}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  train: {epochs: 2, batch_size: 16, warmup_epochs: 0, lr: 2.0e-3}
rows: {method: [lora, head_only]}
columns:
  - {label: line, backbone.modality: 1d}
  - {label: plane, backbone.modality: 2d}
seeds: 2
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SWEEP)
    return path


def command(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pointsweep.run", *map(str, arguments)], capture_output=True, text=True, timeout=300, **options
    )


def table(store: Path, name: str = "tiny") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "sweeps" / name).glob("table.*")}


def epochs_in_mlflow(store: Path) -> dict[str, list[int]]:
    """trial key -> steps of test/accuracy, over all runs of the database."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found: dict[str, list[int]] = {}
    for run in client.search_runs(experiments, max_results=1000):
        key = run.data.tags.get("pointsweep.key")
        if key is not None:
            assert key not in found, f"two runs for trial {key}"
            found[key] = [metric.step for metric in client.get_metric_history(run.info.run_id, "test/accuracy")]
    return found


def test_a_sweep_ends_with_its_table_and_a_rerun_trains_nothing(store, sweep):
    first = command(sweep, "--inline")
    assert first.returncode == 0, first.stderr
    assert "0 finished, 8 to run" in first.stdout
    assert "lora" in first.stdout
    before = table(store)
    assert set(before) >= {"table.txt", "table.md", "table.tex", "table.csv", "table.json"}
    again = command(sweep, "--inline")
    assert again.returncode == 0, again.stderr
    assert "8 finished, 0 to run" in again.stdout
    assert table(store) == before


SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").rglob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_runs_in_its_smoke_form(store, path, capsys):
    """The command's own `main`, in this process, which has imported torch already."""
    assert main([str(path), "profile=smoke", "seeds=1", "--inline", "--tracking-uri", "none"]) == 0, capsys.readouterr()
    printed = capsys.readouterr().out
    assert "all cells: " in printed
    assert "synthetic data" in printed


def test_a_new_row_or_seed_runs_only_the_difference(store, sweep):
    assert command(sweep, "--inline", "--only", "row=lora", "--tracking-uri", "none").returncode == 0
    more = command(sweep, "--inline", "seeds=3", "--tracking-uri", "none")
    assert "4 finished, 8 to run" in more.stdout


def test_a_trial_that_two_sweeps_share_runs_once(store, sweep, tmp_path):
    assert command(sweep, "--inline", "--tracking-uri", "none").returncode == 0
    other = tmp_path / "other.yaml"
    other.write_text(SWEEP.replace("name: tiny\n", "name: other\n"))
    assert "8 finished, 0 to run" in command(other, "--inline", "--tracking-uri", "none").stdout


def test_one_failing_trial_leaves_the_others_and_is_seen(store, sweep, tmp_path):
    bad = tmp_path / "bad.yaml"
    # A rate that makes the loss overflow: a real failure of a real trial, no mock.
    bad.write_text(
        SWEEP.replace("seeds: 2", "seeds: 1").replace("[lora, head_only]", "[lora]").replace("plane, ", "plane, train.lr: 1.0e+30, ")
    )
    run = command(bad, "--inline", "--tracking-uri", "none")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "DivergedError: the training loss of epoch" in run.stderr
    assert len(list((store / "trials").glob("*/record.json"))) == 1
    assert "failed" in (store / "sweeps" / "tiny" / "table.txt").read_text()


def test_an_invalid_file_launches_nothing(store, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text(SWEEP.replace("lora", "lorra").replace("epochs: 2", "epochs: zwei"))
    begun = time.monotonic()
    run = command(bad)
    assert run.returncode == 2
    assert "Did you mean 'lora'?" in run.stderr
    assert "must be a whole number, got 'zwei'" in run.stderr
    assert time.monotonic() - begun < 30  # 2 s on a quiet machine; the file's own test measures CPU time
    assert not store.exists()


def test_a_store_that_cannot_be_read_is_said_to_be(store, sweep):
    assert command(sweep, "--inline", "seeds=1", "--tracking-uri", "none").returncode == 0
    record = next((store / "trials").glob("*/record.json"))
    record.write_text(record.read_text().replace('"schema": 2', '"schema": 99'))
    run = command(sweep, "--inline", "seeds=1", "--tracking-uri", "none")
    assert run.returncode == 2
    assert f"{record.parent.name}/record.json: record of schema 99, this version reads up to 2" in run.stderr
    assert "Traceback" not in run.stderr
    assert "gs:// is not a store this version knows" in command(sweep, "--store", "gs://bucket/x").stderr


def test_a_failed_trial_is_tried_again_and_mirrored_again(store, tmp_path):
    """The failure is real: a learning rate at which the loss overflows."""
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP.replace("seeds: 2", "seeds: 1"))
    assert command(sweep, "--inline", "~columns", "train.lr=1e30").returncode == 1
    assert command(sweep, "--inline", "~columns", "train.lr=1e30").returncode == 1
    folder = next((store / "trials").iterdir())
    attempts = sum('"start"' in line for line in (folder / "history.jsonl").read_text().splitlines())
    assert attempts == 2
    assert len(epochs_in_mlflow(store)) == 2


def test_plan_and_cfg_write_nothing(store, sweep):
    plan = command(sweep, "--plan")
    assert plan.returncode == 0, plan.stderr
    assert "0 finished, 8 to run" in plan.stdout
    shown = command(sweep, "--cfg")
    assert "neighbours: 8" in shown.stdout
    assert not (store / "trials").exists()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """The table of the sweep when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(SWEEP.replace("epochs: 2", "epochs: 4"))
    run = command(folder / "tiny.yaml", "--inline", "--store", folder / "store", "--tracking-uri", "none")
    assert run.returncode == 0, run.stderr
    return table(folder / "store")


def start_and_wait_for_progress(sweep: Path, store: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command in the background, at the moment when some trial has begun and none of the last has ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pointsweep.run", str(sweep), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any('"epoch"' in path.read_text() for path in (store / "trials").glob("*/history.jsonl")):
            return process
        time.sleep(0.02)
    pytest.fail(f"no trial began: {process.communicate()[0]}")


def run_until_complete(sweep: Path, *arguments: str) -> None:
    run = command(sweep, *arguments)
    assert run.returncode == 0, run.stdout + run.stderr


def test_kill_9_of_the_driver_loses_nothing_and_doubles_nothing(store, tmp_path, undisturbed):
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP.replace("epochs: 2", "epochs: 4"))
    for _ in range(2):
        process = start_and_wait_for_progress(sweep, store, "--inline")
        time.sleep(0.3)
        process.kill()
        process.communicate()
    run_until_complete(sweep, "--inline")
    assert table(store) == undisturbed
    steps = epochs_in_mlflow(store)
    assert len(steps) == 8
    assert all(sorted(seen) == [1, 2, 3, 4] for seen in steps.values()), steps


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_within_3_s_with_code_3(store, tmp_path, number):
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP.replace("epochs: 2", "epochs: 50"))
    process = start_and_wait_for_progress(sweep, store, "--inline", "--tracking-uri", "none")
    begun = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 3, output
    assert time.monotonic() - begun < 15  # 3 s on a quiet machine; the sweep would take longer
    assert "the same command continues" in output


def test_the_same_table_from_mlflow_alone(store, sweep):
    run_until_complete(sweep, "--inline")
    for form in ("text", "csv", "json"):
        outputs = [
            subprocess.run(
                [sys.executable, "-m", "pointsweep.tables", "tiny", "--format", form, *source],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for source in ([], ["--source", "mlflow", "--tracking-uri", f"sqlite:///{store}/mlflow.db"])
        ]
        assert outputs[0] == outputs[1]
        assert outputs[0].strip()


def test_data_arrays_are_shared_between_workers_not_copied():
    """Two processes that open one data set map the same file."""
    code = textwrap.dedent("""
        import numpy as np
        from pointsweep.config.validation import check_trial
        from pointsweep.training.runner import load_dataset
        config, _ = check_trial({"network": "point_nn", "dataset": {"name": "synthetic", "num_points": 64, "presample": 64}})
        points = load_dataset(config.dataset).train.points
        base = points
        while not isinstance(base, np.memmap) and getattr(base, "base", None) is not None:
            base = base.base
        print(base.filename)
    """)
    names = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert names[0] == names[1]
    assert names[0].strip().endswith(".npy")


def test_several_files_are_one_launch_and_what_they_share_trains_once(store, sweep, tmp_path):
    """The second table has one row of the first and one of its own; MLflow shows each table's trials in its own experiment."""
    second = tmp_path / "second.yaml"
    second.write_text(SWEEP.replace("name: tiny", "name: second", 1).replace("[lora, head_only]", "[lora, adapter]"))
    first = command(sweep, second, "--inline", "seeds=1")
    assert first.returncode == 0, first.stderr
    assert "all 2 together: 8 trials of cells are 6 distinct ones, 6 to run" in first.stdout
    assert len(list((store / "trials").glob("*/record.json"))) == 6
    assert table(store).keys() == table(store, "second").keys() >= {"table.txt"}
    from pointsweep.tracking.mlflow.reader import read_table

    for name in ("tiny", "second"):
        assert len(read_table(f"sqlite:///{store}/mlflow.db", name)[1]) == 4
    again = command(sweep, second, "--inline", "seeds=1")
    assert "all 2 together: 8 trials of cells are 6 distinct ones, 0 to run" in again.stdout


def test_problems_of_several_files_are_told_together(store, sweep, tmp_path, capsys):
    second = tmp_path / "second.yaml"
    second.write_text(SWEEP.replace("lora", "lorra"))
    third = tmp_path / "third.yaml"
    third.write_text(SWEEP.replace("tiny, modality: 1d", "tinny"))
    assert main([str(sweep), str(second), str(third), "--plan"]) == 2
    told = capsys.readouterr().err
    assert "lorra" in told and "tinny" in told and "second.yaml" in told
    assert main([str(sweep), str(sweep), "--plan"]) == 2
    assert "'tiny' is the name of several files" in capsys.readouterr().err
