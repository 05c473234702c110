"""A record without a checksum is believed only where its history and its predictions agree with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pointsweep.cli import verify
from pointsweep.cli.run import main as run
from pointsweep.cli.tables import main as tables
from tests.conftest import TINY

FAR = 0.95  # an accuracy that none of the trials reached


def as_version_1(record: dict) -> None:
    """Make a record what version 0.1 would have written of the same trial."""
    record["schema"] = 1
    for name in ("checksum", "files"):
        record.pop(name, None)


def better(record: dict) -> None:
    record["metrics"]["last"]["test/accuracy"] = FAR


@pytest.fixture
def copied(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "store"
    shutil.copytree(trained, folder)
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POINTSWEEP_STORE", str(folder))
    return folder


def edited(store: Path, *changes: Callable[[dict], None]) -> str:
    """Edit the first trial's record; return its key."""
    path = sorted(store.glob("trials/*/record.json"))[0]
    record = json.loads(path.read_text())
    for change in changes:
        change(record)
    path.write_text(json.dumps(record, sort_keys=True))
    return path.parent.name


def refused_by_all(store: Path, key: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Check that no command believes the record; return what `tables` said."""
    capsys.readouterr()
    assert verify.main([str(store)]) == 1
    assert f"trial {key}: " in capsys.readouterr().err
    assert tables(["tiny"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "95.0" not in said
    assert f"trials/{key}/record.json: " in said
    assert run(["tiny.yaml", "--inline", "--tracking-uri", "none"]) == 0
    assert (store / "trials" / key / "record.json.damaged-1").exists()
    assert json.loads((store / "trials" / key / "record.json").read_text())["schema"] == 2
    assert verify.main([str(store)]) == 0
    return said


def test_records_of_version_1_that_nobody_edited_are_read_and_called_unverified(copied: Path, capsys):
    assert tables(["tiny", "--format", "csv"]) == 0
    before = capsys.readouterr().out
    key = edited(copied, as_version_1)
    assert tables(["tiny", "--format", "csv"]) == 0
    assert capsys.readouterr().out == before
    assert tables(["tiny"]) == 0
    assert "unverified: 1 of 4 records have no checksum" in capsys.readouterr().out
    assert verify.main([str(copied)]) == 0
    assert run(["tiny.yaml", "--inline", "--tracking-uri", "none"]) == 0
    assert not (copied / "trials" / key / "record.json.damaged-1").exists()


def schema_alone(record: dict) -> None:
    del record["checksum"]
    record["schema"] = 1


def test_a_record_that_only_calls_itself_older_is_refused_by_its_fields(copied: Path, capsys):
    key = edited(copied, schema_alone, better)
    said = refused_by_all(copied, key, capsys)
    assert "it says schema 1 and has files, which is written since schema 2" in said


def test_an_older_record_with_a_checksum_is_refused(copied: Path, capsys):
    def with_checksum(record: dict) -> None:
        record["schema"] = 1
        del record["files"]

    key = edited(copied, with_checksum)
    assert "it says schema 1 and has checksum" in refused_by_all(copied, key, capsys)


def better_everywhere(record: dict) -> None:
    for metrics in record["metrics"].values():
        metrics["test/accuracy"] = FAR


def another_epoch(record: dict) -> None:
    record["metrics"]["last"]["epoch"] = 1


def more_objects(record: dict) -> None:
    record["dataset"]["num_test"] = 2000


def other_objects(record: dict) -> None:
    record["correct"] = {"last": "AAAA", "best_test": "AAAA"}


def other_digest(record: dict) -> None:
    record["dataset"]["digest"] = "0" * 64


def without_loss(record: dict) -> None:
    del record["metrics"]["last"]["test/loss"]


def other_seed(record: dict) -> None:
    record["config"]["seed"] += 17


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (better, "test/accuracy"),
        (better_everywhere, "test/accuracy"),
        (another_epoch, "epoch"),
        (without_loss, "test/loss"),
        (more_objects, "dataset.num_test is"),
        (other_digest, "dataset.digest is"),
        (other_objects, "which objects it got right"),
    ],
)
def test_an_older_record_at_odds_with_what_lies_beside_it_is_refused(copied: Path, capsys, change, message):
    key = edited(copied, as_version_1, change)
    said = refused_by_all(copied, key, capsys)
    assert "it has no checksum (older version), and" in said
    assert message in said


@pytest.mark.parametrize("name", ["history.jsonl", "predictions.npz"])
def test_an_older_record_with_nothing_beside_it_is_refused(copied: Path, capsys, name):
    key = edited(copied, as_version_1)
    (copied / "trials" / key / name).unlink()
    assert "is missing beside it" in refused_by_all(copied, key, capsys)


def test_an_older_record_of_another_configuration_is_trained_again(copied: Path):
    key = edited(copied, as_version_1, other_seed)
    assert verify.main([str(copied)]) == 1
    assert run(["tiny.yaml", "--inline", "--tracking-uri", "none"]) == 0
    assert (copied / "trials" / key / "record.json.damaged-1").exists()
