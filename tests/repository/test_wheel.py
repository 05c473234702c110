"""pointsweep as it is installed: a wheel in an environment of its own, used in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from pointsweep import __version__

# Neither is imported here: the two bring a distutils each, which refuse one another in one process.
pytestmark = pytest.mark.skipif(
    find_spec("pip") is None or find_spec("setuptools") is None, reason="a wheel is built with pip and setuptools"
)
ROOT = Path(__file__).parents[2]
SOURCES = ("pointsweep", "sweeps", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built of a copy of the sources without network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run = subprocess.run([*line, "--wheel-dir", folder, source], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """The `bin` folder of an environment that has the wheel, and the packages that it needs from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    line = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    run = subprocess.run(line, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    [packages] = (folder / "lib").glob("python*/site-packages")
    needed = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "needed.pth").write_text("\n".join(needed))
    return folder / "bin"


@pytest.fixture
def pointsweep(installed, tmp_path, store):
    """Run the installed command in an empty folder."""
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["COLUMNS"] = "80"

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        line = [str(installed / "pointsweep"), *words]
        return subprocess.run(line, cwd=empty, env=environment | more, capture_output=True, text=True, timeout=600)

    return run


def test_the_wheel_holds_all_sweeps_and_all_files_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sweeps = {f"pointsweep/{path.relative_to(ROOT)}" for path in (ROOT / "sweeps").rglob("*.yaml")}
    assert len(sweeps) > 30
    assert sweeps <= names
    assert "pointsweep/sweeps/sweep.schema.json" in names
    package = [path for path in (ROOT / "pointsweep").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {str(path.relative_to(ROOT)) for path in package} <= names


def test_the_installed_command_is_the_installed_package(pointsweep, installed):
    told = pointsweep("--version")
    assert (told.returncode, told.stdout) == (0, f"pointsweep {__version__}\n")
    plan = pointsweep("plan", "quickstart", "profile=smoke")
    assert plan.returncode == 0, plan.stderr
    assert f"quickstart is {installed.parent}" in plan.stdout.replace("/bin/..", "")
    assert "which comes with pointsweep" in plan.stdout
    assert "0 finished, 6 to run" in plan.stdout


def test_a_sweep_that_comes_with_the_package_runs_in_an_empty_folder(pointsweep, store):
    part = ("profile=smoke", "seeds=1", "--only", "row=head only")
    run = pointsweep("run", "quickstart", *part, "--inline", "--tracking-uri", "none")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "head only" in run.stdout
    assert len(list((store / "trials").glob("*/record.json"))) == 1


def test_a_file_inherits_from_a_sweep_that_comes_with_the_package(pointsweep, tmp_path):
    text = "name: mine\nbase: {from: any2point_scanobjectnn.yaml, method: adapter}\nrows: {backbone: [clip_text]}\nseeds: 1\n"
    (tmp_path / "empty" / "mine.yaml").write_text(text)
    shown = pointsweep("run", "mine.yaml", "--cfg")
    assert shown.returncode == 0, shown.stderr
    assert "variant: pb_t50_rs" in shown.stdout
    plan = pointsweep("plan", "mine.yaml", POINTSWEEP_DATA="")
    assert "it inherits from" in plan.stdout and "any2point_scanobjectnn.yaml, which comes with pointsweep" in plan.stdout


def test_a_first_sweep_is_written_where_nothing_is_and_names_the_installed_schema(pointsweep, installed, tmp_path):
    assert pointsweep("new").returncode == 0
    first = (tmp_path / "empty" / "first_sweep.yaml").read_text().splitlines()[0]
    stated = Path(first.removeprefix("# yaml-language-server: $schema="))
    assert stated.is_relative_to(installed.parent)
    printed = pointsweep("schema")
    assert (printed.returncode, printed.stdout) == (0, stated.read_text())
    again = pointsweep("new")
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_the_installed_command_answers_a_shell(pointsweep):
    shell = {"_POINTSWEEP_COMPLETE": "complete_bash", "COMP_WORDS": "pointsweep run quick", "COMP_CWORD": "2"}
    assert pointsweep(**shell).stdout.split() == ["quickstart"]


@pytest.mark.slow
def test_the_first_sweep_runs_as_it_is(pointsweep, store):
    assert pointsweep("new").returncode == 0
    run = pointsweep("run", "first_sweep.yaml", "--inline")
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(list((store / "trials").glob("*/record.json"))) == 16


@pytest.mark.slow
def test_the_page_on_python_runs_with_the_installed_package(installed, tmp_path):
    page = (ROOT / "docs" / "python.md").read_text()
    program = "\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    line = [installed / "python", "-c", program]
    run = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert str(installed.parent) in run.stdout.replace("/bin/..", ""), "the sweep of the installed package"


@pytest.mark.slow
def test_the_quick_start_runs_as_it_is_in_an_empty_folder(pointsweep, store):
    run = pointsweep("run", "quickstart", "profile=smoke", "--inline")
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(list((store / "trials").glob("*/record.json"))) == 6
