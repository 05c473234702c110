"""Words of a file and of the command line mean what YAML 1.2 says they mean, the same in both."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pointsweep.cli import run
from pointsweep.config import scalars
from pointsweep.errors import ConfigError
from pointsweep.sweep import overrides
from pointsweep.sweep.sweep import load
from pointsweep.sweep.yaml_document import read

BASE = """
name: t
base:
  dataset: {name: synthetic, val_fraction: 0.25}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  method: {name: lora, rank: 4}
"""
# YAML 1.2.2, section 10.3.2, tag resolution of the core schema, in the order of its table.
CORE = (
    (r"null|Null|NULL|~", lambda text: None),
    (r"true|True|TRUE|false|False|FALSE", lambda text: text in ("true", "True", "TRUE")),
    (r"[-+]?[0-9]+", lambda text: int(text, 10)),
    (r"0o[0-7]+", lambda text: int(text[2:], 8)),
    (r"0x[0-9a-fA-F]+", lambda text: int(text[2:], 16)),
    (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", float),
    (r"[-+]?(\.inf|\.Inf|\.INF)", lambda text: float(text.replace(".", ""))),
    (r"\.nan|\.NaN|\.NAN", lambda text: math.nan),
)
# 010 is 10 in YAML 1.2 and 8 in YAML 1.1: a text here, so that it is refused as a number.
AMBIGUOUS = r"[-+]?0[0-9]+"
WORDS = [
    "1", "+1", "-1", "0", "-0", "+0", "10", "007", "010", "-010", "08", "00", "1_000", "0o17", "0o8", "-0o17", "0x1F", "0x1f", "-0x1F",
    "0X1F", "0b101", "1:30", "12:30:45", "1:30.5", "1.5", "1.", ".5", "-.5", "+.5", "01.5", "1e-3", "1E-3", "1e3", "1e+3", "5.e-4", "1_0.5",
    "1.5e", "e3", "1e3.5", ".", "+", "-0.0", "0.0", ".inf", "-.inf", "+.INF", ".nan", ".NaN", "-.nan", "inf", "nan", "Infinity", "NaN", "INF",
    "true", "True", "TRUE", "tRue", "false", "False", "yes", "no", "on", "off", "y", "n", "Yes", "NO", "null", "Null", "NULL", "nULL", "none", "None",
    "2026-01-01", "2026-01-01T10:00:00", "10:00", "0.30000000000000004", "9007199254740993", "1e22", "0.1e-6", "3d", "1d", "a", "a b", "1 2", "0o", "0x",
    "/a/b", "a-b_c", "1-2", "1/2", "12e03",
]  # fmt: skip


def reference(text):
    if re.fullmatch(AMBIGUOUS, text):
        return text
    for pattern, value in CORE:
        if re.fullmatch(pattern, text):
            return value(text)
    return text


def in_a_file(tmp_path, text):
    path = tmp_path / "t.yaml"
    path.write_text(f"x: {text}\ny: [{text}, {{z: {text}}}]\n")
    document = read(path)
    assert document.problems == []
    assert same(document.data["x"], document.data["y"][0])
    assert same(document.data["x"], document.data["y"][1]["z"])
    return document.data["x"]


def on_the_command_line(text):
    value = overrides.parse(f"x={text}").value
    assert same(value, overrides.parse(f"x=[{text},{{z: {text}}}]").value[0])
    assert same(value, overrides.parse(f"x=[{text},{{z: {text}}}]").value[1]["z"])
    return value


def same(one, other):
    return type(one) is type(other) and repr(one) == repr(other)


@pytest.mark.parametrize("text", WORDS)
def test_a_word_is_what_the_core_schema_says_in_a_file_and_on_the_command_line(tmp_path, text):
    expected = reference(text)
    assert same(in_a_file(tmp_path, text), expected)
    assert same(on_the_command_line(text), expected)


words = st.text("0123456789+-.eExob_:aFnN", min_size=1, max_size=8)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(words)
def test_any_word_of_number_letters_is_what_the_core_schema_says(text):
    try:
        value = scalars.value_of(text)
    except ValueError:
        # Refused: a number that a float cannot hold.
        number = reference(text)
        assert isinstance(number, float) and (math.isinf(number) or number == 0)
        return
    assert same(value, reference(text))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(words)
def test_an_override_has_the_value_of_the_same_word_in_a_file(text):
    try:
        value = overrides.parse(f"x={text}").value
    except ValueError:
        return  # not in Hydra's grammar, or no number that a float can hold
    if isinstance(value, (str, int, float)):
        assert same(value, scalars.value_of(text))


@pytest.mark.parametrize("text", ["1e400", "-1e400", "1e-400", "0.1e-400", "1" * 500])
def test_a_number_that_cannot_be_held_is_refused_by_name(tmp_path, text):
    path = tmp_path / "t.yaml"
    path.write_text(f"{BASE}rows:\n  - {{label: a, train.lr: {text}}}\n")
    with pytest.raises(ConfigError, match=r"rows\[0\].train.lr \(line 9\): cannot be read") as error:
        load(path)
    assert text in str(error.value) or "500 digits" in str(error.value)
    path.write_text(BASE)
    with pytest.raises(ConfigError, match="1 problem, nothing was launched"):
        load(path, [f"train.lr={text}"])


HINTS = [
    ("010", "got '010' (with a leading zero it is a text: write 10, or 0o10 for 8)"),
    ("08", "got '08' (with a leading zero it is a text: write 8)"),
    ("1_000", "got '1_000' (with _ it is a text: write 1000)"),
    ("0b101", "got '0b101' (it is a text: write 5)"),
    ("1:30", "(it is a text, not a time: write one number, such as 1.5 for an hour and a half)"),
    ("10.0", "got 10.0 (a whole number is written 10)"),
    ("1e1", "got 10.0 (a whole number is written 10)"),
    ("'10'", "got '10' (in quotes it is a text: write 10)"),
    (".inf", "got inf"),
    (".nan", "got nan"),
    ("true", "got True"),
    ("10000000000000000000", "got 10000000000000000000"),
]


@pytest.mark.parametrize(("text", "hint"), HINTS)
def test_what_is_no_whole_number_is_refused_with_what_to_write(tmp_path, text, hint):
    path = tmp_path / "t.yaml"
    places = [
        "rows: [{label: a, train.epochs: WORD}]\n",
        "seeds: [WORD]\n",
        "search: {space: {train.lr: [1e-3]}, trials: WORD}\n",
    ]
    for place in places:
        path.write_text(BASE + place.replace("WORD", text))
        with pytest.raises(ConfigError) as error:
            load(path)
        assert hint in str(error.value)


@pytest.mark.parametrize(("text", "hint"), HINTS)
def test_an_override_that_is_no_whole_number_is_refused_as_in_the_file(tmp_path, text, hint):
    path = tmp_path / "t.yaml"
    path.write_text(BASE)
    for override in (f"train.epochs={text}", f"seeds=[{text}]"):
        with pytest.raises(ConfigError) as error:
            load(path, [override])
        assert hint in str(error.value)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("search: {space: {train.lr: [1e-3]}, hours: 1:30}\n", "search.hours"),
        ("resources: {budget: {hours: 1:30}}\n", "resources.budget.hours"),
        ("resources: {cpus: 1:30}\n", "resources.cpus"),
        ("seeds: {min: 1:30, max: 4, until: decided}\n", "seeds.min"),
        ("seeds: 1:30\n", "seeds"),
    ],
)
def test_a_time_is_no_number_of_anything(tmp_path, text, path):
    (tmp_path / "t.yaml").write_text(BASE + text)
    with pytest.raises(ConfigError, match=re.escape(f"{path} (line 8): must be ")) as error:
        load(tmp_path / "t.yaml")
    assert "got '1:30' (it is a text" in str(error.value)


@pytest.mark.parametrize("text", ["9007199254740993", "-9007199254740993", "1" + "0" * 390 + "1"])
def test_a_whole_number_that_a_float_cannot_hold_is_refused_where_a_float_is_needed(tmp_path, text):
    (tmp_path / "t.yaml").write_text(BASE + f"rows: [{{label: a, positions.translation: {text}}}]\n")
    with pytest.raises(ConfigError, match="more digits than a floating-point number keeps|must be a finite number"):
        load(tmp_path / "t.yaml")


@pytest.mark.parametrize("text", [".inf", "-.inf", ".nan"])
def test_no_number_of_a_trial_is_infinite(tmp_path, text):
    (tmp_path / "t.yaml").write_text(BASE + f"rows: [{{label: a, positions.translation: {text}}}]\n")
    with pytest.raises(ConfigError, match="must be a finite number"):
        load(tmp_path / "t.yaml")


@pytest.mark.parametrize("text", ["010", "1_000", "1:30", "-1", "1.5", "nan", ".inf", "x", "", "1e400"])
def test_an_option_of_a_command_that_is_no_whole_number_is_refused(text):
    with pytest.raises(ValueError):
        scalars.whole_argument(text)


def test_options_of_a_command_are_read_as_numbers_of_a_file():
    assert (scalars.whole_argument("0x1F"), scalars.whole_argument("3")) == (31, 3)


def test_the_command_says_what_an_option_must_be(tmp_path, capsys):
    assert run.main([str(tmp_path / "t.yaml"), "--workers", "010"]) == 2
    assert "must be a whole number from 0 on, got 010 (with a leading zero it is a text: write 10" in capsys.readouterr().err


def test_aliases_of_aliases_do_not_fill_the_memory(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "t.yaml").write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError, match="has more than 100000 values, aliases counted each time"):
        load(tmp_path / "t.yaml")
