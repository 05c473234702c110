"""Configs are strict, and keys are the same everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsweep.config import parts
from pointsweep.config.base import Added, Config, canonical_json
from pointsweep.config.parts import TrainConfig
from pointsweep.config.validation import check_trial, trial_from_dict
from pointsweep.errors import ConfigError

TRIAL = {
    "dataset": "synthetic",
    "tokenizer": "point_pn_light",
    "backbone": {"name": "tiny", "modality": "2d"},
    "method": {"name": "lora", "rank": 4},
    "train": {"epochs": 3},
    "seed": 7,
}


def shuffled(data, order):
    """The same tree with every mapping's keys in another order."""
    if not isinstance(data, dict):
        return data
    return {key: shuffled(data[key], order) for key in sorted(data, key=lambda k: order.random())}


def test_round_trip_through_plain_data():
    config = trial_from_dict(TRIAL)
    assert trial_from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(st.randoms())
def test_key_does_not_depend_on_the_order_of_keys(order):
    assert trial_from_dict(shuffled(TRIAL, order)).key() == trial_from_dict(TRIAL).key()


@pytest.mark.parametrize("hash_seed", ["0", "1", "77"])
def test_key_is_the_same_in_another_process_with_another_hash_seed(hash_seed):
    code = f"from pointsweep.config.validation import trial_from_dict; print(trial_from_dict({TRIAL!r}).key())"
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == trial_from_dict(TRIAL).key()


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"train": {"epochs": 4}}, {"method": {"name": "lora", "rank": 5}}, {"compat": "fixed", "head": {"bias": True}}],
)
def test_every_change_changes_the_key(change):
    assert trial_from_dict(TRIAL | change).key() != trial_from_dict(TRIAL).key()


def test_spelled_out_defaults_and_whole_numbers_for_floats_give_the_same_key():
    spelled = TRIAL | {"train": {"epochs": 3, "lr": 0.0005, "clip_norm": 10}, "positions": {}, "compat": "fixed"}
    assert trial_from_dict(spelled).key() == trial_from_dict(TRIAL).key()


def test_minus_zero_is_zero_in_a_key_and_in_a_configuration():
    made = trial_from_dict(TRIAL | {"train": {"weight_decay": -0.0}})
    assert str(made.train.weight_decay) == "0.0"
    zero, minus = trial_from_dict(TRIAL | {"train": {"weight_decay": 0.0}}), made.train.model_copy(update={"weight_decay": -0.0})
    assert made.key() == zero.key() == made.model_copy(update={"train": minus}).key()


def test_added_fields_at_their_default_leave_old_keys_alone():
    class Old(Config):
        width: int = 4

    class New(Config):
        width: int = 4
        depth: Added[int] = 2

    assert canonical_json(New()) == canonical_json(Old())
    assert canonical_json(New(depth=3)) != canonical_json(Old())


def test_a_raised_revision_changes_the_key():
    class First(Config):
        width: int = 4

    class Second(First):
        code_revision: ClassVar[int] = 2

    assert canonical_json(Second()) != canonical_json(First())


def test_only_trials_in_bf16_have_the_key_of_their_new_places():
    assert '"revision"' not in canonical_json(TrainConfig(epochs=1))
    assert '"precision":"bf16","revision":2' in canonical_json(TrainConfig(epochs=1, precision="bf16"))


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ({"avx2", "amx_bf16", "avx512_bf16"}, "bf16"),
        ({"avx2", "avx512_bf16"}, "bf16"),
        ({"avx2", "avx512f"}, "fp32"),
        (set(), "fp32"),
    ],
)
def test_the_precision_that_the_processor_chooses_is_the_trials_own(flags, precision, monkeypatch):
    monkeypatch.setattr(parts, "cpu_flags", lambda: frozenset(flags))
    chosen = trial_from_dict(TRIAL | {"train": {"epochs": 2, "precision": "auto"}})
    named = trial_from_dict(TRIAL | {"train": {"epochs": 2, "precision": precision}})
    assert chosen.train.precision == precision
    assert chosen.key() == named.key()
    # A record says what was trained, so another machine reads the same trial.
    monkeypatch.setattr(parts, "cpu_flags", lambda: frozenset({"avx2"}))
    assert trial_from_dict(json.loads(json.dumps(chosen.to_dict()))).key() == named.key()


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"method": {"name": "lora", "rnk": 4}}, "method.rnk", "lora has no field 'rnk'. Did you mean 'rank'?"),
        ({"method": "lorra"}, "method", "unknown method 'lorra'. Did you mean 'lora'? Known: adapter, any2point"),
        ({"train": {"epochs": 0}}, "train.epochs", "must be at least 1, got 0"),
        ({"train": {"epochs": True}}, "train.epochs", "must be a whole number, got True"),
        ({"train": {"epochs": "3"}}, "train.epochs", "must be a whole number, got '3'"),
        ({"train": {"lr": float("nan")}}, "train.lr", "must be a finite number"),
        ({"train": {"precision": "fp16"}}, "train.precision", "unknown value 'fp16'"),
        ({"dataset": {"name": "synthetic", "scale": [1]}}, "dataset.scale", "must have 2 entries, got 1"),
        ({"dataset": {"name": "synthetic", "scale": [1, -1]}}, "dataset.scale[1]", "must be positive, got -1.0"),
        ({"trian": {}}, "trian", "unknown part 'trian'. Did you mean 'train'?"),
        ({"backbone": None}, "backbone", "missing; name one of: bert, clip_text"),
        (
            {"method": "any2point", "backbone": {"name": "tiny", "modality": "3d"}},
            "method",
            "needs a 1d or 2d backbone; tiny is 3d",
        ),
        ({"compat": "official"}, "compat", "lora has no official form here"),
        ({"seed": -1}, "seed", "must not be negative"),
    ],
)
def test_a_wrong_value_is_named_with_its_path_and_what_is_allowed(change, path, message):
    problems = check_trial(TRIAL | change)[1]
    assert [where for where, _ in problems] == [path]
    assert message in problems[0][1]


def test_all_problems_are_reported_together():
    with pytest.raises(ConfigError, match="3 problems, nothing was launched") as error:
        trial_from_dict(TRIAL | {"method": "lorra", "train": {"epochs": 0, "lr": -1}})
    assert "method" in str(error.value)
