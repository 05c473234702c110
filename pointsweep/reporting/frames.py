"""Tables and records as pandas data frames, and a table as HTML for a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from pointsweep.reporting.cell_text import footnotes, grid, headings, headline
from pointsweep.results.records import Layout, Record

if TYPE_CHECKING:
    import pandas

    from pointsweep.reporting.table import Table

COUNTS = ("trainable", "trainable_without_head", "total")  # of parameters


def label_columns(row_headers: tuple[str, ...]) -> list[str]:
    """Return the names of the columns that hold the labels of the rows: row, row1 ... where the
    table has no heading, and a number behind a heading that another column has already.
    """
    names: list[str] = []
    for number, header in enumerate(row_headers):
        name = header or f"row{number or ''}"
        names.append(name if name not in names else f"{name}{number}")

    return names


def table_frame(table: Table) -> pandas.DataFrame:
    """Return a table with a line each cell. Accuracies are fractions; what a cell lacks is missing.

    Columns: the row's labels, column, metric, protocol, mean, sd, n and expected (seeds), low and
    high (of the 95 % interval), the parameter counts, published (in %) and its source, status, and
    marks.
    """
    import pandas

    label_names = label_columns(table.row_headers)
    lines: list[dict[str, Any]] = []

    for cell in table.cells:
        labels = table.rows[cell.row]
        line: dict[str, Any] = dict(zip(label_names, labels, strict=True))
        line |= {
            "column": table.columns[cell.column],
            "metric": table.metric,
            "protocol": table.protocol,
            "mean": cell.mean,
            "sd": cell.sd,
            "n": cell.n,
            "expected": cell.expected,
            "low": cell.low,
            "high": cell.high,
        }

        counts = cell.parameters or {}
        line |= {name: counts.get(name) for name in COUNTS}
        line |= {
            "published": cell.published.value if cell.published else None,
            "source": cell.published.source if cell.published else None,
            "status": cell.status,
            "marks": "; ".join(cell.marks),
        }

        lines.append(line)

    return pandas.DataFrame(lines)


def record_frame(
    layout: Layout, records: Mapping[str, Record], failures: Mapping[str, str]
) -> pandas.DataFrame:
    """Return the trials of a table with a line each, those that are not finished too.

    Columns: the row's labels, column, seed, key, status (finished, failed or open), reason (of a
    failure), every metric of every protocol such as last.test/accuracy (accuracies are fractions),
    the parameter counts, and seconds.
    """
    import pandas

    label_names = label_columns(layout.row_headers)
    lines: list[dict[str, Any]] = []

    for cell in layout.cells:
        labels = layout.rows[cell.row]
        for seed, key in cell.keys:
            line: dict[str, Any] = dict(zip(label_names, labels, strict=True))
            line |= {"column": layout.columns[cell.column], "seed": seed, "key": key}

            record = records.get(key)

            if record is not None:
                line |= {"status": "finished", "reason": "", **_numbers(record)}
            elif key in failures:
                line |= {"status": "failed", "reason": failures[key]}
            else:
                line |= {"status": "open", "reason": ""}

            lines.append(line)

    return pandas.DataFrame(lines)


def _numbers(record: Record) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for protocol, metrics in record.metrics.items():
        for name, number in metrics.items():
            numbers[f"{protocol}.{name}"] = number

    numbers |= {name: record.parameters.get(name) for name in COUNTS}
    numbers["seconds"] = record.seconds.get("total")
    return numbers


def notebook_html(table: Table) -> str:
    """Return a table as HTML without a style of its own: what a notebook shows of it."""
    titles, *rows = grid(table)
    num_labels = len(table.row_headers)
    num_sub_columns = len(headings(table))

    column_names = f"<th colspan='{num_labels}'></th>"

    for column in table.columns:
        column_names += f"<th colspan='{num_sub_columns}'>{escape(column)}</th>"

    body = ""
    for row in rows:
        labels = _elements("th", row[:num_labels])
        values = _elements("td", row[num_labels:])
        body += f"<tr>{labels}{values}</tr>"

    return (
        f"<div><p><b>{escape(table.title)}</b><br>{escape(headline(table))}</p>"
        f"<table><thead><tr>{column_names}</tr><tr>{_elements('th', titles)}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
        f"<ul>{_elements('li', footnotes(table))}</ul></div>"
    )


def _elements(tag: str, texts: Sequence[str]) -> str:
    """Return texts as HTML elements of one tag."""
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)
