"""What a path to a store may be: every one is a store, or is refused in one line with exit code 2; links are not written through."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pointsweep.cli import gc, run, sync, tables, verify
from pointsweep.errors import StoreError
from pointsweep.results.records import Layout
from pointsweep.storage.base import MARKER, FileStore, establish, has_marker
from pointsweep.storage.lease import leased
from pointsweep.storage.stores import open_store
from pointsweep.tracking.mlflow.client import prepare
from pointsweep.tracking.mlflow.sqlite_bootstrap import locked, take_artifacts_along
from pointsweep.utils.sqlite_files import sqlite_path, sqlite_uri

SWEEP = """
name: one
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 32, test_limit: 20}
  tokenizer: {name: point_pn_light, num_tokens: 4, neighbours: 4}
  backbone: {name: tiny, modality: 1d}
  method: {name: METHOD}
  train: {epochs: 1, batch_size: 16, warmup_epochs: 0, lr: 2.0e-3}
seeds: 1
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "one.yaml"
    path.write_text(SWEEP.replace("METHOD", "head_only"))
    return path


def a_file(folder: Path) -> Path:
    (folder / "store.txt").write_text("mine")
    return folder / "store.txt"


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "deeper" / "store"


def a_link_to_nothing(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nowhere")
    return folder / "link"


def a_link_to_itself(folder: Path) -> Path:
    (folder / "link").symlink_to("link")
    return folder / "link"


def the_root(folder: Path) -> Path:
    return Path("/")


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def a_question_mark(folder: Path) -> Path:
    return folder / "sto?re"


def an_escape(folder: Path) -> Path:
    return folder / "sto%41re"


def a_line_break(folder: Path) -> Path:
    return folder / "sto\nre"


def a_name_that_is_too_long(folder: Path) -> Path:
    return folder / ("x" * 300)


PATHS = (
    a_file, below_a_file, a_link_to_nothing, a_link_to_itself, the_root, a_pipe, a_question_mark, an_escape, a_line_break, a_name_that_is_too_long
)  # fmt: skip


@pytest.mark.parametrize("kind", PATHS)
def test_a_path_that_can_be_no_store_is_one_line(sweep: Path, tmp_path: Path, capsys, kind):
    path = str(kind(tmp_path))
    before = sorted(each.name for each in tmp_path.iterdir())
    for command in (
        lambda: run.main([str(sweep), "--inline", "--store", path]),
        lambda: tables.main(["one", "--store", path]),
        lambda: gc.main([path, "--delete"]),
        lambda: sync.main([path]),
    ):
        assert command() == 2
        said = capsys.readouterr().err
        assert "store: " in said and "Traceback" not in said
        # A line break in a path is the path's own.
        assert len(said.replace(path, "").strip().splitlines()) == 1, said
    assert sorted(each.name for each in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["with spaces", "100%", "#hash", "ümläut 点云", "-leading", 'it\'s "quoted" $HOME; `x`', "a&b"])
def test_whatever_the_path_all_lies_in_the_store(sweep: Path, tmp_path: Path, capsys, monkeypatch, name):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("POINTSWEEP_STORE", name)
    assert run.main([str(sweep), "--inline"]) == 0
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name / "mlflow.db").is_file()
    before = capsys.readouterr().out
    assert tables.main(["one", "--source", "mlflow"]) == 0
    assert capsys.readouterr().out.splitlines()[0] in before
    assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a b", "100%", "#", "é", "'"])
def test_an_address_of_a_database_leads_back_to_its_path(tmp_path: Path, name):
    import sqlalchemy

    path = tmp_path / name / "x.db"
    path.parent.mkdir()
    assert sqlite_path(sqlite_uri(path)) == path
    engine = sqlalchemy.create_engine(sqlite_uri(path))
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE t (x INTEGER)"))
    engine.dispose()
    assert path.is_file() and [each.name for each in path.parent.iterdir()] == ["x.db"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_runs_in_a_copy_changes_nothing_in_the_original(sweep: Path, tmp_path: Path, capsys):
    original, copy = tmp_path / "original", tmp_path / "copy"
    assert run.main([str(sweep), "--inline", "--store", str(original)]) == 0
    shutil.copytree(original, copy)
    before = contents(original)
    other = tmp_path / "other.yaml"
    other.write_text(SWEEP.replace("METHOD", "bitfit").replace("name: one", "name: two"))
    assert run.main([str(other), "--inline", "--store", str(copy)]) == 0
    assert sync.main([str(copy)]) == 0
    assert contents(original) == before
    for path, data in contents(copy).items():
        if path.endswith("mirrored.json"):
            continue  # of each sweep where it was mirrored to last; only compared
        assert str(original).encode() not in data, f"{path} names the original"
    shutil.rmtree(original)
    capsys.readouterr()
    for name in ("one", "two"):
        assert tables.main([name, "--source", "mlflow", "--store", str(copy)]) == 0
        from_mlflow = capsys.readouterr().out
        assert tables.main([name, "--store", str(copy)]) == 0
        assert capsys.readouterr().out == from_mlflow


def test_places_of_artifacts_that_are_not_the_stores_own_stay(tmp_path: Path):
    path = tmp_path / "mlflow.db"
    places = ["file:///old/store/mlartifacts", "s3://bucket/mlartifacts", "file:///mnt/mine", "mlflow-artifacts:/1", None]
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE experiments (experiment_id INTEGER, artifact_location TEXT)")
        database.execute("CREATE TABLE runs (run_uuid TEXT, artifact_uri TEXT)")
        database.executemany("INSERT INTO experiments VALUES (?, ?)", list(enumerate(places)))
        database.execute("INSERT INTO runs VALUES ('a', 'file:///old/store/mlartifacts/a/artifacts')")
        database.commit()
    take_artifacts_along(sqlite_uri(path), tmp_path / "new place" / "mlartifacts")
    here = (tmp_path / "new place" / "mlartifacts").as_uri()
    with closing(sqlite3.connect(path)) as database:
        found = [row[0] for row in database.execute("SELECT artifact_location FROM experiments ORDER BY experiment_id")]
        [run_place] = database.execute("SELECT artifact_uri FROM runs").fetchone()
    assert found == [here, *places[1:]]
    assert run_place == f"{here}/a/artifacts"


def test_the_database_of_a_new_store_names_no_folder_but_the_stores(tmp_path: Path, monkeypatch):
    """Also where this machine keeps an empty database that was made for another store, in another folder."""
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "cache"))
    for name in ("first", "second"):
        (tmp_path / f"work in {name}").mkdir()
        monkeypatch.chdir(tmp_path / f"work in {name}")
        store = FileStore(tmp_path / name)
        prepare(sqlite_uri(store.path("mlflow.db")), store, Layout("t", "", (), (), (), ()))
        with closing(sqlite3.connect(store.path("mlflow.db"))) as database:
            places = [row[0] for row in database.execute("SELECT artifact_location FROM experiments")]
        assert len(places) == 2
        assert all(place.startswith(store.path("mlartifacts").as_uri()) for place in places), places


def test_the_first_to_hold_a_lock_is_one_alone_whoever_created_its_file(tmp_path: Path):
    """Two that both took themselves for the first, or the wrong one of them, made two runs of a trial."""
    path = tmp_path / "mlflow.lock"
    path.touch()  # by one that has not got the lock yet
    found = []
    for _ in range(3):
        with locked(path) as first:
            found.append(first)
    assert found == [True, False, False]


def test_locks_and_histories_that_are_links_are_not_written_through(tmp_path: Path):
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("four years")
    folder = tmp_path / "trials" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "lock").symlink_to(thesis)
    (tmp_path / "mlflow.lock").symlink_to(thesis)
    with pytest.raises(OSError, match="cannot be written"), leased(folder, 0.0):
        pass
    with pytest.raises(OSError, match=r"symbolic links"), locked(tmp_path / "mlflow.lock"):
        pass
    FileStore(tmp_path).write("mlflow.lock", b"")
    assert thesis.read_text() == "four years"
    assert not (tmp_path / "mlflow.lock").is_symlink()


# The marker


def test_a_new_store_gets_its_marker_and_an_older_one_too(tmp_path: Path):
    new = FileStore(tmp_path / "new")
    assert not has_marker(new)
    establish(new)
    assert json.loads(new.read(MARKER)) == {"kind": "pointsweep store", "format": 1}
    older = FileStore(tmp_path / "older")
    older.write("trials/0123456789abcdef/history.jsonl", b"")
    establish(older)
    assert has_marker(older)


@pytest.mark.parametrize("name", ["ray/project/thesis.txt", "trials/of_the_clinic/patients.csv", "launches/rocket.txt"])
def test_a_folder_of_somebody_elses_is_no_place_for_a_store(tmp_path: Path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(StoreError, match="is no store of pointsweep and holds"):
        establish(FileStore(tmp_path))
    assert not (tmp_path / MARKER).exists()


def test_a_store_of_a_later_version_is_left_alone(sweep: Path, tmp_path: Path, capsys):
    store = tmp_path / "store"
    store.mkdir()
    (store / MARKER).write_text('{"kind": "pointsweep store", "format": 2}')
    assert run.main([str(sweep), "--inline", "--store", str(store)]) == 2
    assert "has format 2, this version reads up to 1: use a later pointsweep" in capsys.readouterr().err
    assert [path.name for path in store.iterdir()] == [MARKER]


def test_verify_of_a_folder_that_is_no_store_says_so(tmp_path: Path, capsys):
    assert verify.main([str(tmp_path)]) == 2
    assert "is no store of pointsweep" in capsys.readouterr().err


def test_an_environment_that_names_no_user_is_refused():
    with pytest.raises(StoreError, match="is no path"):
        open_store("~nobody_of_this_name/store")
