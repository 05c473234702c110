"""The example of docs/extending.md, as its reader runs it: inline, on Ray whose workers do not see its folder, and as a bundle."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.test_nodes import nodes, submit, variables, wait_until

EXAMPLE = Path(__file__).parents[2] / "examples" / "add_your_own"
PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
QUICK = ["train.epochs=1", "dataset.train_per_class=8", "seeds=1"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the example, in which nothing is written that the repository keeps."""
    files = shutil.ignore_patterns("__pycache__", ".pytest_cache")
    return Path(shutil.copytree(EXAMPLE, tmp_path / "example", ignore=files))


def command(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", f"pointsweep.{name}", *arguments]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "none"}
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def records(store: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in sorted(store.glob("trials/*/record.json"))]
    return {record["key"]: record for record in found}


def test_the_example_runs_inline_and_its_bundle_is_verified(folder, store, tmp_path):
    refused = command("run", "own.yaml", "--inline", *QUICK, cwd=folder)
    assert refused.returncode == 2
    assert f"{folder}/gains.py" in refused.stderr
    ran = command("run", "own.yaml", "--inline", "--allow-plugins", *QUICK, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    assert f"it imports {folder}/gains.py (digest " in ran.stdout
    found = records(store)
    assert len(found) == 3
    for record in found.values():
        assert ("plugin.gains" in record["origin"]) == (record["config"]["method"]["name"] == "gains")
        assert "plugin.knots" in record["origin"]

    [name] = [path.parent.name for path in store.glob("sweeps/*/plan.json")]
    refused = command("tables", name, cwd=tmp_path)
    assert refused.returncode == 2
    assert "worst_class.py" in refused.stderr
    shown = command("tables", name, "--format", "json", "--allow-plugins", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["metric"] == "test/worst_class"

    bundled = command("tables", name, "--allow-plugins", "--bundle", "own.zip", cwd=tmp_path)
    assert bundled.returncode == 0, bundled.stderr
    refused = command("verify", "own.zip", cwd=tmp_path)
    assert refused.returncode == 2
    assert "worst_class.py" in refused.stderr
    verified = command("verify", "own.zip", "--allow-plugins", cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr
    assert "keys, parameter counts and the table in every format: made anew by the same code" in verified.stdout

    replayed = command("replay", name, "gains", "all", "--exact", "--allow-plugins", cwd=tmp_path)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr


def test_on_ray_workers_import_what_the_launch_has_sent_them(folder, store, tmp_path):
    """The folder of the example is not where the command was started, so nothing leads a worker to it."""
    away = tmp_path / "away"
    away.mkdir()
    ran = command("run", str(folder / "own.yaml"), "--allow-plugins", "--workers", "1", *QUICK, cwd=away)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    on_ray = records(store)
    inline = command("run", "own.yaml", "--inline", "--allow-plugins", "--store", str(tmp_path / "inline"), *QUICK, cwd=folder)
    assert inline.returncode == 0, inline.stderr
    here = records(tmp_path / "inline")
    assert on_ray.keys() == here.keys()
    for key, record in on_ray.items():
        assert record["metrics"] == here[key]["metrics"]
        sent = {name: value for name, value in record["origin"].items() if name.startswith("plugin.")}
        assert sent == {name: value for name, value in here[key]["origin"].items() if name.startswith("plugin.")}


JOB = """
import shutil, sys
import pointsweep

sweep = pointsweep.load(sys.argv[1] + "/own.yaml", *sys.argv[4:], allow_plugins=True)
shutil.move(sys.argv[1], sys.argv[2])
pointsweep.run(sweep, store=sys.argv[3], tracking_uri="none", workers=1)
"""


def test_as_a_ray_job_nothing_but_the_launch_brings_the_code_to_the_workers(folder, store, tmp_path, monkeypatch):
    """What the job ships is a folder without plug-ins, and theirs is gone before a worker starts; trials run on another node."""
    inline = command("run", "own.yaml", "--inline", "--allow-plugins", "--store", str(tmp_path / "inline"), *QUICK, cwd=folder)
    assert inline.returncode == 0, inline.stderr
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "job.py").write_text(JOB)
    line = shlex.join([sys.executable, "job.py", str(folder), str(tmp_path / "away"), str(store), *QUICK])
    with nodes(2, monkeypatch, num_cpus=0) as (cluster, _):
        address = f"http://{cluster.head_node.webui_url}"
        client, job = submit(address, line, variables(), shipped)
        wait_until(lambda: client.get_job_status(job).is_terminal(), "the end of the job")
        logs = client.get_job_logs(job)
    assert not folder.exists(), logs
    here, on_ray = records(tmp_path / "inline"), records(store)
    assert on_ray.keys() == here.keys(), logs
    for key, record in on_ray.items():
        assert record["metrics"] == here[key]["metrics"]
        assert record["origin"]["plugin.knots"] == here[key]["origin"]["plugin.knots"]


def test_the_examples_own_tests_pass(folder):
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_own.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout


def test_the_page_shows_the_example_as_it_is():
    page = PAGE.read_text()
    for name in ("gains.py", "knots.py", "worst_class.py", "own.yaml", "test_own.py"):
        assert (EXAMPLE / name).read_text().strip() in page, f"docs/extending.md does not show {name} as it is"
