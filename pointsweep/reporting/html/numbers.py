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
from pointsweep.results.records import Record
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
    most = max(cell.optimism or 0.0 for cell in cells)
    rows: list[list[str | Bar]] = []
    for cell in cells:
        found = [records[key] for _, key in cell.keys if key in records]
        last, best = (_mean(found, protocol, table.metric) for protocol in ("last", "best_test"))
        epochs = ", ".join(str(int(record.metrics["best_test"]["epoch"])) for record in found)
        share = (cell.optimism or 0.0) / most if most else 0.0
        added = Bar(share, percent(cell.optimism, signed=True))
        rows.append([table.place(cell), percent(last), percent(best), added, epochs])
    lead = Markup(
        "A table that takes the best epoch <em>by test accuracy</em> is optimistic by this much"
        " over the last epoch. This table's protocol: {}."
    ).format(PROTOCOLS[table.protocol])
    heads = ["", "last", "best_test", "added", "its epochs"]
    values = {"heads": heads, **_longest(rows)}
    return Section("optimism", "Optimism of best_test", lead, "numbers.html", values)


def _mean(found: Sequence[Record], protocol: str, metric: str) -> float:
    return summary([record.metrics[protocol][metric] for record in found]).mean


def costs(table: Table, records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """Return of every cell with a finished trial how many there are, their hours of GPUs (or CPUs),
    and the price if an hour has one.
    """
    found = []
    for cell in table.cells:
        timed = _timed(cell, records)
        if timed:
            hours = math.fsum(record.device_s for record in timed) / 3600
            money = {} if table.per_hour is None else {"money": hours * table.per_hour}
            found.append(
                {
                    "row": table.rows[cell.row],
                    "column": table.columns[cell.column],
                    "trials": len(timed),
                    "hours": hours,
                    **money,
                }
            )
    return found


def cost(table: Table, records: Mapping[str, Record]) -> Section | None:
    """Return the section of seconds, throughput, memory and attempts of a cell's trials, in the
    mean (memory: the highest); hours and price in sum.
    """
    cells = [(cell, found) for cell in table.cells if (found := _timed(cell, records))]
    if not cells:
        return None
    seconds = [summary([record.seconds["total"] for record in found]).mean for _, found in cells]
    read = any(record.energy_j for _, found in cells for record in found)
    rows: list[list[str | Bar]] = []
    for (cell, found), mean, spent in zip(cells, seconds, costs(table, records), strict=True):
        speed = summary([record.clouds_per_s for record in found]).mean
        memory = max(record.peak_memory_bytes for record in found)
        tries = max(record.attempts for record in found)
        row: list[str | Bar] = [
            table.place(cell),
            Bar(mean / max(seconds) if max(seconds) else 0.0, duration(mean)),
            f"{speed:.0f}" if speed else "",
            f"{memory / 2**30:.2f}" if memory else "",
            str(tries),
            f"{spent['hours']:.3g}",
        ]
        if "money" in spent:
            row.append(f"{spent['money']:.3g}")
        if read:
            row.append(kilojoules(found))
        rows.append(row)

    heads = ["", "a trial", "clouds/s in training", "peak memory, GiB", "attempts"]
    heads.append("device hours of all")
    if table.per_hour is not None:
        heads.append("price of all")
    if read:
        heads.append("energy, kJ")
    every = {key: records[key] for cell, _ in cells for _, key in cell.keys if key in records}
    lead = _cost_lead(list(every.values()))
    values = {"heads": heads, **_longest(rows)}
    return Section("cost", "Cost", lead, "numbers.html", values)


def _longest(rows: Sequence[Sequence[str | Bar]]) -> dict[str, Any]:
    """Return the rows that a page has room for, and a sentence where some are left out."""
    if len(rows) <= MOST_ROWS:
        return {"rows": rows, "note": ""}
    ranked = sorted(
        rows, key=lambda row: -next(each.share for each in row if isinstance(each, Bar))
    )
    note = f"Of {len(rows):,} cells those with the {MOST_ROWS} longest bars."
    return {"rows": ranked[:MOST_ROWS], "note": note}


def _cost_lead(found: Sequence[Record]) -> str:
    total = sum(record.seconds.get("total", 0.0) for record in found)
    devices = sorted({record.origin.get("device", "unknown device") for record in found})
    on_gpu = sum(
        record.seconds.get("total", 0.0)
        for record in found
        if record.origin.get("device", "").startswith("cuda")
    )
    gpu = f"{on_gpu:,.0f} GPU seconds" if on_gpu else "none on a GPU"
    return (
        f"{len(found)} trials took {duration(total)} in all on {', '.join(devices)}, {gpu}: means"
        " of a cell's trials, the highest peak of memory and of attempts. On the CPU the peak is"
        " that of the worker's process, earlier trials in it included. Device hours are a trial's"
        f" hours times its part of a pack's GPUs, or CPUs. {energy(found)}"
    )


def mean_seconds(table: Table, records: Mapping[str, Record]) -> dict[str, float]:
    """Return the seconds of a trial in the mean, of every cell that has one."""
    return {
        table.place(cell): summary([record.seconds["total"] for record in found]).mean
        for cell in table.cells
        if (found := _timed(cell, records))
    }


def kilojoules(found: Sequence[Record]) -> str:
    """ "gpu 12.3, cpu 4.5", the mean of those trials that could read it; "—" of none."""
    by_device = {
        name: [r.energy_j[name] for r in found if name in r.energy_j] for name in ("gpu", "cpu")
    }
    return (
        ", ".join(
            f"{name} {summary(values).mean / 1000:.1f}"
            for name, values in by_device.items()
            if values
        )
        or "—"
    )


def energy(found: Sequence[Record]) -> str:
    """Return what the column of energy holds, in a sentence."""
    known = [record for record in found if record.energy_j]
    if not known:
        return "Energy: not readable on the machines that ran them."
    total = sum(sum(record.energy_j.values()) for record in known)
    part = (
        ""
        if len(known) == len(found)
        else f" (of {len(known)} trials; not readable for the others)"
    )
    return (
        f"Energy: {total / 3.6e6:.3f} kWh{part}, of the whole device: trials that ran at once on it"
        " each count all of it."
    )


def _timed(cell: TableCell, records: Mapping[str, Record]) -> list[Record]:
    return [
        records[key] for _, key in cell.keys if key in records and "total" in records[key].seconds
    ]


def duration(seconds: float) -> str:
    """ "106 s", "12.4 min", "3.1 h"."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
