"""A study: the same suggestions as plain Optuna, whole or cut off anywhere."""

from __future__ import annotations

import json
import math
import warnings
from decimal import Decimal
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsweep.errors import ResourcesError
from pointsweep.hpo.samplers import distribution
from pointsweep.hpo.study import Study
from pointsweep.sweep.search_space import Parameter
from pointsweep.sweep.sweep import load
from tests.support.postgres import MISSING, postgres

FILE = """
name: t
base:
  dataset: {name: synthetic, val_fraction: 0.25}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
search:
  space:
    method: [lora, prompt]
    train.lr: {float: [1e-4, 1e-2], log: true}
    train.weight_decay: {float: [0.0, 0.1], step: 0.02}
    method.rank: {int: [2, 64], log: true, when: {method: lora}}
  sampler: SAMPLER
  seed: 5
"""
FLAT = FILE.replace("    method: [lora, prompt]\n", "    train.decay_tokens: [true, false]\n").replace(
    "    method.rank: {int: [2, 64], log: true, when: {method: lora}}\n", ""
).replace("modality: 1d}\n", "modality: 1d}\n  method: lora\n")  # fmt: skip


def program(trial: optuna.Trial) -> dict:
    """The space of FILE as one would write it for Optuna."""
    drawn = {"method": trial.suggest_categorical("method", ["lora", "prompt"])}
    drawn["train.lr"] = trial.suggest_float("train.lr", 1e-4, 1e-2, log=True)
    drawn["train.weight_decay"] = trial.suggest_float("train.weight_decay", 0.0, 0.1, step=0.02)
    if drawn["method"] == "lora":
        drawn["method.rank"] = trial.suggest_int("method.rank", 2, 64, log=True)
    return drawn


def score(drawn: dict) -> float:
    return -abs(math.log10(drawn["train.lr"]) + 3) - drawn["train.weight_decay"] + 0.1 * (drawn.get("method") == "lora")


STEPPED = (
    FILE[: FILE.index("    method: [lora")].replace("modality: 1d}\n", "modality: 1d}\n  method: lora\n")
    + "    train.weight_decay: {float: [LOW, HIGH], step: STEP}\n  sampler: SAMPLER\n  seed: 5\n  trials: 200\n"
)


@pytest.fixture
def study(tmp_path):
    def made(text: str = FILE, sampler: str = "tpe", name: str = "study") -> Study:
        (tmp_path / "t.yaml").write_text(text.replace("SAMPLER", sampler))
        sweep = load(tmp_path / "t.yaml")
        return Study(f"sqlite:///{tmp_path}/{name}.db", "t", sweep.cells[0].arm, sweep.search)

    return made


def search(study: Study, trials: int, batch: int = 4) -> list[dict]:
    """A whole search, or the rest of one."""
    study.start([])
    while ended := trials - sum(item.state != "running" for item in study.suggestions()):
        asked = study.ask(min(batch, ended))
        study.tell({item.number: (score(item.drawn),) for item in asked})
    return [dict(item.drawn) for item in study.suggestions()]


SAMPLERS = {
    "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=5),
    "nsga3": lambda: optuna.samplers.NSGAIIISampler(seed=5),
    "tpe": lambda: optuna.samplers.TPESampler(seed=5),
    "random": lambda: optuna.samplers.RandomSampler(seed=5),
    "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=5),
    "qmc": lambda: optuna.samplers.QMCSampler(seed=5),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_seed_gives_the_same_suggestions_as_plain_optuna(study, name):
    if name == "cmaes":
        pytest.importorskip("cmaes")
    plain = optuna.create_study(sampler=SAMPLERS[name](), direction="maximize")
    expected = []
    for _ in range(6):
        asked = [plain.ask() for _ in range(4)]
        drawn = [program(trial) for trial in asked]
        for trial, each in zip(asked, drawn, strict=True):
            plain.tell(trial, score(each))
        expected += drawn
    assert search(study(sampler=name), 24) == expected


@pytest.mark.parametrize("name", ["tpe", "nsga2", "gp"])
def test_a_search_that_ends_anywhere_goes_on_as_if_it_had_not(study, name):
    """Cut off after any write to the log: the log is then read by a new process, which here is a new Study."""
    trials = 14 if name == "gp" else 18
    whole = search(study(FLAT, name, "whole"), trials)

    class End(Exception):
        pass

    writes = 0
    while True:
        cut = study(FLAT, name, "cut")
        left = [2]  # writes that this process still makes

        def ends(write, left=left):
            def counted(*args, **options):
                nonlocal writes
                if not left[0]:
                    raise End
                left[0] -= 1
                writes += 1
                return write(*args, **options)

            return counted

        cut.log.add_trial, cut.log.tell = ends(cut.log.add_trial), ends(cut.log.tell)
        if name == "gp" and len(cut.suggestions()) < 10:
            left[0] = 11  # a replay of this sampler costs more
        try:
            found = search(cut, trials)
            break
        except End:
            continue
    assert found == whole
    assert writes == 2 * trials  # every suggestion was written once and told once
    assert {item.state for item in cut.suggestions()} == {"complete"}


@pytest.mark.parametrize("name", ["tpe", "nsga2", "cmaes"])
def test_the_order_in_which_trials_end_changes_no_suggestion(study, name):
    """Each told by itself, the last of a batch first, and every second one by another process: the log knows it at once."""
    if name == "cmaes":
        pytest.importorskip("cmaes")
    whole = search(study(FLAT, name, "whole"), 24)
    told = study(FLAT, name, "told")
    told.start([])
    for _ in range(6):
        for count, item in enumerate(reversed(told.ask(4))):
            told.tell({item.number: (score(item.drawn),)})
            assert told.log.trials[item.number].value == score(item.drawn)
            if count == 1:
                told = study(FLAT, name, "told")
                assert len(told.ask(4)) == 2
    assert [dict(item.drawn) for item in told.suggestions()] == whole


def test_options_that_do_not_go_together_are_refused_before_anything_is_asked(study):
    with pytest.raises(ResourcesError, match=r"sampler nsga2: `population_size` must be greater than or equal to 2"):
        study(sampler="{name: nsga2, population_size: 1}")


def test_importances_find_the_key_that_matters(study):
    made = study(FLAT, "random")
    search(made, 40)  # the score is above all one of the learning rate
    (shares,) = made.importances().values()
    assert max(shares, key=shares.get) == "train.lr" and sum(shares.values()) == pytest.approx(1)
    assert study(FLAT, "random", "empty").importances() == {}


def test_importances_know_the_direction(study):
    """The same costs, once to be maximised with their sign turned and once to be minimised, say the same."""
    made = [
        study(FLAT + objective, "random", name) for name, objective in (("up", ""), ("down", "  objectives: {val/loss: minimize}\n"))
    ]
    for each, sign in zip(made, (1, -1), strict=True):
        each.start([])
        while len(each.suggestions()) < 24:
            each.tell({item.number: (sign * score(item.drawn),) for item in each.ask(4)})
    assert made[0].importances()["val/accuracy"] == pytest.approx(made[1].importances()["val/loss"])


def test_optuna_dashboard_opens_the_study(study, tmp_path):
    dashboard = pytest.importorskip("optuna_dashboard")
    search(study(), 6)
    app = dashboard.wsgi(f"sqlite:///{tmp_path}/study.db")

    def get(path: str) -> dict:
        environ: dict = {"PATH_INFO": path}
        setup_testing_defaults(environ)
        status: list[str] = []
        body = b"".join(app(environ, lambda text, headers, *_: status.append(text)))
        assert status == ["200 OK"], body
        return json.loads(body)

    (found,) = get("/api/studies")["study_summaries"]
    detail = get(f"/api/studies/{found['study_id']}")
    assert [trial["state"] for trial in detail["trials"]] == ["Complete"] * 6
    assert {each["name"] for each in detail["union_search_space"]} == {"method", "train.lr", "train.weight_decay", "method.rank"}


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_a_study_on_postgresql_is_the_one_in_a_file_and_goes_on(study, tmp_path):
    whole = search(study(), 12)
    arm, settings = study().arm, study().search
    with postgres() as url:
        search(Study(url, "t", arm, settings), 8)  # two batches of the three
        assert search(Study(url, "t", arm, settings), 12) == whole


def test_what_failed_is_not_ranked_and_not_told_a_value(study):
    made = study(FLAT)
    made.start([])
    asked = made.ask(2)
    made.tell({asked[0].number: None, asked[1].number: (0.5,)})
    assert [(item.state, item.values) for item in made.suggestions()] == [("failed", ()), ("complete", (0.5,))]
    made.tell({asked[0].number: (0.9,)})  # told once
    assert made.suggestions()[0].state == "failed"


def test_start_points_come_first_and_what_they_leave_open_is_drawn(study):
    made = study(FILE + "  enqueue: [{method: lora, method.rank: 7}, {train.lr: 0.001}]\n")
    first, second = search(made, 2)
    assert (first["method"], first["method.rank"]) == ("lora", 7)
    assert second["train.lr"] == 0.001


def test_a_grid_ends_with_its_last_point(study):
    text = FLAT.replace("{float: [1e-4, 1e-2], log: true}", "[1e-3, 1e-4]").replace(", 0.1], step", ", 0.04], step")
    made = study(text, "grid")
    made.start([])
    drawn = []
    while asked := made.ask(5):
        made.tell({item.number: (0.5,) for item in asked})
        drawn += [tuple(item.drawn.values()) for item in asked]
    assert len(drawn) == len(set(drawn)) == 2 * 2 * 3


def test_suggestions_keep_the_constraints(study):
    text = FILE + "  constraints: [train.lr < 2e-3, method.rank % 2 == 0]\n"
    drawn = search(study(text, "random"), 20)
    assert all(each["train.lr"] < 2e-3 and each.get("method.rank", 0) % 2 == 0 for each in drawn)


def test_constraints_that_leave_next_to_nothing_end_the_search_with_a_word(study):
    with pytest.raises(ResourcesError, match="1000 suggestions in a row break a constraint"):
        search(study(FILE + "  constraints: [train.lr <= 1e-4]\n", "random"), 4)


def test_a_log_that_cannot_be_replayed_is_gone_on_with(study):
    made = study(FLAT)
    search(made, 8)
    made.log.set_user_attr("started", False)
    other = study(FLAT.replace("seed: 5", "seed: 6"))  # as if another version of Optuna drew otherwise
    assert len(search(other, 16)) == 16
    assert "could not be replayed" in other.note


def test_finished_trials_are_told_first_and_once(study):
    point = {"train.decay_tokens": True, "train.lr": 1e-3, "train.weight_decay": 0.02}
    for _ in range(2):
        made = study(FLAT)
        made.log.set_user_attr("started", False)  # as after an end within the telling
        made.start([(point, (0.7,), ["a"], {})])
    assert [(item.known, item.values) for item in made.suggestions()] == [(True, (0.7,))]
    assert [item.known for item in made.ask(2)] == [False, False]
    assert len(made.live.trials) == 3


def decimals(low: str, high: str, step: str) -> list[float]:
    """The points of a stepped range by decimal arithmetic."""
    count = (Decimal(high) - Decimal(low)) // Decimal(step)
    return [float(Decimal(low) + i * Decimal(step)) for i in range(int(count) + 1)]


@pytest.mark.parametrize(
    ("low", "high", "step"),
    [("0.0", "0.6", "0.1"), ("0.0", "0.1", "0.02"), ("0.1", "0.9", "0.2"), ("0.05", "0.35", "0.05"), ("0.3", "1.0", "0.1"), ("0.0", "0.5", "0.15")],
)  # fmt: skip
def test_a_grid_over_a_stepped_range_has_every_decimal_once_and_ends(study, low, high, step):
    text = STEPPED.replace("LOW", low).replace("HIGH", high).replace("STEP", step)
    expected = decimals(low, high, step)
    first = study(text, "grid")
    first.start([])
    for _ in range(2):  # and again from what the log holds
        while asked := first.ask(3):
            first.tell({item.number: (0.0,) for item in asked})
        assert [item.drawn["train.weight_decay"] for item in first.suggestions()] == expected
        first = study(text, "grid")
    assert expected[-1] <= float(high)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_sampler_draws_the_decimals_of_a_stepped_range_and_is_replayed(study, sampler):
    text = STEPPED.replace("LOW", "0.0").replace("HIGH", "0.6").replace("STEP", "0.1")
    text = text.replace("  space:\n", "  space:\n    train.lr: {float: [1e-4, 1e-2], log: true}\n")
    drawn = search(study(text, sampler), 12)
    assert {point["train.weight_decay"] for point in drawn} <= set(decimals("0.0", "0.6", "0.1"))
    cut = study(text, sampler, "cut")
    cut.start([])
    cut.tell({item.number: (score(item.drawn),) for item in cut.ask(4)})
    again = study(text, sampler, "cut")
    assert search(again, 12) == drawn
    assert again.note == ""


def test_a_grid_that_an_earlier_version_left_in_the_middle_is_finished(study):
    text = STEPPED.replace("LOW", "0.0").replace("HIGH", "0.6").replace("STEP", "0.1")
    old = study(text, "grid")
    old.start([])
    for index in range(6):  # 0.30000000000000004 among them
        old._add({"train.weight_decay": 0.0 + index * 0.1}, {"batch": index, "keys": ["k"]}, (0.0,))
    new = study(text, "grid")
    assert [dict(item.drawn) for item in new.ask(4)] == [{"train.weight_decay": 0.6}]
    assert new.note == ""


numbers = st.builds(lambda digits, places: str(Decimal(digits).scaleb(-places)), st.integers(-2000, 2000), st.integers(0, 6))
steps = st.builds(lambda digits, places: str(Decimal(digits).scaleb(-places)), st.integers(1, 2000), st.integers(0, 6))


@settings(max_examples=150, deadline=None)
@given(numbers, st.integers(0, 60), steps, st.sampled_from(["0", "0.1", "0.5", "0.9", "0.999999"]))
def test_every_point_of_every_stepped_range_is_one_of_optunas(low, count, step, rest):
    """The upper end lies somewhere within the step after the last point, or on this."""
    high = str(Decimal(low) + (count + Decimal(rest)) * Decimal(step))
    parameter = Parameter("train.lr", "float", float(low), float(high), step=float(step))
    if max(abs(parameter.low), abs(parameter.high)) * 2**-52 > 4e-9 * parameter.step:
        return  # refused when the file is read
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna says that it moves the upper end
        made = distribution(parameter)
    assert parameter.size() == count + 1
    points = [parameter.at(index) for index in range(parameter.size())]
    assert points == decimals(low, high, step)
    assert (points[0], points[-1]) == (made.low, made.high)
    assert all(made._contains(point) for point in points)
    for index, point in enumerate(points):
        rounded = min(parameter.low + index * parameter.step, made.high)  # as a sampler draws it
        assert parameter.nearest(rounded) == point == parameter.drawn(point)
