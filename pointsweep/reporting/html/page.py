"""The report page: one HTML file per sweep that opens offline, with the table, whose cells open
their runs, and what the sweep has to show beside it.

Templates (templates/, Jinja2, everything escaped) give the structure, figures of Plotly the charts.
Nothing comes from the network: the page's policy allows its own style and the scripts inside, named
by their digests, and nothing else. With `plotly_src` the page fetches plotly.js from this address
instead, which makes a file of some 100 kB of one of 5 MB.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from pointsweep.reporting.best_cells import best_mean
from pointsweep.reporting.cell_text import headline
from pointsweep.reporting.html.evidence import Evidence
from pointsweep.reporting.html.numbers import duration
from pointsweep.reporting.html.results import results
from pointsweep.reporting.html.sections import Section
from pointsweep.reporting.table import Table
from pointsweep.results.records import Record
from pointsweep.utils.console import visible
from pointsweep.utils.numbers import percent


def page(
    table: Table,
    records: Mapping[str, Record],
    curves: Mapping[str, Sequence[float]],
    evidence: Evidence | None = None,
    *,
    plotly_src: str = "",
) -> str:
    """Return the whole page. `curves` holds the table's metric (fraction) by epoch, by trial key;
    without records only the table.
    """
    evidence = evidence or Evidence()
    sections: list[Section] = [results(table, records, evidence.links, curves)]
    data: dict[str, Any] = {"name": table.name, "metric": table.metric}
    script = _file("report.js")
    allowed_scripts = [digest(script)]
    plotly = plotly_digest = ""

    if records:
        # Plotly takes half a second to import, and most commands make no page.
        from pointsweep.reporting.html.contents import sections as further_sections

        drawn, drawn_data = further_sections(table, records, curves, evidence)
        sections += drawn
        data |= drawn_data
        plotly = plotly_js()
        plotly_digest = digest(plotly)
        allowed_scripts.append(_allowed(plotly_src) if plotly_src else plotly_digest)

    body_template = _environment().get_template("body.html")
    body = body_template.render(
        table=table,
        headline=headline(table),
        facts=_facts(table, records) if records else [],
        sections=sections,
        whole=bool(records),
        data=data,
    )

    page_template = _environment().get_template("page.html")
    html = page_template.render(
        title=visible(table.title),
        policy=_policy(allowed_scripts),
        style=Markup(_file("report.css")),
        body=Markup(visible(body, keep="\n\t")),
        plotly="" if plotly_src else Markup(plotly),
        plotly_src=plotly_src if plotly else "",
        plotly_digest=plotly_digest.strip("'"),
        script=Markup(script),
    )

    return f"{html}\n"


@functools.cache
def plotly_js() -> str:
    """Return the text of plotly.js."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


@functools.cache
def plotly_file() -> str:
    """Return the name of plotly.js with its version: another text has another name."""
    from plotly.offline import get_plotlyjs_version

    return f"plotly-{get_plotlyjs_version()}.min.js"


def plotly_cdn() -> str:
    """Return the address from which the makers of plotly.js offer the same file."""
    return f"https://cdn.plot.ly/{plotly_file()}"


@functools.cache
def digest(script: str) -> str:
    """Return a script's digest, as a policy names it."""
    sha256 = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(sha256).decode()}'"


def _allowed(address: str) -> str:
    """Return how a policy names the source of a script: a path is on the page's own server."""
    return address if address.startswith("https:") else "'self'"


def _policy(scripts: Sequence[str]) -> str:
    # Pictures and their addresses are what a chart is exported through.
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {' '.join(scripts)};"
        " img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


@functools.cache
def _file(name: str) -> str:
    file = resources.files("pointsweep.reporting.html") / name
    return file.read_text(encoding="utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pointsweep.reporting.html", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["script_json"] = _script_json
    return environment


def _script_json(data: Any) -> Markup:
    """Return data as JSON that no text inside can end an element with."""
    text = data
    if not isinstance(data, str):
        text = json.dumps(data, allow_nan=False, separators=(",", ":"))

    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")

    return Markup(text)


def _facts(table: Table, records: Mapping[str, Record]) -> list[tuple[str, str]]:
    """Return the few numbers that a reader wants before the table."""
    keys = table.trial_keys()
    finished = [records[key] for key in keys if key in records]
    facts = [("trials finished", f"{len(finished)} of {len(keys)}")]

    best = best_mean(table)

    if best is not None:
        facts.append((f"best mean: {table.cell_name(best)}", f"{percent(best.mean)} %"))

    seconds = sum(record.seconds.get("total", 0.0) for record in finished)
    if seconds:
        facts.append(("of training and testing", duration(seconds)))

    sizes = sorted({int(record.dataset["num_test"]) for record in finished})
    if sizes:
        facts.append(("test clouds", " or ".join(f"{size:,}" for size in sizes)))

    return facts
