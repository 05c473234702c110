"""What is said of a sweep file with problems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pointsweep.errors import ConfigError
from pointsweep.sweep.sweep import load


def problems(path: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> str:
    """Return the text of the ConfigError that loading the file must raise."""
    with pytest.raises(ConfigError) as error:
        load(path, overrides, only)
    return str(error.value)
