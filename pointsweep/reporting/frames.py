"""Tables and records as pandas data frames, and a table as HTML for a notebook."""

from __future__ import annotations

from collections.abc import Mapping
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

    lines: list[dict[str, Any]] = []

    for cell in table.cells:
        line: dict[str, Any] = dict(
            zip(label_columns(table.row_headers), table.rows[cell.row], strict=True)
        )
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

        line |= {name: (cell.parameters or {}).get(name) for name in COUNTS}
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

    lines: list[dict[str, Any]] = []

    for cell in layout.cells:
        for seed, key in cell.keys:
            line: dict[str, Any] = dict(
                zip(
                    label_columns(layout.row_headers),
                    layout.rows[cell.row],
                    strict=True,
                )
            )

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
    sub_columns = len(headings(table))
    lines = grid(table)
    labels = len(table.row_headers)
    over = [f"<th colspan='{labels}'></th>"]
    over += [
        f"<th colspan='{sub_columns}'>{escape(column)}</th>" for column in table.columns
    ]
    head = "".join(f"<th>{escape(text)}</th>" for text in lines[0])

    body = []

    for line in lines[1:]:
        cells = [f"<th>{escape(text)}</th>" for text in line[:labels]]
        cells += [f"<td>{escape(text)}</td>" for text in line[labels:]]
        body.append(f"<tr>{''.join(cells)}</tr>")

    notes = "".join(f"<li>{escape(note)}</li>" for note in footnotes(table))
    return (
        f"<div><p><b>{escape(table.title)}</b><br>{escape(headline(table))}</p>"
        f"<table><thead><tr>{''.join(over)}</tr><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        f"<ul>{notes}</ul></div>"
    )
