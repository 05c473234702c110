"""Published numbers are found by what names them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pointsweep.config import registry
from pointsweep.errors import ConfigError
from pointsweep.planning.plan import count_arms
from pointsweep.reporting.build import build, render
from pointsweep.reporting.frames import label_columns
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


NESTED = """
name: nested
cite: Smith et al. 2026
base: {dataset: synthetic, tokenizer: point_pn_light, backbone: {name: tiny, modality: 1d}, method: lora}
rows:
  - {label: ours, published: 71.5}
  - {label: theirs, published: 90.25, because: its program is not here}
  - {label: plain, method.rank: 1}
columns: [{label: all, train.weight_decay: 0.01}]
axes:
  dataset.train_limit: [20, 30]
  zip: {label: [slow, fast], train.lr: [1.0e-4, 1.0e-3], train.min_lr: [0.0, 1.0e-5]}
seeds: 1
"""


def rendered(sweep) -> list[list[str]]:
    """The lines of a table's grid as it is printed, without its notes."""
    text = render(build(sweep.layout(), {}, {}), "markdown")
    return [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_a_rows_number_stands_once_and_not_in_every_nested_row(own):
    lines = rendered(load(own("row,value\nsmall net,1\n", NESTED)))
    paper = (
        lines[0].index("all: paper") if "all: paper" in lines[0] else next(i for i, text in enumerate(lines[0]) if "paper" in text)
    )
    shown = [(*line[:3], line[paper]) for line in lines[2:] if line[paper]]
    assert [number for *_, number in shown] == ["71.5", "90.25"], lines
    cells = load(own("row,value\nsmall net,1\n", NESTED)).cells
    assert [cell.row for cell in cells if cell.published] == [0, 4]


def test_numbers_that_a_nested_axis_gives_stay_in_every_row(own):
    sweep = NESTED.replace("label: [slow, fast]", "label: [slow, fast], published: [50.0, 60.0]").replace(", published: 71.5", "")
    cells = load(own("row,value\nsmall net,1\n", sweep)).cells
    numbers = {cell.row: cell.published.value for cell in cells if cell.published and cell.trials}
    assert numbers == {0: 50.0, 1: 60.0, 2: 50.0, 3: 60.0, 8: 50.0, 9: 60.0, 10: 50.0, 11: 60.0}


def test_a_zip_is_headed_by_its_label(own):
    """In every format: the values below are the labels, not those of its first key."""
    table = build(load(own("row,value\nsmall net,1\n", NESTED)).layout(), {}, {})
    assert table.row_headers == ("", "train_limit", "label")
    for name in ("text", "markdown", "html", "latex"):
        text = render(table, name)
        assert "label" in text and "slow" in text, name
        assert "min_lr" not in text, name
    assert next(csv.reader(render(table, "csv").splitlines()))[:3] == ["row", "train_limit", "label"]
    bare = NESTED.replace("label: [slow, fast], ", "")
    assert load(own("row,value\nsmall net,1\n", bare)).row_headers[2] == "lr, min_lr"


def test_two_columns_of_labels_keep_names_of_their_own(own):
    rows = "rows: {zip: {label: [a, b], method.rank: [1, 2], method.alpha: [1, 2]}}\n"
    sweep = NESTED[: NESTED.index("rows:")] + rows + NESTED[NESTED.index("columns:") :]
    table = build(load(own("row,value\nsmall net,1\n", sweep)).layout(), {}, {})
    assert label_columns(table.row_headers) == ["label", "train_limit", "label2"]
    assert set(table.to_pandas()["label2"]) == {"slow", "fast"}
