"""Ten thousand finished records with one edited value each: every one is found, and none is printed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pointsweep.cli import verify
from pointsweep.cli.tables import main
from pointsweep.config.validation import trial_from_dict
from pointsweep.reporting.build import read
from pointsweep.results.record_index import sound_records
from pointsweep.results.records import CellLayout, Layout, plan_json, sealed
from pointsweep.storage.base import FileStore, establish

FILES = ("predictions.npz", "history.jsonl", "weights.safetensors")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all single values in nested data, empty containers too."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [leaf for name, part in items for leaf in leaves(part, (*path, name))]
    return found or [path]


def another(value: Any, draw: random.Random) -> Any:
    """A value that is written otherwise: of the same type, of another one, out of all bounds."""
    choices: list[Any] = [None, True, False, 0, 1, 0.9, 7.5, -0.0, "", "x", [], {}, float("nan"), float("inf"), 10**400]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        choices += [value + 1, value * 1.000001, -value, float(value), str(value), [value]] * 3
    if isinstance(value, str):
        choices += [value + "x", value[:-1], value.upper(), value[::-1], [value]] * 3
    different = [choice for choice in choices if json.dumps(choice) != json.dumps(value)]
    return draw.choice(different)


def edit(data: dict[str, Any], draw: random.Random) -> None:
    """Changes one value, or takes it away, or adds one."""
    path = draw.choice(leaves(data))
    node: Any = data
    for name in path[:-1]:
        node = node[name]
    way = draw.random()
    if way < 0.05:
        del node[path[-1]]
    elif way < 0.1 and isinstance(node, dict):
        node[f"{path[-1]} "] = node.pop(path[-1])
    elif way < 0.15 and isinstance(node, dict):
        node["more"] = 1
    else:
        node[path[-1]] = another(node[path[-1]], draw)


def filled(trained: Path, folder: Path, count: int) -> tuple[FileStore, list[str]]:
    """A store with so many finished trials of one cell, made of one that was really trained."""
    store = FileStore(folder)
    establish(store)
    source = sorted((trained / "trials").iterdir())[0]
    record = json.loads((source / "record.json").read_text())
    files = {name: (source / name).read_bytes() for name in FILES}
    keys = []
    for seed in range(count):
        config = {**record["config"], "seed": seed}
        key = trial_from_dict(config).key()
        place = folder / "trials" / key
        place.mkdir(parents=True)
        for name, content in files.items():
            (place / name).write_bytes(content)
        (place / "record.json").write_text(json.dumps(sealed({**record, "key": key, "config": config}), sort_keys=True))
        keys.append(key)
    cell = CellLayout(0, 0, tuple(enumerate(keys)))
    store.write("sweeps/many/plan.json", plan_json(Layout("many", "many", ("method",), (("lora",),), ("all",), (cell,))))
    return store, keys


def check(trained: Path, folder: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    store, keys = filled(trained, folder, count)
    assert verify.main([store.url]) == 0
    assert f"{count} finished trials" in capsys.readouterr().out
    assert len(read(store, "many")[1]) == count
    assert main(["many", "--store", store.url]) == 0
    assert "(n=" not in capsys.readouterr().out
    draw = random.Random(13)
    for key in keys:
        path = folder / "trials" / key / "record.json"
        data = json.loads(path.read_text())
        edit(data, draw)
        path.write_text(json.dumps(data, sort_keys=True))
    assert verify.main([store.url]) == 1
    said = capsys.readouterr().err
    assert [key for key in keys if f"trial {key}: " not in said] == [], "found by verify"
    records, damaged = sound_records(store, "many", keys)
    assert records == {} and damaged.keys() == set(keys), "left out of the table, though an index of the whole ones is there"
    assert main(["many", "--store", store.url]) == 0


def test_a_record_with_one_edited_value_is_found(trained: Path, tmp_path: Path, capsys):
    check(trained, tmp_path / "store", capsys, 600)


@pytest.mark.slow
def test_ten_thousand_records_with_one_edited_value_each_are_found(trained: Path, tmp_path: Path, capsys):
    check(trained, tmp_path / "store", capsys, 10_000)
