"""The command published: find inconsistencies in the numbers that papers print."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pointsweep.cli.command import Program, Version
from pointsweep.sweep import published_checks
from pointsweep.sweep.published import lines, read_lines
from pointsweep.utils.cli_exit import INVALID


@dataclass(frozen=True)
class PublishedOptions:
    """The options of published, as the command line gives them."""

    csv: str | None = None
    tables: tuple[str, ...] = ()


def published(
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="another file of the same columns (default: the one that comes with the package)",
        ),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table",
            metavar="FILE",
            help="a table.json of a sweep, whose parameter counts are compared; repeatable",
        ),
    ] = None,
    version: Version = False,
) -> int:
    """Find inconsistencies in the published numbers.

    exit codes: 0 there are none, 1 there are some, 2 a file cannot be read
    """
    return check(PublishedOptions(csv, tuple(table or ())))


main = Program(
    "published",
    published,
    examples=("", "--table ~/pointsweep/sweeps/any2point_table1/table.json"),
)


def check(options: PublishedOptions) -> int:
    """Print what is inconsistent in the published numbers, a line each; return the exit code."""
    try:
        published_lines = lines()
        if options.csv:
            published_lines = read_lines(Path(options.csv).read_text(encoding="utf-8"))

        counts: dict[int, list[int]] = {}
        for name in options.tables:
            table_json = Path(name).read_text(encoding="utf-8")
            counts |= published_checks.counts_of(published_lines, table_json)

        faults = published_checks.check(published_lines, counts)
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as error:
        print(
            f"{options.csv or 'published.csv'}: {type(error).__name__}: {error}",
            file=sys.stderr,
        )
        return INVALID

    for fault in faults:
        print(f"{fault.kind}: {fault.text}")

    findings = "finding" if len(faults) == 1 else "findings"
    print(f"{len(published_lines)} lines, {len(faults)} {findings}")
    return 1 if faults else 0
