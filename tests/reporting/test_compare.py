"""--diff and --why on a store of made-up records, and on one real trial that failed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pointsweep.cli.tables import main
from pointsweep.reporting.build import build
from pointsweep.reporting.compare import diff, differing, over_seeds, recovered
from pointsweep.reporting.formats.registry import render
from pointsweep.results.records import CellLayout, Layout, Record
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.statistics.paired_objects import bootstrap, packed
from pointsweep.statistics.seeds import Difference
from pointsweep.storage.base import FileStore
from pointsweep.utils.numbers import percent
from tests.reporting.test_tables import record

OBJECTS = 400
SHARES = {"a": 0.80, "b": 0.70, "c": 0.70}


def right(arm: str, seed: int) -> np.ndarray:
    """Correctness (OBJECTS,): the hard objects are the same for all arms."""
    ease = np.random.default_rng(9).random(OBJECTS) + 0.2 * np.random.default_rng((ord(arm), seed)).random(OBJECTS)
    return ease < SHARES[arm] + 0.1


def made(arm: str, seed: int, **changes: object) -> Record:
    bits = right(arm, seed)
    config = {"seed": seed, "dataset": {"name": "synthetic"}, "method": {"name": "lora", "rank": {"a": 4, "b": 8, "c": 8}[arm]}}
    found = record(f"{arm}/{seed}", int(bits.sum()) / OBJECTS, config=config, correct={"last": packed(bits)})
    return replace(found, dataset=dict(found.dataset) | {"num_test": OBJECTS}, **changes)


def layout(**changes: object) -> Layout:
    cells = tuple(CellLayout(i, 0, tuple((seed, f"{arm}/{seed}") for seed in range(3))) for i, arm in enumerate("abc"))
    base = Layout("t", "Title", ("method",), (("a",), ("b",), ("c",)), ("all",), cells)
    return replace(base, **changes)


def records() -> dict[str, Record]:
    return {f"{arm}/{seed}": made(arm, seed) for arm in "abc" for seed in range(3)}


def test_diff_shows_settings_sizes_result_and_tests():
    table = build(layout(), records(), {})
    lines = [line.strip() for line in diff(table, records(), "a", "b").splitlines()]
    assert lines[0] == "a against b, test/accuracy in %, protocol last"
    assert lines[1] == "method.rank: 4 | 8"
    assert "parameters, trainable: 10.2k | 10.2k (equal)" in lines
    arms = [{seed: right(arm, seed) for seed in range(3)} for arm in "ab"]
    drawn = bootstrap(*arms)
    interval = f"{percent(drawn.mean, True)} ({percent(drawn.low, True)} to {percent(drawn.high, True)})"
    assert f"bootstrap over objects and seeds: {interval}, 400 objects" in lines
    gained, lost = int((arms[0][1] & ~arms[1][1]).sum()), int((arms[1][1] & ~arms[0][1]).sum())
    assert any(line.startswith(f"seed 1: {gained} objects gained, {lost} lost; exact McNemar, mid-p: p < 0.001") for line in lines)


def test_diff_of_arms_with_one_configuration_says_so():
    table = build(layout(), records(), {})
    assert "the configurations are equal" in diff(table, records(), "b", "c")


def test_arms_that_lack_something_are_compared_as_far_as_they_go():
    found = {key: value for key, value in records().items() if not key.startswith("b")}
    assert "nothing to compare: b without a finished trial" in diff(build(layout(), found, {}), found, "a", "b")
    old = {key: replace(value, correct={}) for key, value in records().items()}
    assert "object by object: these trials are older" in diff(build(layout(), old, {}), old, "a", "b")
    other = {key: replace(value, dataset=dict(value.dataset) | {"digest": key[0]}) for key, value in records().items()}
    assert "object by object: the arms were tested on other clouds" in diff(build(layout(), other, {}), other, "a", "b")
    folds = {key: replace(value, config=dict(value.config) | {"dataset": {"fold": key}}) for key, value in records().items()}
    assert "every seed has test clouds of its own" in diff(build(layout(), folds, {}), folds, "a", "b")


def test_only_what_differs_is_listed():
    one = {"seed": 0, "train": {"lr": 0.1, "epochs": 3}, "method": {"name": "lora", "rank": 4}, "compat": "fixed"}
    other = {"seed": 1, "train": {"lr": 0.1, "epochs": 5}, "method": {"name": "prompt", "length": 2}, "compat": "fixed", "new": 1}
    assert list(differing(one, other)) == [
        ("train.epochs", "3", "5"),
        ("method", "lora(rank=4)", "prompt(length=2)"),
        ("new", "—", "1"),
    ]


@pytest.mark.parametrize(
    ("apart", "said"),
    [
        (Difference(0.02, 3, -0.004, 0.044, 0.07), "+2.0 (-0.4 to +4.4), 3 seeds, paired t-test p = 0.070"),
        (Difference(0.02, 3, 0.01, 0.03, 0.0001), "+2.0 (+1.0 to +3.0), 3 seeds, paired t-test p < 0.001"),
        (Difference(0.02, 1, None, None), "+2.0; one seed in common carries neither an interval nor a p-value"),
        (Difference(0.02, 3, 0.02, 0.02), "+2.0 with each of 3 seeds; without spread there is no p-value"),
    ],
)
def test_a_p_value_that_n_cannot_carry_is_words(apart, said):
    assert over_seeds(apart) == said


def test_the_table_says_which_models_differ_in_every_format():
    table = build(layout(), records(), {})
    assert table.models[0][0].first == "a"
    note = "all, models that differ object by object (exact McNemar, mid-p, Holm): a against "
    assert note in " ".join(render(table, "text").split())
    for form in ("md", "tex"):
        assert "models that differ object by object" in render(table, form)
    [column] = json.loads(render(table, "json"))["models"]
    assert [test["gained"] - test["lost"] for test in column[:3]] == [test.gained - test.lost for test in table.models[0][:3]]


def test_one_seed_has_wilsons_interval():
    one = {key: value for key, value in records().items() if key.endswith("0")}
    short = layout(cells=tuple(replace(cell, keys=cell.keys[:1]) for cell in layout().cells))
    cell = build(short, one, {}).cell(0, 0)
    assert cell.interval == "objects"
    assert cell.low < cell.mean < cell.high
    assert "one seed, 95 % interval over the test objects (Wilson)" in " ".join(render(build(short, one, {}), "text").split())


def test_a_factorial_prints_its_shares():
    shape = layout(factors=({"rank": False, "bias": True}, {"rank": True, "bias": True}, None))
    [note] = build(shape, records(), {}).notes
    assert note.endswith("not to be had, no value with none of the components")
    shape = layout(factors=({"rank": True}, {"rank": False}, None))
    [note] = build(shape, records(), {}).notes
    values = [build(shape, records(), {}).cell(row, 0).mean for row in (0, 1)]
    assert note.startswith(
        f"components, all (Shapley shares, 95 % t-interval over seeds): rank {percent(values[0] - values[1], True)} ("
    )


# Why


@pytest.fixture
def filled(store: Path) -> FileStore:
    kept = FileStore(store)
    shape = layout(cells=(*layout().cells[:2], CellLayout(2, 0, (), excluded="no linear layers")))
    names = {key: f"{i:016x}" for i, key in enumerate(f"{arm}/{seed}" for arm in "abc" for seed in range(3))}
    cells = tuple(replace(cell, keys=tuple((seed, names[key]) for seed, key in cell.keys)) for cell in shape.cells)
    kept.write("sweeps/t/plan.json", json.dumps({"layout": json.loads(replace(shape, cells=cells).to_json())}).encode())
    kept.write(f"trials/{names['a/0']}/record.json", replace(made("a", 0), key=names["a/0"]).to_json().encode())
    failed = TrialFolder(kept.path(f"trials/{names['a/1']}"))
    failed.start()
    failed.append({"type": "epoch", "epoch": 1, "metrics": {}})
    failed.append(
        {
            "type": "failed",
            "reason": "DivergedError: the training loss of epoch 2 is nan",
            "trace": "Traceback\n  line\nDivergedError: x",
        }
    )
    TrialFolder(kept.path(f"trials/{names['b/0']}")).start()
    kept.write(f"trials/{names['b/1']}/checkpoint.safetensors", b"x")
    return kept


def test_why_tells_the_story_of_every_seed(filled: FileStore, capsys):
    assert main(["t", "--why", "a", "all"]) == 0
    said = capsys.readouterr().out
    assert f"seed 0 ({0:016x}): finished, {percent(right('a', 0).mean())}" in said
    assert "failed in attempt 1 after 1 epochs: DivergedError: the training loss of epoch 2 is nan" in said
    assert "    DivergedError: x\n" in said
    assert f"seed 2 ({2:016x}): never begun" in said
    assert main(["t", "--why", "b", "all"]) == 0
    said = capsys.readouterr().out
    assert "begun 1 times, cut off before an epoch was kept" in said
    assert "not finished, 0 epochs kept" in said
    assert main(["t", "--why", "c", "all"]) == 0
    assert "not run: no linear layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--why", "d", "all"], "unknown row 'd'. Rows: a, b, c"),
        (["--why", "a", "al"], "unknown column 'al'. Did you mean 'all'?"),
        (["--diff", "a", "d"], "unknown row 'd'"),
    ],
)
def test_names_that_are_none_end_with_2(filled: FileStore, capsys, arguments, message):
    assert main(["t", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_old_trials_are_compared_where_their_data_are_at_hand(tmp_path):
    from pointsweep.config.validation import trial_from_dict
    from pointsweep.training.runner import load_dataset

    config = trial_from_dict({
        "dataset": {"name": "synthetic", "num_points": 64, "presample": 64, "train_limit": 40, "test_limit": 20},
        "tokenizer": "point_pn_light", "backbone": "tiny", "method": "lora", "train": {"epochs": 1, "batch_size": 8}, "seed": 3,
    })  # fmt: skip
    dataset = load_dataset(config.dataset)
    store = FileStore(tmp_path)
    predicted = dataset.test.labels.copy().astype(np.uint8)
    predicted[:5] = (predicted[:5] + 1) % 10
    TrialFolder(store.path("trials/k")).save_predictions({"last": predicted})
    old = replace(record("k", 0.75, 0.75), config=config.to_dict(), dataset={"digest": dataset.digest, "num_test": 20})
    found = recovered(store, {"k": old})["k"]
    assert set(found.correct) == {"last"}
    assert found.correct["last"] == packed(predicted == dataset.test.labels)
    wrong = replace(old, dataset={"digest": "other", "num_test": 20})
    assert recovered(store, {"k": wrong})["k"] == wrong
