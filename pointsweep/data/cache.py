"""Converted data on the disk of a node: made once, opened as memory maps, so that all workers of the node share one copy."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

DIGEST = "digest.txt"


def cache_folder() -> Path:
    """$POINTSWEEP_CACHE, else ~/.cache/pointsweep."""
    return Path(os.environ.get("POINTSWEEP_CACHE") or Path.home() / ".cache" / "pointsweep")


def cached_arrays(key: str, make: Callable[[], Mapping[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], str]:
    """The arrays stored under `key`, made and stored first if they are not there; and the digest of their content.

    Several processes may call this at once: each writes a folder of its own, the first rename wins, all open the winner.
    """
    folder = cache_folder() / key
    if not (folder / DIGEST).is_file():
        _store(folder, make())
    arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}
    return arrays, (folder / DIGEST).read_text()


def _store(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    for name, array in arrays.items():
        np.save(temporary / f"{name}.npy", array, allow_pickle=False)
    (temporary / DIGEST).write_text(content_digest(arrays))
    try:
        temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary)
        if not (folder / DIGEST).is_file():
            raise


def content_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.data)
    return digest.hexdigest()


def signature(files: Iterable[Path], *more: object) -> str:
    """A cache key for what is made of some files: changes when one of them is replaced."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([sorted(stats), *map(str, more)]).encode()).hexdigest()[:32]
