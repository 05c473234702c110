"""Published numbers are found by what names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointsweep.config import registry
from pointsweep.errors import ConfigError
from pointsweep.planning.plan import count_arms
from pointsweep.sweep.published import COLUMNS, find, lines
from pointsweep.sweep.sweep import load

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").rglob("*.yaml"))


def test_every_line_has_a_number_and_a_source():
    assert len(lines()) == 110
    for line in lines():
        assert set(COLUMNS) < set(line)
        assert 0 < float(line["value"]) <= 100


def test_a_number_is_found():
    found = find({"paper": "Any2Point", "table": "Table 5", "row": "L.A.=yes Ens.=yes", "backbone": "DINOv2-B"})
    assert (found.value, found.params_m, found.source) == (87.7, 0.8, "Any2Point, Table 5")


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        ({"paper": "Any2Pont"}, "unknown paper in published.csv 'Any2Pont'. Did you mean 'Any2Point'?"),
        ({"tabel": "Table 5"}, "unknown column of published.csv 'tabel'. Did you mean 'table'?"),
        (
            {"paper": "Any2Point", "table": "Table 5", "row": "L.A.=no Ens.=no"},
            "2 lines of published.csv fit .* say which by: backbone, modality",
        ),
    ],
)
def test_what_is_not_one_number_is_refused(selectors, message):
    with pytest.raises(ValueError, match=message):
        find(selectors)


def test_every_line_that_names_a_method_is_a_cell_of_a_sweep():
    """Comparison rows are other systems; that every cell builds is tested with the sweeps' plans."""
    cells = [cell.published for path in SWEEPS for cell in load(path).cells if cell.published]
    found = {(one.source, one.value, one.params_m) for one in cells}
    named = [line for line in lines() if "method=comparison" not in line["setting"]]
    assert len(named) > 70
    missing = [
        line["row"]
        for line in named
        if (f"{line['paper']}, {line['table']}", float(line["value"]), float(line["params_m"]) if line["params_m"] else None)
        not in found
    ]
    assert missing == []


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_published_cell_builds_at_its_full_size(path):
    """On the meta device: structure without values, so that 86 million parameters cost nothing."""
    configs = {cell.trials[0].key(): cell.trials[0] for cell in load(path).cells if cell.published and cell.trials}
    assert set(count_arms(configs)) == set(configs)


def test_the_guide_names_everything_that_is_registered():
    guide = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    missing = [name for kind in registry.KINDS for name in registry.names(kind) if f"`{name}`" not in guide]
    assert missing == []


SWEEP = """
name: own
cite: Smith et al. 2026
base: {dataset: synthetic, network: pointnet}
rows:
  - {label: small, dataset.train_limit: 20, published: small net}
  - {label: large, dataset.train_limit: 30, published: 71.5}
published: {file: paper.csv}
seeds: 1
"""


@pytest.fixture
def own(tmp_path):
    def write(csv: str, sweep: str = SWEEP):
        (tmp_path / "paper.csv").write_text(csv)
        (tmp_path / "own.yaml").write_text(sweep)
        return tmp_path / "own.yaml"

    return write


def test_a_sweep_brings_its_own_published_numbers(own):
    first, second = load(own("row,value,params_m\nsmall net, 65.25, 3.5\nother,1,\n")).cells
    assert (first.published.value, first.published.params_m, first.published.source) == (65.25, 3.5, "Smith et al. 2026")
    assert (second.published.value, second.published.params_m, second.published.source) == (71.5, None, "Smith et al. 2026")


def test_a_line_that_names_its_paper_is_cited_by_it(own):
    first, _ = load(own("paper,table,row,value\nJones,Table 1,small net,60\n")).cells
    assert first.published.source == "Jones, Table 1"


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("row,value\nsmal net,65\n", "unknown row in paper.csv 'small net'. Did you mean 'smal net'"),
        ("row,val\nsmall net,65\n", "line 1: unknown column 'val'. Did you mean 'value'"),
        ("row,params_m\nsmall net,65\n", "line 1: no column value; columns: row, params_m"),
        ("row,value\nsmall net,0.5\nsmall net,65 %\n", "line 3: value must be a number in percent, .* found '65 %'"),
        ("row,value\nsmall net\n", "line 2: not 2 fields"),
        ("row,value\n", "holds no line"),
    ],
)
def test_a_file_of_numbers_that_does_not_fit_is_refused(own, csv, message):
    with pytest.raises(ConfigError, match=message):
        load(own(csv))


def test_a_file_of_numbers_that_is_not_there_is_refused(own):
    with pytest.raises(ConfigError, match=r"published.file \(line 8\): .*papers.csv: cannot be read"):
        load(own("row,value\n", SWEEP.replace("paper.csv", "papers.csv")))
