"""A table by a template of one's own, in Jinja2's language.

The template sees: name, title, metric, measure, protocol, headline, row_headers, columns, rows,
notes, marks. A row has labels and cells, one each column; a cell has text ("81.2 ± 0.4"), mean and
sd (in percent, as text), n, expected, status, place ("best", "second" or nothing), params, paper,
paper_params, and cell: all that the JSON format has of it. Filters: tex and md escape a text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from pointsweep.reporting.best_cells import legend, standings
from pointsweep.reporting.cell_text import (
    count,
    footnotes,
    headline,
    marked,
    measure,
    paper,
    trained,
)
from pointsweep.reporting.formats import latex, markdown
from pointsweep.reporting.formats.base import TableOptions
from pointsweep.reporting.table import Table
from pointsweep.utils.console import visible
from pointsweep.utils.numbers import percent


def from_template(table: Table, file: Path, options: TableOptions) -> str:
    """Return what a template makes of a table. Raises ValueError naming the file, and the line
    where Jinja2 knows it.
    """
    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise ValueError(f"--template: {file}: {reason}") from error

    environment = SandboxedEnvironment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    environment.filters |= {"tex": latex.escaped, "md": markdown.escaped}
    try:
        rendered = environment.from_string(source).render(_variables(table, options))
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"--template: {file}, line {error.lineno}: {error.message}"
        ) from error
    except jinja2.UndefinedError as error:
        raise ValueError(
            f"--template: {file}: {error.message}; a template sees:"
            f" {', '.join(_variables(table, options))}"
        ) from error
    except jinja2.TemplateError as error:
        raise ValueError(f"--template: {file}: {error.message}") from error

    return visible(rendered, keep="\n\t")


def _variables(table: Table, options: TableOptions) -> dict[str, Any]:
    """Return the variables that a template sees."""
    ranks = standings(table, options.mark)
    rows = []

    for row, labels in enumerate(table.rows):
        cells = []
        for column in range(len(table.columns)):
            cell = table.cell(row, column)
            value, params = paper(cell)
            variables = {
                "text": marked(table, cell),
                "mean": percent(cell.mean),
                "sd": percent(cell.sd),
                "n": cell.n,
                "expected": cell.expected,
                "status": cell.status,
                "place": ranks.get((row, column), ""),
                "params": count(trained(cell)),
                "paper": value,
                "paper_params": params,
                "cell": cell,
            }

            cells.append(variables)

        rows.append({"labels": list(labels), "cells": cells})

    return {
        "name": table.name,
        "title": table.title,
        "metric": table.metric,
        "measure": measure(table),
        "protocol": table.protocol,
        "headline": headline(table, options.without),
        "row_headers": list(table.row_headers),
        "columns": list(table.columns),
        "rows": rows,
        "notes": footnotes(table) if options.notes else [],
        "marks": legend(table, options.mark),
    }
