"""The report's sections that are tables with bars: what choosing the epoch on the test set adds,
and what a trial costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pointsweep.reporting.cell_text import PROTOCOLS
from pointsweep.reporting.html.sections import section
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.records import Record
from pointsweep.statistics.seeds import summary
from pointsweep.utils.numbers import percent


def optimism(table: Table, records: Mapping[str, Record]) -> str:
    """Return what `best_test` reports above `last`, cell by cell."""
    cells = [cell for cell in table.cells if cell.optimism is not None]
    most = max((cell.optimism or 0.0 for cell in cells), default=0.0)
    rows = []
    for cell in cells:
        found = [records[key] for _, key in cell.keys if key in records]
        last, best = (_mean(found, protocol, table.metric) for protocol in ("last", "best_test"))
        epochs = ", ".join(str(int(record.metrics["best_test"]["epoch"])) for record in found)
        added = bar(
            (cell.optimism or 0.0) / most if most else 0.0, percent(cell.optimism, signed=True)
        )
        rows.append(
            [escape(table.place(cell)), percent(last), percent(best), added, escape(epochs)]
        )
    if not rows:
        return ""
    lead = (
        "A table that takes the best epoch <em>by test accuracy</em> is optimistic by this much"
        f" over the last epoch. This table's protocol: {escape(PROTOCOLS[table.protocol])}."
    )
    return section(
        "optimism",
        "Optimism of best_test",
        lead,
        grid(["", "last", "best_test", "added", "its epochs"], rows),
    )


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


def cost(table: Table, records: Mapping[str, Record]) -> str:
    """Seconds, throughput, memory and attempts of a cell's trials, in the mean (memory: the
    highest); hours and price in sum.
    """
    cells = [(cell, found) for cell in table.cells if (found := _timed(cell, records))]
    if not cells:
        return ""
    seconds = [summary([record.seconds["total"] for record in found]).mean for _, found in cells]
    read = any(record.energy_j for _, found in cells for record in found)
    rows = []
    for (cell, found), mean, spent in zip(cells, seconds, costs(table, records), strict=True):
        speed = summary([record.clouds_per_s for record in found]).mean
        memory = max(record.peak_memory_bytes for record in found)
        tries = max(record.attempts for record in found)
        length = bar(mean / max(seconds) if max(seconds) else 0.0, duration(mean))
        numbers = [
            f"{speed:.0f}" if speed else "",
            f"{memory / 2**30:.2f}" if memory else "",
            str(tries),
            f"{spent['hours']:.3g}",
            *([f"{spent['money']:.3g}"] if "money" in spent else []),
            *([kilojoules(found)] if read else []),
        ]
        rows.append([escape(table.place(cell)), length, *numbers])
    every = {key: records[key] for cell, _ in cells for _, key in cell.keys if key in records}
    total = sum(record.seconds.get("total", 0.0) for record in every.values())
    devices = ", ".join(
        sorted({record.origin.get("device", "unknown device") for record in every.values()})
    )
    on_gpu = sum(
        r.seconds.get("total", 0.0)
        for r in every.values()
        if r.origin.get("device", "").startswith("cuda")
    )
    gpu = f"{on_gpu:,.0f} GPU seconds" if on_gpu else "none on a GPU"
    lead = (
        f"{len(every)} trials took {duration(total)} in all on {escape(devices)}, {gpu}: means of a"
        " cell's trials, the highest peak of memory and of attempts. On the CPU the peak is that"
        " of the worker's process, earlier trials in it included. Device hours are a trial's hours"
        f" times its part of a pack's GPUs, or CPUs. {energy(list(every.values()))}"
    )
    heads = [
        "",
        "a trial",
        "clouds/s in training",
        "peak memory, GiB",
        "attempts",
        "device hours of all",
    ]
    heads += [
        *(["price of all"] if table.per_hour is not None else []),
        *(["energy, kJ"] if read else []),
    ]
    return section("cost", "Cost", lead, grid(heads, rows))


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


def bar(share: float, word: str) -> str:
    """A word with a bar of a share of the full length behind it."""
    return (
        "<span class='bar'"
        f" style='--share:{100 * min(max(share, 0.0), 1.0):.1f}%'>{escape(word)}</span>"
    )


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells; the first of a row is its heading."""
    top = "".join(f"<th scope='col'>{escape(head)}</th>" for head in heads)
    body = "".join(
        "<tr><th class='label'"
        f" scope='row'>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return (
        "<div class='scroll' tabindex='0'><table"
        f" class='plain'><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )
