"""The command that writes a sweep's report."""

from __future__ import annotations

from pathlib import Path

from pointsweep.cli import report, tables


def test_the_report_is_written_here_under_the_sweeps_name_as_tables_prints_it(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert report.main(["tiny", "--store", str(trained)]) == 0
    assert capsys.readouterr().out == "tiny.html\n"
    assert tables.main(["tiny", "--store", str(trained), "--format", "html"]) == 0
    assert Path("tiny.html").read_text() == capsys.readouterr().out


def test_the_report_is_written_where_it_is_asked_for(trained, tmp_path, capsys):
    path = tmp_path / "new" / "page.html"
    assert report.main([str(trained.parent / "tiny.yaml"), "--store", str(trained), "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_text().startswith("<!doctype html>")


def test_what_cannot_be_read_or_written_is_said(trained, tmp_path, capsys):
    assert report.main(["tinny", "--store", str(trained)]) == 2
    assert "Did you mean 'tiny'?" in capsys.readouterr().err
    assert report.main(["tiny", "--store", str(trained), "-o", str(tmp_path)]) == 2
    assert f"{tmp_path}: cannot be written: Is a directory" in capsys.readouterr().err
