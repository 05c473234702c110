"""The documentation: it builds without a warning, its commands run, its links lead somewhere, the README stays short."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from rich.live import Live
from rich.text import Text

from docs.pictures import screen
from pointsweep import __version__
from pointsweep.config import registry
from pointsweep.sweep.sweep import load

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md") + sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
README_LINES = 120


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(page.read_text()) if name == language]


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("furo")
    line = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "--fail-on-warning", "--keep-going"]
    run = subprocess.run([*line, str(DOCS), str(tmp_path / "site")], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    components = (tmp_path / "site" / "_generated" / "components.html").read_text()
    assert "LoRAConfig" in components
    assert "pointsweep.config.schema.TrialConfig" in (tmp_path / "site" / "reference.html").read_text()


def test_the_picture_of_a_terminal_has_what_stands_on_it():
    """A live display, drawn three times by rich with a line above it, ends as its last lines."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=40, legacy_windows=False, color_system="standard")
    with Live("first", console=console, auto_refresh=False) as live:
        live.update("second\nof two lines", refresh=True)
        console.print("a line above")
        live.update("[bold]third[/bold]\nand last", refresh=True)
    shown = [Text.from_ansi(line).plain.rstrip() for line in screen(stream.getvalue())]
    assert [line for line in shown if line] == ["a line above", "third", "and last"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files(page):
    for target in LINK.findall(BLOCK.sub("", page.read_text())):
        path = target.partition("#")[0]
        if path and "://" not in path and not path.startswith("_generated/"):
            assert (page.parent / path).exists() or (page.name == "CONTRIBUTING.md" and (ROOT / path).exists()), target


def test_the_commands_of_the_tutorial_run(tmp_path):
    """In an empty folder, in their order; the file is changed where the page says so."""
    page = DOCS / "tutorial.md"
    whole, changed = blocks(page, "yaml")
    sweep = tmp_path / "first.yaml"
    sweep.write_text(whole)
    environment = {**os.environ, "POINTSWEEP_STORE": str(tmp_path / "store"), "MLFLOW_TRACKING_URI": ""}
    output: dict[str, list[str]] = {}
    for block in re.findall(r"```(console|yaml)\n(.*?)```", page.read_text(), re.S)[1:]:
        if block == ("yaml", changed):
            sweep.write_text(re.sub(r"^rows: .*\n", changed, whole, flags=re.M))
            continue
        for command in re.findall(r"^\$ pointsweep (.*)$", block[1], re.M):
            line = [
                sys.executable,
                "-c",
                "import sys; from pointsweep.cli.app import console; sys.exit(console())",
                *shlex.split(command),
            ]
            run = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
            assert run.returncode == 0, command + run.stdout + run.stderr
            output.setdefault(command, []).append(run.stdout)
    plans = output["run first.yaml --plan"]
    assert [plan.splitlines()[0] for plan in plans] == ["first: 0 finished, 4 to run", "first: 4 finished, 2 to run"]
    table = output["run first.yaml --inline"][1]
    [shown] = blocks(page, "text")
    for line in shown.splitlines()[3:]:
        label, params = line.split()[0], line.split()[-1]
        assert re.search(rf"^{label} .* {re.escape(params)}$", table, re.M), line


def test_the_readme_counts_what_is_registered():
    """By their names: what takes any model or tuner of a library is said apart."""
    text = (ROOT / "README.md").read_text()
    by_name = {"backbones": {"transformers", "timm"}, "methods": {"peft"}, "networks": set()}
    for kind, general in by_name.items():
        assert f"{len(set(registry.names(kind)) - general)} {kind}" in text


def test_the_readme_is_read_in_three_minutes_and_its_sweep_is_one(tmp_path):
    page = ROOT / "README.md"
    assert len(page.read_text().splitlines()) <= README_LINES
    [text] = blocks(page, "yaml")
    (tmp_path / "sweep.yaml").write_text(text)
    assert load(str(tmp_path / "sweep.yaml")).cells
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^make (\w+)", page.read_text(), re.M)) <= targets


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", ".github/workflows/*.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
)
def test_files_for_the_host_of_the_repository_are_what_it_reads(schema, files):
    found = sorted(map(str, ROOT.glob(files)))
    assert found
    line = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *found]
    run = subprocess.run(line, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_workflow_and_the_hooks_call_what_everybody_calls():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    assert "bash .ci/run" in [step.get("run") for step in workflow["jobs"]["tests"]["steps"]]
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1]
    for hook in hooks:
        assert f"/bin/{hook['entry'].replace(' --force-exclude', '')}" in lint


def test_the_citation_has_the_version_of_the_package():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
