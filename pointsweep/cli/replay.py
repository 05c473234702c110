"""The command replay: train the trials of one cell again and compare.

They run in a scratch store from their recorded configuration; the sweep's store is only read. Of
each trial one line says: `equal`, every prediction and every metric is the recorded one, bit for
bit, as it must be on a CPU with the same code; `within the interval` in which a further run of the
cell is to be expected; or `outside`. Exit codes: 0 equal or within; 1 a trial outside, failed or on
other data (with --exact: not equal); 2 there is nothing to replay.
"""

from __future__ import annotations

import math
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from pointsweep.cli.command import (
    AllowPluginsOption,
    Program,
    StoreOption,
    Version,
    complete_sweep,
    one_of,
    whole_number,
)
from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import check_trial
from pointsweep.errors import ConfigError, unknown
from pointsweep.reporting.build import build, independent_clouds, read
from pointsweep.reporting.bundle import BundleError, arrays_of
from pointsweep.reporting.compare import column_number, row_number
from pointsweep.results.computed_metrics import with_metric
from pointsweep.results.kept_plugins import import_kept
from pointsweep.results.metrics import DEFAULT
from pointsweep.results.plugin_origin import PREFIX
from pointsweep.results.record_index import read_record
from pointsweep.results.records import Layout, Record, records_by_seed, value
from pointsweep.statistics.seeds import LEVEL, summary, wilson
from pointsweep.storage.base import FileStore, Store
from pointsweep.storage.stores import open_store
from pointsweep.tracking.target import TrialTags
from pointsweep.utils.cli_exit import INVALID
from pointsweep.utils.numbers import percent

DEVICES = ("cpu", "cuda")
EQUAL, WITHIN, OUTSIDE = "equal", "within the interval", "outside"
# of an origin: what a difference in the numbers may come from
SAME = ("tree", "device", "version.torch", "platform")


@dataclass(frozen=True)
class ReplayOptions:
    """The options of replay, as the command line gives them."""

    sweep: str
    row: str
    column: str
    seed: int | None = None  # default: every finished one
    store: str | None = None
    device: str | None = None  # default: where the trial was trained
    threads: int = 1
    exact: bool = False
    allow_plugins: bool = False


@dataclass(frozen=True)
class Run:
    """A finished trial: its record, and the arrays of its predictions.npz."""

    record: Record
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Replay:
    """The outcome for one trial; `words` describe it."""

    verdict: str
    words: str


def compare(
    before: Run, now: Run, layout: Layout, expected: tuple[float, float]
) -> Replay:
    """Compare two runs of one configuration; `expected` holds the limits between which a further
    run's value lies.
    """
    recorded = value(before.record, layout.protocol, layout.metric)
    replayed = value(now.record, layout.protocol, layout.metric)
    shown = f"{layout.metric} {percent(replayed)}"
    num_differing = {}
    num_predictions = 0

    for name, array in before.arrays.items():
        num_differing[name] = _differing(array, now.arrays.get(name))
        if name in before.record.metrics:
            num_predictions += len(array)

    same_metrics = True
    for protocol, metrics in before.record.metrics.items():
        if metrics != now.record.metrics.get(protocol):
            same_metrics = False

    same_names = before.arrays.keys() == now.arrays.keys()
    if same_metrics and same_names and not any(num_differing.values()):
        text = (
            f"{shown}, all {num_predictions:,} predictions and every metric bit for bit"
        )
        return Replay(EQUAL, text)

    low, high = expected
    flips = num_differing.get(layout.protocol, 0)
    text = (
        f"{shown}, recorded {percent(recorded)}; {flips} of {before.record.dataset['num_test']}"
        f" predictions differ; 95 % of further runs are expected from {percent(low)} to"
        f" {percent(high)}"
    )

    return Replay(WITHIN if low <= replayed <= high else OUTSIDE, text)


def _differing(one: np.ndarray, other: np.ndarray | None) -> int:
    if other is None or one.shape != other.shape or one.dtype != other.dtype:
        return len(one)
    return int((one != other).sum())


def further(values: Sequence[float], objects: float) -> tuple[float, float]:
    """Return the limits between which one further run of a cell is to be expected, 95 %.

    The prediction interval of a normal sample, mean ± t * sd * sqrt(1 + 1/n) (Hahn, Meeker 1991,
    Statistical Intervals, 4.7). Of one seed, or of seeds without spread, Wilson's interval over the
    test objects; of a mean IoU that is wider than it need be, for no number in [0, 1] varies more
    than one that is 0 or 1. A mean below zero is taken as that of a metric in [-1, 1].
    """
    from scipy.special import stdtrit

    stats = summary(values)

    if not stats.sd:
        if stats.mean >= 0:
            return wilson(stats.mean * objects, objects)

        # A metric in [-1, 1], as Cohen's kappa: (value + 1) / 2 lies in [0, 1].
        low, high = wilson((stats.mean + 1) / 2 * objects, objects)
        return 2 * low - 1, 2 * high - 1

    t = float(stdtrit(stats.n - 1, 0.5 + LEVEL / 2))
    half_width = t * stats.sd * math.sqrt(1 + 1 / stats.n)
    return stats.mean - half_width, stats.mean + half_width


def run_again(
    config: TrialConfig,
    tags: TrialTags,
    device: str,
    threads: int,
    metric: str = DEFAULT,
) -> Run:
    """Train a trial in a scratch store that is removed afterwards. Raises ValueError with the
    reason if it fails.
    """
    from pointsweep.training.runner import Job, Task, run_pack

    with tempfile.TemporaryDirectory(prefix="pointsweep-replay-") as folder:
        scratch = FileStore(Path(folder))
        job = Job(scratch.url, threads=threads, device=device)
        (outcome,) = run_pack([Task(config, tags)], job, lambda result: None)

        if outcome.status != "finished":
            raise ValueError(f"{outcome.status}: {outcome.reason}")

        return kept(scratch, config.key(), metric)


def kept(store: Store, key: str, metric: str = DEFAULT) -> Run:
    """Return a finished trial as its store has it, with the table's metric. Raises ValueError
    naming what is missing.
    """
    try:
        record = with_metric(store, {key: read_record(store, key)}, metric)[key]
        return Run(record, arrays_of(store.read(f"trials/{key}/predictions.npz")))
    except FileNotFoundError as error:
        raise ValueError(
            f"trial {key}: {error.filename or error} is missing"
        ) from error
    except BundleError as error:
        raise ValueError(
            f"{store.location(f'trials/{key}/predictions.npz')}: {error}"
        ) from error


def replay(
    before: Run,
    layout: Layout,
    expected: tuple[float, float],
    tags: TrialTags,
    options: ReplayOptions,
) -> Replay:
    """Train one trial again and compare. A run that cannot be compared is `outside`, and the words
    say why.
    """
    config, wrong = check_trial(dict(before.record.config))
    if config is None or wrong or config.key() != before.record.key:
        return Replay(
            OUTSIDE,
            "this version of the code reads its configuration as another trial's; use the version"
            " that made it",
        )

    recorded_device = before.record.origin.get("device", "auto")
    device = str(options.device or recorded_device).partition(":")[0]
    try:
        now = run_again(config, tags, device, options.threads, layout.metric)
    except (ValueError, OSError, RuntimeError) as error:
        message = " ".join(str(error).split())
        return Replay(OUTSIDE, f"it did not finish on {device}: {message}")

    digest = now.record.dataset.get("digest")
    recorded = before.record.dataset.get("digest")
    if digest != recorded:
        return Replay(
            OUTSIDE,
            f"other data: digest {str(digest)[:16]}, recorded {str(recorded)[:16]}",
        )

    result = compare(before, now, layout, expected)
    if result.verdict == EQUAL:
        return result

    return Replay(result.verdict, result.words + _origins(before.record, now.record))


def _origins(before: Record, now: Record) -> str:
    """Return what else differs between two runs and may explain different numbers."""
    names = list(SAME)
    names += [name for name in before.origin if name.startswith(PREFIX)]
    differences = []

    for name in names:
        recorded = before.origin.get(name)
        current = now.origin.get(name)
        if current != recorded:
            title = name.removeprefix("version.")
            differences.append(f"{title} {current} (recorded {recorded})")

    if differences:
        return f"; different too: {', '.join(differences)}"

    return "; same code, torch, device and platform"


def replays(options: ReplayOptions, store: Store) -> Iterator[tuple[int, str, Replay]]:
    """Yield seed, key and verdict of every finished trial of the cell that is asked for. Raises
    ValueError if there is none.
    """
    name = options.sweep
    if Path(name).suffix in (".yaml", ".yml"):
        from pointsweep.sweep.sweep import load

        name = load(name, allow_plugins=options.allow_plugins).name

    layout, records, failures = read(store, name, options.allow_plugins)
    import_kept(store, name, options.allow_plugins)
    table = build(layout, records, failures)
    row_index = row_number(table, options.row)
    cell = table.cell(row_index, column_number(table, options.column))
    finished = records_by_seed(cell.keys, records)

    if not finished:
        command = shlex.join(["pointsweep", "tables", name])
        raise ValueError(
            f"{table.cell_name(cell)}: no finished trial; {command} --why ROW COLUMN says why"
        )

    if options.seed is not None and options.seed not in finished:
        reason = unknown("seed", options.seed, map(str, finished), "Finished")
        raise ValueError(f"{table.cell_name(cell)}: {reason}")

    scores = [score for _, score in cell.values]
    row = " / ".join(table.rows[cell.row])
    column = table.columns[cell.column]

    for seed, key in cell.keys:
        if seed not in finished or options.seed not in (None, seed):
            continue

        before = kept(store, key, layout.metric)
        expected = further(scores, independent_clouds(before.record, layout.protocol))
        tags = TrialTags(name, row, column, seed)
        yield seed, key, replay(before, layout, expected, tags, options)


def replay_cell(
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP",
            help="a sweep's name, or its file",
            autocompletion=complete_sweep,
        ),
    ],
    row: Annotated[
        str, typer.Argument(metavar="ROW", help="the row's name, parts joined by ' / '")
    ],
    column: Annotated[str, typer.Argument(metavar="COLUMN", help="the column's name")],
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            parser=whole_number,
            help="this seed alone (default: every finished one)",
        ),
    ] = None,
    store: StoreOption = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="D",
            parser=one_of("device", lambda: DEVICES),
            help="cpu or cuda: train there (default: where the trial was trained)",
        ),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(
            "--threads",
            metavar="N",
            parser=whole_number,
            help="CPU threads (default: 1, as a sweep's trials have)",
        ),
    ] = 1,
    exact: Annotated[
        bool, typer.Option("--exact", help="only equal is good enough")
    ] = False,
    allow_plugins: AllowPluginsOption = False,
    version: Version = False,
) -> int:
    """Train a cell's trials again and compare them with their records.

    exit codes: 0 equal, or within the interval of a further run; 1 a trial is
    outside, failed or is on other data (--exact: not equal); 2 nothing to replay
    """
    options = ReplayOptions(
        sweep=sweep,
        row=row,
        column=column,
        seed=seed,
        store=store,
        device=device,
        threads=threads,
        exact=exact,
        allow_plugins=allow_plugins,
    )
    return compare_cell(options)


main = Program(
    "replay", replay_cell, examples=('quickstart "head only" MiniLM --seed 0',)
)


def compare_cell(options: ReplayOptions) -> int:
    """Train the trials of a cell again and print what became of each; return the exit code."""
    good = {EQUAL} if options.exact else {EQUAL, WITHIN}
    verdicts = []

    try:
        for seed, key, result in replays(options, open_store(options.store)):
            verdicts.append(result.verdict)
            print(f"seed {seed} ({key}): {result.verdict}: {result.words}", flush=True)
    except (ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return INVALID

    return 0 if set(verdicts) <= good else 1
