"""The command verify: check a bundle, and compute every number of its table anew from its
predictions.

Given a store (a folder, or s3://bucket/prefix) in place of a bundle it looks through all of its
trials (verify_store.py).

It needs the file alone: no store, no sweep file, no data. What a paper published is taken from the
bundle as it is; parameters are counted by building every arm anew, without weights. Exit codes: 0
verified; 1 something is not as it should be; 2 no such file.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from pointsweep.cli.command import AllowPluginsOption, Program, Version
from pointsweep.cli.verify_store import verify_store
from pointsweep.config.plugins import is_allowed
from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import check_trial
from pointsweep.errors import PluginError, StoreError
from pointsweep.planning.plan import count_arms
from pointsweep.reporting.build import build, every_format
from pointsweep.reporting.bundle import (
    FORMAT,
    MANIFEST,
    BundleError,
    arrays_of,
    chosen,
    recomputed,
    unpack,
)
from pointsweep.reporting.table import Table
from pointsweep.results.kept_plugins import from_members, import_all, other_code
from pointsweep.results.metrics import METRICS
from pointsweep.results.plugin_origin import runs_plugins
from pointsweep.results.records import Layout, Record, from_json, layout_from_json
from pointsweep.storage.base import MARKER, has_marker
from pointsweep.storage.stores import is_address, open_store
from pointsweep.utils.cli_exit import INVALID
from pointsweep.utils.provenance import tree_digest

T = TypeVar("T")
# numbers of a cell
FIELDS = (
    "mean",
    "sd",
    "n",
    "expected",
    "low",
    "high",
    "values",
    "optimism",
    "interval",
    "parameters",
)
HOSTILE = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    RecursionError,
    ArithmeticError,
    UnicodeError,
)


@dataclass(frozen=True)
class Contents:
    """The contents of a bundle. Of everything in it only the predictions are believed."""

    members: Mapping[str, bytes]
    tree: str  # of the code that made the bundle
    layout: Layout
    records: Mapping[str, Record]
    failures: Mapping[str, str]

    @property
    def same_code(self) -> bool:
        """Tell whether the code that runs now made the bundle. Other code may count, name and print
        otherwise, and be right.
        """
        return self.tree == tree_digest()


def contents(data: bytes) -> Contents:
    """Read a bundle. Raises BundleError naming the member that is not as `bundle.py` writes it."""
    members = unpack(data)
    manifest: Any = _parsed(members, MANIFEST, json.loads)
    version = None

    if isinstance(manifest, dict):
        version = manifest.get("format")

    if version != FORMAT:
        raise BundleError(
            f"{MANIFEST}: format {version!r}, this version reads {FORMAT}"
        )

    keys: list[Any] = manifest.get("trials")
    records = {}
    if isinstance(keys, list):
        for key in map(str, keys):
            records[key] = _parsed(members, f"trials/{key}/record.json", from_json)

    layout = _parsed(members, "layout.json", layout_from_json)
    failures = _parsed(members, "failures.json", lambda text: dict(json.loads(text)))
    return Contents(members, str(manifest.get("tree")), layout, records, failures)


def _parsed(members: Mapping[str, bytes], name: str, read: Callable[[str], T]) -> T:
    if name not in members:
        raise BundleError(f"{name}: missing")
    try:
        return read(members[name].decode())
    except HOSTILE as error:
        message = " ".join(str(error).split())[:200]
        raise BundleError(f"{name}: {type(error).__name__}: {message}") from error


def problems(content: Contents) -> list[str]:
    """Return what the predictions contradict; nothing if the bundle is verified."""
    wrong: list[str] = []
    records = {}

    for key, record in content.records.items():
        try:
            records[key] = _trial(content, key, record)
        except BundleError as error:
            wrong.append(f"trial {key}: {error}")
        except HOSTILE as error:
            wrong.append(f"trial {key}: {type(error).__name__}: {error}")

    if wrong:
        return wrong

    try:
        table = build(content.layout, records, content.failures)
        return [*_sizes(content), *_numbers(content, table), *_formats(content, table)]
    except HOSTILE as error:
        return [
            f"layout.json: does not fit the records: {type(error).__name__}: {error}"
        ]


def _trial(content: Contents, key: str, record: Record) -> Record:
    """Return one trial as its predictions have it. Raises BundleError."""
    if record.key != key:
        raise BundleError(f"its record is that of {record.key}")

    config = config_of(record)
    is_another = config is not None and config.key() != key
    # Where it ran plug-ins that are not imported, nothing can be said.
    is_unreadable = config is None and not runs_plugins(record.origin)

    if content.same_code and (is_another or is_unreadable):
        raise BundleError("its configuration has another key: not the trial that ran")

    name = f"trials/{key}/predictions.npz"
    if name not in content.members:
        raise BundleError("no predictions")

    changed = other_code(record, from_members(content.members, ""))
    if changed:
        raise BundleError(f"the bundle holds other code than it ran: {changed}")

    arrays = arrays_of(content.members[name])
    recomputed_record = recomputed(record, arrays, content.layout.metric)
    epochs = _parsed(content.members, f"trials/{key}/epochs.json", json.loads)
    chosen(record, epochs)

    return recomputed_record


def config_of(record: Record) -> TrialConfig | None:
    """Return a record's configuration, if this version still reads it."""
    config, wrong = check_trial(dict(record.config))
    return None if wrong else config


def _sizes(content: Contents) -> list[str]:
    """Return the trials whose model, built anew, has another number of parameters. Other code may
    well build others.
    """
    if not content.same_code:
        return []

    configs = {}
    for key, record in content.records.items():
        config = config_of(record)
        if config is not None:
            configs[key] = config

    wrong = []
    for key, sizes in count_arms(configs).items():
        recorded = dict(content.records[key].parameters)
        if recorded != dict(sizes):
            wrong.append(
                f"trial {key}: {recorded} parameters, built anew {dict(sizes)}"
            )

    return wrong


def _numbers(content: Contents, table: Table) -> list[str]:
    """Return the cells of table.json that are not what the predictions give."""
    stored = _parsed(content.members, "table.json", json.loads)["cells"]
    computed = json.loads(every_format(table)["table.json"])["cells"]
    wrong = []

    for cell, computed_cell, stored_cell in zip(
        table.cells, computed, stored, strict=True
    ):
        for name in FIELDS:
            if stored_cell[name] != computed_cell[name]:
                wrong.append(
                    f"{table.cell_name(cell)}: {name} {stored_cell[name]!r}, by its predictions"
                    f" {computed_cell[name]!r}"
                )

    return wrong


def _formats(content: Contents, table: Table) -> list[str]:
    """Return the formats whose bytes are not those that this code prints; other code's words are
    not compared.
    """
    if not content.same_code:
        return []

    wrong = []
    for name, data in every_format(table).items():
        if content.members.get(name) != data:
            wrong.append(f"{name}: not what the predictions print")

    return wrong


def verify(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="what `tables NAME --bundle FILE` wrote, or a store: a folder, s3://bucket/prefix",
        ),
    ],
    allow_plugins: AllowPluginsOption = False,
    version: Version = False,
) -> int:
    """Check a bundle and compute its table anew, or look through every trial of a store.

    exit codes: 0 verified, 1 something is not as it should be, 2 no such file
    """
    return check(file, allow_plugins)


main = Program("verify", verify, examples=("quickstart.zip", "/shared/store"))


def check(file: str, allow_plugins: bool = False) -> int:
    """Check a bundle or a store and print what is wrong; return the exit code."""
    if is_address(file) or Path(file).is_dir():
        return check_store(file)

    try:
        data = Path(file).read_bytes()
    except OSError as error:
        print(f"{file}: {error.strerror}", file=sys.stderr)
        return INVALID

    try:
        content = contents(data)
        import_plugins(file, content, allow_plugins)
        wrong = problems(content)
    except PluginError as error:
        print(error, file=sys.stderr)
        return INVALID
    except BundleError as error:
        wrong = [str(error)]

    if wrong:
        print("\n  ".join([f"{file}: not verified", *wrong]), file=sys.stderr)
        return 1

    print(summary(file, data, content))
    return 0


def import_plugins(file: str, content: Contents, allowed: bool) -> None:
    """Import the code in a bundle, where the user allows it. Raises PluginError where nothing can
    be checked without it.

    Without it the keys and parameter counts of the trials that ran it are not compared.
    """
    try:
        sources = from_members(content.members, file)
    except UnicodeDecodeError as error:
        raise BundleError(f"the code in it is no text: {error}") from error

    if not sources:
        return

    _, _, measure = content.layout.metric.partition("/")
    is_own_metric = measure not in METRICS
    if is_own_metric or all(is_allowed(source, allowed) for source in sources):
        import_all(sources, file, allowed)


def check_store(url: str) -> int:
    """Look through a store and print what is wrong in it; return the exit code."""
    try:
        store = open_store(url)
        if not (has_marker(store) or store.list("trials")):
            raise StoreError(
                f"store: {url} is no store of pointsweep: it has neither {MARKER} nor a trial"
            )

        verified = verify_store(store)
    except StoreError as error:
        print(error, file=sys.stderr)
        return INVALID

    for line in verified.unverified:
        print(f"unverified: {line}")

    if verified.problems:
        lines = [f"{url}: not verified", *verified.problems]
        print("\n  ".join(lines), file=sys.stderr)
        return 1

    print(
        f"{url}: {verified.finished} finished trials: every accuracy and chosen epoch computed anew"
        " from predictions and histories"
    )

    if verified.unverified:
        print(f"verified, but for {len(verified.unverified)}")
    else:
        print("verified")

    return 0


def summary(file: str, data: bytes, content: Contents) -> str:
    """Describe what was verified."""
    num_predictions = 0
    not_imported: set[str] = set()

    for record in content.records.values():
        num_predictions += record.dataset["num_test"] * len(record.metrics)
        if config_of(record) is None:
            not_imported.update(runs_plugins(record.origin))

    lines = [
        (
            f"{file}: {len(content.members)} members, each with its checksum; sha256 of the file"
            f" {hashlib.sha256(data).hexdigest()}"
        ),
        (
            f"{len(content.records)} trials: every accuracy, chosen epoch and cell computed anew"
            f" from {num_predictions:,} predictions, and equal"
        ),
    ]

    if not_imported:
        names = ", ".join(sorted(not_imported))
        lines.append(
            f"not imported: {names}, so keys and parameter counts of trials that run it"
            " are not compared"
        )

    if content.same_code:
        others = "keys, parameter counts and the table"
        if not_imported:
            others = "keys and parameter counts of the other trials, and the table"

        lines.append(f"{others} in every format: made anew by the same code, and equal")
    else:
        lines.append(
            f"made by other code (tree {content.tree}, here {tree_digest()}): keys, parameter"
            " counts and wording not compared"
        )

    return "\n".join([*lines, "verified"])
