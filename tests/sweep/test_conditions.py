"""Conditions of a sweep file: they see the configuration as it runs, and one that can never hold is refused."""

from __future__ import annotations

import pytest

from pointsweep.sweep.conditions import lookup
from pointsweep.sweep.sweep import load
from tests.support.sweep_files import problems

BASE = """
name: t
base:
  dataset: {name: synthetic, val_fraction: 0.25}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  method: adapter
  train: {lr: 1.0e-3}
"""
ROWS = "rows: {method: [adapter, lora]}\n"


def configs(sweep) -> list:
    return [cell.trials[0] if cell.trials else cell.excluded for cell in sweep.cells]


# What a condition sees

# The adapter's bottleneck is 8 where nobody sets it, its kind single (pointsweep/config/methods.py).


def test_a_setting_applies_where_a_default_has_the_value(write):
    for when in ("{method.bottleneck: 8}", "{method.bottleneck: [4, 8]}", "{method: {name: adapter, bottleneck: 8}}"):
        adapter, lora = configs(load(write(ROWS + f"settings: [{{when: {when}, train.epochs: 7}}]\n")))
        assert (adapter.train.epochs, lora.train.epochs) == (7, 300)


def test_a_cell_is_left_out_where_a_default_has_the_value(write):
    text = "exclude: [{when: {method: adapter, method.bottleneck: 8}, because: not in the paper}]\n"
    assert configs(load(write(ROWS + text)))[0] == "not in the paper"


def test_a_row_is_for_the_columns_where_a_default_has_the_value(write):
    text = """
rows:
  - {label: one, when: {positions.num_views: 6}}
  - {label: two, head.dropout: 0.1}
columns: {positions: [{kind: none}, {num_views: 2}]}
"""
    found = configs(load(write(text)))
    assert found[0].positions.kind == "none"
    assert found[1] == "one is for positions.num_views 6 only"


def test_a_searched_key_is_chosen_where_a_default_meets_its_condition(write):
    text = "search: {space: {method.scale: {float: [0.1, 1.0], when: {method.kind: single}}, train.lr: {float: [1e-4, 1e-2]}}}\n"
    arm = load(write(text)).cells[0].arm
    assert all("method.scale" in drawn for drawn in arm.probes(5))


def test_a_list_is_one_value_of_a_field_that_is_a_list(write):
    for value in ("[-1, 0, 1]", "[[-1, 0, 1], [0, 0, 1]]"):
        text = f"settings: [{{when: {{positions.line: {value}}}, train.epochs: 7}}]\n"
        assert [config.train.epochs for config in configs(load(write(ROWS + text)))] == [7, 7]


def test_the_modality_of_a_backbone_is_seen_though_it_is_no_field(write):
    text = "columns: {backbone: [tiny, dinov2]}\nsettings: [{when: {backbone.modality: 2d}, train.epochs: 7}]\n"
    base = BASE.replace("{name: tiny, modality: 1d}", "tiny")
    assert [config.train.epochs for config in configs(load(write(text, base)))] == [300, 7]


def test_a_condition_sees_the_command_line_and_not_the_profile(write):
    text = (
        "settings: [{when: {method: lora}, train.epochs: 7}, {when: {train.lr: 5e-3}, train.batch_size: 9}]\n"
        "profiles: {quick: {method: lora}}\n"
    )
    path = write(text)
    assert configs(load(path, ["method=lora"]))[0].train.epochs == 7
    assert configs(load(path, ["train.lr=5e-3"]))[0].train.batch_size == 9
    assert configs(load(path, ["profile=quick"]))[0].train.epochs == 300


def test_a_condition_sees_what_settings_above_it_say(write):
    text = "settings: [{when: {method: lora}, method.rank: 3}, {when: {method.rank: 3}, train.epochs: 7}]\n"
    assert [config.train.epochs for config in configs(load(write(ROWS + text)))] == [300, 7]


def test_a_condition_that_a_setting_below_turns_round_is_refused(write):
    text = "settings: [{when: {method.bottleneck: 8}, train.epochs: 7}, {when: {method: adapter}, method.bottleneck: 3}]\n"
    found = problems(write(ROWS + text))
    assert (
        "settings[0].when.method.bottleneck (line 10): settings[1].method.bottleneck (line 10) sets method.bottleneck to 3" in found
    )


def test_settings_may_name_a_component_and_settings_below_its_fields(write):
    text = (
        "settings:\n"
        "  - {when: {method: lora}, tokenizer: {name: patch, num_tokens: 4}}\n"
        "  - {when: {method: lora, method.rank: 2}, tokenizer.neighbours: 5}\n"
        "rows: [{label: a}, {label: b, method: {name: lora, rank: 2}}]\n"
    )
    tokenizer = configs(load(write(text)))[1].tokenizer
    assert (tokenizer.name, tokenizer.num_tokens, tokenizer.neighbours) == ("patch", 4, 5)


def test_the_values_that_a_condition_sees_are_those_of_the_trial(write):
    for config in configs(load(write("rows: {method: [adapter, lora, full, any2point]}\ncolumns: {backbone.modality: [1d, 2d]}\n"))):
        data = config.to_dict()
        assert lookup({"method": config.method.name}, "method.bottleneck") == type(config.method)().__dict__.get("bottleneck")
        for part in ("dataset", "tokenizer", "backbone", "positions", "method", "head", "train"):
            sparse = {**data, part: {"name": data[part]["name"]} if "name" in data[part] else {}}
            for name, value in type(getattr(config, part))().__dict__.items():
                if name != "name":
                    assert lookup(sparse, f"{part}.{name}") == (list(value) if isinstance(value, tuple) else value)


# Conditions that can never hold

NEVER = [
    ("{method: adaptr}", "method", "unknown method 'adaptr'. Did you mean 'adapter'?"),
    ("{method: [lora, Adapter]}", "method", "unknown method 'Adapter'. Did you mean 'adapter'?"),
    ("{metod: adapter}", "metod", "unknown key 'metod'. Did you mean 'method'?"),
    ("{method.bottlneck: 8}", "method.bottlneck", "method has no field 'bottlneck'. Did you mean 'bottleneck'?"),
    ("{method: adapter, method.rank: 8}", "method.rank", "adapter has no field 'rank'"),
    ("{train.weightdecay: 0.1}", "train.weightdecay", "train has no field 'weightdecay'. Did you mean 'weight_decay'?"),
    ("{train.learning_rate: 0.1}", "train.learning_rate", "Did you mean 'lr'?"),
    ("{train.lr: '1e-3'}", "train.lr", "must be a number, got '1e-3'"),
    ("{train.epochs: ['3']}", "train.epochs", "must be a whole number, got '3'"),
    ("{head.bias: 1}", "head.bias", "must be true or false, got 1"),
    ("{head.bias: 'false'}", "head.bias", "must be true or false, got 'false'"),
    ("{positions.kind: virtal}", "positions.kind", "unknown value 'virtal'. Did you mean 'virtual'?"),
    ("{method.kind: singel}", "method.kind", "unknown value 'singel'"),
    ("{backbone.modality: 4d}", "backbone.modality", "unknown modality '4d'"),
    ("{compat: oficial}", "compat", "unknown value 'oficial'. Did you mean 'official'?"),
    ("{seed: 0}", "seed", "a condition cannot look at the seed"),
    ("{train: fast}", "train", "names no field; write train.FIELD"),
    ("{method: []}", "method", "lists no value"),
]


@pytest.mark.parametrize(("when", "key", "message"), NEVER, ids=[when for when, _, _ in NEVER])
@pytest.mark.parametrize("kind", ["settings", "exclude", "row", "zip", "space"])
def test_a_condition_that_can_never_hold_is_refused_wherever_it_stands(write, kind, when, key, message):
    text, place = {
        "settings": (f"{ROWS}settings: [{{when: {when}, train.epochs: 3}}]\n", "settings[0].when"),
        "exclude": (f"{ROWS}exclude: [{{when: {when}, because: x}}]\n", "exclude[0].when"),
        "row": (f"rows: [{{label: a}}, {{label: b, head.dropout: 0.1, when: {when}}}]\n", "rows[1].when"),
        "zip": (f"rows: {{zip: {{label: [a, b], head.dropout: [0.1, 0.2], when: [null, {when}]}}}}\n", "rows.zip.when[1]"),
        "space": (f"search: {{space: {{train.lr: {{float: [1e-4, 1e-2], when: {when}}}}}}}\n", "search.space.train.lr.when"),
    }[kind]
    found = problems(write(text))
    assert f"{place}.{key} (line {10 if kind in ('settings', 'exclude') else 9})" in found
    assert message in found


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ("train.learning_rate < 0.01", "train has no field 'learning_rate'. Did you mean 'lr'?"),
        ("trian.lr < 0.01", "unknown key 'trian'. Did you mean 'train'?"),
        ("train.lr < '0.01'", "'0.01' is no number"),
        ("method.kind * 2 < 3", "method.kind is no number"),
        ("method.kind == 'singel'", "method.kind unknown value 'singel'"),
        ("train.lr == '1e-3'", "must be a number, got '1e-3'"),
        ("method == 'lorra'", "unknown method 'lorra'. Did you mean 'lora'?"),
        ("seed < 3", "cannot look at the seed"),
        ("train.lr < 0.01 and method.rnk < 3", "method has no field 'rnk'. Did you mean 'rank'?"),
        ("method.num_prompts < 3", "applies to no point"),
    ],
)
def test_a_constraint_that_can_never_apply_is_refused(write, constraint, message):
    text = f'search: {{space: {{train.lr: {{float: [1e-4, 1e-2]}}}}, constraints: ["{constraint}"]}}\n'
    found = problems(write(text))
    assert "search.constraints[0] (line 9)" in found
    assert message in found


def test_constraints_on_defaults_texts_and_negative_numbers_hold(write):
    text = (
        "search:\n  space: {train.lr: {float: [1e-4, 1e-2]}, positions.translation: {float: [-2.0, 2.0]}}\n"
        "  constraints: [method.bottleneck == 8, method == 'adapter', positions.translation > -1]\n"
    )
    arm = load(write(text)).cells[0].arm
    assert arm.config({"train.lr": 1e-3, "positions.translation": 0.0}) is not None
    assert arm.config({"train.lr": 1e-3, "positions.translation": -1.5}) is None


# Conditions that hold nowhere


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("exclude: [{when: {method: dapt}, because: x}]\n", "exclude[0]"),
        ("exclude: [{when: {method: adapter, method.bottleneck: 9}, because: x}]\n", "exclude[0]"),
        ("settings: [{when: {train.lr: 2e-3}, train.epochs: 3}]\n", "settings[0]"),
        ("settings: [{when: {method: lora, method.rank: 99}, train.epochs: 3}]\n", "settings[0]"),
    ],
)
def test_a_condition_that_holds_in_no_cell_is_refused(write, text, place):
    assert f"{place} (line 10): holds in no cell" in problems(write(ROWS + text))


def test_a_row_for_no_column_is_refused(write):
    text = "rows: [{label: a}, {label: b, method: lora, when: {method: dapt}}]\n"
    assert "rows[1].when (line 9): holds in no cell (method dapt)" in problems(write(text))


def test_a_condition_that_holds_nowhere_because_of_the_command_line_is_said(write):
    path = write("settings: [{when: {train.lr: 1e-3}, train.epochs: 3}]\n")
    assert load(path).remarks == ()
    assert load(path, ["train.lr=2e-3"]).remarks == ("settings[0]: holds in no cell (train.lr 0.001)",)


def test_settings_for_components_of_other_files_are_said(write):
    """A file's settings may be for the files that inherit from it."""
    path = write(ROWS + "settings: [{when: {method: dapt}, train.epochs: 3}]\n")
    assert load(path).dropped == ("settings[0]: holds in no cell (method dapt)",)
    child = write("rows: {method: [dapt]}\n", "name: c\nbase: {from: t.yaml}\n", "child.yaml")
    assert configs(load(child))[0].train.epochs == 3
    assert load(child).dropped == ()


def test_what_a_condition_would_set_is_checked_though_it_holds_nowhere(write):
    found = problems(write(ROWS + "settings: [{when: {method: dapt}, train.epoch: 3, method.rank: 2, trian.lr: 1}]\n"))
    assert "settings[0].train.epoch (line 10): train has no field 'epoch'. Did you mean 'epochs'?" in found
    assert "settings[0].method.rank (line 10): dapt has no field 'rank'" in found
    assert "settings[0].trian.lr (line 10): unknown key 'trian'. Did you mean 'train'?" in found


def test_cells_cannot_be_left_out_by_what_is_searched(write):
    text = "rows: {method: [adapter, lora]}\nexclude: [{when: {train.lr: 1e-3}, because: x}]\n"
    found = problems(write(text + "per_arm: {search: {space: {train.lr: {float: [1e-4, 1e-2]}}}}\n"))
    assert "exclude[0].when.train.lr (line 10): is searched" in found
