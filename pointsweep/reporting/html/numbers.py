"""The report's tables of numbers: what choosing the epoch on the test set adds, and what a trial
costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pointsweep.reporting.cell_text import PROTOCOLS
from pointsweep.reporting.html.sections import Section
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.records import Record, records_by_seed
from pointsweep.statistics.seeds import summary
from pointsweep.utils.numbers import percent

MOST_ROWS = 300  # of a table of numbers; of more cells, those with the longest bars


@dataclass(frozen=True)
class Bar:
    """A word with a bar of a share of the full length behind it."""

    share: float
    word: str

    @property
    def length(self) -> str:
        """Return the bar's length in percent."""
        return f"{100 * min(max(self.share, 0.0), 1.0):.1f}%"


def optimism(table: Table, records: Mapping[str, Record]) -> Section | None:
    """Return the section of what `best_test` reports above `last`, cell by cell."""
    cells = [cell for cell in table.cells if cell.optimism is not None]
    if not cells:
        return None

    longest = max(cell.optimism or 0.0 for cell in cells)
    rows: list[list[str | Bar]] = []
    for cell in cells:
        finished = list(records_by_seed(cell.keys, records).values())
        epochs = [str(int(record.metrics["best_test"]["epoch"])) for record in finished]
        share = (cell.optimism or 0.0) / longest if longest else 0.0
        last = percent(_mean(finished, "last", table.metric))
        best = percent(_mean(finished, "best_test", table.metric))
        added = Bar(share, percent(cell.optimism, signed=True))
        rows.append([table.cell_name(cell), last, best, added, ", ".join(epochs)])

    lead = Markup(
        "A table that takes the best epoch <em>by test accuracy</em> is optimistic by this much"
        " over the last epoch. This table's protocol: {}."
    ).format(PROTOCOLS[table.protocol])

    heads = ["", "last", "best_test", "added", "its epochs"]
    values = {"heads": heads, **_longest(rows)}

    return Section("optimism", "Optimism of best_test", lead, "numbers.html", values)


def _mean(finished: Sequence[Record], protocol: str, metric: str) -> float:
    values = [record.metrics[protocol][metric] for record in finished]
    return summary(values).mean


def costs(table: Table, records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """Return of every cell with a finished trial how many there are, their hours of GPUs (or CPUs),
    and the price if an hour has one.
    """
    entries = []
    for cell, timed in _timed_cells(table, records):
        hours = math.fsum(record.device_s for record in timed) / 3600
        entry: dict[str, Any] = {
            "row": table.rows[cell.row],
            "column": table.columns[cell.column],
            "trials": len(timed),
            "hours": hours,
        }
        if table.per_hour is not None:
            entry["money"] = hours * table.per_hour

        entries.append(entry)

    return entries


def cost(table: Table, records: Mapping[str, Record]) -> Section | None:
    """Return the section of seconds, throughput, memory and attempts of a cell's trials, in the
    mean (memory: the highest); hours and price in sum.
    """
    cells = _timed_cells(table, records)
    if not cells:
        return None

    trials = {}
    with_energy = False
    longest_s = 0.0

    for cell, timed in cells:
        longest_s = max(longest_s, _mean_seconds(timed))
        with_energy = with_energy or any(record.energy_j for record in timed)
        for _, key in cell.keys:
            if key in records:
                trials[key] = records[key]

    rows = []

    for (cell, timed), spent in zip(cells, costs(table, records), strict=True):
        row = _cost_row(table.cell_name(cell), timed, spent, longest_s)
        if with_energy:
            row.append(kilojoules(timed))

        rows.append(row)

    heads = ["", "a trial", "clouds/s in training", "peak memory, GiB", "attempts"]
    heads.append("device hours of all")
    if table.per_hour is not None:
        heads.append("price of all")

    if with_energy:
        heads.append("energy, kJ")

    lead = _cost_lead(list(trials.values()))
    values = {"heads": heads, **_longest(rows)}
    return Section("cost", "Cost", lead, "numbers.html", values)


def _cost_row(
    name: str, timed: Sequence[Record], spent: Mapping[str, Any], longest_s: float
) -> list[str | Bar]:
    """Return a cell's line of the table of costs; `longest_s` are the seconds of the longest
    bar.
    """
    seconds = _mean_seconds(timed)
    share = seconds / longest_s if longest_s else 0.0
    clouds_per_s = summary([record.clouds_per_s for record in timed]).mean
    memory_bytes = max(record.peak_memory_bytes for record in timed)
    attempts = max(record.attempts for record in timed)

    row: list[str | Bar] = [name, Bar(share, duration(seconds))]
    row.append(f"{clouds_per_s:.0f}" if clouds_per_s else "")
    row.append(f"{memory_bytes / 2**30:.2f}" if memory_bytes else "")
    row += [str(attempts), f"{spent['hours']:.3g}"]

    if "money" in spent:
        row.append(f"{spent['money']:.3g}")

    return row


def _longest(rows: Sequence[Sequence[str | Bar]]) -> dict[str, Any]:
    """Return the rows that a page has room for, and a sentence where some are left out."""
    if len(rows) <= MOST_ROWS:
        return {"rows": rows, "note": ""}

    ranked = sorted(rows, key=_first_bar, reverse=True)
    note = f"Of {len(rows):,} cells those with the {MOST_ROWS} longest bars."
    return {"rows": ranked[:MOST_ROWS], "note": note}


def _first_bar(row: Sequence[str | Bar]) -> float:
    """Return the share of the row's first bar: every table of numbers has one."""
    return next(value.share for value in row if isinstance(value, Bar))


def _cost_lead(trials: Sequence[Record]) -> str:
    total_s = on_gpu_s = 0.0
    devices = set()
    for record in trials:
        seconds = record.seconds.get("total", 0.0)
        device = record.origin.get("device", "unknown device")
        total_s += seconds

        if device.startswith("cuda"):
            on_gpu_s += seconds

        devices.add(device)

    gpu = f"{on_gpu_s:,.0f} GPU seconds" if on_gpu_s else "none on a GPU"
    return (
        f"{len(trials)} trials took {duration(total_s)} in all on {', '.join(sorted(devices))},"
        f" {gpu}: means of a cell's trials, the highest peak of memory and of attempts. On the CPU"
        " the peak is that of the worker's process, earlier trials in it included. Device hours"
        " are a trial's hours times its part of a pack's GPUs, or CPUs."
        f" {energy(trials)}"
    )


def mean_seconds(table: Table, records: Mapping[str, Record]) -> dict[str, float]:
    """Return the seconds of a trial in the mean, of every cell that has one."""
    means = {}
    for cell, timed in _timed_cells(table, records):
        means[table.cell_name(cell)] = _mean_seconds(timed)

    return means


def _mean_seconds(timed: Sequence[Record]) -> float:
    seconds = [record.seconds["total"] for record in timed]
    return summary(seconds).mean


def kilojoules(trials: Sequence[Record]) -> str:
    """ "gpu 12.3, cpu 4.5", the mean of those trials that could read it; "—" of none."""
    means = []
    for device in ("gpu", "cpu"):
        joules = []
        for record in trials:
            if device in record.energy_j:
                joules.append(record.energy_j[device])

        if joules:
            means.append(f"{device} {summary(joules).mean / 1000:.1f}")

    return ", ".join(means) or "—"


def energy(trials: Sequence[Record]) -> str:
    """Return what the column of energy holds, in a sentence."""
    known = [record for record in trials if record.energy_j]
    if not known:
        return "Energy: not readable on the machines that ran them."

    total_j = sum(sum(record.energy_j.values()) for record in known)
    restriction = ""
    if len(known) < len(trials):
        restriction = f" (of {len(known)} trials; not readable for the others)"

    return (
        f"Energy: {total_j / 3.6e6:.3f} kWh{restriction}, of the whole device: trials that ran at"
        " once on it each count all of it."
    )


def _timed_cells(
    table: Table, records: Mapping[str, Record]
) -> list[tuple[TableCell, list[Record]]]:
    """Return the cells with their finished trials whose seconds are known, if they have any."""
    cells = []
    for cell in table.cells:
        finished = records_by_seed(cell.keys, records).values()
        timed = [record for record in finished if "total" in record.seconds]
        if timed:
            cells.append((cell, timed))

    return cells


def duration(seconds: float) -> str:
    """ "106 s", "12.4 min", "3.1 h"."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"

    return f"{seconds / 3600:.1f} h"
