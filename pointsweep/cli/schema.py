"""The command schema: print the JSON Schema of a sweep file, by which an editor completes and
checks one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pointsweep.cli.command import Program, Version
from pointsweep.sweep.json_schema import schema_text, shipped_file
from pointsweep.utils.cli_exit import INVALID


def schema(
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="write it there (default: standard output)",
        ),
    ] = None,
    path: Annotated[
        bool,
        typer.Option(
            "--path",
            help="print where the schema that comes with pointsweep lies instead; stop",
        ),
    ] = False,
    version: Version = False,
) -> int:
    """Print the JSON Schema of a sweep file, by which an editor completes and checks one.

    A sweep file names it in its first line:
      # yaml-language-server: $schema=sweep.schema.json

    exit codes: 0 printed, 2 the file cannot be written
    """
    if path:
        print(shipped_file())
        return 0

    if output is None:
        sys.stdout.write(schema_text())
        return 0

    try:
        Path(output).write_text(schema_text(), encoding="utf-8")
    except OSError as error:
        print(f"{output}: cannot be written: {error.strerror}", file=sys.stderr)
        return INVALID

    print(f"{output}: written")
    return 0


main = Program("schema", schema, examples=("-o sweep.schema.json", "--path"))
