"""Registered output formats: the name of each, and where its `Format` is, as "module:attribute".

To add a format: a file beside this one with its function and its `Format`, and one line here. The
choices and the help of `tables --format`, the files at a launch's end and the contract tests follow
from it. A module is imported when its format is used. An installed package offers a format by an
entry point of the group `pointsweep.formats`, for `tables --format`.
"""

from __future__ import annotations

import importlib

from pointsweep.errors import unknown
from pointsweep.reporting.formats.base import DEFAULTS, Format, TableOptions
from pointsweep.reporting.table import Table
from pointsweep.utils import entry_points

FORMATS = {
    "text": "pointsweep.reporting.formats.text:FORMAT",
    "markdown": "pointsweep.reporting.formats.markdown:FORMAT",
    "latex": "pointsweep.reporting.formats.latex:FORMAT",
    "csv": "pointsweep.reporting.formats.csv:FORMAT",
    "json": "pointsweep.reporting.formats.json:FORMAT",
    "excel": "pointsweep.reporting.formats.excel:FORMAT",
    "html": "pointsweep.reporting.formats.html:FORMAT",
}


def load(name: str) -> Format:
    """Return a registered format."""
    module, _, attribute = FORMATS[name].partition(":")
    table_format: Format = getattr(importlib.import_module(module), attribute)
    return table_format


def format_name(text: str) -> str:
    """Return the name of the format that is called so, or whose files end so: latex of tex. Raises
    ValueError.
    """
    if text in FORMATS:
        return text

    for name in FORMATS:
        if load(name).suffix == text:
            return name

    for point in entry_points.offered("formats", text):
        FORMATS[text] = point.value
        return text

    offered = [point.name for point in entry_points.offered("formats")]
    raise ValueError(unknown("format", text, [*FORMATS, *offered], "Allowed"))


def render(table: Table, name: str, options: TableOptions = DEFAULTS) -> str:
    """Return the table in a format that is text, with a line break at its end."""
    content = load(format_name(name)).render(table, options)
    if isinstance(content, bytes):
        raise ValueError(f"{name} is no text: it is written to a file")

    return content


def render_bytes(table: Table, name: str, options: TableOptions = DEFAULTS) -> bytes:
    """Return the table in a format as what stands in a file."""
    content = load(format_name(name)).render(table, options)
    if isinstance(content, bytes):
        return content

    return content.encode()
