"""The table from the predictions alone: a true bundle passes; one that was changed and sealed again does not, and says where."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pointsweep.cli import verify
from pointsweep.cli.tables import main as tables
from pointsweep.cli.verify import contents, main, problems
from pointsweep.reporting.bundle import BundleError, sealed, unpack
from pointsweep.results.agreement import packed
from pointsweep.results.records import sealed as sealed_record

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def members(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Members:
    path = tmp_path_factory.mktemp("bundle") / "tiny.zip"
    assert tables(["tiny", "--store", str(trained), "--bundle", str(path)]) == 0
    found = unpack(path.read_bytes())
    del found["SHA256SUMS"]
    return found


def key_of(members: Members) -> str:
    return sorted(json.loads(members["MANIFEST.json"])["trials"])[0]


def edited(members: Members, name: str, change: Callable[[dict], None]) -> Members:
    data = json.loads(members[name])
    change(data)
    if name.endswith("record.json"):
        data = sealed_record(data)
    return {**members, name: json.dumps(data).encode()}


def predictions(members: Members, key: str, **changes: np.ndarray) -> Members:
    name = f"trials/{key}/predictions.npz"
    with np.load(io.BytesIO(members[name])) as file:
        arrays = {entry: file[entry] for entry in file.files}
    buffer = io.BytesIO()
    np.savez(buffer, **(arrays | changes))
    return {**members, name: buffer.getvalue()}


def wrong(members: Members) -> list[str]:
    return problems(contents(sealed(members)))


def test_a_true_bundle_is_verified(members: Members, tmp_path: Path, capsys):
    path = tmp_path / "tiny.zip"
    path.write_bytes(sealed(members))
    assert main([str(path)]) == 0
    said = capsys.readouterr().out
    assert "4 trials: every accuracy, chosen epoch and cell computed anew from 160 predictions, and equal" in said
    assert "made anew by the same code, and equal" in said
    assert said.endswith("verified\n")


def test_flipped_bytes_end_the_command_with_1(members: Members, tmp_path: Path, capsys):
    data, generator, path = sealed(members), random.Random(5), tmp_path / "b.zip"
    for _ in range(20):
        place = generator.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ generator.randrange(1, 256)]) + data[place + 1 :])
        assert main([str(path)]) == 1
        assert f"{path}: not verified" in capsys.readouterr().err
    assert main([str(tmp_path / "none.zip")]) == 2


def test_a_prediction_that_was_changed_is_found(members: Members):
    key = key_of(members)
    with np.load(io.BytesIO(members[f"trials/{key}/predictions.npz"])) as file:
        last, labels = file["last"].copy(), file["labels"]
    last[0] = labels[0] if last[0] != labels[0] else (labels[0] + 1) % 10
    [said] = wrong(predictions(members, key, last=last))
    assert said.startswith(f"trial {key}: last: test/accuracy is ")
    assert " by its predictions, the record says " in said


def test_an_object_that_another_took_the_place_of_is_found(members: Members):
    """The accuracy stays, but not which objects were right."""
    key = key_of(members)
    with np.load(io.BytesIO(members[f"trials/{key}/predictions.npz"])) as file:
        last, labels = file["last"].copy(), file["labels"]
    right, other = np.flatnonzero(last == labels)[0], np.flatnonzero(last != labels)[0]
    last[right], last[other] = (labels[right] + 1) % 10, labels[other]
    assert wrong(predictions(members, key, last=last)) == [f"trial {key}: which objects it got right is not what its record says"]


def test_a_better_number_in_record_and_table_is_found(members: Members):
    key = key_of(members)

    def better(data: dict) -> None:
        for protocol, metrics in data["metrics"].items():
            metrics["test/accuracy"] = 0.95
            data["correct"][protocol] = packed(np.arange(20) < 19)

    assert len(wrong(edited(members, f"trials/{key}/record.json", better))) == 1


def test_a_better_number_alone_is_not_even_read(members: Members):
    def better(data: dict) -> None:
        data["metrics"]["last"]["test/accuracy"] = 0.95

    with pytest.raises(BundleError, match=r"last test/accuracy is 0.95, and \d+ of 20 objects were right"):
        wrong(edited(members, f"trials/{key_of(members)}/record.json", better))


@pytest.mark.parametrize("name", ["mean", "sd", "n", "low", "values", "optimism", "parameters"])
def test_a_number_of_the_table_that_was_changed_is_found(members: Members, name: str):
    def change(data: dict) -> None:
        data["cells"][1][name] = 0.123

    said = wrong(edited(members, "table.json", change))
    assert said[0].startswith(f"head_only / 1d: {name} 0.123, by its predictions ")


@pytest.mark.parametrize("ending", ["txt", "md", "tex", "html", "csv"])
def test_a_format_that_was_changed_is_found(members: Members, ending: str):
    name = f"table.{ending}"
    assert wrong({**members, name: members[name].replace(b"lora", b"lore", 1)}) == [f"{name}: not what the predictions print"]
    assert wrong({other: data for other, data in members.items() if other != name}) == [f"{name}: not what the predictions print"]


def test_an_epoch_that_was_not_the_best_is_found(members: Members):
    key = key_of(members)

    def earlier(data: dict) -> None:
        data["metrics"]["last"]["epoch"] = 1

    assert wrong(edited(members, f"trials/{key}/record.json", earlier)) == [
        f"trial {key}: last is epoch 2 by its history, epoch 2; the record says 1"
    ]


def test_another_configuration_or_another_size_is_found(members: Members):
    key = key_of(members)
    name = f"trials/{key}/record.json"
    assert wrong(edited(members, name, lambda data: data["config"].update(seed=99))) == [
        f"trial {key}: its configuration has another key: not the trial that ran"
    ]
    said = wrong(edited(members, name, lambda data: data["parameters"].update(trainable=1)))
    assert any(line.startswith(f"trial {key}: ") and "parameters, built anew" in line for line in said)


def test_other_code_may_word_and_count_otherwise_but_not_compute(members: Members, monkeypatch):
    older = edited(members, "MANIFEST.json", lambda data: data.update(tree="0" * 16))
    older = {**older, "table.txt": b"as it was printed then\n"}
    found = contents(sealed(older))
    assert problems(found) == []
    assert "made by other code (tree 0000000000000000, here " in verify.summary("b.zip", b"", found)
    changed = edited(older, "table.json", lambda data: data["cells"][0].update(mean=0.9))
    assert wrong(changed)[0].startswith("lora / 1d: mean 0.9, by its predictions ")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("MANIFEST.json", b'{"format": 2}', "MANIFEST.json: format 2, this version reads 1"),
        ("MANIFEST.json", b"[]", "MANIFEST.json: format None"),
        ("MANIFEST.json", b"\xff", "MANIFEST.json: UnicodeDecodeError"),
        ("layout.json", b"[" * 100_000, "layout.json: RecursionError"),
        ("layout.json", b'{"cells": 3}', "layout.json: ValueError: not a layout: TypeError"),
        ("failures.json", b"7", "failures.json: TypeError"),
    ],
)
def test_members_that_are_none_are_named(members: Members, tmp_path: Path, capsys, name, data, message):
    path = tmp_path / "b.zip"
    path.write_bytes(sealed({**members, name: data}))
    assert main([str(path)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("part", ["record.json", "epochs.json", "predictions.npz"])
def test_a_trial_that_lacks_a_part_is_named(members: Members, tmp_path: Path, capsys, part: str):
    key, path = key_of(members), tmp_path / "b.zip"
    path.write_bytes(sealed({name: data for name, data in members.items() if name != f"trials/{key}/{part}"}))
    assert main([str(path)]) == 1
    assert key in capsys.readouterr().err


def test_noise_in_any_member_is_told_and_never_raised(members: Members, tmp_path: Path):
    """Sealed again, so that only the content is wrong: cut off, or with bytes of its own changed."""
    generator, path = random.Random(3), tmp_path / "b.zip"
    names = [name for name in members if name.endswith((".json", ".npz"))]
    for _ in range(60):
        name = generator.choice(names)
        data = bytearray(members[name])
        for _ in range(generator.randrange(1, 6)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(sealed({**members, name: bytes(data[: generator.randrange(len(data) // 2, len(data) + 1)])}))
        assert main([str(path)]) in (0, 1)
