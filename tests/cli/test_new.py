"""The first sweep file."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from pointsweep.cli import new, run
from pointsweep.sweep.sweep import load


def test_the_file_is_named_after_its_sweep_runs_and_fills_its_table(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert new.main([]) == 0
    told = capsys.readouterr().out
    assert told.startswith("first_sweep.yaml: written. Next:") and "pointsweep run first_sweep.yaml" in told
    sweep = load("first_sweep.yaml")
    assert sweep.name == "first_sweep"
    assert sweep.remarks == () and sweep.identical_cells() == []
    assert len(sweep.trials()) == 16
    assert run.main(["first_sweep.yaml", "--inline", "--tracking-uri", "none", "seeds=1"]) == 0
    assert len(list((store / "trials").glob("*/record.json"))) == 8


def test_the_file_names_the_schema_and_fits_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert new.main([]) == 0
    text = Path("first_sweep.yaml").read_text()
    schema = json.loads(Path(text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")).read_text())
    jsonschema.Draft7Validator(schema).validate(yaml.safe_load(text))


def test_another_name_makes_another_sweep_and_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert new.main(["tables/my-table"]) == 0
    assert load("tables/my-table.yaml").name == "my-table"
    assert "first_sweep" not in Path("tables/my-table.yaml").read_text()


@pytest.mark.parametrize("what", ["file", "folder", "link to nothing"])
def test_what_is_there_stays_as_it_is(tmp_path, monkeypatch, capsys, what):
    monkeypatch.chdir(tmp_path)
    path = Path("first_sweep.yaml")
    if what == "file":
        path.write_text("mine")
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("elsewhere.yaml")
    assert new.main([]) == 2
    assert "first_sweep.yaml: is there already and stays as it is" in capsys.readouterr().err
    assert not Path("elsewhere.yaml").exists()
    assert what != "file" or path.read_text() == "mine"


@pytest.mark.parametrize("name", ["My table.yaml", "-x.yaml", "a+b", "ä.yaml"])
def test_a_name_that_no_sweep_may_have_is_refused(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert new.main(["--", name]) == 2
    assert "allowed are small letters" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_to_be(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert new.main(["file/x.yaml"]) == 2
    assert "file/x.yaml: cannot be written: " in capsys.readouterr().err
