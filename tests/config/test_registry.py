"""Registered components: one configuration class each, frozen, and open to packages of others."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Literal

import pytest
from pydantic import ValidationError

from pointsweep.config import registry
from pointsweep.config.base import Count, canonical_json
from pointsweep.config.methods import LoRAConfig, MethodConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import check_trial, trial_from_dict

TRIAL = {"dataset": "synthetic", "tokenizer": "patch", "backbone": "tiny", "method": {"name": "lora", "rank": 4}}
COMPONENTS = [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]


class ScalingConfig(MethodConfig):
    """A method of somebody else's package."""

    name: Literal["scaling"] = "scaling"
    width: Count = 3


@pytest.fixture
def own_components(monkeypatch):
    monkeypatch.setitem(registry._REGISTERED, "methods", dict(registry._REGISTERED["methods"]))
    registry.union.cache_clear()
    yield
    registry.union.cache_clear()


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_a_configuration_class_is_one_object_wherever_it_is_looked_up(kind, name):
    found = registry.config_class(kind, name)
    assert getattr(sys.modules[found.__module__], found.__qualname__) is found
    made = found.model_construct()
    assert made.name == name
    assert type(pickle.loads(pickle.dumps(made))) is found


def test_a_trial_survives_pickle_with_its_key():
    trial = trial_from_dict(TRIAL)
    key = trial.key()
    again = pickle.loads(pickle.dumps(trial))
    assert again == trial
    assert isinstance(again.method, LoRAConfig)
    assert again.key() == key


def test_another_process_reads_the_pickle_of_a_trial():
    trial = trial_from_dict(TRIAL)
    code = f"import pickle; print(pickle.loads({pickle.dumps(trial)!r}).key())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == trial.key()


def test_a_configuration_is_frozen_and_its_copies_have_keys_of_their_own():
    trial = trial_from_dict(TRIAL)
    key = trial.key()
    with pytest.raises(ValidationError, match="frozen"):
        trial.seed = 3
    assert trial.replace(seed=3).key() == trial.model_copy(update={"seed": 3}).key() != key
    with pytest.raises(ValidationError, match="must be at least num_points"):
        trial.dataset.replace(presample=9)
    with pytest.raises(ValidationError, match="Extra inputs"):
        trial.replace(sed=3)


def test_a_trial_is_made_of_configurations_as_of_plain_data():
    parts = {"dataset": {"name": "synthetic"}, "tokenizer": "patch", "backbone": "tiny"}
    assert TrialConfig(**parts, method=LoRAConfig(rank=4)) == trial_from_dict(TRIAL)
    with pytest.raises(ValidationError, match="missing; name one of"):
        TrialConfig(**parts)


def test_a_component_of_another_package_is_checked_as_ours(own_components):
    registry.register("methods", ScalingConfig, "somewhere.else:Scaling")
    trial = trial_from_dict(TRIAL | {"method": {"name": "scaling", "width": 5}})
    assert type(trial.method) is ScalingConfig
    assert '"width":5' in canonical_json(trial)
    assert check_trial(TRIAL | {"method": {"name": "scaling", "widht": 5}})[1] == [
        ("method.widht", "scaling has no field 'widht'. Did you mean 'width'? Fields: width")
    ]


def test_what_cannot_be_registered_is_refused(own_components):
    class Nameless(MethodConfig):
        pass

    class Second(MethodConfig):
        name: Literal["lora"] = "lora"

    with pytest.raises(ValueError, match="no kind of component 'method'; known: datasets"):
        registry.register("method", ScalingConfig, "a:B")
    with pytest.raises(ValueError, match="must state its name"):
        registry.register("methods", Nameless, "a:B")
    with pytest.raises(ValueError, match="two components of methods are called 'lora'"):
        registry.register("methods", Second, "a:B")
