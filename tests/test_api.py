"""What `import pointsweep` gives, used as a program uses it; and the page of the documentation that shows it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

import pointsweep
from pointsweep.errors import ConfigError, StoreError
from pointsweep.reporting.cell_text import footnotes
from pointsweep.reporting.formats.registry import render
from tests.conftest import TINY

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_of_the_documentation_runs_in_an_empty_folder_and_prints_what_it_says(tmp_path):
    blocks = BLOCK.findall(PAGE.read_text())
    program = "\n".join(text for kind, text in blocks if kind == "python")
    outputs = [text for kind, text in blocks if kind == "text"]
    assert len(outputs) >= 4
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    at = 0
    for output in outputs:
        assert output in run.stdout[at:], run.stdout
        at = run.stdout.index(output, at) + len(output)
    assert "Did you mean 'epochs'?" in run.stdout


def test_the_package_imports_its_functions_when_they_are_used_and_torch_not_before_a_run():
    code = (
        "import sys, pointsweep\n"
        "print([m for m in ('numpy', 'typer', 'rich', 'pandas') if m in sys.modules])\n"
        "assert {'load', 'plan', 'run', 'read_table', 'open_store'} <= set(dir(pointsweep))\n"
        "pointsweep.load('smoke')\n"
        "print([m for m in ('torch', 'ray', 'mlflow', 'transformers', 'optuna') if m in sys.modules])\n"
        "print(callable(pointsweep.run), pointsweep.run.__module__, 'pointsweep.run' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[]", "[]", "True pointsweep.api False"]


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'pointsweep' has no attribute 'lod'"):
        pointsweep.lod  # noqa: B018


def test_a_table_is_read_by_name_and_by_file_and_from_an_open_store(trained):
    table = pointsweep.read_table("tiny", store=trained)
    assert [table.cell_name(cell) for cell in table.cells] == ["lora / 1d", "head_only / 1d"]
    assert [(cell.status, cell.n) for cell in table.cells] == [("complete", 2), ("complete", 2)]
    store = pointsweep.open_store(str(trained))
    assert pointsweep.read_table(trained.parent / "tiny.yaml", store=store) == table
    assert pointsweep.read_table("tiny", store=store, protocol="best_test").protocol == "best_test"


def test_a_table_shows_another_metric_or_epoch_and_refuses_an_unknown_one(trained):
    shown = pointsweep.read_table("tiny", store=trained, metric="balanced_accuracy", protocol="best_test")
    assert (shown.metric, shown.protocol) == ("test/balanced_accuracy", "best_test")
    for wrong in ({"metric": "balanced_acuracy"}, {"protocol": "best_tst"}, {"source": "mlfow"}):
        [name] = wrong.values()
        with pytest.raises(ValueError, match=name):
            pointsweep.read_table("tiny", store=trained, **wrong)


def test_a_tables_data_frame_has_the_numbers_of_its_csv(trained):
    table = pointsweep.read_table("tiny", store=trained)
    frame = table.to_pandas()
    lines = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert len(frame) == len(lines) == 2
    for (_, ours), theirs in zip(frame.iterrows(), lines, strict=True):
        for name in ("method", "column", "metric", "protocol", "status"):
            assert ours[name] == theirs[name]
        for name in ("mean", "sd", "low", "high", "n", "expected", "trainable", "trainable_without_head", "total"):
            assert ours[name] == float(theirs[name]), name


def test_the_trials_of_a_table_are_a_data_frame_with_the_numbers_of_their_records(trained):
    frame = pointsweep.read_records("tiny", store=trained)
    assert list(frame["seed"]) == [0, 1, 0, 1]
    assert list(frame["method"]) == ["lora", "lora", "head_only", "head_only"]
    assert set(frame["status"]) == {"finished"}
    for _, line in frame.iterrows():
        record = json.loads((trained / "trials" / line["key"] / "record.json").read_text())
        assert line["last.test/accuracy"] == record["metrics"]["last"]["test/accuracy"]
        assert line["best_test.epoch"] == record["metrics"]["best_test"]["epoch"]
        assert line["seconds"] == record["seconds"]["total"]
        assert line["total"] == record["parameters"]["total"]


def test_a_notebook_shows_every_number_and_every_footnote(trained):
    table = pointsweep.read_table("tiny", store=trained)
    html = table._repr_html_()
    cells = [unescape(text) for text in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", html)]
    for cell in table.cells:
        assert cell.mean is not None and cell.sd is not None
        assert f"{100 * cell.mean:.1f} ± {100 * cell.sd:.1f}" in cells
    notes = [unescape(text) for text in re.findall(r"<li>(.*?)</li>", html)]
    assert notes == footnotes(table)


def test_what_is_not_there_is_raised_with_the_nearest_name(trained):
    with pytest.raises(ValueError, match=r"unknown sweep 'tinny'. Did you mean 'tiny'\?"):
        pointsweep.read_table("tinny", store=trained)
    with pytest.raises(ConfigError, match=r"Did you mean 'quickstart'\?"):
        pointsweep.load("quikstart")
    with pytest.raises(StoreError, match="gs:// is not a store this version knows"):
        pointsweep.open_store("gs://bucket/x")


def test_a_plan_says_what_would_run(trained, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    assert pointsweep.plan(path, store=trained).counts() == "4 finished, 0 to run"
    fewer = pointsweep.plan(pointsweep.load(path, "seeds=1"), store=tmp_path / "store")
    assert fewer.counts() == "0 finished, 2 to run"
    assert not (tmp_path / "store").exists()


def test_a_sweep_that_cannot_be_launched_is_refused_with_all_reasons(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("{name: synthetic, num_points: 64, presample: 64, ", "{name: modelnet40, num_points: 64, "))
    with pytest.raises(ConfigError, match="lacking here: ") as refused:
        pointsweep.run(path, store=tmp_path / "store", inline=True, tracking_uri="none", progress=False)
    assert refused.value.problems
    assert not (tmp_path / "store").exists()


def test_a_failing_trial_is_in_the_table_and_ends_nothing(tmp_path, capsys):
    """The failure is real: a learning rate at which the loss overflows."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        TINY.replace("{method: [lora, head_only]}", "[{label: a, method: head_only}, {label: b, method: lora, train.lr: 1.0e+30}]")
    )
    table = pointsweep.run(path, store=tmp_path / "store", inline=True, tracking_uri="none", progress=False)
    assert [cell.status for cell in table.cells] == ["complete", "failed"]
    assert "DivergedError" in dict(table.cells[1].failures)[0]
    assert capsys.readouterr().out == ""
    frame = pointsweep.read_records("tiny", store=tmp_path / "store")
    assert list(frame["status"]) == ["finished", "finished", "failed", "failed"]


def test_another_files_table_of_the_name_is_not_overwritten_unasked(trained, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("lora, head_only", "adapter, head_only"))
    with pytest.raises(ConfigError, match="the name 'tiny' is that of another table"):
        pointsweep.run(path, store=trained, inline=True, tracking_uri="none", progress=False)


def test_progress_tells_what_happens_on_standard_output(trained, tmp_path, capsys):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    shutil.copytree(trained, tmp_path / "store")
    pointsweep.run(path, store=tmp_path / "store", inline=True, tracking_uri="none")
    assert "tiny: 4 finished, 0 to run" in capsys.readouterr().out


def test_the_environment_names_the_store_where_none_is_given(trained, monkeypatch):
    monkeypatch.setitem(os.environ, "POINTSWEEP_STORE", str(trained))
    assert pointsweep.open_store().url == str(trained)
    assert pointsweep.read_table("tiny").name == "tiny"
