"""Entry points by which installed packages offer components to pointsweep.

A package counts as installed if it lies where Python installs packages, or in a folder of
PYTHONPATH. The folder in which a command was started does not count, though `python -m` looks
there: a folder from somebody else could hold anything.
"""

from __future__ import annotations

import importlib.metadata
import os
import site
import sysconfig
from importlib.metadata import EntryPoint
from pathlib import Path


def offered(group: str, name: str | None = None) -> list[EntryPoint]:
    """Return the entry points of a group, `methods` or `stores` for example, or those of one name
    in it.
    """
    points = importlib.metadata.entry_points(group=f"pointsweep.{group}")
    if name is not None:
        points = points.select(name=name)

    if not points:
        return []

    folders = _folders()
    installed = []
    for point in points:
        if point.dist is None:
            continue

        folder = Path(str(point.dist.locate_file(""))).resolve()
        if folder in folders:
            installed.append(point)

    return installed


def _folders() -> set[Path]:
    of_python = [
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        site.getusersitepackages(),
        *site.getsitepackages(),
    ]

    of_user = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = {Path(folder).resolve() for folder in of_user if folder}
    folders.discard(Path.cwd().resolve())

    return folders | {Path(folder).resolve() for folder in of_python}
