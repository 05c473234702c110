"""What tests of sweep files share: a file of the test's own on top of its module's BASE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Write a sweep file: the base, by default BASE of the test's module, then the text; return its path."""
    own_base = request.module.BASE

    def made(text: str, base: str = own_base, name: str = "t.yaml") -> Path:
        path = tmp_path / name
        path.write_text(base + text)
        return path

    return made
