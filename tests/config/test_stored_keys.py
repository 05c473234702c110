"""Keys of trials never change: stored results are found by them.

`stored_keys.json` holds, for each shipped sweep under each profile, the number of its trials and a digest of their sorted keys,
and for each registered component the canonical JSON of its defaults. Run this file as a module to add what is new:
`python -m tests.config.test_stored_keys`. It refuses to change what is stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pointsweep.config import registry
from pointsweep.config.base import canonical_json
from pointsweep.sweep import profiles
from pointsweep.sweep.sweep import load
from pointsweep.sweep.yaml_document import family

SWEEPS = Path(__file__).parents[2] / "sweeps"
STORED = Path(__file__).with_name("stored_keys.json")
KNOWN: dict[str, dict[str, Any]] = json.loads(STORED.read_text())
KINDS = ("datasets", "tokenizers", "backbones", "methods", "networks")


def tables() -> Iterator[str]:
    """Yield every shipped sweep, by itself and under each of its profiles."""
    for path in sorted(SWEEPS.rglob("*.yaml")):
        name = path.relative_to(SWEEPS).as_posix()
        yield name
        for profile in profiles.names(family(path)):
            yield f"{name} profile={profile}"


def keys_of(table: str) -> dict[str, Any]:
    """Return the number of a sweep's trials and a digest of their keys; a search stands for a few points of each arm."""
    name, *overrides = table.split()
    sweep = load(SWEEPS / name, overrides).probe()
    keys = sorted(trial.config.key() for trial in sweep.trials())
    return {"trials": len(keys), "digest": hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]}


def defaults_of(component: str) -> dict[str, Any]:
    kind, name = component.split("/")
    # Not checked: some fields have no sound default and must be set.
    return json.loads(canonical_json(registry.config_class(kind, name).model_construct()))


@pytest.mark.parametrize("table", [table for table in tables() if table in KNOWN["sweeps"]])
def test_a_shipped_sweep_has_the_keys_that_are_stored(table):
    assert keys_of(table) == KNOWN["sweeps"][table]


@pytest.mark.parametrize("component", KNOWN["components"])
def test_a_component_has_the_defaults_that_are_stored(component):
    assert defaults_of(component) == KNOWN["components"][component]


def test_most_shipped_sweeps_are_stored():
    assert len(set(tables()) & set(KNOWN["sweeps"])) >= 60


def add_new() -> None:
    sweeps = {table: KNOWN["sweeps"].get(table) or keys_of(table) for table in tables()}
    names = [f"{kind}/{name}" for kind in KINDS for name in registry.names(kind)]
    components = {name: KNOWN["components"].get(name) or defaults_of(name) for name in names}
    STORED.write_text(json.dumps({"sweeps": sweeps, "components": components}, indent=1) + "\n")


if __name__ == "__main__":
    add_new()
