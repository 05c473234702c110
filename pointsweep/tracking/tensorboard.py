"""Event files for TensorBoard: the epochs and the result of each trial, a folder each.

Written on request from what the trials' folders hold, so that training knows nothing of it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointsweep.results.events import Event, epochs_of
from pointsweep.results.records import Layout, Record

EVENT_FILES = "events.out.tfevents."
UNSAFE = re.compile(r"[^\w .,+=()-]+")
LONGEST_NAME = 80  # letters of a folder's name


@dataclass(frozen=True)
class TrialEvents:
    """A trial as TensorBoard shows it. `name` is its folder, "row/column/seed 0"."""

    key: str
    name: str
    labels: Mapping[str, str]  # row, column and seed
    epochs: Sequence[Event]
    record: Record | None


def trials_of(
    layout: Layout,
    records: Mapping[str, Record],
    histories: Mapping[str, Sequence[Event]],
) -> Iterator[TrialEvents]:
    """Yield each trial of a table that has an epoch, once."""
    seen_keys: set[str] = set()
    names: set[str] = set()

    for cell in layout.cells:
        row = " ".join(layout.rows[cell.row])
        column = layout.columns[cell.column]
        for seed, key in cell.keys:
            epochs = epochs_of(histories.get(key, ()))
            if key in seen_keys or not epochs:
                continue

            seen_keys.add(key)
            name = f"{_safe(row)}/{_safe(column)}/seed {seed}"
            # another row whose label differs in letters that no folder can have
            if name in names:
                name = f"{name} {key}"

            names.add(name)
            labels = {"row": row, "column": column, "seed": str(seed)}
            yield TrialEvents(key, name, labels, epochs, records.get(key))


def _safe(label: str) -> str:
    text = UNSAFE.sub("_", label).strip(" .")[:LONGEST_NAME]
    return text or "_"


def write_trials(folder: Path, trials: Sequence[TrialEvents], protocol: str) -> None:
    """Write a folder of event files for every trial; one that is there is replaced as a whole.

    Raises FileExistsError where a folder holds something else, OSError where it cannot be written.
    """
    varied = _varied([trial for trial in trials if trial.record is not None])
    for trial in trials:
        target = folder / trial.name
        if target.exists():
            _refuse_others(target)

        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
            events_folder = Path(temporary) / "events"
            _write_trial(events_folder, trial, protocol, varied)
            if target.exists():
                shutil.rmtree(target)

            events_folder.rename(target)


def _flat(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted names and the values of a nested configuration."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", str(value)


def _refuse_others(folder: Path) -> None:
    for name in sorted(entry.name for entry in folder.iterdir()):
        if not name.startswith(EVENT_FILES):
            raise FileExistsError(f"{folder} holds {name}, which is no event file")


def _varied(trials: Sequence[TrialEvents]) -> list[str]:
    """Return the settings in which finished trials differ, by their dotted names."""
    configs = []
    names: set[str] = set()

    for trial in trials:
        if trial.record is not None:
            config = dict(_flat(trial.record.config))
            configs.append(config)
            names.update(config)

    varied = []
    for name in sorted(names):
        if len({config.get(name) for config in configs}) > 1:
            varied.append(name)

    return varied


def _write_trial(
    folder: Path, trial: TrialEvents, protocol: str, varied: Sequence[str]
) -> None:
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    with SummaryWriter(str(folder)) as writer:
        if trial.record is not None:
            result = _result(trial.record, protocol)
            config = dict(_flat(trial.record.config))
            settings = dict(trial.labels)

            for name in varied:
                settings[name] = config.get(name, "")

            for summary in hparams(settings, result):
                writer.file_writer.add_summary(summary)

        for event in trial.epochs:
            values: dict[str, Any] = dict(event["metrics"])
            for name in ("lr", "seconds"):
                if name in event:
                    values[name] = event[name]

            time = event.get("time")
            for name, value in sorted(values.items()):
                writer.add_scalar(name, value, event["epoch"], walltime=time)

        if trial.record is not None:
            last = trial.epochs[-1]
            for name, value in result.items():
                writer.add_scalar(name, value, last["epoch"], walltime=last.get("time"))


def _result(record: Record, protocol: str) -> dict[str, float]:
    """Return the metrics of the epoch that the table shows, named apart from those by epoch."""
    values = record.metrics.get(protocol, {})
    return {f"result/{name}": float(value) for name, value in sorted(values.items())}
