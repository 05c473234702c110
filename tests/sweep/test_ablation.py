"""Generated rows: which components each has, what it sets, its label, and what is said of a wrong section."""

from __future__ import annotations

import itertools

import pytest

from pointsweep.errors import ConfigError
from pointsweep.reporting.build import build
from pointsweep.results.records import Record
from pointsweep.sweep.sweep import Sweep, load

FILE = """
name: t
base:
  dataset: synthetic
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  method: any2point
rows:
  ablate:
    whole: Any2Point
    bare: head only
    components:
      aggregation: {without: {method.local_aggregation: false}}
      ensemble: {without: {method.ensemble: mean}, with: {method.ensemble: maxmean}}
      positions: {without: {positions: {kind: none}}}
    GENERATORS
seeds: 2
"""
WHOLE = (True, "maxmean", "virtual")


@pytest.fixture
def swept(tmp_path):
    def made(generators: str, change: tuple[str, str] = ("", "")) -> Sweep:
        path = tmp_path / "t.yaml"
        path.write_text(FILE.replace("GENERATORS", generators).replace(*change))
        return load(path)

    return made


def rows(sweep: Sweep) -> dict[str, tuple[bool, str, str]]:
    """label -> the three settings of the row, as they will run."""
    configs = [cell.trials[0] for cell in sweep.cells]
    settings = [(c.method.local_aggregation, c.method.ensemble, c.positions.kind) for c in configs]
    return {row[0]: found for row, found in zip(sweep.rows, settings, strict=True)}


def test_leave_one_out_takes_each_component_away(swept):
    assert rows(swept("leave_one_out: all")) == {
        "Any2Point": WHOLE,
        "- aggregation": (False, "maxmean", "virtual"),
        "- ensemble": (True, "mean", "virtual"),
        "- positions": (True, "maxmean", "none"),
    }


def test_add_one_in_starts_from_none(swept):
    assert rows(swept("add_one_in: [ensemble, aggregation]")) == {
        "head only": (False, "mean", "none"),
        "+ ensemble": (False, "maxmean", "none"),
        "+ aggregation": (True, "mean", "none"),
    }


def test_cumulative_adds_to_the_row_above_and_ends_with_the_whole(swept):
    found = rows(swept("cumulative: [positions, aggregation, ensemble]"))
    assert list(found) == ["head only", "+ positions", "+ aggregation", "+ ensemble (Any2Point)"]
    assert list(found.values()) == [(False, "mean", "none"), (False, "mean", "virtual"), (True, "mean", "virtual"), WHOLE]


def test_a_factorial_has_every_set_and_its_shares_reach_the_table(swept):
    sweep = swept("factorial: all")
    found = rows(sweep)
    assert set(found.values()) == set(itertools.product((True, False), ("maxmean", "mean"), ("virtual", "none")))
    assert list(found)[:5] == ["head only", "+ aggregation", "+ ensemble", "+ positions", "+ aggregation + ensemble"]
    worth = {"aggregation": 0.04, "ensemble": 0.02, "positions": 0.01}
    records = {}
    for cell in sweep.layout().cells:
        factors = sweep.factors[cell.row] or {}
        value = 0.5 + sum(gain for name, gain in worth.items() if factors[name])
        metrics = {"last": {"test/accuracy": value}}
        records |= {key: Record(key, {}, metrics, {}, {}, "") for _, key in cell.keys}
    [note] = [note for note in build(sweep.layout(), records, {}).notes if note.startswith("components")]
    assert "aggregation +4.0" in note
    assert "ensemble +2.0" in note
    assert "positions +1.0" in note


def test_a_factorial_of_some_keeps_the_others(swept):
    sweep = swept("factorial: [aggregation, positions]")
    assert rows(sweep) == {
        "- aggregation - positions": (False, "maxmean", "none"),
        "- positions": (True, "maxmean", "none"),
        "- aggregation": (False, "maxmean", "virtual"),
        "Any2Point": WHOLE,
    }
    assert sweep.factors[1] == {"aggregation": True, "positions": False}


def test_several_generators_name_equal_sets_once(swept):
    sweep = swept("leave_one_out: all\n    cumulative: all\n    factorial: all")
    singles = ["- aggregation", "- ensemble", "- positions"]
    assert list(rows(sweep)) == ["Any2Point", *singles, "head only", "+ aggregation", "+ ensemble", "+ positions"]
    assert len(set(rows(sweep).values())) == 8
    assert len(sweep.trials()) == 16


@pytest.mark.parametrize(
    ("generators", "change", "line", "text"),
    [
        ("leave_one_out: [ensembel]", ("", ""), 16, "unknown component 'ensembel'. Did you mean 'ensemble'?"),
        ("leave_two_out: all", ("", ""), 16, "unknown key 'leave_two_out'. Did you mean 'leave_one_out'?"),
        ("published: {}", ("", ""), 9, "names no rows: say one or more of leave_one_out, add_one_in"),
        ("factorial: [ensemble, ensemble]", ("", ""), 16, "must be `all` or a list of different components"),
        ("factorial: all", ("{without: {method.local_aggregation: false}}", "{}"), 13, "needs `without:`, the settings that switch it off"),
        ("factorial: all", ("without: {method.local", "without: {methd.local"), 13, "unknown key 'methd'. Did you mean 'method'?"),
        ("factorial: all", ("method.local_aggregation", "method.local_agregation"), 13, "any2point has no field 'local_agregation'"),
        ("factorial: all", ("method.local_aggregation: false", "method.ensemble: mean"), 14, "sets method.ensemble, as does 'aggregation'"),
        ("factorial: all", ("components:", "parts:"), 9, "must be a mapping {name: {without: {KEY: VALUE}}}, got None"),
        ("factorial: all\n    published: {whole: 1.0}", ("", ""), 17, "unknown row 'whole'"),
        ("factorial: all", ("bare: head only", "bare: Any2Point"), 9, "the label 'Any2Point' stands twice"),
    ],
)  # fmt: skip
def test_a_wrong_section_is_told_at_its_line(swept, generators, change, line, text):
    with pytest.raises(ConfigError) as error:
        swept(generators, change)
    assert text in str(error.value)
    assert f"line {line}" in str(error.value), error.value


@pytest.mark.parametrize(
    "rows", ["{ablate: 3}", "{ablate: {components: [a]}}", "{ablate: {components: {a: 1}, factorial: 2}}", "{ablate: {}, x: 1}"]
)
def test_a_section_of_another_shape_is_refused(swept, rows):
    with pytest.raises(ConfigError, match=r"rows"):
        swept("", (FILE[FILE.index("rows:") : FILE.index("seeds:")], f"rows: {rows}\n"))


def test_a_profile_keeps_a_part_of_the_table_unless_told_which(swept, tmp_path):
    swept("leave_one_out: all\nprofiles: {smoke: {only: [Any2Point, '- e*']}}")
    small = load(tmp_path / "t.yaml", ["profile=smoke"])
    assert [row[0] for row in small.rows] == ["Any2Point", "- ensemble"]
    assert [row[0] for row in load(tmp_path / "t.yaml", ["profile=smoke"], ["- pos*"]).rows] == ["- positions"]
    assert len(load(tmp_path / "t.yaml").rows) == 4


def test_an_override_of_a_part_of_the_seeds_is_told_what_lacks(swept, tmp_path):
    swept("leave_one_out: all")
    with pytest.raises(ConfigError, match=r"seeds\.min.*must be a whole number from 2 on"):
        load(tmp_path / "t.yaml", ["seeds.max=5"])
