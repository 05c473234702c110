"""What a plan found out is remembered, as long as nothing has changed that it depends on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointsweep.errors import Finding
from pointsweep.planning import plan, plan_cache
from pointsweep.planning.plan import make_plan
from pointsweep.planning.plan_cache import Checked, keep, read
from pointsweep.storage.base import FileStore
from pointsweep.sweep.sweep import load

SMOKE = Path(__file__).parents[2] / "sweeps" / "smoke.yaml"
FOUND = Checked({}, (Finding(False, "said"),))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "set").mkdir(parents=True)


def test_a_second_plan_is_the_first_one_without_a_look(tmp_path, monkeypatch):
    sweep, store = load(SMOKE, ["seeds=1"]), FileStore(tmp_path / "store")
    first = make_plan(sweep, store)
    for name in ("count_arms", "findings"):
        monkeypatch.setattr(plan, name, None)
    second = make_plan(sweep, store)
    assert second == first
    assert set(second.parameters) == {trial.config.key() for trial in sweep.trials()}


@pytest.mark.parametrize("what", ["code", "cells", "more trials", "damage"])
def test_what_it_depends_on(tmp_path, monkeypatch, what):
    sweep = load(SMOKE, ["seeds=1"])
    keys = [trial.config.key() for trial in sweep.trials()]
    keep(sweep, keys, FOUND)
    assert read(sweep, keys).findings == FOUND.findings
    assert read(sweep, keys[1:]).findings == FOUND.findings
    if what == "code":
        monkeypatch.setattr(plan_cache, "tree_digest", lambda: "another")
    elif what == "cells":
        sweep = load(SMOKE, ["seeds=2"])
    elif what == "more trials":
        keys.append("0" * 16)
    else:
        next((tmp_path / "cache" / "plans").iterdir()).write_text("{")
    assert read(sweep, keys) is None
