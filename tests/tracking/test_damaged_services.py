"""Damage to the databases of MLflow and of a search, and to MLflow's template in the cache: training goes on, nothing is lost.

Every case runs the real command in this process on a copy of a store of which one trial is finished and one is not.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pointsweep.cli import run, sync, tables
from pointsweep.tracking.mlflow.client import connected
from pointsweep.utils.array_cache import cache_folder
from pointsweep.utils.cli_exit import exit_code
from pointsweep.utils.sqlite_files import set_aside_name, sqlite_path, sqlite_problem
from tests.support import damage

BASE = """
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 16, test_limit: 8, val_fraction: 0.25}
  tokenizer: {name: point_pn_light, num_tokens: 4, neighbours: 4}
  backbone: {name: tiny}
  train: {epochs: 1, batch_size: 4, warmup_epochs: 0, lr: 1.0e-3}
"""
SWEEP = f"name: one\n{BASE}rows: {{method: [adapter, lora]}}\nseeds: 1\n"
SEARCH = f"""name: se
{BASE}  method: adapter
search:
  space: {{train.lr: {{float: [1e-4, 1e-1], log: true}}}}
  trials: 2
seeds: [0]
"""

pytestmark = pytest.mark.filterwarnings("ignore")


def command(main: Callable[[list[str]], int], *arguments: str) -> int:
    """As the command in a process of its own would end."""
    return exit_code(lambda: main(list(arguments)))


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """A store with its database of MLflow; the arm adapter is finished, lora is not begun."""
    folder = tmp_path_factory.mktemp("half")
    (folder / "one.yaml").write_text(SWEEP)
    line = (str(folder / "one.yaml"), "--inline", "--only", "adapter", "--store", str(folder / "store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert command(run.main, *line) == 0
    return folder


@pytest.fixture
def copy(half, tmp_path, monkeypatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    # A lock is given up sooner than by default.
    monkeypatch.setattr("pointsweep.utils.sqlite_files.LOCK_WAIT_S", 0.2)
    shutil.copytree(half / "store", tmp_path / "store")
    monkeypatch.setenv("POINTSWEEP_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def files_of(trial: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in trial.iterdir() if path.suffix in (".json", ".npz", ".safetensors")}


DATABASE_DAMAGES = [*damage.DAMAGES, damage.of_a_newer_version, damage.without_a_table]
HARMLESS = (damage.emptied,)  # to SQLite an empty file is a new database


@pytest.mark.parametrize("harm", DATABASE_DAMAGES, ids=lambda each: each.__name__)
def test_a_damaged_database_of_mlflow_stops_no_trial_and_the_end_says_how_it_is_mended(half, copy, capsys, monkeypatch, harm):
    [finished] = (copy / "trials").iterdir()
    before = files_of(finished)
    harm(copy / "mlflow.db")
    assert command(tables.main, "one", "--source", "mlflow") == 2
    said = capsys.readouterr()
    assert len(said.err.strip().splitlines()) == 1, said.err
    assert command(run.main, str(half / "one.yaml"), "--inline") == 0
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert "lora" in said.out and "[2/2] finished" in said.out
    assert files_of(finished) == before
    assert len(list((copy / "trials").glob("*/record.json"))) == 2
    behind = [line for line in said.out.splitlines() if line.startswith("MLflow")]
    if harm in HARMLESS:
        assert len(behind) == 1 and "mlflow ui" in behind[0]
    else:
        assert len(behind) == 1 and "is behind" in behind[0] and "pointsweep.sync" in behind[0]
        assert "mlflow ui" not in behind[0]
        assert command(sync.main, str(copy)) == 6
        assert "Traceback" not in capsys.readouterr().err
        # As the message says.
        (copy / "mlflow.db").rename(set_aside_name(copy / "mlflow.db"))
        if harm in (damage.of_a_newer_version, damage.without_a_table):
            # This process has the old file open.
            subprocess.run([sys.executable, "-m", "pointsweep.sync", str(copy)], check=True)
            shutil.move(copy / "mlflow.db", copy / "moved.db")
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy / 'moved.db'}")
        else:
            assert command(sync.main, str(copy)) == 0
    capsys.readouterr()
    shown = []
    for source in ("store", "mlflow"):
        assert command(tables.main, "one", "--source", source) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


def test_a_database_of_mlflow_that_is_locked_all_the_time_stops_no_trial(half, copy, capsys):
    with damage.locked(copy / "mlflow.db"):
        assert command(tables.main, "one", "--source", "mlflow") == 2
        assert command(run.main, str(half / "one.yaml"), "--inline") == 0
        said = capsys.readouterr()
        assert "is locked by another process" in said.err
        assert "MLflow   is behind" in said.out and "pointsweep.sync" in said.out
    assert command(sync.main, str(copy)) == 0
    assert command(tables.main, "one", "--source", "mlflow") == 0
    assert "lora" in capsys.readouterr().out


TEMPLATE_DAMAGES = [*damage.DAMAGES, damage.of_a_newer_version, damage.without_a_table]


@pytest.mark.parametrize("harm", TEMPLATE_DAMAGES, ids=lambda each: each.__name__)
def test_a_damaged_template_in_the_cache_is_not_used(tmp_path, harm, monkeypatch):
    """Seen by the database that is made: it is whole, and MLflow's."""
    from pointsweep.tracking.mlflow import sqlite_bootstrap as mlflow_files

    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "made.db"

    def make(uri: str) -> None:
        path = sqlite_path(uri)
        assert path is not None
        database = sqlite3.connect(path)
        with database:
            database.execute("CREATE TABLE alembic_version (version_num TEXT)")
            database.execute("INSERT INTO alembic_version VALUES ('a')")
            database.execute("CREATE TABLE runs (name TEXT)")
        database.close()

    mlflow_files.ready_made(f"sqlite:///{tmp_path / 'first.db'}", make)
    [template] = (cache_folder() / "mlflow").iterdir()
    whole = template.read_bytes()
    assert (tmp_path / "first.db").read_bytes() == whole
    harm(template)
    mlflow_files.ready_made(f"sqlite:///{made}", make)
    assert sqlite_problem(made) == ""
    database = sqlite3.connect(made)
    assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [("a",)]
    assert database.execute("SELECT count(*) FROM runs").fetchall() == [(0,)]
    database.close()


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """A store with a finished search."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "se.yaml").write_text(SEARCH)
    line = (str(folder / "se.yaml"), "--inline", "--tracking-uri", "none", "--store", str(folder / "store"))
    assert command(run.main, *line) == 0
    return folder


@pytest.fixture
def search_copy(searched, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("pointsweep.utils.sqlite_files.LOCK_WAIT_S", 0.2)
    shutil.copytree(searched / "store", tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("harm", DATABASE_DAMAGES, ids=lambda each: each.__name__)
def test_a_damaged_study_is_refused_and_made_anew_without_training_anything_again(searched, search_copy, capsys, harm):
    study = search_copy / "sweeps" / "se" / "study.db"
    line = (str(searched / "se.yaml"), "--inline", "--tracking-uri", "none", "--store", str(search_copy))
    trials = sorted(path.name for path in (search_copy / "trials").iterdir())
    table = (search_copy / "sweeps" / "se" / "table.txt").read_bytes()
    harm(study)
    if harm not in HARMLESS:
        # What only shows while the search runs ends it with 6.
        assert command(run.main, *line) == (6 if harm is damage.without_a_table else 2)
        said = capsys.readouterr()
        assert f"mv {study} {study}.damaged-1" in said.err or harm in damage.RIGHTS
        assert "Traceback" not in said.err
        assert len(said.err.strip().splitlines()) == (3 if harm is damage.without_a_table else 1)
        study.rename(set_aside_name(study))
    assert command(run.main, *line) == 0
    assert "] finished" not in capsys.readouterr().out, "nothing is trained again"
    assert sorted(path.name for path in (search_copy / "trials").iterdir()) == trials
    assert (search_copy / "sweeps" / "se" / "table.txt").read_bytes() == table


def test_a_study_that_is_locked_is_refused_and_goes_on_later(searched, search_copy, capsys):
    line = (str(searched / "se.yaml"), "--inline", "--tracking-uri", "none", "--store", str(search_copy))
    with damage.locked(search_copy / "sweeps" / "se" / "study.db"):
        assert command(run.main, *line) == 2
        assert "is locked by another process" in capsys.readouterr().err
    assert command(run.main, *line) == 0


@pytest.mark.parametrize("name", ["search.json", "told_first.json"])
@pytest.mark.parametrize("harm", damage.CONTENT, ids=lambda each: each.__name__)
def test_a_damaged_file_beside_the_study_is_written_anew_or_refused(searched, search_copy, capsys, name, harm):
    harm(search_copy / "sweeps" / "se" / name)
    code = command(tables.main, "se", "--store", str(search_copy), "--format", "html")
    said = capsys.readouterr()
    assert code in (0, 2) and "Traceback" not in said.err
    line = (str(searched / "se.yaml"), "--inline", "--tracking-uri", "none", "--store", str(search_copy))
    code = command(run.main, *line)
    said = capsys.readouterr()
    assert code in (0, 2) and "Traceback" not in said.err
    assert "] finished" not in said.out
    if name == "search.json":
        assert code == 0
        assert (search_copy / "sweeps/se/search.json").read_bytes() == (searched / "store/sweeps/se/search.json").read_bytes()


def test_what_another_sweep_left_in_the_databases_stays(half, copy, capsys, tmp_path):
    other = tmp_path / "two.yaml"
    other.write_text(SWEEP.replace("name: one", "name: two"))
    assert command(run.main, str(other), "--inline") == 0
    assert command(run.main, str(half / "one.yaml"), "--inline") == 0
    for name in ("one", "two"):
        capsys.readouterr()
        assert command(tables.main, name, "--source", "mlflow") == 0
        assert "lora" in capsys.readouterr().out


def test_sync_sends_every_sweep_that_it_can(half, copy, capsys, tmp_path):
    """Of three sweeps one has a damaged plan, and the experiment of one was deleted."""
    for name in ("a", "b"):
        other = tmp_path / f"{name}.yaml"
        other.write_text(SWEEP.replace("name: one", f"name: {name}"))
        assert command(run.main, str(other), "--inline") == 0
    damage.random_bytes(copy / "sweeps" / "a" / "plan.json")
    client = connected(f"sqlite:///{copy / 'mlflow.db'}")
    client.delete_experiment(client.get_experiment_by_name("b").experiment_id)
    capsys.readouterr()
    assert command(sync.main, str(copy)) == 6
    said = capsys.readouterr()
    assert "one: 2 trials are in MLflow" in said.out
    assert str(copy / "sweeps" / "a" / "plan.json") in said.err and "experiments restore" in said.err
