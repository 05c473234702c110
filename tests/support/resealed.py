"""Records that are changed and sealed anew: what a careful forger would leave, and what only a second look at the files finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pointsweep.results.records import sealed


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a record.json, and gives it the checksum of what it then says."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(sealed(data), sort_keys=True))


def forget_files(path: Path) -> None:
    """Makes a record one that names no files beside it."""
    rewrite(path, lambda data: data.update(files={}))
