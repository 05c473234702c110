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


TINY = """
name: tiny
title: A tiny sweep
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 40, test_limit: 20}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  train: {epochs: 2, batch_size: 16, warmup_epochs: 0, lr: 2.0e-3}
rows: {method: [lora, head_only]}
columns: {backbone.modality: [1d]}
seeds: 2
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds four really trained trials, the sweep `tiny`: lora and head_only, 1d, two seeds. Only to be read."""
    from pointsweep.run import main

    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    assert main([str(folder / "tiny.yaml"), "--inline", "--tracking-uri", "none", "--store", str(folder / "store")]) == 0
    return folder / "store"
