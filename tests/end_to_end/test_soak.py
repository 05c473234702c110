"""Many trials through the real command on Ray: each ends once, and the driver's memory does not grow with them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("soak", Path(__file__).parents[2] / "benchmarks" / "soak.py")


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    module = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(module)
    return module.soak


def test_trials_in_packs_on_ray_end_once_each(tmp_path, soak):
    found = soak(tmp_path, trials=40, workers=2, pack=10)
    assert (found["trials"], found["records"]) == (40, 40)


@pytest.mark.slow
def test_memory_of_the_driver_does_not_grow_with_the_trials(tmp_path, soak):
    found = soak(tmp_path, trials=400, workers=2, pack=20)
    assert (found["trials"], found["records"]) == (400, 400)
    assert found["driver_bytes_a_trial"] < 50e3
