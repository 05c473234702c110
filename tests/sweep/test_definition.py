"""Whose table a name is: views have names of their own, a part fills the file's table, a second file of one name is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pointsweep.cli import tables
from pointsweep.cli.run import main
from pointsweep.reporting.build import read
from pointsweep.storage.stores import open_store
from pointsweep.sweep.overrides import view_name
from pointsweep.sweep.sweep import load

FILE = """
name: one
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, source_points: 64, train_per_class: 4, test_per_class: 4, num_classes: 4, val_fraction: 0.25}
  tokenizer: {name: point_pn_light, num_tokens: 4, neighbours: 4}
  backbone: tiny
  method: adapter
  train: {epochs: 1, batch_size: 8, warmup_epochs: 0}
rows: {method: [adapter, lora]}
seeds: 2
"""
QUIET = ("--inline", "--tracking-uri", "none")


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(FILE)
    return path


def stored(store: Path, name: str = "one") -> dict:
    plan = json.loads((store / f"sweeps/{name}/plan.json").read_text())["layout"]
    table = json.loads((store / f"sweeps/{name}/table.json").read_text())
    return {"rows": plan["rows"], "seeds": [len(cell["keys"]) for cell in plan["cells"]], "n": [cell["n"] for cell in table["cells"]]}


# Names


@pytest.mark.parametrize(
    ("overrides", "only", "name"),
    [
        ([], [], "one"),
        ([], ["lora"], "one"),
        ([], ["seed=1"], "one"),
        (["seeds=1"], [], "one"),
        (["seeds=[1]"], ["lora"], "one"),
        (["resources.cpus=2"], [], "one"),
        (["train.lr=5e-3"], [], "one+train.lr=5e-3"),
        (["train.lr=5e-3"], ["lora"], "one+train.lr=5e-3"),
        (["train.lr=5e-3", "seeds=1", "resources.gpus=0"], [], "one+train.lr=5e-3"),
        (["train.lr=5e-3", "protocol=best_test"], [], "one+protocol=best_test+train.lr=5e-3"),
        (["protocol=best_test", "train.lr=5e-3"], [], "one+protocol=best_test+train.lr=5e-3"),
        (["+axes.train.lr=[1e-3]"], [], "one+axes.train.lr=1e-3-"),
        (["~train.epochs"], [], "one+~train.epochs"),
        (["seeds=5"], [], "one+seeds=5"),
        (["profile=smoke"], [], "one-smoke"),
        (["profile=smoke", "seeds=1"], [], "one-smoke"),
        (["profile=smoke", "train.lr=5e-3"], [], "one-smoke+train.lr=5e-3"),
        (["name=mine", "train.lr=5e-3"], [], "mine"),
    ],
)  # fmt: skip
def test_what_makes_another_table_has_another_name(file, overrides, only, name):
    sweep = load(file, overrides, only)
    assert sweep.name.startswith(name) if name.endswith("-") else sweep.name == name
    whole = load(file, [text for text in overrides if not text.startswith("seeds")])
    if "seeds=5" not in overrides:
        assert sweep.stored.layout().cells == whole.layout().cells


def test_a_searchs_budget_keeps_its_name_and_its_space_does_not(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(FILE.replace("rows: {method: [adapter, lora]}", "search: {space: {train.lr: {float: [1e-4, 1e-2]}}, trials: 2}"))
    assert load(path, ["search.trials=9", "search.hours=2"]).name == "one"
    assert load(path, ["search.seed=3"]).name == "one+search.seed=3"
    assert load(path, ["seeds=[1]"]).name.startswith("one+seeds=1")


def test_a_view_is_a_folders_name_of_its_own():
    names = [
        view_name("one", [text]) for text in ("a=[1,2]", "a=[12]", "a=1,2", "a='1,2'", "a=B", "a=b", "a=../../x", "a=" + "x" * 300)
    ]
    assert len(set(names)) == len(names)
    assert all("/" not in name and " " not in name and len(name) < 110 for name in names)
    assert len({name.lower() for name in names}) == len(names)


# The store


def test_a_part_of_a_table_leaves_the_whole_in_the_store(store, file, capsys):
    assert main([str(file), *QUIET]) == 0
    before = {path.name: path.read_bytes() for path in (store / "sweeps/one").glob("table.*")}
    for part in (["--only", "lora"], ["seeds=1"], ["--only", "seed=0", "--only", "adapter"]):
        assert main([str(file), *QUIET, *part]) == 0
        assert "whole    pointsweep tables one" in capsys.readouterr().out
        assert {path.name: path.read_bytes() for path in (store / "sweeps/one").glob("table.*")} == before
    assert tables.main(["one"]) == 0
    assert "lora" in (printed := capsys.readouterr().out) and "adapter" in printed


def test_parts_fill_the_table_of_the_file(store, file, capsys):
    assert main([str(file), *QUIET, "--only", "lora", "seeds=[1]"]) == 0
    assert stored(store) == {"rows": [["adapter"], ["lora"]], "seeds": [2, 2], "n": [0, 1]}
    assert main([str(file), *QUIET, "seeds=1"]) == 0
    assert stored(store)["n"] == [1, 2]
    assert main([str(file), *QUIET, "--plan"]) == 0
    assert "3 finished, 1 to run" in capsys.readouterr().out


def test_an_override_makes_a_table_beside_the_files_own(store, file, capsys):
    assert main([str(file), *QUIET, "seeds=1"]) == 0
    assert main([str(file), *QUIET, "seeds=1", "train.lr=5e-3"]) == 0
    assert sorted(path.name for path in (store / "sweeps").iterdir()) == ["one", "one+train.lr=5e-3"]
    own, view = ({key for _, key in read(open_store(str(store)), name)[0].cells[0].keys} for name in ("one", "one+train.lr=5e-3"))
    assert not own & view
    capsys.readouterr()
    assert tables.main(["one+train.lr=5e-3"]) == 0
    assert "override train.lr=5e-3" in capsys.readouterr().out


def test_a_second_file_of_one_name_is_refused_and_the_first_table_stays(store, file, tmp_path, capsys):
    assert main([str(file), *QUIET, "seeds=1"]) == 0
    before = {path.name: path.read_bytes() for path in (store / "sweeps/one").iterdir() if path.is_file()}
    other = tmp_path / "other.yaml"
    search = "search: {space: {train.lr: {float: [1e-4, 1e-2]}}, trials: 1}"
    for rows in ("rows: {method: [prompt]}", "rows: {method: [adapter, lora, prompt]}", search):
        other.write_text(FILE.replace("rows: {method: [adapter, lora]}", rows))
        capsys.readouterr()
        for more in ([], ["--plan"]):
            assert main([str(other), *QUIET, *more]) == 2
            said = capsys.readouterr().err
            assert str(other) in said and str(file) in said and "--replace" in said
    assert {path.name: path.read_bytes() for path in (store / "sweeps/one").iterdir() if path.is_file()} == before
    other.write_text(FILE.replace("[adapter, lora]", "[head_only]"))
    assert main([str(other), *QUIET, "--replace"]) == 0
    assert stored(store)["rows"] == [["head_only"]]
    assert main([str(file), *QUIET]) == 2


def test_an_edited_file_and_a_copy_that_says_the_same_go_on(store, file, tmp_path):
    assert main([str(file), *QUIET, "seeds=1"]) == 0
    file.write_text(FILE.replace("[adapter, lora]", "[adapter, head_only]"))
    assert main([str(file), *QUIET, "--plan"]) == 0
    file.write_text(FILE)
    copy = tmp_path / "copy.yaml"
    copy.write_text("# another place\n" + FILE)
    assert main([str(copy), *QUIET, "--plan"]) == 0


def test_the_command_line_cannot_take_a_name_for_another_table(store, file, capsys):
    assert main([str(file), *QUIET, "seeds=1", "name=mine", "train.lr=5e-3"]) == 0
    assert main([str(file), *QUIET, "seeds=1", "name=mine", "train.lr=6e-3"]) == 2
    assert "train.lr=5e-3" in capsys.readouterr().err


def test_the_table_of_a_file_is_its_own_whatever_has_its_name(store, file, tmp_path, capsys):
    assert main([str(file), *QUIET, "seeds=1"]) == 0
    other = tmp_path / "other.yaml"
    other.write_text(FILE.replace("[adapter, lora]", "[lora, head_only]"))
    capsys.readouterr()
    assert tables.main([str(other)]) == 0
    printed = capsys.readouterr().out
    assert "head_only" in printed and "adapter" not in printed
    assert tables.main([str(file)]) == 0
    assert "adapter" in capsys.readouterr().out


def test_a_file_that_never_ran_has_no_table(store, file, capsys):
    assert tables.main([str(file)]) == 2
    assert "unknown sweep 'one'" in capsys.readouterr().err


def test_equal_cells_are_said_by_the_plan_and_by_the_launch(store, tmp_path, capsys):
    path = tmp_path / "twins.yaml"
    rows = "rows: [{label: plus, train.weight_decay: 0.0}, {label: int, train.weight_decay: 0}]"
    path.write_text(FILE.replace("rows: {method: [adapter, lora]}", rows).replace("seeds: 2", "seeds: 1"))
    for more in (["--plan"], []):
        assert main([str(path), *QUIET, *more]) == 0
        assert "the same trials: plus / all, int / all\n" in capsys.readouterr().out


def test_the_plan_lists_constraints_and_settings_that_a_part_of_the_table_has(store, tmp_path, capsys):
    path = tmp_path / "plan.yaml"
    search = "search: {space: {train.lr: {float: [1e-4, 1e-2]}}, constraints: [train.lr < 0.009], trials: 1}"
    path.write_text(FILE.replace("rows: {method: [adapter, lora]}", search))
    assert main([str(path), *QUIET, "--plan"]) == 0
    assert "constraint: train.lr < 0.009\n" in capsys.readouterr().out
    path.write_text(FILE.replace("method: adapter", "method: {name: adapter, bottleneck: 4}"))
    assert main([str(path), *QUIET, "--plan"]) == 0
    said = "used in part: base.method.bottleneck: 4 is a setting of adapter, used with it alone, not where method is lora\n"
    assert said in capsys.readouterr().out
