"""JSON: everything that a table holds, as fractions, with sorted keys."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

from pointsweep.reporting.formats.base import Format, TableOptions
from pointsweep.reporting.table import Table
from pointsweep.utils.console import HIDDEN


def as_json(table: Table, options: TableOptions) -> str:
    """Return the whole table."""
    cells = [{**asdict(cell), "status": cell.status} for cell in table.cells]
    text = json.dumps(
        {**asdict(table), "cells": cells},
        sort_keys=True,
        indent=1,
        ensure_ascii=False,
        allow_nan=False,
    )

    return HIDDEN.sub(_escaped, text) + "\n"


def _escaped(match: re.Match[str]) -> str:
    """Return a sign that a terminal does not show as JSON writes it; line breaks stay."""
    sign = match[0]
    return sign if sign == "\n" else json.dumps(sign)[1:-1]


FORMAT = Format(suffix="json", render=as_json)
