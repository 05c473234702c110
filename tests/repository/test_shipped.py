"""What `ray job submit --working-dir .` ships: measured with Ray's own packer."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ray._private.runtime_env import packaging

ROOT = Path(__file__).parents[2]
LIMIT_BYTES = 5 * 2**20


def test_the_shipped_folder_is_small_and_has_what_a_sweep_needs(tmp_path):
    package = tmp_path / "shipped.zip"
    packaging.create_package(str(ROOT), package, include_gitignore=True)
    with zipfile.ZipFile(package) as file:
        names = set(file.namelist())
        size = sum(entry.file_size for entry in file.infolist())
    assert package.stat().st_size < LIMIT_BYTES
    assert size < LIMIT_BYTES
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "pointsweep").rglob("*.py")}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "sweeps").rglob("*.yaml")}
    assert wanted <= names, sorted(wanted - names)
    assert not [name for name in names if name.startswith((".git/", "tests/", ".venv/"))]
