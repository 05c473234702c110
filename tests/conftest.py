"""What tests share: a folder for caches that lives as long as the session, and no threads to fight over two cores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Converted data go to the session's own folder, not to the user's."""
    os.environ["POINTSWEEP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own, as the environment names it."""
    folder = tmp_path / "store"
    monkeypatch.setenv("POINTSWEEP_STORE", str(folder))
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data; the test is skipped where there is none."""
    root = os.environ.get("POINTSWEEP_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("POINTSWEEP_DATA names no folder of real data")
    return Path(root)
