"""The sections of the report page in their order, each drawn from the table, its records and its
evidence. What imports Plotly is imported from here.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go

from pointsweep.reporting.html.axes import axes
from pointsweep.reporting.html.charts import Chart, figure, themes, words
from pointsweep.reporting.html.comparison import (
    comparison,
    configs,
    confusions,
    payload,
)
from pointsweep.reporting.html.evidence import Evidence
from pointsweep.reporting.html.learning import learning
from pointsweep.reporting.html.numbers import cost, duration, mean_seconds, optimism
from pointsweep.reporting.html.pareto import pareto
from pointsweep.reporting.html.results import code
from pointsweep.reporting.html.sections import Section
from pointsweep.reporting.table import Table
from pointsweep.results.records import Record

MOST_BARS = 40  # of the chart of costs: the cells that take longest
ORIGIN = (
    "version.pointsweep",
    "version.torch",
    "version.numpy",
    "version.ray",
    "python",
    "device",
    "platform",
)


def sections(
    table: Table,
    records: Mapping[str, Record],
    curves: Mapping[str, Sequence[float]],
    evidence: Evidence,
) -> tuple[list[Section], dict[str, Any]]:
    """Return what follows the table, and the data that report.js draws from. A section is left out
    where the sweep has nothing to show in it.
    """
    data = payload(table, records, evidence)
    drawn = [
        pareto(table),
        _search(evidence),
        axes(table, records),
        learning(table, records, curves, evidence.histories),
        comparison(data),
        confusions(data),
        optimism(table, records),
        with_chart(table, records, cost(table, records)),
        configs(table, records),
        _rerun(table),
        _origins(table, records),
    ]

    shown = [section for section in drawn if section is not None]

    return shown, {**data, "themes": themes()}


def _rerun(table: Table) -> Section:
    return Section(
        "rerun",
        "Run it again",
        "All of it, or one cell to see whether it comes out the same.",
        "rerun.html",
        {"name": table.name, "quoted": shlex.quote(table.name)},
    )


def _search(evidence: Evidence) -> Section | None:
    if not evidence.searches:
        return None

    # takes a second to import
    from pointsweep.reporting.html.search_charts import searches

    return searches(evidence.searches)


def with_chart(
    table: Table, records: Mapping[str, Record], section: Section | None
) -> Section | None:
    """Return the section of costs with a bar for every cell, the longest first."""
    seconds = mean_seconds(table, records)
    if section is None or len(seconds) < 2:
        return section

    ranked = sorted(seconds, key=lambda name: -seconds[name])[:MOST_BARS]
    unit_s, unit_name = 1.0, "seconds"
    if seconds[ranked[0]] >= 7200:
        unit_s, unit_name = 3600.0, "hours"

    names = []
    lengths = []
    durations = []

    for name in ranked:
        names.append(words(name))
        lengths.append(seconds[name] / unit_s)
        durations.append(duration(seconds[name]))

    bars = go.Bar(
        x=lengths,
        y=list(range(len(ranked))),
        customdata=names,
        text=durations,
        textposition="auto",
        orientation="h",
        hovertemplate="%{customdata}: %{text}<extra></extra>",
        meta={"slot": 0},
    )

    drawn = figure([bars], f"{unit_name} a trial")
    axis = {
        "range": [len(ranked) - 0.5, -0.5],
        "tickvals": bars.y,
        "ticktext": names,
        "showgrid": False,
    }

    drawn.update_layout(yaxis=axis, bargap=0.3)

    more = ""

    if len(seconds) > MOST_BARS:
        more = f", the {MOST_BARS} longest of {len(seconds)}"

    chart = Chart(
        "Time of a trial",
        drawn,
        f"{len(ranked)} cells{more}; the table below has every number.",
        height=130 + 26 * len(ranked),
    )

    return replace(section, values={**section.values, "charts": [chart]})


def _origins(table: Table, records: Mapping[str, Record]) -> Section:
    """Return each distinct data set, code and machine of the table's trials."""
    datasets = set()
    codes = set()
    machines = set()

    for key in table.trial_keys():
        if key not in records:
            continue

        record = records[key]
        data = record.dataset
        datasets.add(
            f"{data['name']}: {data['num_train']} training, {data['num_val']} validation and"
            f" {data['num_test']} test clouds, digest {data['digest']}"
        )

        codes.add(f"code: {code(record)}")

        machine = []

        for name in ORIGIN:
            if name in record.origin:
                machine.append(f"{name.removeprefix('version.')} {record.origin[name]}")

        if machine:
            machines.add(", ".join(machine))

    return Section(
        "origin",
        "Where the numbers come from",
        "Data, code and machines of the trials.",
        "origin.html",
        {"lines": [*sorted(datasets), *sorted(codes), *sorted(machines)]},
    )
