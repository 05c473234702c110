"""The command data: say of every data set whether it is here, where it comes from, and what is
wrong.

`add FOLDER` looks at a folder of somebody's own clouds and prints the section of a sweep file that
reads it.

Exit codes: 0 all that is here is sound; 1 something is wrong; 2 there is no data root, no set in
it, nothing to convert, or a folder that cannot be added.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pointsweep.cli.command import Program, Version
from pointsweep.data.check import Report, check_root, unread
from pointsweep.data.readers import fewshot_pickles, fps_pickles
from pointsweep.data.suggest import suggest
from pointsweep.errors import MissingDataError
from pointsweep.utils.array_cache import (
    CacheError,
    cache_folder,
    entries,
    open_entry,
    remove_entry,
)

SOUND, WRONG, NOTHING = 0, 1, 2
ADD = "add"


@dataclass(frozen=True)
class DataOptions:
    """The options of data, as the command line gives them."""

    root: str | None = None
    allow_parts: bool = (
        False  # a set with fewer clouds or classes than were published is sound too
    )
    verify: bool = False  # look at the cache instead
    convert_fewshot: str | None = None  # convert the files of this folder instead
    convert_fps: str | None = None  # convert the files of this folder instead
    folder: str | None = None  # print the section that reads this folder instead


def data(
    root: Annotated[
        str | None,
        typer.Argument(
            metavar="ROOT",
            help="the folder that holds the data sets (default: $POINTSWEEP_DATA), or: add",
        ),
    ] = None,
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="FOLDER",
            help="behind add: print the section of a sweep file that reads this folder, and stop",
        ),
    ] = None,
    allow_parts: Annotated[
        bool,
        typer.Option(
            "--allow-parts",
            help="a set with fewer clouds or classes than were published is sound too",
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help=(
                "compare every byte of the data cache ($POINTSWEEP_CACHE) with its digests, and"
                " stop"
            ),
        ),
    ] = False,
    convert_fewshot: Annotated[
        str | None,
        typer.Option(
            "--convert-fewshot",
            metavar="FOLDER",
            help="make npz files of Point-BERT's pickles in FOLDER, and stop",
        ),
    ] = None,
    convert_fps: Annotated[
        str | None,
        typer.Option(
            "--convert-fps",
            metavar="FOLDER",
            help="make hdf5 files of modelnet40_*_fps.dat in FOLDER, and stop",
        ),
    ] = None,
    version: Version = False,
) -> int:
    """Check the data sets below a data root: present, complete, sound, without overlap of training
    and test clouds.

    exit codes: 0 all that is here is sound, 1 something is wrong, 2 no data root,
    no data set in it, nothing to convert, or a folder that cannot be added
    """
    if root == ADD and folder is None and not Path(ADD).is_dir():
        raise typer.BadParameter("add needs the folder that is to be read: add FOLDER")
    if root != ADD and folder is not None:
        raise typer.BadParameter(f"one ROOT, or add FOLDER; got {root} {folder}")

    return check(
        DataOptions(root, allow_parts, verify, convert_fewshot, convert_fps, folder)
    )


main = Program(
    "data", data, examples=("", "/data --allow-parts", "add /data/my_scans", "--verify")
)


def check(options: DataOptions) -> int:
    """Check what the options name and print what was found; return the exit code."""
    if options.folder is not None:
        return _add(Path(options.folder))
    if options.convert_fewshot:
        return _convert(fewshot_pickles.convert(Path(options.convert_fewshot)))
    if options.convert_fps:
        return _convert(fps_pickles.convert(Path(options.convert_fps)))
    if options.verify:
        return _verify_cache()

    return _check_root(options)


def _check_root(options: DataOptions) -> int:
    root = options.root or os.environ.get("POINTSWEEP_DATA")
    if not root or not Path(root).is_dir():
        what = f"{root} is not a folder" if root else "POINTSWEEP_DATA is not set"
        print(
            f"no data root: {what}; give a folder, or set POINTSWEEP_DATA to it",
            file=sys.stderr,
        )
        return NOTHING

    sound = faulty = 0
    locations: list[str] = []
    for name, reports, absence in check_root(Path(root)):
        print(f"{name}: {absence}" if absence else name, flush=True)
        for report in reports:
            if report.wrong or (report.parts and not options.allow_parts):
                faulty += 1
            else:
                sound += 1

            locations.append(report.location)
            print("\n".join(lines(report)), flush=True)

    not_read = unread(Path(root), locations)
    if not_read:
        print("\nnot read:")

    for line in not_read:
        print(f"  {line}")

    print(f"\n{sound} sound, {faulty} wrong")
    if not locations:
        print(
            f"no data set found in {root}: the layouts that are read stand in docs/data.md",
            file=sys.stderr,
        )
        return NOTHING

    return WRONG if faulty else SOUND


def _add(folder: Path) -> int:
    try:
        print("\n".join(suggest(folder)))
    except (ValueError, OSError) as error:
        print(f"{folder} cannot be read as a data set: {error}", file=sys.stderr)
        return NOTHING

    return SOUND


def _verify_cache() -> int:
    """Compare all entries of the cache in full; damaged ones are removed, as the next use makes
    them again.
    """
    num_sound = damaged = 0
    for folder in entries():
        try:
            open_entry(folder, in_full=True)
            num_sound += 1
        except CacheError as error:
            damaged += 1
            print(f"damaged, removed: {error}", flush=True)
            remove_entry(folder)

    print(f"{cache_folder()}: {num_sound} entries whole, {damaged} damaged")
    return WRONG if damaged else SOUND


def lines(report: Report) -> list[str]:
    """Return what is printed of one copy."""
    printed = [f"  {report.location}"]
    printed += [f"    {text}" for text in report.facts]
    printed += [f"    part: {text}" for text in report.parts]
    printed += [f"    wrong: {text}" for text in report.wrong]

    return printed


def _convert(converted: Iterator[Path]) -> int:
    try:
        for path in converted:
            print(path, flush=True)
    except MissingDataError as error:
        print(error, file=sys.stderr)
        return NOTHING
    except ValueError as error:
        print(error, file=sys.stderr)
        return WRONG

    return SOUND
