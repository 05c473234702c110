"""Searches by the real command: complete, continued, killed; per row; with two objectives."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest

from tests.end_to_end.test_command import command, table

BASE = """
name: tiny
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 40, test_limit: 20, val_fraction: 0.25}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  train: {epochs: 2, batch_size: 8, warmup_epochs: 0}
"""
SEARCH = """search:
  space:
    method: [lora, prompt]
    train.lr: {float: [1e-4, 1e-2], log: true}
    method.rank: {int: [2, 8], when: {method: lora}}
  trials: 12
  sampler: {name: tpe, n_startup_trials: 4}
"""
PER_ARM = """rows: {method: [lora, prompt, head_only]}
per_arm:
  search: {space: {train.lr: {float: [1e-4, 1e-2], log: true}, method.rank: {int: [2, 8], when: {method: lora}}}}
  trials: 3
  then_seeds: 2
"""


def write(folder: Path, text: str, name: str = "tiny.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def studies(store: Path, name: str = "tiny") -> list[optuna.Study]:
    """The studies of a sweep, read as optuna-dashboard reads them."""
    url = f"sqlite:///{store}/sweeps/{name}/study.db"
    return [optuna.load_study(storage=url, study_name=each) for each in optuna.get_all_study_names(url)]


def records(store: Path) -> dict[str, float]:
    """key -> when its record was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (store / "trials").glob("*/record.json")}


def inline(sweep: Path, *arguments: object) -> str:
    run = command(sweep, "--inline", "--tracking-uri", "none", *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_a_search_ends_with_its_trials_and_its_table_and_a_rerun_trains_nothing(store, tmp_path):
    sweep = write(tmp_path, BASE + SEARCH.replace("12", "5"))
    inline(sweep)
    (study,) = studies(store)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 5
    before, times = table(store), records(store)
    rows = list(csv.DictReader(before["table.csv"].decode().splitlines()))
    best = max(study.trials, key=lambda trial: trial.value)
    assert float(rows[0]["mean"]) == best.value
    assert {row["metric"] for row in rows} == {"val/accuracy"}
    assert f"train.lr={best.params['train.lr']!r}" in " ".join(before["table.txt"].decode().split())
    report = (store / "sweeps/tiny/report.html").read_text()
    assert "Parallel coordinates" in report and report.count(f">suggestion {best.number}</th>") >= 2
    assert "5 of 5" not in inline(sweep)
    assert (table(store), records(store)) == (before, times)


@pytest.mark.slow
def test_more_trials_continue_the_study_and_a_changed_space_is_told_what_is_there(store, tmp_path):
    inline(write(tmp_path, BASE + SEARCH.replace("12", "3")))
    inline(write(tmp_path, BASE + SEARCH.replace("12", "5")))
    assert len(studies(store)[0].trials) == 5
    wider = inline(write(tmp_path, BASE + SEARCH.replace("12", "2").replace("1e-4", "1e-5")))
    assert "5 finished trials of the store lay in the space and were told to the search first" in " ".join(wider.split())
    assert sorted(len(study.trials) for study in studies(store)) == [5, 7]
    assert len(records(store)) == 7


def test_every_row_is_tuned_with_one_budget_then_trained_with_fresh_seeds(store, tmp_path):
    text = " ".join(inline(write(tmp_path, BASE + PER_ARM)).split())
    assert [len(study.trials) for study in studies(store)] == [3, 3, 3]
    assert "every row was tuned with the same budget: 3 trials by tpe, sampler seed 0, aiming at val/accuracy" in text
    assert "with fresh seeds: 1, 2" in text
    for study in studies(store):
        assert f"train.lr={study.best_trial.params['train.lr']!r}" in text
    cells = list(csv.DictReader(table(store)["table.csv"].decode().splitlines()))
    assert [(cell["n"], cell["status"], cell["metric"]) for cell in cells] == [("2", "complete", "test/accuracy")] * 3


@pytest.mark.slow
def test_two_objectives_give_the_front(store, tmp_path):
    text = SEARCH.replace("12", "6") + "  objectives: {val/accuracy: maximize, parameters: minimize}\n"
    inline(write(tmp_path, BASE + text))
    (study,) = studies(store)
    front = {(trial.values[0], trial.values[1]) for trial in study.best_trials}
    rows = list(csv.DictReader(table(store)["table.csv"].decode().splitlines()))
    assert {(float(row["mean"]), float(row["trainable_without_head"])) for row in rows} == front


@pytest.mark.slow
def test_suggestions_that_fail_are_counted_and_not_ranked(store, tmp_path):
    text = SEARCH.replace("12", "3").replace("train.lr: {float: [1e-4, 1e-2], log: true}", "train.lr: [1e+30, 1e-3]")
    run = command(
        write(tmp_path, BASE + text + "  enqueue: [{train.lr: 1e+30}, {train.lr: 1e-3}]\n"), "--inline", "--tracking-uri", "none"
    )
    assert run.returncode == 0, run.stdout + run.stderr
    states = Counter(trial.state.name for trial in studies(store)[0].trials)
    assert states["FAIL"] >= 1 and sum(states.values()) == 3
    assert f"{states['FAIL']} suggestions failed" in run.stdout
    every = text.replace("[1e+30, 1e-3]", "[1e+30]").replace("name: tiny", "name: other")
    assert command(write(tmp_path, BASE + every), "--inline", "--tracking-uri", "none").returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheduler", ["{name: median, min_trials: 2}", "{name: asha, reduction: 2}", "{name: hyperband, reduction: 2}"]
)
def test_a_stopped_trial_is_counted_and_not_ranked_killed_or_not(store, tmp_path, scheduler):
    text = SEARCH.replace("12", "8") + f"  scheduler: {scheduler}\n  batch: 2\n"
    sweep = write(tmp_path, BASE.replace("epochs: 2", "epochs: 4") + text)
    printed = " ".join(inline(sweep, "--store", tmp_path / "undisturbed").split())
    (whole,) = studies(tmp_path / "undisturbed")
    states = Counter(trial.state.name for trial in whole.trials)
    assert states["PRUNED"] >= 1 and states["COMPLETE"] + states["PRUNED"] == 8
    assert (
        f"{states['PRUNED']} suggestions were stopped early by {scheduler[7:].split(',')[0]}; they count and are not ranked"
        in printed
    )
    rows = list(csv.DictReader(table(tmp_path / "undisturbed")["table.csv"].decode().splitlines()))
    ranked = {row["trial"] for row in rows}
    assert ranked == {f"#{trial.number}" for trial in whole.trials if trial.state.name == "COMPLETE"}
    kill_repeatedly(sweep, store, 8, 2, random.Random(1))
    seen = [[(t.params, t.values, t.state, t.intermediate_values) for t in study.trials] for study in (whole, studies(store)[0])]
    assert seen[0] == seen[1]


@pytest.mark.slow
def test_a_search_on_ray(store, tmp_path):
    sweep = write(tmp_path, BASE + SEARCH.replace("12", "4"))
    run = command(sweep, "--workers", "2")
    assert run.returncode == 0, run.stdout + run.stderr
    on_ray = [trial.params for trial in studies(store)[0].trials]
    inline(sweep, "--store", tmp_path / "other")
    assert [trial.params for trial in studies(tmp_path / "other")[0].trials] == on_ray


def test_a_bad_search_is_refused_and_nothing_is_launched(store, tmp_path):
    run = command(write(tmp_path, BASE.replace(", val_fraction: 0.25", "") + SEARCH), "--inline")
    assert run.returncode == 2
    assert "a search needs a validation split" in run.stderr
    assert not store.exists()


def kill_repeatedly(sweep: Path, store: Path, trials: int, kills: int, order: random.Random) -> None:
    """Kills the command again and again, each time after it has done something, then lets it end."""
    for _ in range(kills):
        begun = len(records(store))
        arguments = [sys.executable, "-m", "pointsweep.run", str(sweep), "--inline", "--tracking-uri", "none"]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and len(records(store)) == begun and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(order.uniform(0, 0.6))
        process.kill()
        process.communicate()
    inline(sweep)


@pytest.mark.parametrize("trials, kills", [(8, 2), pytest.param(40, 25, marks=pytest.mark.slow)])
def test_kill_9_leaves_exactly_the_stated_trials_each_told_once(store, tmp_path, trials, kills):
    sweep = write(tmp_path, BASE + SEARCH.replace("12", str(trials)))
    inline(sweep, "--store", tmp_path / "undisturbed")
    kill_repeatedly(sweep, store, trials, kills, random.Random(0))
    (study,), (whole,) = studies(store), studies(tmp_path / "undisturbed")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * trials
    # A search that was killed is the search that was not: suggestion for suggestion, value for value.
    assert [(trial.params, trial.values) for trial in study.trials] == [(trial.params, trial.values) for trial in whole.trials]
    keys = {key for trial in study.trials for key in trial.user_attrs["keys"]}
    assert set(records(store)) == keys
    assert table(store)["table.csv"] == table(tmp_path / "undisturbed")["table.csv"]
