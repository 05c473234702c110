"""What tests share: a folder for caches that lives as long as the session, and no threads to fight over two cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# On a busy machine making examples takes long; that is no fault of the code.
settings.register_profile("any_load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_load")

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
    from pointsweep.cli.run import main

    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    assert main([str(folder / "tiny.yaml"), "--inline", "--tracking-uri", "none", "--store", str(folder / "store")]) == 0
    return folder / "store"


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trials train in double precision, which shows that what is computed is the same, for every tensor.

    In single precision rounding alone moves some of them: the gradient of a bias in front of a batch normalisation, or of the keys
    of an attention, is zero but for rounding, and AdamW divides it by its own size.
    """
    import torch

    from pointsweep.data.dataset import Dataset
    from pointsweep.models import batch_cache
    from pointsweep.training import loop as train

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(
        batch_cache, "_caches", {"cpu": batch_cache.LeastRecentlyUsed(batch_cache.LIMIT_BYTES["cpu"])}
    )  # batches in double are not for other tests
    for owner, name in ((train, "train_batch"), (train, "eval_batch"), (Dataset, "eval_batch")):
        monkeypatch.setattr(owner, name, _in_double(getattr(owner, name)))
    yield
    torch.set_default_dtype(before)


def _in_double(load: Callable[..., Any]) -> Callable[..., Any]:
    def loaded(*args: Any, **more: Any) -> Any:
        return tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in load(*args, **more))

    return loaded


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on a GPU; the sizes of the groups that ran as one."""
    from pointsweep.models.tokenizers import Stage
    from pointsweep.ops import vmap as joint
    from pointsweep.training.fusion import coroutines as members

    sizes: list[int] = []
    monkeypatch.setattr(Stage, "works_by_rows", lambda *_: False)  # which is for a CPU alone
    monkeypatch.setattr(members, "JOINED_ON", {"cpu"})
    monkeypatch.setattr(members, "run", lambda parts, inputs: (sizes.append(len(parts)), joint.run(parts, inputs))[1])
    return sizes
