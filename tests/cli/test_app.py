"""The command `pointsweep`: its overview, its commands' help, mistakes in its words, completion."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from pointsweep.cli import app, gc, run, tables
from pointsweep.cli.app import COMMANDS
from pointsweep.utils.cli_exit import INVALID

CONSOLE = "import sys; sys.argv[0] = 'pointsweep'; from pointsweep.cli.app import console; code = console(); "
HEAVY = ("torch", "ray", "mlflow", "transformers", "optuna", "numba", "pandas", "plotly")


def pointsweep(*words: str, ending: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the console script; `ending` is code that runs before it ends."""
    line = [sys.executable, "-c", f"{CONSOLE}{ending}\nsys.exit(code)", *words]
    variables = {**os.environ, "COLUMNS": "80", **environment}
    return subprocess.run(line, capture_output=True, text=True, env=variables, timeout=300)


def test_the_overview_fits_a_screen_and_lists_every_command():
    shown = pointsweep("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for name in COMMANDS:
        assert any(line.startswith(f"  {name} ") for line in lines), name
    for option in ("--version", "--install-completion", "--show-completion"):
        assert option in shown.stdout
    assert pointsweep().stdout == shown.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_fits_a_screen_and_ends_with_examples(name):
    shown = pointsweep(name, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert len(lines) <= 28
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"usage: pointsweep {name} [--version]")
    examples = lines[lines.index("examples:") + 1 :]
    assert examples and all(line.startswith(f"  pointsweep {name}") for line in examples)
    assert "exit codes:" in shown.stdout


def test_help_is_quick_and_imports_nothing_heavy():
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        shown = pointsweep("--help", ending=f"print([m for m in {HEAVY} + ('numpy', 'pydantic') if m in sys.modules])")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert shown.stdout.splitlines()[-1] == "[]"
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.6, "CPU seconds"


@pytest.mark.parametrize("words", [["tables", "tiny"], ["ls"], ["status", "tiny"], ["new", "NEW"], ["run", "--help"], ["published"]])
def test_what_only_reads_imports_nothing_heavy(words, trained, tmp_path):
    words = [str(tmp_path / "new.yaml") if word == "NEW" else word for word in words]
    run = pointsweep(*words, ending=f"print([m for m in {HEAVY} if m in sys.modules])", POINTSWEEP_STORE=str(trained))
    assert run.stdout.splitlines()[-1] == "[]", run.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run x.yaml --onyl row=a", "pointsweep run: No such option: --onyl. Did you mean --only?"),
        ("rnu x.yaml", "pointsweep: unknown command 'rnu'. Did you mean 'run'? Commands: chaos, data, doctor, "),
        ("--versoin", "pointsweep: No such option: --versoin. Did you mean --version?"),
        ("tables x --format latx", "unknown format 'latx'. Did you mean 'latex'? Allowed: "),
        ("tables x --format jsn", "unknown format 'jsn'. Did you mean 'json'?"),
        ("tables x --source mlfow", "unknown source 'mlfow'. Did you mean 'mlflow'?"),
        ("run", "pointsweep run: Missing argument 'FILE...'"),
        ("run x.yaml --workers 1.5", "must be a whole number from 0 on, got 1.5"),
        ("gc --age-hours long", "'--age-hours'"),
        ("tables x --diff one", "Option '--diff' requires 2 arguments"),
        ("replay a b c --device gpu", "unknown device 'gpu'"),
        ("sync", "Missing argument 'STORE'"),
    ],
)
def test_words_that_a_command_does_not_understand_end_it_with_2_and_the_nearest_name(words, said):
    ended = pointsweep(*words.split())
    assert ended.returncode == INVALID
    assert said in ended.stderr
    assert ended.stderr.splitlines()[-1].endswith("--help lists what there is")
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 2


def test_the_old_names_take_the_same_words_and_say_their_own_name(capsys):
    assert run.main(["x.yaml", "--onyl", "row=a"]) == INVALID
    assert "python -m pointsweep.run: No such option: --onyl. Did you mean --only?" in capsys.readouterr().err
    assert gc.main(["--age-hours", "-1"]) == INVALID
    assert "--age-hours: -1.0; allowed: 0 or more" in capsys.readouterr().err


def test_an_option_may_be_written_in_part_where_no_other_begins_so(trained, capsys):
    assert tables.main(["tiny", "--st", str(trained), "--form", "csv"]) == 0
    assert capsys.readouterr().out.startswith("method,column,metric")
    assert tables.main(["tiny", "--s", str(trained)]) == INVALID, "--store or --source"


def test_options_stand_before_between_and_behind_files_and_overrides(trained, capsys):
    words = [str(trained.parent / "tiny.yaml"), "seeds=1"]
    outputs = []
    for line in (["--plan", *words], [words[0], "--plan", words[1]], [*words, "--plan"]):
        assert run.main([*line, "--store", str(trained)]) == 0
        outputs.append(capsys.readouterr().out)
    assert "2 finished, 0 to run" in outputs[0]
    assert outputs[0] == outputs[1] == outputs[2]


def test_run_and_plan_print_the_same_plan(trained):
    file = str(trained.parent / "tiny.yaml")
    plan = pointsweep("plan", file, "--store", str(trained))
    run_plan = pointsweep("run", file, "--plan", "--store", str(trained))
    assert plan.returncode == run_plan.returncode == 0
    assert plan.stdout == run_plan.stdout
    assert "4 finished, 0 to run" in plan.stdout


def test_a_shell_completes_commands_and_options():
    def completed(words: str) -> list[str]:
        shell = {"_POINTSWEEP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        return pointsweep(**shell).stdout.split()

    assert completed("pointsweep re") == ["report", "replay"]
    assert completed("pointsweep run --re") == ["--replace", "--rerun-stale"]
    assert completed("pointsweep --sh") == ["--show-completion"]


def test_a_shell_completes_sweeps_that_come_with_the_package_sweeps_of_a_store_and_files(trained):
    def completed(words: str, count: int) -> list[str]:
        shell = {"_POINTSWEEP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)}
        return pointsweep(POINTSWEEP_STORE=str(trained), **shell).stdout.split()

    assert completed("pointsweep run quick", 2) == ["quickstart"]
    assert completed("pointsweep run quickstart search", 3) == ["search_any2point", "search_point_peft"]
    assert completed("pointsweep tables ti", 2) == ["tiny"]
    assert completed(f"pointsweep plan {trained.parent}/ti", 2) == [f"{trained.parent}/tiny.yaml"]
    assert completed(f"pointsweep plan {trained.parent}/tr", 2) == []


def test_the_script_for_a_shell_is_printed():
    line = [sys.executable, "-c", f"{CONSOLE}\nsys.exit(code)", "--show-completion"]
    # What detects the shell looks at the processes above; the second command keeps bash among them.
    script = subprocess.run(["bash", "-c", '"$@"; true', "bash", *line], capture_output=True, text=True, check=True)
    assert "_POINTSWEEP_COMPLETE=complete_bash" in script.stdout
    assert "pointsweep" in script.stdout


def test_the_page_of_the_documentation_describes_every_command():
    page = (app_folder().parents[1] / "docs" / "commands.md").read_text()
    for name in COMMANDS:
        assert f"## {name}\n" in page or f"## {name} " in page, name


def app_folder():
    from pathlib import Path

    return Path(app.__file__).parent
