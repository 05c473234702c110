"""The command that prints the schema of sweep files."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

from pointsweep.cli import schema
from pointsweep.sweep.json_schema import shipped_file


def test_the_printed_schema_accepts_a_sweep_and_refuses_a_misspelt_key(capsys):
    assert schema.main([]) == 0
    validator = jsonschema.Draft7Validator(json.loads(capsys.readouterr().out))
    sweep = yaml.safe_load((shipped_file().parent / "quickstart.yaml").read_text())
    validator.validate(sweep)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**sweep, "seedz": [0]})


def test_it_is_written_to_a_file_and_its_own_place_is_printed(tmp_path, capsys):
    path = tmp_path / "sweep.schema.json"
    assert schema.main(["-o", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: written\n"
    assert schema.main(["--path"]) == 0
    assert path.read_text() == open(capsys.readouterr().out.strip()).read()  # noqa: PTH123, SIM115
    assert schema.main(["-o", str(tmp_path / "no" / "folder.json")]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
