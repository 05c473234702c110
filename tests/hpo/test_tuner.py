"""What comes of a study: limits, fronts, values."""

from __future__ import annotations

import math
import random

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from pointsweep.cli.run import main
from pointsweep.hpo.pruners import bracket_of, limits_of, rungs
from pointsweep.hpo.suggestion import Suggestion
from pointsweep.hpo.tuner import Tuning, chosen
from pointsweep.hpo.warm_start import objective
from pointsweep.results.records import Record
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore
from pointsweep.sweep.search_space import WARMUP, Search
from pointsweep.sweep.sweep import load

HOURS = """
name: t
base:
  dataset: {name: synthetic, val_fraction: 0.25}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  method: head_only
search: {space: {train.lr: {float: [1e-4, 1e-2], log: true}}, sampler: random, hours: 1.5, batch: 2}
"""
TWO = Search(objectives={"val/accuracy": "maximize", "parameters": "minimize"})


def test_the_median_rule_stops_below_the_median_of_those_that_got_there():
    search = Search(scheduler="median", schedule={"warmup_epochs": 2, "min_trials": 3})
    curves = [{1: 0.1, 2: 0.2, 3: 0.5}, {1: 0.2, 2: 0.4, 3: 0.7}, {1: 0.3, 2: 0.6}]
    assert limits_of(curves, search, 9) == {2: 0.4}


def test_asha_lets_the_best_share_pass_each_rung():
    search = Search(scheduler="asha", schedule={"min_epochs": 1, "reduction": 3})
    curves = [{1: value, 2: value, 3: value} for value in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    # Two of seven, and the new one must be better than the second; nobody has come to epoch 9.
    above = math.nextafter(0.5, 1)
    assert limits_of(curves, search, 10) == {1: above, 3: above, 9: math.inf}
    assert limits_of(curves[:4], search, 3) == {1: math.nextafter(0.4, 1)}
    assert rungs(Search(scheduler="asha", schedule={"min_epochs": 2, "reduction": 3}), 19) == [2, 6, 18]


@pytest.mark.parametrize("reduction", [2, 3, 4])
def test_asha_stops_what_optunas_pruner_stops(reduction):
    search = Search(scheduler="asha", schedule={"min_epochs": 1, "reduction": reduction})
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=reduction, min_early_stopping_rate=0)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    order, seen, ends = random.Random(0), [], []
    for _ in range(40):
        limits, trial, curve = limits_of(seen, search, 28), study.ask(), {}
        for epoch in range(1, 28):
            curve[epoch] = order.random()
            trial.report(curve[epoch], epoch)
            stop = trial.should_prune()
            # Who is the first at a rung waits for the next batch, and then goes on: the best so far always does.
            alone = limits.get(epoch) == math.inf
            assert stop == (not alone and epoch in limits and curve[epoch] < limits[epoch]), (len(seen), epoch)
            if stop:
                break
        study.tell(trial, state=TrialState.PRUNED) if stop else study.tell(trial, curve[27])
        seen.append(curve)
        ends.append(len(curve))
    assert ends[0] == 27 and len(set(ends)) >= 3


def test_a_bracket_of_hyperband_begins_to_judge_later_than_the_one_before():
    search = Search(scheduler="hyperband", schedule={"min_epochs": 1, "reduction": 3})
    curves = [dict.fromkeys(range(1, 10), value) for value in (0.1, 0.2, 0.3)]
    assert [sorted(limits_of(curves, search, 10, bracket)) for bracket in range(3)] == [[1, 3, 9], [3, 9], [9]]


def test_the_brackets_of_hyperband_have_the_papers_shares():
    """Algorithm 1 of arXiv 1603.06560 with R = 81 and eta = 3: ceil(5 / (s + 1) * 3^s) trials for s = 4, 3, 2, 1, 0."""
    search = Search(scheduler="hyperband", schedule={"min_epochs": 1, "reduction": 3})
    found = [bracket_of(number, search, 81) for number in range(143)]
    assert [found.count(bracket) for bracket in range(5)] == [81, 34, 15, 8, 5]
    assert {found[number] for number in range(20)} == {0, 1, 2, 3, 4}  # a short search has some of each
    assert {bracket_of(number, Search(scheduler="asha"), 81) for number in range(9)} == {0}


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_is_what_no_other_trial_beats(values):
    items = [Suggestion(i, {}, (0,), "complete", (a / 5, float(p))) for i, (a, p) in enumerate(values)]
    front = {item.values for item in chosen(items, TWO)}
    beaten = {(a, p) for a, p in front for b, q in {item.values for item in items} if b >= a and q <= p and (b, q) != (a, p)}
    assert front and not beaten
    for item in items:  # whatever is not on the front is beaten by, or equal to, something on it
        assert any(b >= item.values[0] and q <= item.values[1] for b, q in front)


def test_the_best_come_first_and_equal_ones_in_their_order():
    items = [Suggestion(i, {}, (0,), "complete", (value,)) for i, value in enumerate((0.1, 0.5, 0.5, 0.3))]
    assert [item.number for item in chosen(items, Search(top=3))] == [1, 2, 3]


def test_a_search_ends_with_the_batch_that_spends_its_hours(tmp_path, monkeypatch):
    """Half an hour a trial: two batches of two make two hours, which is past one and a half."""
    monkeypatch.setattr("pointsweep.hpo.tuner.seconds_of", lambda key, store: 1800.0)
    monkeypatch.setattr("pointsweep.hpo.tuner.values_of", lambda keys, *_: (0.5,))
    file = tmp_path / "t.yaml"
    file.write_text(HOURS)
    said: list[str] = []
    for _ in range(2):  # the same command again asks for nothing more
        tuning = Tuning(load(file), FileStore(tmp_path / "store"))
        tuning.run(lambda batch, limits, on_end: None, said.append)
    assert said == [
        "t: 2 of 1000 suggestions finished, 1 of 1.5 hours spent",
        "t: 4 of 1000 suggestions finished, 2 of 1.5 hours spent",
    ]


def test_objectives_are_read_from_the_protocols_epoch():
    record = Record(
        "k", {}, {"last": {"val/accuracy": 0.4, "val/loss": 2.0}, "best_val": {"val/accuracy": 0.6}}, {"trainable_without_head": 12, "trainable": 99}, {}, "none"
    )  # fmt: skip
    assert [objective(record, "val/accuracy", protocol) for protocol in ("last", "best_val")] == [0.4, 0.6]
    assert [objective(record, name, "last") for name in ("val/loss", "parameters")] == [2.0, 12.0]


@pytest.mark.parametrize("warmup", [1, 2, 5])
def test_nobody_is_judged_inside_the_warm_up_of_the_training(warmup):
    asha = Search(scheduler="asha", schedule={"min_epochs": 1, "reduction": 3, WARMUP: warmup})
    assert rungs(asha, 20) == [warmup + length for length in (1, 3, 9)]
    median = Search(scheduler="median", schedule={"warmup_epochs": 1, "min_trials": 1, WARMUP: warmup})
    curves = [{epoch: 0.1 * epoch for epoch in range(1, 9)}]
    assert min(limits_of(curves, median, 9)) == warmup + 1


COURSE = """
name: t
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 32, test_limit: 16, val_fraction: 0.25}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  method: lora
  train: {epochs: 2, batch_size: 16, warmup_epochs: 0}
search:
  space: {train.lr: {float: [1e-4, 1e-2], log: true}}
  sampler: random
  trials: 2
  seed: 1
"""


def test_optuna_shows_objectives_by_name_each_trials_course_and_where_it_is(store, tmp_path):
    """Without a scheduler too: what the study's database gives to anybody's dashboard."""
    file = tmp_path / "t.yaml"
    file.write_text(COURSE)
    assert main([str(file), "--inline"]) == 0
    [name] = optuna.get_all_study_names(f"sqlite:///{store}/sweeps/t/study.db")
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{store}/sweeps/t/study.db")
    assert study.metric_names == ["val/accuracy"]
    assert len(study.trials) == 2
    for trial in study.trials:
        [key] = trial.user_attrs["keys"]
        epochs = TrialFolder(store / "trials" / key).epochs()
        assert len(epochs) == 2
        assert trial.intermediate_values == {line["epoch"]: line["metrics"]["val/accuracy"] for line in epochs}
        assert trial.user_attrs["cell"] == "t"
        assert trial.user_attrs["seconds"] == pytest.approx(sum(line["seconds"] for line in epochs), rel=1e-6)
        [page] = trial.user_attrs["mlflow"]
        assert page.startswith("http://127.0.0.1:5000/#/experiments/")
        assert key in page
    # One batch of two, one after the other: the first was told when it ended, before the second began.
    [_, (began, ended)] = [span(store, trial) for trial in study.trials]
    [first, second] = [trial.datetime_complete.timestamp() for trial in study.trials]
    assert first < began < ended <= second


def span(store, trial) -> tuple[float, float]:
    """When a suggestion's trial began, by its history, and when its record was written."""
    [key] = trial.user_attrs["keys"]
    events = TrialFolder(store / "trials" / key).events()
    [begin] = [event["time"] for event in events if event["type"] == "start"]
    return begin, (store / "trials" / key / "record.json").stat().st_mtime
