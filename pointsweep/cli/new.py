"""The command new: write a first sweep file that runs."""

from __future__ import annotations

import os
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from pointsweep.cli.command import Program, Version
from pointsweep.sweep.json_schema import shipped_file
from pointsweep.utils.cli_exit import INVALID

TEMPLATE = "first_sweep"  # the file beside this one, and the name of the sweep in it
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,80}")  # of a sweep, as parser.py has it


def new(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="what to write (default: first_sweep.yaml)"
        ),
    ] = f"{TEMPLATE}.yaml",
    version: Version = False,
) -> int:
    """Write a first sweep file that runs on any machine within a minute; an existing file is never
    replaced.

    exit codes: 0 written, 2 there is such a file already, or it cannot be written
    """
    return write(Path(file))


main = Program("new", new, examples=("", "sweeps/my_table.yaml"))


def template(name: str) -> str:
    """Return the text of a first sweep with this name; its first line names the schema to
    editors.
    """
    file = resources.files("pointsweep.cli") / f"{TEMPLATE}.yaml"
    text = file.read_text(encoding="utf-8").replace(TEMPLATE, name)

    return f"# yaml-language-server: $schema={shipped_file()}\n{text}"


def write(path: Path) -> int:
    """Write the file and print what to do with it; return the exit code."""
    if path.suffix not in (".yaml", ".yml"):
        path = path.with_name(f"{path.name}.yaml")

    if not NAME.fullmatch(path.stem):
        print(
            f"{path}: the sweep is named after the file; allowed are small letters, digits, _"
            " and -",
            file=sys.stderr,
        )
        return INVALID

    try:
        _write(path)
    except FileExistsError:
        print(
            f"{path}: is there already and stays as it is; name another file: pointsweep new FILE",
            file=sys.stderr,
        )
        return INVALID
    except OSError as error:
        print(f"{path}: cannot be written: {error.strerror}", file=sys.stderr)
        return INVALID

    print(f"{path}: written. Next:\n  pointsweep plan {path}\n  pointsweep run {path}")
    return 0


def _write(path: Path) -> None:
    """Write the file. Raises FileExistsError if anything is there, a link too, and another OSError
    if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # of something that is no folder
        raise NotADirectoryError(error.errno, f"{path.parent} is no folder") from error

    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(number, "w", encoding="utf-8") as file:
        file.write(template(path.stem))
