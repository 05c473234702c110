"""The search: and per_arm: sections: what they mean, and what is said when they are wrong."""

from __future__ import annotations

import pytest

from pointsweep.config.schema import TrialConfig
from pointsweep.sweep.sweep import Sweep, load
from tests.support.sweep_files import problems

BASE = """
name: t
base:
  dataset: {name: synthetic, val_fraction: 0.25}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  method: {name: lora, rank: 4}
"""
SPACE = "{train.lr: {float: [1e-4, 1e-2], log: true}}"


def config(sweep: Sweep, **drawn) -> TrialConfig | None:
    return sweep.cells[0].arm.config({key.replace("__", "."): value for key, value in drawn.items()})


def test_a_suggestion_lies_above_the_base_and_its_conditional_settings(write):
    text = "settings: [{when: {method: prompt}, method.init_std: 0.5, train.lr: 1e-3}]\nsearch:\n  space: {method: [lora, prompt], train.lr: {float: [1e-4, 1e-2]}}\n"
    sweep = load(write(text))
    assert sweep.trials() == []
    made = config(sweep, method="prompt", train__lr=0.005)
    assert (made.method.name, made.method.init_std, made.train.lr) == ("prompt", 0.5, 0.005)
    assert config(sweep, method="lora", train__lr=0.005).method.rank == 4


def test_conditions_hold_where_the_key_has_the_value(write):
    text = """
search:
  space:
    positions.translation: {float: [-2.0, 2.0], when: {backbone.modality: 2d}}
    positions.line: {choices: [[1, 0, 0], [0, 0, 1]], when: {backbone.modality: 1d}}
    backbone: [{name: tiny, modality: 1d}, {name: tiny, modality: 2d}, clip_text, dinov2]
"""
    arm = load(write(text)).cells[0].arm
    assert [parameter.key for parameter in arm.parameters] == ["backbone", "positions.translation", "positions.line"]
    applying = {
        choice: [p.key for p in arm.parameters[1:] if arm.applies(p, {"backbone": choice})] for choice in arm.parameters[0].labels
    }
    # Of a real backbone the modality is no field; it is known all the same.
    assert list(applying.values()) == [
        [k] for k in ("positions.line", "positions.translation", "positions.line", "positions.translation")
    ]


def test_constraints_leave_out_what_breaks_them_and_do_not_apply_to_keys_that_are_not_set(write):
    text = "search:\n  space: {method: [lora, prompt], method.rank: {int: [1, 9], when: {method: lora}}}\n  constraints: [method.rank % 2 == 0 and method.rank < 8]\n"
    sweep = load(write(text))
    kept = [rank for rank in range(1, 10) if config(sweep, method="lora", method__rank=rank) is not None]
    assert kept == [2, 4, 6]
    assert config(sweep, method="prompt") is not None


def test_a_stored_trial_is_located_in_the_space_or_found_to_lie_outside(write):
    text = "search:\n  space: {method: [lora, prompt], train.lr: {float: [1e-4, 1e-2]}, method.rank: {int: [2, 8, ], step: 2, when: {method: lora}}}\n"
    arm = load(write(text)).cells[0].arm
    point = {"method": "lora", "train.lr": 0.0012520653814999472, "method.rank": 6}
    assert arm.located(arm.config(point).to_dict()) == point
    for outside in ({"train.lr": 0.5}, {"method.rank": 5}):
        assert arm.located(arm.config(point | outside).to_dict()) is None
    assert arm.located(arm.config({"method": "prompt", "train.lr": 1e-3}).to_dict()) == {"method": "prompt", "train.lr": 1e-3}


def test_a_grid_has_the_points_that_keep_conditions_and_constraints(write):
    text = """
search:
  sampler: grid
  space: {method: [lora, prompt], method.rank: {int: [2, 8], step: 2, when: {method: lora}}, train.lr: [1e-3, 1e-4]}
  constraints: [method.rank <= 6]
"""
    points = load(write(text)).cells[0].arm.enqueue
    assert len(points) == 3 * 2 + 2
    assert points[0] == {"method": "lora", "method.rank": 2, "train.lr": 1e-3}


def test_the_smoke_profile_makes_a_search_small(write):
    text = f"rows: {{method: [lora, prompt]}}\nper_arm: {{search: {{space: {SPACE}}}, trials: 20, then_seeds: 5}}\n"
    sweep = load(write(text), ["profile=smoke"])
    assert (sweep.search.trials, sweep.search.then_seeds) == (4, 2)
    assert load(write(text), ["per_arm.trials=7"]).search.trials == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("search: {space: {train.lr: {float: [1e-2, 1e-4]}}}\n", "search.space.train.lr (line 8): the range is empty: 0.01 is above 0.0001"),
        ("search: {space: {train.lr: []}}\n", "search.space.train.lr (line 8): the range is empty"),
        ("search: {space: {train.lr: {float: [0, 1], log: true}}}\n", "needs a low end above 0"),
        ("search: {space: {train.lr: {flaot: [0, 1]}}}\n", "must be a list of choices, {float: [low, high]}"),
        ("search: {space: {train.lr: {float: [0.1, 1], lgo: true}}}\n", "search.space.train.lr.lgo (line 8): unknown key 'lgo'. Did you mean 'log'?"),
        ("search: {space: {method.rnk: {int: [1, 4]}}}\n", "search.space.method.rnk (line 8): lora has no field 'rnk'. Did you mean 'rank'?"),
        ("search: {space: {method: [lorra, prompt]}}\n", "search.space.method (line 8): unknown method 'lorra'. Did you mean 'lora'?"),
        ("search: {space: {method.rank: {int: [0, 4]}}}\n", "search.space.method.rank (line 8): must be at least 1, got 0"),
        ("search: {space: {trian.lr: {float: [0.1, 1]}}}\n", "unknown key 'trian'. Did you mean 'train'?"),
        ("search: {space: {method.rank: {int: [1, 4], when: {method: prompt}}, train.lr: [0.1]}}\n", "search.space.method.rank (line 8): is never chosen"),
        ("search: {space: {method.rank: {int: [3, 9]}}, constraints: [method.rank < 2]}\n", "is empty: no point keeps the constraints"),
        ("search: {space: {method.rank: {int: [3, 9]}}, constraints: [method.rank.bit_length()]}\n", "search.constraints[0] (line 8): no constraint"),
        ("search: {space: SPACE, sampler: tpee}\n", "search.sampler (line 8): unknown sampler 'tpee'. Did you mean 'tpe'?"),
        ("search: {space: SPACE, sampler: {name: tpe, startup: 3}}\n", "unknown option of tpe 'startup'. Did you mean 'n_startup_trials'?"),
        ("search: {space: SPACE, sampler: {name: tpe, n_startup_trials: few}}\n", "search.sampler.n_startup_trials (line 8): must be a whole number, got 'few'"),
        ("search: {space: SPACE, sampler: cmaes, objectives: {val/accuracy: maximize, parameters: minimize}}\n", "search.sampler (line 8): cmaes aims at one objective, got val/accuracy, parameters"),
        ("search: {space: SPACE, sampler: {name: cmaes, sigma0: .nan}}\n", "search.sampler.sigma0 (line 8): must be a number, got nan"),
        ("search: {space: {train.lr: {float: [0, 9007199254740993]}}}\n", "has more digits than a floating-point number keeps"),
        ("search: {space: {train.lr: {float: [1_0, 20]}}}\n", "two numbers, got ['1_0', 20] (with _ it is a text: write 10)"),
        ("search: {space: {train.epochs: {int: [1.0, 3]}}}\n", "two whole numbers, got [1.0, 3] (a whole number is written 1)"),
        ("search: {space: {train.epochs: {int: [1, 010]}}}\n", "(with a leading zero it is a text: write 10, or 0o10 for 8)"),
        ("search: {space: SPACE, hours: 0}\n", "search.hours (line 8): must be a number above 0, got 0"),
        ("search: {space: SPACE, scheduler: pbt}\n", "search.scheduler (line 8): pbt copies weights between trials"),
        ("search: {space: SPACE, sampler: grid}\n", "search.space.train.lr (line 8): a grid needs choices or a step"),
        ("search: {space: SPACE, scheduler: ahsa}\n", "search.scheduler (line 8): unknown scheduler 'ahsa'. Did you mean 'asha'?"),
        ("search: {space: SPACE, scheduler: asha, objectives: {val/accuracy: maximize, parameters: minimize}}\n", "a scheduler needs val/accuracy as the one objective"),
        ("search: {space: SPACE, trials: 0}\n", "search.trials (line 8): must be a whole number from 1 on, got 0"),
        ("search: {space: SPACE, trails: 3}\n", "search.trails (line 8): unknown key 'trails'. Did you mean 'trials'?"),
        ("search: {space: SPACE, objectives: {test/accuracy: maximize}}\n", "search.objectives.test/accuracy (line 8): a search may not see the test split"),
        ("search: {space: SPACE, objectives: {val/accuracy: minimize}}\n", "val/accuracy has the direction maximize"),
        ("search: {space: SPACE, enqueue: [{train.lr: 7}]}\n", "search.enqueue[0].train.lr (line 8): 7 lies outside of train.lr (0.0001 to 0.01, log)"),
        ("search: {space: SPACE, enqueue: [{train.rl: 7}]}\n", "unknown key 'train.rl'. Did you mean 'train.lr'?"),
        ("search: {space: SPACE, storage: 'postgresql://me:pa@ss@host/name'}\n", "search.storage (line 8): holds a password"),
        ("search: {space: SPACE, storage: study.db}\n", "search.storage (line 8): must be the URL of a database"),
        ("search: {space: SPACE}\nmetric: test/accuracy\n", "metric (line 9): a search sees and prints val/accuracy"),
        ("search: {space: SPACE}\nprotocol: best_test\n", "protocol (line 9): a search sees the validation split only; allowed: last, best_val"),
        ("search: {space: SPACE}\nrows: {method: [lora]}\n", "rows (line 9): search takes the place of rows"),
        ("per_arm: {search: {space: SPACE, objectives: {val/accuracy: maximize, parameters: minimize}}}\n", "per_arm needs one objective"),
        ("per_arm: {search: {space: {method.rank: {int: [1, 2], when: {method: lora}}}}}\nrows: {method: [lora, prompt]}\n", "the range of prompt is empty: no key applies to it"),
        ("per_arm: {search: {space: SPACE, trials: 3}}\n", "per_arm.search.trials (line 8): unknown key 'trials'"),
    ],
)  # fmt: skip
def test_a_problem_names_path_line_and_what_is_allowed(write, text, expected):
    assert expected in problems(write(text.replace("SPACE", SPACE)))


@pytest.mark.parametrize(("sampler", "package"), [("cmaes", "cmaes"), ("gp", "scipy"), ("qmc", "scipy")])
def test_a_sampler_whose_package_is_missing_is_refused_with_its_name(write, monkeypatch, sampler, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = f"search: {{space: {SPACE}, sampler: {sampler}}}\n"
    assert f"{sampler} needs the package {package}, which is not installed: pip install {package}" in problems(write(text))


def test_hours_take_the_place_of_a_number_of_trials(write):
    search = load(write(f"search: {{space: {SPACE}, hours: 2}}\n")).search
    assert (search.hours, search.trials) == (2.0, 1000)


def test_the_plan_says_the_hours_of_a_search(write):
    sweep = load(write(f"search: {{space: {SPACE}, hours: 2.5, trials: 30}}\n"))
    assert sweep.searched() == "search of at most 30 trials and 2.5 hours of training by tpe"


def test_a_search_without_a_validation_split_is_refused(write):
    base = BASE.replace(", val_fraction: 0.25", "")
    for text in (f"search: {{space: {SPACE}}}\n", f"per_arm: {{search: {{space: {SPACE}}}}}\n"):
        assert "a search needs a validation split: set dataset.val_fraction above 0" in problems(write(text, base))


def test_all_problems_are_found_at_once(write):
    text = problems(
        write("titel: x\nsearch: {space: {train.lr: {float: [2, 1]}, method.rank: {int: [0, 4]}}, trials: 0, sampler: x}\n")
    )
    for part in ("titel", "train.lr", "method.rank", "search.trials", "search.sampler"):
        assert part in text
    assert "5 problems, nothing was launched" in text


def test_a_searched_key_cannot_be_set_on_the_command_line_too(write):
    assert "is searched, and set on the command line" in problems(write(f"search: {{space: {SPACE}}}\n"), ["train.lr=1e-3"])


@pytest.mark.parametrize("written", ["[null, 1]", "{choices: [1, null, 2]}"])
def test_null_is_a_choice_as_any_other(write, written):
    arm = load(write(f"search: {{space: {{backbone.num_blocks: {written}}}}}\n")).cells[0].arm
    whole, one = arm.config({"backbone.num_blocks": None}), arm.config({"backbone.num_blocks": 1})
    assert (whole.backbone.num_blocks, one.backbone.num_blocks) == (None, 1)
    assert arm.located(whole.to_dict()) == {"backbone.num_blocks": None}
    assert arm.located(one.to_dict()) == {"backbone.num_blocks": 1}
    assert arm.located(arm.config({"backbone.num_blocks": 1}).to_dict() | {"backbone": None}) is None
    assert arm.parameters[0].text().startswith("backbone.num_blocks (")
    assert "None" not in arm.parameters[0].text()


def test_a_start_point_may_be_null_and_what_lies_outside_is_named(write):
    space = "search: {space: {backbone.num_blocks: [null, 1], head.last_hidden: [8, null]}, enqueue: [POINT]}\n"
    good = load(write(space.replace("POINT", "{backbone.num_blocks: null, head.last_hidden: null}")))
    assert good.cells[0].arm.enqueue == ({"backbone.num_blocks": None, "head.last_hidden": None},)
    assert "2 lies outside of backbone.num_blocks (null, 1)" in problems(write(space.replace("POINT", "{backbone.num_blocks: 2}")))


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ("train.decay_tokens: [true, 1]", "the choices true and 1 are equal"),
        ("train.decay_tokens: [false, 0]", "the choices false and 0 are equal"),
        ("train.epochs: [1, 1.0]", "the choices 1 and 1.0 are equal"),
        ("train.epochs: [1, 2, 1]", "the choice 1 stands twice"),
        ("train.lr: [0.001, 1e-3]", "the choice 0.001 stands twice"),
        ("train.weight_decay: [0.0, -0.0]", "the choices 0.0 and -0.0 are equal"),
        ("train.weight_decay: [0, 0.0]", "the choices 0 and 0.0 are equal"),
        ("positions.line: [[0, 0, 1], [0.0, 0.0, 1.0]]", "the choices [0, 0, 1] and [0.0, 0.0, 1.0] are equal"),
        ("positions.line: [[0, 0, 1], [-0.0, 0, 1]]", "the choices [0, 0, 1] and [-0.0, 0, 1] are equal"),
        ("head.dropout: [0.3, 0.30000000000000004]", "the choices 0.3 and 0.30000000000000004 are one number but for rounding"),
        ("method: [lora, {name: lora}]", "the choice lora stands twice"),
        ("method: [lora, {name: lora, rank: 16}, {name: prompt}]", 'the choices lora and {"name": "lora", "rank": 16} give the same trial'),
        ("backbone.num_blocks: [null, 1, null]", "the choice null stands twice"),
    ],
)  # fmt: skip
def test_choices_that_are_equal_are_refused(write, choices, expected):
    base = BASE.replace("rank: 4", "init_std: 0.1") if "rank" in choices else BASE
    base = base.replace("  method: {name: lora, init_std: 0.1}\n", "  method: lora\n")
    found = problems(write(f"search: {{space: {{{choices}}}}}\n", base))
    assert expected in found
    assert "1 problem, " in found


def test_a_suggestion_of_a_stepped_range_is_the_trial_of_the_decimal(write):
    text = "search:\n  sampler: grid\n  space: {head.dropout: {float: [0.0, 0.6], step: 0.1}}\n"
    arm = load(write(text)).cells[0].arm
    assert [point["head.dropout"] for point in arm.enqueue] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    rows = load(write("rows: {head.dropout: [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}\nseeds: [0]\n"))
    assert [arm.config(point).key() for point in arm.enqueue] == [cell.trials[0].key() for cell in rows.cells]


def test_a_grid_is_gone_through_as_far_as_the_trials_reach(write):
    text = "search:\n  sampler: grid\n  trials: 3\n  space: {train.epochs: {int: [1, 1000]}, train.warmup_epochs: {int: [1, 100]}}\n"
    points = load(write(text)).cells[0].arm.enqueue
    assert [(point["train.epochs"], point["train.warmup_epochs"]) for point in points] == [(1, 1), (1, 2), (1, 3)]
    assert "a grid of 1000000 points, at most 100000" in problems(write(text.replace("100]", "1000]")))


def test_a_step_that_a_float_cannot_follow_is_refused(write):
    text = "search: {space: {positions.translation: {float: [1000000, 1000001], step: 1e-6}}}\n"
    assert "a step of 1e-06 is too fine for numbers as large as 1000001" in problems(write(text))
    assert (
        load(write("search: {space: {train.batch_size: {int: [2, 10000000], step: 2}}}\n")).search.space[0].at(4_999_999)
        == 10_000_000
    )


def test_winners_can_be_trained_on_the_validation_clouds_too(write):
    text = f"rows: {{method: [lora, prompt]}}\nper_arm: {{search: {{space: {SPACE}}}, then_on: WHAT}}\n"
    assert load(write(text.replace("WHAT", "train_and_val"))).search.then_on == "train_and_val"
    assert load(write(text.replace(", then_on: WHAT", ""))).search.then_on == "train"
    assert "per_arm.then_on" in problems(write(text.replace("WHAT", "everything")))
    found = problems(write(text.replace("WHAT", "train_and_val") + "protocol: best_val\n"))
    assert "train_and_val leaves the winners no validation clouds, protocol: best_val needs them" in found


def test_a_validation_split_of_its_own_serves_a_search_but_is_never_trained_on(write):
    base = BASE.replace("{name: synthetic, val_fraction: 0.25}", "{name: files, root: scans, num_classes: 4, val: val}")
    text = f"rows: {{method: [lora, prompt]}}\nper_arm: {{search: {{space: {SPACE}}}, then_on: train}}\n"
    assert load(write(text, base)).search.then_on == "train"
    found = problems(write(text.replace("then_on: train", "then_on: train_and_val"), base))
    assert "train_and_val needs dataset.val_fraction; dataset.val is a split of its own; allowed: train" in found


@pytest.mark.parametrize(("train", "warmup"), [("warmup_epochs: 2", 2), ("warmup_fraction: 0.15", 3), ("warmup_epochs: 0", None)])
def test_a_scheduler_knows_the_warm_up_of_the_training(write, train, warmup):
    text = f"search: {{space: {SPACE}, scheduler: asha}}\n"
    override = f"base.train={{epochs: 20, {train}}}"
    schedule = load(write(text), [f"train.{part.replace(': ', '=')}" for part in ("epochs: 20", train)]).search.schedule
    assert schedule.get("training_warmup") == warmup, override


def test_a_warm_up_as_long_as_the_training_is_said(write):
    text = f"search: {{space: {SPACE}, scheduler: asha}}\n"
    notes = load(write(text), ["train.epochs=5", "train.warmup_epochs=5"]).notes
    assert any("asha stops no trial: the warm-up of 5 epochs lasts as long as the training of 5" in note for note in notes)
