"""Published numbers are found by what names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointsweep import registry
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
    configs = {cell.trials[0].key(): cell.trials[0] for cell in load(path).cells if cell.published}
    assert set(count_arms(configs)) == set(configs)


def test_the_guide_names_everything_that_is_registered():
    guide = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    missing = [name for kind in registry.REGISTRY for name in registry.names(kind) if f"`{name}`" not in guide]
    assert missing == []
