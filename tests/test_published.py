"""Published numbers are found by what names them."""

from __future__ import annotations

import pytest

from pointsweep.published import COLUMNS, find, lines


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
