"""The JSON Schema of sweep files: the shipped file, what it accepts, and what an editor underlines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from pointsweep.errors import ConfigError
from pointsweep.sweep.json_schema import schema_text, shipped_file, sweep_schema
from pointsweep.sweep.parser import KEYS
from pointsweep.sweep.sweep import load
from pointsweep.sweep.yaml_document import read

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "sweeps").rglob("*.yaml"))
VALIDATOR = jsonschema.Draft7Validator(sweep_schema())
BASE = """
name: t
base:
  dataset: {name: synthetic, num_points: 64, presample: 64}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  method: {name: lora, rank: 4}
"""


def underlined(path: Path) -> list[str]:
    """Return the paths of what the schema refuses in a file."""
    return [".".join(map(str, error.absolute_path)) for error in VALIDATOR.iter_errors(read(path).data)]


def test_the_schema_is_a_schema():
    jsonschema.Draft7Validator.check_schema(sweep_schema())


def test_the_shipped_schema_is_that_of_the_code():
    assert shipped_file().read_text() == schema_text(), "run python -m pointsweep.sweep.json_schema"


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_shipped_sweep_is_accepted_and_names_the_schema(path):
    assert underlined(path) == []
    first = path.read_text().splitlines()[0]
    stated = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / stated).resolve() == shipped_file()


ACCEPTED = [
    "rows: {method: [adapter, dapt, {name: lora, rank: 2}]}\ncolumns: {method.bottleneck: [4, 8]}\n",
    "rows: {zip: {label: [small, large], method.rank: [8, 16], train.lr: [5e-4, 1e-3]}}\n",
    "axes: {positions.num_views: [1, 6], zip: {method.rank: [2, 4], train.lr: [1e-3, 2e-3]}}\n",
    "rows: [{label: 4, method.rank: 4}, {label: b, method: {alpha: 2}, train: {epochs: 3}}]\n",
    "rows:\n  ablate:\n    components: {a: {without: {method.rank: 2}, with: {method.rank: 8}}}\n    leave_one_out: all\n",
    "seeds: {min: 3, max: 10, until: decided}\n",
    "settings: [{when: {method: lora, train.epochs: [1, 300]}, method.alpha: null}]\nseeds: 3\n",
    "exclude: [{when: {backbone.modality: 1d, method.rank: 4}, because: no such row}]\n",
    "resources: {cpus: 2, gpus: auto, pack: 4, budget: {money: 100, per_hour: 2.5}}\n",
    "profiles: {smoke: {train.epochs: 3, only: [lora]}}\nprotocol: best_test\n",
    "search: {space: {train.lr: {float: [1e-4, 1e-2], log: true}, method: [lora, prompt]}, trials: 3, sampler: random}\n",
    "per_arm: {search: {space: {train.lr: [1e-3]}}, trials: 2, then_seeds: 2}\n",
]


@pytest.mark.parametrize("text", ACCEPTED)
def test_what_the_language_has_is_accepted(tmp_path, text):
    (tmp_path / "t.yaml").write_text(BASE + text)
    assert underlined(tmp_path / "t.yaml") == []


REFUSED = [
    ("rowz: []\n", ""),
    ("rows: [{label: a, method.rnk: 4}]\n", "rows.0"),
    ("rows: [{method.rank: 4}]\n", "rows.0"),
    ("rows: [{label: a, method: lorra}]\n", "rows.0.method"),
    ("rows: [{label: a, method: {name: lora, bottleneck: 4}}]\n", "rows.0.method"),
    ("rows: [{label: a, method.rank: 0}]\n", "rows.0.method.rank"),
    ("rows: [{label: a, train.lr: '1e-3'}]\n", "rows.0.train.lr"),
    ("rows: [{label: a, train.epochs: 2.5}]\n", "rows.0.train.epochs"),
    ("rows: [{label: a, dataset.scale: [1]}]\n", "rows.0.dataset.scale"),
    ("columns: {head.order: [max_cls, cls_min]}\n", "columns.head.order.1"),
    ("exclude: [{when: {method.rank: 4}}]\n", "exclude.0"),
    ("seeds: 0\n", "seeds"),
    ("metric: test/acuracy\n", "metric"),
    ("resources: {gpu: 1}\n", "resources"),
    ("search: {space: {train.lr: [1e-3]}, sampler: {name: tpe, popsize: 3}}\n", "search.sampler"),
]


@pytest.mark.parametrize(("text", "where"), REFUSED)
def test_a_mistake_is_underlined_where_it_stands(tmp_path, text, where):
    (tmp_path / "t.yaml").write_text(BASE + text)
    with pytest.raises(ConfigError):
        load(tmp_path / "t.yaml")
    assert any(found.startswith(where) for found in underlined(tmp_path / "t.yaml"))


def test_the_schema_has_every_key_of_a_file():
    assert set(sweep_schema()["properties"]) == set(KEYS)


def test_fields_are_explained():
    lora = sweep_schema()["definitions"]["method.lora"]
    assert lora["properties"]["alpha"]["description"] == "null: the rank."
    assert lora["properties"]["rank"]["minimum"] == 1
    assert lora["description"].startswith("LoRA")


def test_the_schema_needs_no_torch():
    code = (
        "import sys; from pointsweep.sweep.json_schema import sweep_schema; sweep_schema(); "
        "print([m for m in ('torch', 'ray', 'mlflow', 'transformers') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
