"""What the sweeps of the papers' tables resolve to, compared with the settings of the released programs (program_settings.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pointsweep.config import official
from pointsweep.sweep.sweep import Sweep, load

SWEEPS = Path(__file__).parents[2] / "sweeps"
STORED = yaml.safe_load(Path(__file__).with_name("program_settings.yaml").read_text())
PROGRAMS = {entry["program"]: entry for entry in STORED["programs"]}


def resolved(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Return what `--cfg` prints of every cell that runs, by its row and column."""
    found = {}
    for part in sweep.resolved().split("---\n"):
        head, _, text = part.partition("\n")
        if ", seeds " in head:
            found[head.removeprefix("# ").rpartition(", seeds ")[0]] = yaml.safe_load(text)
    return found


def value_of(cell: dict[str, Any], sweep: Sweep, name: str, key: str) -> Any:
    """Return a setting of a cell; of `program.NAME` what the form does that no setting says."""
    part, _, field = key.partition(".")
    if part == "program":
        config = next(trial.config for trial in sweep.trials() if sweep.cell_name(trial.cell) == name)
        return getattr(official.program(config), field)
    value = cell[part].get(field)
    return list(value) if isinstance(value, tuple) else value


def settings_of(entry: dict[str, Any], form: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for group in entry.get("groups", []):
        found |= STORED["groups"][group]
    found |= entry["settings"]
    return found | (entry["official"] if form == "official" else {})


@pytest.mark.parametrize("form", ["fixed", "official"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_tables_sweep_has_the_settings_of_its_program(program, form):
    entry = PROGRAMS[program]
    sweep = load(SWEEPS / entry["sweep"])
    name = f"{entry['row']} / {entry['column']}" + (", official" if form == "official" else "")
    cell = resolved(sweep)[name]
    assert cell["compat"] == form
    wanted = settings_of(entry, form)
    differing = {
        key: (value_of(cell, sweep, name, key), value, source)
        for key, (value, source) in wanted.items()
        if value_of(cell, sweep, name, key) != value
    }
    assert not differing


def test_every_setting_has_a_source():
    for entry in STORED["programs"]:
        for key, (_, source) in settings_of(entry, "official").items():
            assert isinstance(source, str), (entry["program"], key)
            assert "(" in source, (entry["program"], key)


def test_every_program_that_was_released_stands_in_the_table():
    assert len(PROGRAMS) == 10
    assert {entry["sweep"] for entry in PROGRAMS.values()} == {
        "any2point_table1.yaml", "point_peft_scanobjectnn.yaml", "point_peft_modelnet40.yaml", "appt_parts.yaml",
    }  # fmt: skip
