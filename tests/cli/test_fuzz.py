"""Whatever stands in a sweep file or on the command line: a message and exit code 2, or a plan; never a traceback."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pointsweep.cli import run
from pointsweep.errors import ConfigError
from pointsweep.sweep.sweep import load

GOOD = """
name: fuzzed
base:
  dataset: {name: synthetic, num_points: 64, presample: 64}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  method: {name: lora, rank: 4}
  train: {epochs: 2}
rows:
  - {label: one, method.rank: 2}
  - {label: two, method.rank: 4}
columns: {train.lr: [1.0e-3, 5.0e-4]}
axes: {seed_of: [1]}
seeds: [0, 1]
metric: test_accuracy
resources: {cpus: 1}
"""
KEYS = ["name", "title", "base", "rows", "columns", "axes", "zip", "seeds", "metric", "protocol", "resources", "when", "exclude",
        "inherit", "profiles", "label", "published", "method", "method.rank", "train.lr", "dataset", "backbone", "a.b.c", ".", ""]  # fmt: skip
WORDS = ["lora", "tiny", "synthetic", "none", "${x}", "${oc.env:HOME}", "../x", "\x00", "é", "1e400", "~", "*", "a" * 300]
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from([*WORDS, *KEYS]),
    st.dates(), st.binary(max_size=4),
)  # fmt: skip
keys = st.one_of(st.sampled_from(KEYS), st.text(max_size=5), st.integers(-2, 2), st.none(), st.booleans())
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)), max_leaves=12
)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def given_to_the_command(text: str | bytes, overrides: list[str]) -> None:
    """As `pointsweep.run FILE OVERRIDES`, up to the point where the file is accepted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(ConfigError):
            load(path, overrides).layout()


@QUICK
@given(st.dictionaries(keys, values, max_size=6))
def test_any_yaml_is_a_sweep_or_a_list_of_problems(data):
    given_to_the_command(yaml.safe_dump(data, allow_unicode=True), [])


@QUICK
@given(st.sampled_from(sorted(yaml.safe_load(GOOD))), values)
def test_any_value_in_the_place_of_a_part_is_a_sweep_or_a_list_of_problems(part, value):
    given_to_the_command(yaml.safe_dump(yaml.safe_load(GOOD) | {part: value}, allow_unicode=True), [])


@QUICK
@given(st.sampled_from(["dataset", "tokenizer", "backbone", "method", "train", "head", "positions", "network"]), values)
def test_any_value_in_the_base_is_a_sweep_or_a_list_of_problems(part, value):
    data = yaml.safe_load(GOOD)
    data["base"][part] = value
    given_to_the_command(yaml.safe_dump(data, allow_unicode=True), [])


@QUICK
@given(
    st.integers(0, len(GOOD) - 1),
    st.one_of(st.binary(max_size=3), st.sampled_from([b"\t", b"{", b"&a ", b"*a", b"!!python/object", b"---\n", b"\xff"])),
)
def test_a_file_with_some_bytes_replaced_is_a_sweep_or_a_list_of_problems(at, junk):
    data = GOOD.encode()
    given_to_the_command(data[:at] + junk + data[at + len(junk) :], [])


@QUICK
@given(st.integers(0, len(GOOD)))
def test_a_file_cut_anywhere_is_a_sweep_or_a_list_of_problems(at):
    given_to_the_command(GOOD[:at], [])


names = st.one_of(
    st.sampled_from([*KEYS, "base.train.lr", "train", "method.name", "+axes.train.lr", "~rows", "++x", "rows.0"]), st.text(max_size=8)
)
overrides = st.one_of(
    st.builds(lambda name, value: f"{name}={value}", names, st.one_of(st.text(max_size=10), scalars.map(str), values.map(str))),
    st.text(max_size=12),
    st.sampled_from(["seeds=1,2", "train.lr=choice(1,2)", "seeds=range(0,3)", "a=${b}", "=", "~", "train.lr=glob(*)", "x@y:z=1", "seeds={a:1}"]),
)  # fmt: skip


@QUICK
@given(st.lists(overrides, min_size=1, max_size=3))
def test_any_override_is_taken_or_a_problem(texts):
    given_to_the_command(GOOD, texts)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "a: [",
        "\x00",
        "name: ../../x\n",
        "name: a/b\n",
        "&a [*a]",
        "x: &a {b: *a}",
        "? [a]: b",
        "seeds: 1000000000\n",
        "exclude: 3\n",
        "[" * 3000,
    ],
)
def test_the_command_answers_2_with_a_message_and_no_traceback(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        assert run.main([str(path), "--store", str(tmp_path / "store")]) == 2
    assert "nothing was launched" in err.getvalue()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["missing.yaml", "", "folder"])
def test_a_file_that_is_none_is_said_to_be(tmp_path, name):
    (tmp_path / "folder").mkdir()
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        assert run.main([str(tmp_path / name)]) == 2
    assert err.getvalue()
