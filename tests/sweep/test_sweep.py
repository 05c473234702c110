"""The sweep language: what a file means, and what is said when it is wrong."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsweep.config.schema import TrialConfig
from pointsweep.errors import ConfigError
from pointsweep.results.records import layout_from_json
from pointsweep.sweep.profiles import only
from pointsweep.sweep.resources import read_resources
from pointsweep.sweep.sweep import Sweep, load
from pointsweep.sweep.yaml_document import family, found_file, is_file_name
from tests.support.sweep_files import problems

SWEEPS = Path(__file__).parents[2] / "sweeps"
BASE = """
name: t
base:
  dataset: synthetic
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  method: {name: lora, rank: 4}
"""


@pytest.fixture
def write(tmp_path):
    def made(text: str, name: str = "t.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return made


def cell(sweep: Sweep, row: int = 0, column: int = 0) -> TrialConfig:
    return next(c for c in sweep.cells if (c.row, c.column) == (row, column)).trials[0]


# What a file means


def test_rows_columns_and_seeds_multiply(write):
    sweep = load(write(BASE + "rows: {method.rank: [2, 4]}\ncolumns: {train.lr: [1e-3, 5e-4, 1e-4]}\nseeds: 2\n"))
    assert sweep.rows == (("2",), ("4",))
    assert sweep.row_headers == ("rank",)
    assert sweep.columns == ("0.001", "0.0005", "0.0001")
    assert len(sweep.trials()) == 12
    assert (cell(sweep, 1, 2).method.rank, cell(sweep, 1, 2).train.lr) == (4, 1e-4)


def test_labelled_rows_set_what_they_say(write):
    rows = "rows:\n  - {label: small, method.rank: 2}\n  - {label: prompts, method: {name: prompt, num_prompts: 3}}\n"
    sweep = load(write(BASE + rows))
    assert [row[0] for row in sweep.rows] == ["small", "prompts"]
    assert cell(sweep, 0).method.rank == 2
    # Another component replaces the base's whole: nothing of lora is left.
    assert (cell(sweep, 1).method.name, cell(sweep, 1).method.num_prompts) == ("prompt", 3)


def test_the_last_axis_is_printed_across_where_there_are_no_columns(write):
    sweep = load(
        write(
            BASE
            + "rows: {method.rank: [2, 4]}\naxes: {seedless: [1]}\n".replace(
                "seedless: [1]", "train.lr: [1e-3], backbone.modality: [1d, 2d]"
            )
        )
    )
    assert sweep.columns == ("1d", "2d")
    assert sweep.row_headers == ("rank", "lr")
    assert sweep.rows == (("2", "0.001"), ("4", "0.001"))


def test_zip_varies_keys_together(write):
    sweep = load(write(BASE + "columns:\n  zip: {label: [A, B], method.rank: [2, 4], train.lr: [1e-3, 1e-4]}\n"))
    assert sweep.columns == ("A", "B")
    assert [(cell(sweep, 0, c).method.rank, cell(sweep, 0, c).train.lr) for c in (0, 1)] == [(2, 1e-3), (4, 1e-4)]


def test_conditional_settings_are_weaker_than_rows_and_stronger_than_the_base(write):
    text = (
        BASE
        + """
settings:
  - {when: {method: prompt}, method.num_prompts: 7, train.lr: 1e-3}
rows:
  - {label: a, method: prompt}
  - {label: b, method: {name: prompt, num_prompts: 2}}
  - {label: c, method.rank: 8}
"""
    )
    sweep = load(write(text))
    assert (cell(sweep, 0).method.num_prompts, cell(sweep, 0).train.lr) == (7, 1e-3)
    assert cell(sweep, 1).method.num_prompts == 2
    assert cell(sweep, 2).train.lr == 5e-4


def test_cells_are_left_out_by_when_and_by_exclude(write):
    text = (
        BASE
        + """
rows:
  - {label: everywhere, method: head_only}
  - {label: on lines, method: any2point, when: {backbone.modality: [1d]}}
  - {label: guided, method: any2point}
columns: {backbone.modality: [1d, 3d]}
exclude: [{when: {method: any2point, backbone.modality: 3d}, because: any2point has no 3d form}]
"""
    )
    sweep = load(write(text))
    reasons = {(c.row, c.column): c.excluded for c in sweep.cells}
    assert reasons[1, 1] == "on lines is for backbone.modality 1d only"
    assert reasons[2, 1] == "any2point has no 3d form"
    assert [reasons[i] for i in ((0, 0), (0, 1), (1, 0), (2, 0))] == [None] * 4


def test_a_row_that_cannot_be_run_stands_with_its_reason_and_its_published_number(write):
    text = (
        BASE
        + """
rows:
  - {label: ours, method: head_only}
  - {label: theirs, published: 88.2, because: "its program: not here"}
columns: {backbone.modality: [1d, 2d]}
"""
    )
    sweep = load(write(text))
    cells = {(c.row, c.column): c for c in sweep.cells}
    assert [cells[1, column].excluded for column in (0, 1)] == ["its program: not here"] * 2
    assert [cells[1, column].published.value for column in (0, 1)] == [88.2, 88.2]
    assert {trial.cell.row for trial in sweep.trials()} == {0}
    assert all(cell.published is None for cell in load(write(text), ["profile=smoke"]).cells)
    assert "theirs / 1d: not run: its program: not here" in sweep.resolved()


def test_a_file_inherits_base_and_settings(write):
    write("name: p\nbase: {dataset: synthetic, backbone: tiny, tokenizer: point_pn_light, train.epochs: 7}\n"
          "settings: [{when: {method: lora}, method.rank: 5}]\n", "parent.yaml")  # fmt: skip
    sweep = load(write("name: c\nbase: {from: parent.yaml, method: lora, train: {lr: 1e-3}}\n", "child.yaml"))
    config = cell(sweep)
    assert (config.train.epochs, config.train.lr, config.method.rank) == (7, 1e-3, 5)


def test_a_network_takes_the_place_of_backbone_and_method(write):
    sweep = load(write(BASE + "rows:\n  - {label: ours, method.rank: 2}\n  - {label: Point-NN, network: point_nn}\n"))
    assert cell(sweep, 1).network.name == "point_nn"
    assert cell(sweep, 1).backbone is None


def test_two_cells_with_one_configuration_share_their_trials(write):
    sweep = load(write(BASE + "rows:\n  - {label: a, method.rank: 4}\n  - {label: b}\nseeds: 3\n"))
    assert len(sweep.trials()) == 3
    assert sweep.identical_cells() == ["a / all, b / all"]


def test_overrides_win_over_the_base_and_change_the_file(write):
    path = write(BASE + "rows: {method.rank: [2, 4]}\nexclude: [{when: {method.rank: 2}, because: x}]\n")
    assert cell(load(path, ["train.lr=9e-3"]), 1).train.lr == 9e-3
    assert cell(load(path, ["dataset.scale=[0.5,2.0]"]), 1).dataset.scale == (0.5, 2.0)
    assert len(load(path, ["seeds=[5]"]).trials()) == 1
    assert len(load(path, ["~exclude", "seeds=1"]).trials()) == 2
    assert load(path, ["+axes.train.lr=[1e-4,1e-3]"]).columns == ("0.0001", "0.001")
    assert "override seeds=[5]" in load(path, ["seeds=[5]"]).notes


@pytest.mark.parametrize("label", ["M[6]", "a*b", "what?", "[x", "row=1", "seed=0", "column=all", "lr=0.1"])
def test_a_label_itself_always_names_its_row(label, write):
    rows = f"rows:\n  - {{label: '{label}', train.lr: 1.0e-3}}\n  - {{label: M6, train.lr: 2.0e-3}}\n  - {{label: aab, train.lr: 3.0e-3}}\n"
    path = write(BASE + rows)
    assert load(path, only=[label]).rows == ((label,),)
    assert load(path, only=[f"row={label}"]).rows == ((label,),)


def test_patterns_still_match_and_the_right_kind_is_named(write):
    path = write(BASE + "rows:\n  - {label: 'M[6]', train.lr: 1.0e-3}\n  - {label: 'M[1]', train.lr: 2.0e-3}\n")
    assert load(path, only=["M*"]).rows == (("M[6]",), ("M[1]",))
    assert "It is column=all" in problems(path, only=["all"])
    assert "Did you mean 'M[6]'" in problems(path, only=["M[7]"])


def test_a_sweep_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(found_file("quickstart")).samefile(SWEEPS / "quickstart.yaml")
    assert Path(found_file("quickstart.yaml")).samefile(SWEEPS / "quickstart.yaml")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "quickstart.yml").write_text("name: mine\n")
    assert found_file("quickstart") == "sweeps/quickstart.yml"
    (tmp_path / "quickstart.yaml").write_text("name: nearer\n")
    assert found_file("quickstart") == "quickstart.yaml"
    with pytest.raises(ConfigError, match=r"no such sweep file\. Did you mean 'quickstart'\? Looked in: \., sweeps, "):
        found_file("quikstart.yaml")


def test_a_file_inherits_from_one_beside_it_or_else_from_one_that_comes_with_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nbase: {from: smoke.yaml}\nrows: {method: [lora]}\naxes: {backbone.modality: [1d]}\n"
    )
    sweep = load("mine.yaml")
    assert sweep.trials()[0].config.train.lr == 2.0e-3, "as sweeps/smoke.yaml has it"
    assert sweep.remarks == (f"it inherits from {SWEEPS / 'smoke.yaml'}, which comes with pointsweep",)
    (tmp_path / "smoke.yaml").write_text((SWEEPS / "smoke.yaml").read_text().replace("2.0e-3", "4.0e-3"))
    nearer = load("mine.yaml")
    assert nearer.trials()[0].config.train.lr == 4.0e-3
    assert nearer.remarks == ()
    (tmp_path / "typo.yaml").write_text("name: mine\nbase: {from: quikstart.yaml}\n")
    with pytest.raises(
        ConfigError, match=r"no file quikstart\.yaml; .* Did you mean 'quickstart\.yaml', which comes with pointsweep\?"
    ):
        load("typo.yaml")


def test_words_of_the_command_line_are_files_or_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["quickstart", "missing.yaml", "train.epochs=2", "~exclude", "+axes.seed=[1]", "profile=smoke.yaml", "quikstart"]
    assert [word for word in words if is_file_name(word)] == ["quickstart", "missing.yaml"]


def test_only_keeps_a_part_of_the_table(write):
    path = write(BASE + "rows: {method.rank: [2, 4, 16]}\ncolumns: {train.lr: [1e-3, 1e-4]}\n")
    sweep = load(path, [], ["row=4", "row=1*", "column=0.001", "seed=1"])
    assert (sweep.rows, sweep.columns) == ((("4",), ("16",)), ("0.001",))
    assert [trial.config.seed for trial in sweep.trials()] == [1, 1]
    assert "unknown row '3'" in problems(path, only=["row=3"])


@pytest.mark.parametrize("path", sorted(SWEEPS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_file_is_valid_and_small_under_the_smoke_profile(path):
    full, small = load(path, [], only("smoke", family(path))), load(path, ["profile=smoke"])
    assert len(small.cells) == len(full.cells)
    assert small.name == f"{full.name}-smoke"
    for trial in small.trials():
        assert trial.config.dataset.name in ("synthetic", "synthetic_parts", "synthetic_rooms")
        assert trial.config.network is not None or trial.config.backbone.name == "tiny"
        assert trial.config.train.epochs == 2
    assert all(c.published is None for c in small.cells)
    # Models that differ in the table differ in their smoke form too, or the smoke run would test nothing.
    assert models(small) == models(full)


def models(sweep) -> int:
    """How many distinct models a sweep trains; the stand-ins of two data sets, and of two sizes of a tokenizer, are one."""
    parts = ("network", "backbone", "positions", "method", "head", "compat", "seed")
    named = ([getattr(trial.config, part) for part in parts] for trial in sweep.trials())
    return len({str(values) for values in named})


NUMBERS = {
    "smoke": 24,
    "quickstart": 12,
    "modelnet40_small": 48,
    "ablation_table5": 36,
    "any2point_scanobjectnn": 6,
    "point_nn_modelnet40": 2,
    "networks_modelnet40": 15,
    "any2point_table1": 114,
    "any2point_table2": 36,
    "any2point_table3": 48,
    "any2point_table4": 48,
    "any2point_table6": 9,
    "backbones_3d": 36,
    "backbones_3d_modelnet40": 15,
    "few_shot": 80,
    "networks_table1": 42,
    "point_peft_modelnet40": 27,
    "point_peft_scanobjectnn": 45,
    "robustness": 72,
    "leakage": 24,
    "encodings_scrambled": 48,
    "part_segmentation": 24,
    "semantic_segmentation": 24,
    # What a search will train is not known beforehand.
    "search_any2point": 0,
    "search_point_peft": 0,
    "pareto_peft": 0,
    "tuned_methods": 0,
    "peft_modelnet40": 0,
    "pointnet_modelnet40": 3,
    "untuned_methods": 12,
    "m_views": 60,
    "prompt_length": 72,
    "adapter_parts": 48,
    "backbones": 87,
    "point_peft_parts": 21,
    "point_peft_prompts": 60,
    "point_peft_tuning": 21,
    "appt_parts": 108,
    "any_modality": 180,
    "any_modality_small": 36,
    "pretraining": 60,
}


def test_every_file_expands_to_its_stated_number_of_trials():
    assert {path.stem: len(load(path).trials()) for path in SWEEPS.rglob("*.yaml")} == NUMBERS


def test_every_search_states_its_budget():
    searches = {path.stem: sweep.searched() for path in SWEEPS.rglob("*.yaml") if (sweep := load(path)).search is not None}
    assert searches == {
        "search_any2point": "search of 60 trials by tpe",
        "search_point_peft": "search of 60 trials by tpe",
        "pareto_peft": "search of 120 trials by nsga2",
        "tuned_methods": "search of 8 trials by tpe for each of 4 arms, then 3 fresh seeds",
        "peft_modelnet40": "search of 6 trials by tpe for each of 4 arms, then 5 fresh seeds",
    }


def test_table_5_carries_the_papers_numbers():
    sweep = load(SWEEPS / "ablation_table5.yaml")
    found = [[next(c for c in sweep.cells if (c.row, c.column) == (r, k)).published.value for k in (0, 1)] for r in range(3)]
    assert found == [[89.3, 86.6], [90.2, 86.8], [91.9, 87.7]]
    assert (cell(sweep, 2, 0).tokenizer.neighbours, cell(sweep, 2, 1).tokenizer.neighbours) == (81, 64)
    assert (cell(sweep, 2, 0).method.bottleneck, cell(sweep, 2, 1).method.bottleneck) == (16, 8)


# What is said when it is wrong


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rows:\n  - {label: a, method.rnk: 2}\n", "rows[0].method.rnk (line 9): lora has no field 'rnk'. Did you mean 'rank'?"),
        ("axes:\n  backbone: [tiny, tinny]\n", "axes.backbone[1] (line 9): unknown backbone 'tinny'. Did you mean 'tiny'? Known: bert, clip_text"),
        ("rows: {methd: [lora]}\n", "rows.methd (line 8): unknown key 'methd'. Did you mean 'method'?"),
        ("rows:\n  - {method.rank: 2}\n", "rows[0] (line 9): must be a mapping with a label"),
        ("rows:\n  - {label: a}\n  - {label: a}\n", "rows (line 8): the label 'a' stands twice"),
        ("rows: []\n", "rows (line 8): has no entries"),
        ("rows:\n  - {label: a, because: b, method.rank: 2}\n", "rows[0] (line 9): has because: and is not run, so it sets nothing; leave out method.rank"),
        ("rows:\n  zip: {method.rank: [1], because: [x]}\n", "rows.zip.because (line 9): stands in rows that are written out alone"),
        ("columns:\n  zip: {method.rank: [1, 2], train.lr: [1.0]}\n", "columns.zip (line 9): needs lists of one length"),
        ("seeds: [1, 1]\n", "seeds (line 8): must be a number of seeds"),
        ("seeds: yes\n", "got 'yes'"),
        ("protocol: best_tst\n", "protocol (line 8): unknown protocol 'best_tst'. Did you mean 'best_test'?"),
        ("protocol: best_val\n", "protocol (line 8): best_val needs a validation split"),
        ("metric: val/accuracy\n", "metric (line 8): val/accuracy needs a validation split"),
        ("metric: accuracy\n", "unknown metric 'accuracy'"),
        ("resources: {gpu: 1}\n", "resources.gpu (line 8): resources has no field 'gpu'. Did you mean 'gpus'?"),
        ("profiles: {'': true}\n", "profiles. (line 8): a profile needs a name, got ''"),
        ("profiles: {mine: 5}\n", "profiles.mine (line 8): must be a mapping of settings, got 5"),
        ("profiles: {smoke: [1]}\n", "profiles.smoke (line 8): must be a mapping of settings, got [1]"),
        ("exclude: [{when: {method: lora}}]\n", "exclude[0] (line 8): needs `when:`, a mapping of keys to values, and `because:`"),
        ("settings: [{method.rank: 3}]\n", "settings[0] (line 8): needs `when:`"),
        ("rows:\n  - {label: a, method: {name: lora, rank: 0}}\n", "rows[0].method.rank (line 9): must be at least 1, got 0"),
        ("rows:\n  - {label: a, method: any2point, backbone.modality: 3d}\n", "rows[0].method (line 9): any2point needs a 1d or 2d backbone; tiny is 3d"),
        ("titel: x\n", "titel (line 8): unknown key 'titel'. Did you mean 'title'?"),
        ("title: a\ntitle: b\n", "title (line 9): stands twice"),
        ("rows:\n  - {label: a, published: Nobody}\npublished: {paper: Any2Point, table: Table 5}\n", "rows[0].published (line 9): unknown row in published.csv 'Nobody'"),
        ("rows:\n  - {label: a, published: {tabel: Table 5, row: x}}\npublished: {paper: Any2Point}\n", "unknown column of published.csv 'tabel'. Did you mean 'table'?"),
        ("rows:\n  - {label: a, published: {al: 91.9}}\n", "rows[0].published (line 9): unknown column 'al'. Did you mean 'all'?"),
    ],
)  # fmt: skip
def test_a_problem_names_path_line_and_what_is_allowed(write, text, expected):
    assert expected in problems(write(BASE + text))


def test_the_name_cannot_lead_out_of_the_store(write):
    assert "name (line 1): must be lower-case letters" in problems(write("name: ../../etc\nbase: {}\n"))


def test_all_problems_are_found_at_once_whatever_their_kind(write):
    text = problems(
        write(BASE + "rows:\n  - {label: a, method.rnk: 2}\ntitel: x\nseeds: 0\n"), ["protocl=last", "a=1,2", "method.rank=x="]
    )
    for part in ("rnk", "titel", "seeds", "protocl=last: unknown key", "a=1,2: one value only", "not an override"):
        assert part in text
    assert "6 problems, nothing was launched" in text


def test_a_problem_of_an_inherited_file_names_that_file(write):
    write("name: p\nbase: {trian: {}}\n", "parent.yaml")
    assert "parent.yaml: base.trian: " in problems(write(BASE.replace("base:", "base:\n  from: parent.yaml"), "c.yaml")).replace(
        " (line 2)", ""
    )


def test_files_that_inherit_in_a_circle_are_refused(write):
    write("name: a\nbase: {from: b.yaml}\n", "a.yaml")
    assert "in a circle: b.yaml -> a.yaml -> b.yaml" in problems(write("name: b\nbase: {from: a.yaml}\n", "b.yaml"))


def test_an_inherited_file_that_is_not_there_is_named_with_its_neighbours(write):
    assert "no file" in problems(write("name: b\nbase: {from: a.yaml}\n", "b.yaml"))
    assert "b.yaml" in problems(write("name: b\nbase: {from: a.yaml}\n", "b.yaml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1\n", "not YAML"),
        ("- 1\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: !!python/object:os.system {}\n", "a (line 1): the tag tag:yaml.org,2002:python/object:os.system is not allowed"),
    ],
)
def test_what_is_no_sweep_is_refused(write, text, expected):
    assert expected in problems(write(text))


def test_a_file_that_is_not_there_is_said_to_be_unreadable(tmp_path):
    assert "cannot be read" in problems(tmp_path / "none.yaml")


def test_numbers_and_truth_values_are_those_of_yaml_1_2(write):
    sweep = load(write(BASE + "rows:\n  - {label: no, train.lr: 5e-4, train.decay_tokens: false}\n"))
    assert sweep.rows == (("no",),)
    assert (cell(sweep).train.lr, cell(sweep).train.decay_tokens) == (5e-4, False)


def test_a_bad_file_is_refused_within_2_s_and_without_torch(write):
    path = write(BASE + "rows:\n  - {label: a, method.rnk: 2}\n")
    code = (
        "import sys\nfrom pointsweep.cli.run import main\n"
        f"code = main([{str(path)!r}])\nprint(code, 'torch' in sys.modules, 'ray' in sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.stdout.strip() == "2 False False"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


def reorder(data, order):
    if isinstance(data, dict):
        return {key: reorder(data[key], order) for key in sorted(data, key=lambda _: order.random())}
    return [reorder(item, order) for item in data] if isinstance(data, list) else data


@given(st.randoms())
@settings(max_examples=25, deadline=None)
def test_keys_do_not_depend_on_the_order_of_the_files_keys(tmp_path_factory, order):
    data = yaml.safe_load(BASE + "rows:\n  - {label: a, method.rank: 2, train: {lr: 0.001, epochs: 3}}\n")
    folder = tmp_path_factory.mktemp("order")
    (folder / "a.yaml").write_text(yaml.safe_dump(data))
    (folder / "b.yaml").write_text(yaml.safe_dump(reorder(data, order), sort_keys=False))
    first, second = ([trial.config.key() for trial in load(folder / name).trials()] for name in ("a.yaml", "b.yaml"))
    assert first == second


# Components of a factorial

FACTORIAL = """
rows:
  - {label: neither, method.rank: 2, factors: {size: false, drop: false}}
  - {label: drop, method.rank: 2, head.dropout: 0.1, factors: {size: false, drop: true}}
  - {label: size, factors: {size: true, drop: false}}
  - {label: both, head.dropout: 0.1, factors: {size: true, drop: true}}
  - {label: other, method.rank: 16}
"""


def test_the_rows_of_a_factorial_name_their_components(write):
    sweep = load(write(BASE + FACTORIAL))
    assert sweep.factors == (
        {"size": False, "drop": False}, {"size": False, "drop": True}, {"size": True, "drop": False}, {"size": True, "drop": True}, None,
    )  # fmt: skip
    assert layout_from_json(sweep.layout().to_json()) == sweep.layout()
    assert load(write(BASE + FACTORIAL), only=["row=both"]).factors == ({"size": True, "drop": True},)
    assert load(write(BASE + "rows: [{label: a}]")).factors == ()


def test_components_are_there_or_not(write):
    with pytest.raises(
        ConfigError, match=r"rows\[0\].factors .* must be a mapping of components to true or false, got \{'size': 3\}"
    ):
        load(write(BASE + "rows: [{label: a, factors: {size: 3}}]"))


def test_the_components_of_a_zip_stand_in_its_lists(write):
    sweep = load(write(BASE + "rows: {zip: {method.rank: [2, 4], factors: [{size: false}, {size: true}]}}"))
    assert sweep.factors == ({"size": False}, {"size": True})


# YAML as others write it


@pytest.mark.parametrize(
    ("written", "label"),
    [
        ("2026-01-01", "2026-01-01"), ("12:30", "12:30"), ("0x1F", "0x1F"), ("010", "010"), ("1_000", "1_000"), ("1e-3", "1e-3"),
        ("1.50", "1.50"), ("yes", "yes"), ("true", "true"), ("'null'", "null"), ("2026-01-01T10:00:00Z", "2026-01-01T10:00:00Z"),
    ],
)  # fmt: skip
def test_a_label_is_printed_as_it_is_written(write, written, label):
    assert load(write(BASE + f"rows: [{{label: {written}, method.rank: 2}}]\n")).rows == ((label,),)
    zipped = f"columns: {{zip: {{label: [{written}], method.rank: [2]}}}}\n"
    assert load(write(BASE + zipped)).columns == (label,)
    ablated = f"rows: {{ablate: {{whole: {written}, components: COMPONENTS, leave_one_out: all}}}}\n"
    components = "{c: {without: {method.rank: 2}}, d: {without: {train.lr: 1e-3}}}"
    assert load(write(BASE + ablated.replace("COMPONENTS", components))).rows == ((label,), ("- c",), ("- d",))
    named = ablated.replace("COMPONENTS", components.replace("c:", f"{written}:", 1)).replace(f"whole: {written}", "whole: all")
    assert load(write(BASE + named)).rows == (("all",), (f"- {label}",), ("- d",))


@pytest.mark.parametrize("written", ["null", "~", "", "Null"])
def test_a_label_that_is_null_is_refused_by_name(write, written):
    assert "rows[0].label (line 8): a label is a text, found null" in problems(
        write(BASE + f"rows: [{{label: {written}, method.rank: 2}}]\n")
    )
    zipped = f"columns: {{zip: {{label: [a, {written or 'null'}], method.rank: [2, 4]}}}}\n"
    assert "columns.zip.label[1] (line 8): a label is a text, found null" in problems(write(BASE + zipped))
    named = f"rows: {{ablate: {{components: {{{written or 'null'}: {{without: {{method.rank: 2}}}}}}, leave_one_out: all}}}}\n"
    assert "rows.ablate.components (line 8): a key is a text, found" in problems(write(BASE + named))


@pytest.mark.parametrize("written", ["[a]", "{a: b}", "''"])
def test_a_label_that_is_no_text_is_refused(write, written):
    assert "rows[0].label (line 8): a label is a text, found" in problems(
        write(BASE + f"rows: [{{label: {written}, method.rank: 2}}]\n")
    )


def test_null_on_an_axis_is_called_null(write):
    assert load(write(BASE + "columns: {backbone.num_blocks: [null, 1]}\n")).columns == ("null", "1")


def test_a_name_and_a_title_are_taken_as_they_are_written(write):
    sweep = load(write(BASE.replace("name: t\n", "name: 2026\ntitle: 2026-01-01\n")))
    assert (sweep.name, sweep.title) == ("2026", "2026-01-01")
    assert load(write(BASE.replace("name: t\n", "name: 0x1f\ntitle: 010\n"))).title == "010"
    assert load(write(BASE.replace("name: t\n", "name: t\ntitle: 0x10\n")), ["title=011"]).title == "011"


def test_published_numbers_find_their_column_however_it_is_written(write):
    for written in ("1e-3", "0.001", "1.0e-3"):
        rows = f"rows: [{{label: a, published: {{{written}: 89.5, 5e-4: 90}}}}]\ncolumns: {{train.lr: [0.001, 5e-4]}}\n"
        sweep = load(write(BASE + rows))
        assert [cell.published.value for cell in sweep.cells] == [89.5, 90.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows:\n  - &c {label: a, train.epochs: 2}\n  - {<<: *c, label: b}\n", "rows[1].<< (line 10): merge keys are not supported"),
        ("common: &c {train.epochs: 2}\n", "common (line 8): unknown key 'common'"),
        ("common: &c {train.epochs: 2}\n", "An anchor (&) needs no key of its own"),
        ("---\nname: u\n", "(line 8): holds a second document"),
        ("rows: !foo [{label: a}]\n", "rows (line 8): the tag !foo is not allowed"),
        ("seeds: !!set {a, b}\n", "the tag tag:yaml.org,2002:set is not allowed"),
        ("title: !!timestamp 2026-01-01\n", "the tag tag:yaml.org,2002:timestamp is not allowed"),
        ("title: !!binary aGk=\n", "the tag tag:yaml.org,2002:binary is not allowed"),
        ("seeds: !!int 0b1\n", "cannot be read: '0b1' is no int"),
        ("rows:\n\t- {label: a}\n", "(line 9): not YAML: a tab stands where YAML allows spaces alone"),
        ("? [a]\n: 1\n", "a key is a text, found a list or a mapping"),
        ("null: 1\n", "a key is a text, found null"),
    ],
)
def test_yaml_that_is_not_supported_is_refused_by_name_and_line(write, text, message):
    found = problems(write(BASE + text))
    assert message in found
    assert "None" not in found


def test_tags_of_the_core_schema_are_read(write):
    sweep = load(write(BASE + "title: !!str 3\nseeds: !!int 2\nrows: !!seq [!!map {label: a, train.lr: !!float 1}]\n"))
    assert (sweep.title, len(sweep.cells[0].trials), cell(sweep).train.lr) == ("3", 2, 1.0)


def test_aliases_mean_what_they_stand_for(write):
    rows = "rows:\n  - {label: a, method: &m {name: lora, rank: 2}}\n  - {label: b, method: *m, train.epochs: 2}\n"
    assert [cell(load(write(BASE + rows)), row).method.rank for row in (0, 1)] == [2, 2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_from_windows_is_the_same_sweep(tmp_path, encoding, end):
    text = BASE + "title: Größe 木\nrows: [{label: é, method.rank: 2}]\n"
    content = text.replace("\n", end)
    bom = {"utf-16-le-bom": b"\xff\xfe", "utf-16-be-bom": b"\xfe\xff"}.get(encoding, b"")
    path = tmp_path / "t.yaml"
    path.write_bytes(bom + content.encode(encoding.removesuffix("-bom")))
    sweep = load(path)
    assert (sweep.title, sweep.rows, sweep.text) == ("Größe 木", (("é",),), text)


def test_a_file_in_another_encoding_is_refused_with_its_line(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_bytes(BASE.encode() + "title: Größe\n".encode("latin-1"))
    assert "(line 8): cannot be read: byte 0xf6 is no UTF-8; save the file as UTF-8" in problems(path)


@pytest.mark.parametrize("section", ["rows", "columns", "axes"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("train.lr: [0.001, 1e-3]", "train.lr (line 8): the label '0.001' stands twice"),
        ("train.weight_decay: [0, 0.1, 0.0]", "train.weight_decay (line 8): 0 and 0.0 are the same value"),
        ("train.weight_decay: [0.0, -0.0]", "train.weight_decay (line 8): 0.0 and -0.0 are the same value"),
        ("train.decay_tokens: [true, 1]", "train.decay_tokens (line 8): true and 1 are the same value"),
        ("train.epochs: [1, 2, 1]", "train.epochs (line 8): the label '1' stands twice"),
        ("method: [lora, prompt, {name: lora}]", "method (line 8): the label 'lora' stands twice"),
        ("method: [{name: lora, rank: 4}, {name: lora, rank: 8}]", "the label 'lora' stands twice; rows with a label each"),
        ("positions.line: [[0, 0, 1], [0.0, 0, 1]]", "positions.line (line 8): [0, 0, 1] and [0.0, 0, 1] are the same value"),
        ("backbone.num_blocks: [null, 1, ~]", "backbone.num_blocks (line 8): the label 'null' stands twice"),
        ("zip: {train.lr: [1e-3, 0.001], train.epochs: [2, 2]}", "zip (line 8): the label '0.001, 2' stands twice"),
        ("zip: {train.weight_decay: [0, 0.0], train.epochs: [2, 2]}", "zip (line 8): 0, 2 and 0.0, 2 are the same value"),
        ("zip: {label: [a, b], train.lr: [1e-3, 0.001]}", "zip (line 8): a and b are the same value"),
        ("zip: {label: [a, a], train.lr: [1e-3, 0.002]}", "zip (line 8): the label 'a' stands twice"),
    ],
)  # fmt: skip
def test_values_of_an_axis_that_are_equal_are_refused(write, section, values, message):
    found = problems(write(BASE + f"{section}: {{{values}}}\n"))
    assert f"{section}." in found
    assert message in found
    assert found.count("twice") + found.count("same value") == 1


@pytest.mark.parametrize("section", ["rows", "columns", "axes"])
@pytest.mark.parametrize(
    ("values", "first", "second", "key"),
    [
        ("head.dropout: [0.3, 0.1, 0.30000000000000004]", "0.3", "0.30000000000000004", ".head.dropout[0] (line 8)"),
        ("train.lr: [0.001, 0.0010000000000000002]", "0.001", "0.0010000000000000002", ".train.lr[0] (line 8)"),
        ("positions.line: [[0, 0, 1], [0, 0, 1.0000000000000002]]", "[0, 0, 1]", "[0, 0, 1.0000000000000002]", ".positions.line[0] (line 8)"),
        ("zip: {label: [a, b], train.lr: [0.3, 0.30000000000000004]}", "0.3", "0.30000000000000004", ".zip.train.lr[0] (line 8)"),
        ("method: [{name: lora, alpha: 0.3}, {name: lora, alpha: 0.30000000000000004}]", "{'name': 'lora', 'alpha': 0.3}", "{'name': 'lora', 'alpha': 0.30000000000000004}", ".method[0] (line 8)"),
    ],
)  # fmt: skip
def test_values_of_an_axis_that_differ_by_rounding_alone_are_refused(write, section, values, first, second, key):
    found = problems(write(BASE + f"{section}: {{{values}}}\n"))
    assert f"{second} is the {first} of {section}{key} but for rounding: write both alike" in found


def test_rows_that_differ_by_rounding_alone_are_refused_with_both_places(write):
    rows = "rows:\n  - {label: a, train.lr: 0.3}\n  - {label: b, train.lr: 0.1}\n  - {label: c, train.lr: 0.30000000000000004}\n"
    expected = "rows[2].train.lr (line 11): 0.30000000000000004 is the 0.3 of rows[0].train.lr (line 9) but for rounding"
    assert expected in problems(write(BASE + rows))
    two = "rows:\n  - {label: a, train.lr: 0.3, train.epochs: 1}\n  - {label: c, train.lr: 0.30000000000000004, train.epochs: 2}\n"
    assert len(load(write(BASE + two)).rows) == 2, "they differ in another key as well"


def test_values_that_differ_stand_side_by_side(write):
    sweep = load(write(BASE + "axes: {train.weight_decay: [0, 0.1, 0.100000001], positions.line: [[0, 0, 1], [0, 1, 0]]}\n"))
    assert len({trial.config.key() for trial in sweep.trials()}) == 3 * 2 * 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train.weight_decay: 0.0", "train.weight_decay: -0.0"), ("train.weight_decay: 0", "train.weight_decay: 0.0"),
        ("positions.line: [0, -0.0, 1]", "positions.line: [0.0, 0, 1.0]"), ("train.lr: 1e-3", "train.lr: 0.001"),
        ("train.lr: 1E-3", "train.lr: 0.10e-2"), ("train.epochs: 0x1F", "train.epochs: 31"), ("dataset.scale: [1, 1]", "dataset.scale: [1.0, 1.]"),
        ("positions.translation: -0.0", "positions.translation: 0"),
    ],
)  # fmt: skip
def test_equal_configurations_have_one_key_however_they_are_written(write, one, other):
    sweep = load(write(BASE + f"rows: [{{label: one, {one}}}, {{label: other, {other}}}]\nseeds: 1\n"))
    assert len(sweep.trials()) == 1
    assert len(sweep.identical_cells()) == 1
    key, _, value = one.partition(": ")
    assert (
        load(write(BASE + "seeds: 1\n"), [f"{key}={value.replace(', ', ',')}"]).trials()[0].config.key()
        == sweep.trials()[0].config.key()
    )


@pytest.mark.parametrize("number", [".nan", ".inf", "893", "-1"])
def test_a_published_number_is_in_percent(write, number):
    assert "a published number is in percent, from 0 to 100" in problems(write(BASE + f"rows: [{{label: a, published: {number}}}]\n"))


@pytest.mark.parametrize("key", ["", "a.b", "x.", "."])
def test_a_key_of_a_section_may_be_any_text_and_is_refused_by_its_name(key):
    found: dict[str, str] = {}
    read_resources({key: None}, lambda path, text: found.update({path: text}))
    [text] = found.values()
    assert text.startswith(f"resources has no field '{key}'. Fields: budget, cpus")
