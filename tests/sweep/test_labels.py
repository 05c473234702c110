"""No label of a table stands over a value that did not run: it is what the trials hold, or the file is refused."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from pointsweep.errors import ConfigError
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
METHODS = "rows: {method: [adapter, lora]}\n"
RATES = "columns: {train.lr: [1e-4, 1e-2]}\n"
SPACE = "{train.lr: {float: [1e-4, 1e-2]}}"


def configs(sweep) -> list:
    return [cell.trials[0] for cell in sweep.cells if cell.trials]


# A key that is set in two places


@pytest.mark.parametrize(
    ("text", "overrides", "first", "second"),
    [
        (METHODS, ["method=prompt"], "method=prompt: sets method.name", "rows.method[0] (line 9), rows.method[1] (line 9)"),
        (METHODS, ["method.name=prompt"], "method.name=prompt: sets method.name", "rows.method[0] (line 9)"),
        (METHODS, ["method={name: lora, rank: 2}"], "sets method.name", "rows.method[0] (line 9)"),
        (METHODS, ["~method"], "~method: sets method.name", "rows.method[0] (line 9)"),
        (RATES, ["train.lr=5e-3"], "train.lr=5e-3: sets train.lr", "columns.train.lr[0] (line 9)"),
        (RATES, ["train={lr: 5e-3}"], "train={lr: 5e-3}: sets train.lr", "columns.train.lr[0] (line 9)"),
        (RATES, ["~train.lr"], "~train.lr: sets train.lr", "columns.train.lr[0] (line 9)"),
        ("axes: {train.lr: [1e-4, 1e-2]}\n", ["train.lr=5e-3"], "train.lr=5e-3: sets train.lr", "axes.train.lr[0] (line 9)"),
        ("rows: {zip: {train.lr: [1e-4, 1e-2], train.epochs: [3, 4]}}\n", ["train.epochs=5"], "sets train.epochs", "rows.zip.train.epochs[0] (line 9)"),
        ("rows: [{label: a, train: {lr: 1e-4}}, {label: b}]\n", ["train.lr=5e-3"], "sets train.lr", "rows[0].train (line 9)"),
        (f"rows: [{{label: a, train.lr: 2e-3}}, {{label: b}}]\n{RATES}", [], "rows[0].train.lr (line 9): sets train.lr", "columns.train.lr[0] (line 10)"),
        (f"rows: [{{label: a, train: {{lr: 2e-3}}}}, {{label: b}}]\n{RATES}", [], "rows[0].train (line 9): sets train.lr", "columns.train.lr[0] (line 10)"),
        (f"rows: {{train.lr: [1e-4, 2e-4]}}\n{RATES}", [], "rows.train.lr[0] (line 9): sets train.lr", "columns.train.lr[0] (line 10)"),
        (f"axes: {{zip: {{train.lr: [1e-4, 2e-4], train.epochs: [1, 2]}}}}\n{RATES}", [], "axes.zip.train.lr[0] (line 9): sets train.lr", "columns.train.lr[0] (line 10)"),
        ("rows: {method: [adapter, lora]}\ncolumns: {method: [prompt, full]}\n", [], "rows.method[0] (line 9): sets method.name", "columns.method[0] (line 10)"),
        ("rows: [{label: a, method: {name: lora, rank: 4}}, {label: b, method: lora}]\ncolumns: {method.rank: [2, 8]}\n", [], "rows[0].method (line 9): sets method.rank", "columns.method.rank[0] (line 10)"),
        ("rows: [{label: a}, {label: net, network: pointnet}]\ncolumns: {method.bottleneck: [2, 8]}\n", [], "rows[1].network (line 9): sets", "columns.method.bottleneck[0] (line 10)"),
        ("rows: [{label: a}, {label: b, head: null}]\ncolumns: {head.dropout: [0.1, 0.2]}\n", [], "rows[1].head (line 9): sets head.dropout", "columns.head.dropout[0] (line 10)"),
        (f"{RATES}profiles: {{quick: {{train.lr: 5e-3}}}}\n", ["profile=quick"], "profiles.quick.train.lr (line 10): sets train.lr", "columns.train.lr[0] (line 9)"),
        (f"{METHODS}profiles: {{quick: {{method: {{name: prompt}}}}}}\n", ["profile=quick"], "profiles.quick.method (line 10): sets method.name", "rows.method[0] (line 9)"),
        (f"{RATES}profiles: {{smoke: {{train: {{lr: 5e-3}}}}}}\n", ["profile=smoke"], "profiles.smoke.train (line 10): sets train.lr", "columns.train.lr[0] (line 9)"),
        ("rows: {ablate: {components: {wide: {without: {method.bottleneck: 2}}}, leave_one_out: all}}\n", ["method.bottleneck=4"], "method.bottleneck=4: sets method.bottleneck", "rows.ablate.components.wide.without.method.bottleneck (line 9)"),
        (f"rows: [{{label: a, train.lr: 1e-3}}]\nper_arm: {{search: {{space: {SPACE}}}}}\n", [], "search.space.train.lr (line 10): sets train.lr", "rows[0].train.lr (line 9)"),
        (f"{METHODS}per_arm: {{search: {{space: {SPACE}}}}}\nprofiles: {{quick: {{train.lr: 1e-3}}}}\n", ["profile=quick"], "profiles.quick.train.lr (line 11): sets train.lr", "search.space.train.lr (line 10)"),
        (f"search: {{space: {SPACE}}}\n", ["train={lr: 1e-3}"], "search.space.train.lr (line 9): is searched, and set on the command line", ""),
        ("search: {space: {method: [{name: lora, rank: 4}, adapter], method.rank: {int: [1, 8]}}}\n", [], "search.space.method.rank (line 9): sets method.rank", "search.space.method (line 9)"),
    ],
)  # fmt: skip
def test_a_key_that_two_places_set_is_refused_with_both(write, text, overrides, first, second):
    found = problems(write(text), overrides)
    assert first in found
    assert second in found


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("rows: [{label: a, train: {lr: 1e-4}, train.lr: 1e-3}]\n", "rows[0].train.lr (line 9): sets train.lr, which train (line 9)"),
        ("rows: [{label: a, method: lora, method.name: adapter}]\n", "rows[0].method.name (line 9): sets method.name"),
        (
            "settings: [{when: {method: adapter}, train: {lr: 1e-4}, train.lr: 1e-3}]\n",
            "settings[0].train.lr (line 9): sets train.lr",
        ),
        ("rows: {zip: {method: [lora], method.name: [adapter]}}\n", "rows.zip.method.name (line 9): sets method.name"),
    ],
)
def test_a_key_that_one_place_sets_twice_is_refused(write, text, place):
    assert place in problems(write(text))


def test_the_base_sets_a_key_once_and_an_heir_may_set_it_again(write):
    twice = BASE.replace("  train: {lr: 1.0e-3}\n", "  train: {lr: 1.0e-3}\n  train.lr: 2.0e-3\n")
    assert "base.train.lr (line 9): sets train.lr, which train (line 8) beside it sets too" in problems(write("", twice))
    write("")
    assert configs(load(write("", "name: c\nbase: {from: t.yaml, train.lr: 2e-3}\n", "c.yaml")))[0].train.lr == 2e-3


def test_what_only_the_base_sets_may_be_set_on_the_command_line_and_by_a_profile(write):
    path = write(METHODS + "profiles: {quick: {train.lr: 5e-3, train.epochs: 2}}\n")
    assert [config.train.lr for config in configs(load(path, ["train.lr=2e-3"]))] == [2e-3, 2e-3]
    quick = configs(load(path, ["profile=quick", "train.lr=2e-3"]))
    assert [(config.train.lr, config.train.epochs) for config in quick] == [(2e-3, 2), (2e-3, 2)]
    assert configs(load(write(""), ["method=lora"]))[0].method.name == "lora"


def test_a_component_in_rows_and_its_fields_in_columns_both_hold(write):
    sweep = load(write("rows: {method: [adapter, dapt]}\ncolumns: {method.bottleneck: [3, 5]}\n"))
    found = [(config.method.name, config.method.bottleneck) for config in configs(sweep)]
    assert found == [("adapter", 3), ("adapter", 5), ("dapt", 3), ("dapt", 5)]


def test_fields_written_before_their_component_stay(write):
    [config] = configs(load(write("rows: [{label: a, method.rank: 3, method: lora}]\n")))
    assert (config.method.name, config.method.rank) == ("lora", 3)


def test_cells_that_are_left_out_clash_with_nothing(write):
    text = (
        "rows: [{label: ours, method: lora}, {label: net, network: pointnet}]\ncolumns: {method.rank: [2, 8]}\n"
        "exclude: [{when: {network: pointnet}, because: a network has no rank}]\n"
    )
    assert [config.method.rank for config in configs(load(write(text)))] == [2, 8]


def test_a_network_beside_columns_of_backbones_is_refused(write):
    text = "rows: [{label: a}, {label: net, network: pointnet}]\ncolumns: {backbone.modality: [1d, 2d]}\n"
    assert "a network takes the place of that, so such columns or rows say nothing of it" in problems(write(text))


def test_components_of_an_ablation_that_set_fields_of_one_part_are_both_off(write):
    text = (
        "rows: {ablate: {components: {wide: {without: {method: {bottleneck: 2}}}, scaled: {without: {method: {scale: 0.3}}}},"
        " factorial: all}}\n"
    )
    found = {c.row: (c.trials[0].method.bottleneck, c.trials[0].method.scale) for c in load(write(text)).cells}
    default = load(write("")).cells[0].trials[0].method.scale
    assert found == {0: (2, 0.3), 1: (8, 0.3), 2: (2, default), 3: (8, default)}


# Profiles


def test_an_override_wins_over_what_the_smoke_profile_makes_small(write):
    search = write(f"search: {{space: {SPACE}, trials: 20}}\n")
    assert load(search, ["profile=smoke"]).search.trials == 4
    for order in (["profile=smoke", "search.trials=12"], ["search.trials=12", "profile=smoke"]):
        assert load(search, order).search.trials == 12
    tuned = write(f"{METHODS}per_arm: {{search: {{space: {SPACE}}}, trials: 20, then_seeds: 5}}\n")
    found = load(tuned, ["profile=smoke", "per_arm.then_seeds=7"]).search
    assert (found.trials, found.then_seeds) == (4, 7)
    table = write("resources: {gpus: 1, cpus: 4}\n")
    small = load(table, ["profile=smoke", "resources.cpus=2"]).resources
    assert (small.gpus, small.cpus) == (0, 2)


def test_the_smoke_profile_says_which_labels_it_stands_in_for(write):
    base = BASE.replace("{name: tiny, modality: 1d}", "tiny")
    sweep = load(write("columns: {backbone: [clip_text, dinov2]}\nrows: {tokenizer.num_tokens: [8, 16]}\n", base), ["profile=smoke"])
    assert "profile=smoke: stands in for what labels say of backbone, tokenizer.num_tokens" in sweep.notes
    # The table says it too. The stand-ins of two backbones are two networks, one token count is left of two.
    assert sweep.identical_cells() == ["8 / clip_text, 16 / clip_text", "8 / dinov2, 16 / dinov2"]
    assert sweep.layout().notes[-2:] == tuple(f"the same trials: {names}" for names in sweep.identical_cells())


# Equal cells


def test_equal_cells_are_one_readable_line_a_group(write):
    text = "rows: [{label: plus, train.weight_decay: 0.0}, {label: int, train.weight_decay: 0}, {label: other, train.lr: 2e-3}]\n"
    assert load(write(text)).identical_cells() == ["plus / all, int / all"]


# Settings that go with their component


def test_a_base_setting_that_some_arms_keep_and_others_lose_is_refused(write):
    base = BASE.replace("{name: tiny, modality: 1d}", "{name: minilm, num_blocks: 2}")
    found = problems(write("rows: {backbone: [minilm, bert]}\n", base))
    assert "base.backbone.num_blocks (line 6): 2 goes with minilm: minilm / all has it, bert / all (bert) would have None" in found


@pytest.mark.parametrize(
    "axis", ["rows: {backbone: [minilm, bert]}\n", "columns: [{label: a, backbone: minilm}, {label: b, backbone: bert}]\n"]
)
def test_a_base_setting_without_a_name_is_of_every_component(write, axis):
    base = BASE.replace("{name: tiny, modality: 1d}", "{num_blocks: 2}")
    assert [config.backbone.num_blocks for config in configs(load(write(axis, base)))] == [2, 2]


def test_what_each_row_says_itself_is_not_lost(write):
    base = BASE.replace("method: adapter", "method: {name: adapter, bottleneck: 4}")
    rows = "rows: [{label: a}, {label: b, method: {name: dapt, bottleneck: 16}}]\n"
    assert [config.method.bottleneck for config in configs(load(write(rows, base)))] == [4, 16]


def test_settings_that_are_used_in_a_part_of_the_table_or_nowhere_are_said(write):
    base = BASE.replace("method: adapter", "method: {name: adapter, bottleneck: 4}")
    some = load(write("rows: {method: [adapter, lora, full]}\n", base))
    assert some.dropped == ("base.method.bottleneck: 4 is a setting of adapter, used with it alone, not where method is lora, full",)
    none = load(write("rows: {method: [lora, full]}\n", base))
    assert none.dropped == ("base.method.bottleneck: 4 is a setting of adapter, used in no cell",)
    assert load(write("", base)).dropped == ()


LORA_RATE = "settings: [{when: {method: lora}, train.lr: 5e-3}]\n"
TWO_ROWS = "rows:\n  - {label: a, method: adapter}\n  - {label: b, method: lora, RATE}\n"


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        (
            LORA_RATE + TWO_ROWS.replace("RATE", "train.lr: 2e-3"),
            (),
            "settings[0].train.lr (line 9): 0.005 gives way to rows[1].train.lr (line 12) wherever its condition holds",
        ),
        (
            LORA_RATE + "rows: {method: [adapter, lora]}\n" + "columns: [{label: x}, {label: y, train.lr: 2e-3}]\n",
            (),
            "settings[0].train.lr (line 9): 0.005 gives way to columns[1].train.lr (line 11) in lora / y",
        ),
        (
            LORA_RATE + METHODS + "axes: {zip: {label: [x, y], train: [{lr: 5e-3}, {lr: 2e-3}]}}\n",
            (),
            "settings[0].train.lr (line 9): 0.005 gives way to axes.zip.train[1].lr (line 11) in lora / y",
        ),
        (
            LORA_RATE + METHODS + "profiles: {quick: {train.lr: 2e-3}}\n",
            ("profile=quick",),
            "settings[0].train.lr (line 9): 0.005 gives way to profiles.quick.train.lr (line 11) wherever its condition holds",
        ),
        (
            LORA_RATE + METHODS,
            ("train.lr=2e-3",),
            "settings[0].train.lr (line 9): 0.005 gives way to override train.lr=2e-3 wherever its condition holds",
        ),
        (
            "settings: [{when: {method: lora}, train: {lr: 5e-3}}, {when: {dataset: synthetic}, train.lr: 1e-4}]\n" + METHODS,
            (),
            "settings[0].train.lr (line 9): 0.005 gives way to settings[1].train.lr (line 9) wherever its condition holds",
        ),
        (
            LORA_RATE.replace("lora", "adapter") + f"search: {{trials: 4, space: {SPACE}}}\n",
            (),
            "settings[0].train.lr (line 9): 0.005 gives way to search.space.train.lr (line 10) wherever its condition holds",
        ),
    ],
)
def test_a_conditional_setting_that_another_outdoes_is_said_with_both_places(write, text, overrides, said):
    assert load(write(text), overrides).dropped == (said,)


@pytest.mark.parametrize(
    "text",
    [
        LORA_RATE + METHODS,
        LORA_RATE + TWO_ROWS.replace("RATE", "train.lr: 5e-3"),
        LORA_RATE + TWO_ROWS.replace("RATE", "train.epochs: 2"),
        LORA_RATE + TWO_ROWS.replace("RATE", "train.lr: 2e-3") + "exclude: [{when: {method: lora, train.lr: 2e-3}, because: no}]\n",
    ],
)
def test_nothing_is_said_of_a_conditional_setting_that_holds_or_of_a_cell_that_is_left_out(write, text):
    assert load(write(text)).dropped == ()


def test_an_heir_may_set_again_what_a_condition_of_its_parent_sets(write):
    write(LORA_RATE + METHODS, name="parent.yaml")
    heir = write(
        "settings: [{when: {method: lora}, train.lr: 1e-4}]\n" + METHODS, "name: h\nbase: {from: parent.yaml}\n", "heir.yaml"
    )
    sweep = load(heir)
    assert sweep.dropped == ()
    assert [config.train.lr for config in configs(sweep)] == [1e-3, 1e-4]


def test_the_plan_prints_what_a_conditional_setting_gave_way_to(write, store, capsys):
    from pointsweep.cli.run import main

    path = write(LORA_RATE + TWO_ROWS.replace("RATE", "train.lr: 2e-3"))
    main([str(path), "profile=smoke", "--plan"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "settings[0].train.lr (line 9): 0.005 gives way to rows[1].train.lr (line 12)" in printed


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("{name: adapter, bottlenck: 4}", "base.method.bottlenck (line 7): adapter has no field 'bottlenck'"),
        ("{name: adapter, bottleneck: 0}", "base.method.bottleneck (line 7): must be at least 1, got 0"),
        ("{name: adapter, bottleneck: '4'}", "base.method.bottleneck (line 7): must be a whole number, got '4'"),
        ("adaptor", "base.method.name (line 7): unknown method 'adaptor'. Did you mean 'adapter'?"),
    ],
)
def test_a_base_component_is_checked_though_every_row_replaces_it(write, method, message):
    base = BASE.replace("method: adapter", f"method: {method}")
    found = problems(write("rows: {method: [lora, full]}\n", base))
    assert message.split(" (line")[0].removesuffix(".name") in found
    assert message.split("): ")[1] in found


def test_a_base_value_of_another_type_is_refused_though_every_column_replaces_it(write):
    base = BASE.replace("lr: 1.0e-3", "lr: fast")
    assert "base.train.lr (line 8): must be a number, got 'fast'" in problems(write(RATES, base))


# Random files: what the labels say is what the trials hold, or the file is refused

VALUES: dict[str, list[Any]] = {
    "method": [
        "adapter",
        "lora",
        "prompt",
        "dapt",
        {"name": "adapter", "bottleneck": 3},
        {"name": "lora", "rank": 2},
        {"init_std": 0.1},
    ],
    "method.name": ["adapter", "dapt"],
    "method.bottleneck": [2, 4, 8, 16],
    "method.rank": [1, 2],
    "train": [{"lr": 2e-3}, {"epochs": 5}, {"lr": 3e-3, "epochs": 6}],
    "train.lr": [1e-4, 1e-3, 0.01],
    "train.epochs": [1, 3],
    "head": [{"dropout": 0.25}, {"bias": True}],
    "head.dropout": [0.0, 0.5],
    "positions.num_views": [1, 2, 6],
    "positions.line": [[1, 0, 0], [0, 0, 1]],
    "backbone": ["tiny", "bert", {"name": "tiny", "modality": "2d"}, {"num_blocks": 1}],
    "backbone.modality": ["1d", "2d"],
    "backbone.num_blocks": [1, 2],
    "tokenizer.num_tokens": [8, 16],
    "network": ["pointnet"],
}


def some_settings(order: random.Random, most: int) -> dict[str, Any]:
    return {key: order.choice(VALUES[key]) for key in order.sample(list(VALUES), order.randint(1, most))}


def some_axis(order: random.Random, kind: str) -> tuple[Any, list[dict[str, Any]]]:
    """An axis as a file writes it, and what each of its entries sets."""
    if kind == "list":
        entries = [some_settings(order, 2) for _ in range(order.randint(1, 3))]
        return [{"label": f"row {i}", **entry} for i, entry in enumerate(entries)], entries
    if kind == "zip":
        keys = order.sample(list(VALUES), 2)
        entries = [{key: order.choice(VALUES[key]) for key in keys} for _ in range(2)]
        return {"zip": {"label": ["x", "y"], **{key: [entry[key] for entry in entries] for key in keys}}}, entries
    key = order.choice([key for key in VALUES if not isinstance(VALUES[key][0], dict)])
    values = order.sample([value for value in VALUES[key] if not isinstance(value, dict)], 1)
    values += [value for value in VALUES[key] if value not in values and not isinstance(value, dict)][:1]
    return {key: values}, [{key: value} for value in values]


def some_ablation(order: random.Random) -> tuple[Any, list[dict[str, Any]]]:
    """A factorial of two components and what each of its rows sets: neither, the one, the other, both."""
    sides = [(some_settings(order, 2), some_settings(order, 1) if order.random() < 0.5 else {}) for _ in range(2)]
    components = {name: {"without": off, **({"with": on} if on else {})} for name, (off, on) in zip("ab", sides, strict=True)}
    entries = []
    for present in ((), ("a",), ("b",), ("a", "b")):
        chosen = [on if name in present else off for name, (off, on) in zip("ab", sides, strict=True)]
        entries.append([item for side in chosen for item in side.items()])
    return {"ablate": {"components": components, "factorial": "all"}}, entries


def some_file(order: random.Random) -> tuple[dict[str, Any], list[str], list[list[Any]], list[Any]]:
    """A sweep file, overrides, and the entries of the axes down and across."""
    data = yaml.safe_load(BASE)
    data["base"] |= {key: value for key, value in some_settings(order, 2).items() if order.random() < 0.5}
    down: list[list[Any]] = []
    data["rows"], entries = some_ablation(order) if order.random() < 0.2 else some_axis(order, order.choice(["list", "zip", "key"]))
    down.append(entries)
    if order.random() < 0.3:
        axis, entries = some_axis(order, order.choice(["zip", "key"]))
        data["axes"] = axis
        down.append(entries)
    across: list[Any] = [{}]
    if order.random() < 0.6:
        data["columns"], across = some_axis(order, order.choice(["list", "zip", "key"]))
    elif len(down) > 1:
        across = down.pop()
    if order.random() < 0.3:
        data["settings"] = [{"when": {"train.epochs": [1, 3, 300]}, **some_settings(order, 2)}]
    overrides = []
    if order.random() < 0.3:
        data["profiles"] = {"quick": some_settings(order, 1)}
        overrides.append("profile=quick")
    if order.random() < 0.3:
        [(key, value)] = some_settings(order, 1).items()
        overrides.append(f"{key}={json.dumps(value).replace(chr(34), '')}")
    return data, overrides, down, across


def said_by(entry: Any) -> list[tuple[list[str], Any]]:
    """The values that an entry of an axis states, each with its path in a trial."""
    found = []
    for key, value in entry if isinstance(entry, list) else entry.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for name, item in inner:
            path = [*key.split("."), *([name] if name else [])]
            if len(path) == 1 and isinstance(item, str):
                path.append("name")
            found.append((path, item))
    return found


def value_at(data: Any, path: list[str]) -> Any:
    for name in path:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def test_in_random_files_labels_say_what_trials_hold_or_the_file_is_refused(tmp_path: Path):
    outcomes = {"holds": 0, "refused": 0}
    path = tmp_path / "t.yaml"
    for number in range(600):
        order = random.Random(number)
        data, overrides, down, across = some_file(order)
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        try:
            sweep = load(path, overrides)
        except ConfigError:
            outcomes["refused"] += 1
            continue
        outcomes["holds"] += 1
        rows = list(itertools.product(*down))
        assert (len(sweep.rows), len(sweep.columns)) == (len(rows), len(across))
        for cell in sweep.cells:
            config = json.loads(json.dumps(cell.trials[0].to_dict()))
            for entry in (*rows[cell.row], across[cell.column]):
                for where, value in said_by(entry):
                    assert value_at(config, where) == value, (number, where, overrides, path.read_text())
    assert min(outcomes.values()) > 60, outcomes
