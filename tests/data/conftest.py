"""A folder of data and a cache of their own for tests that write data sets."""

from __future__ import annotations

import pytest


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"
