"""JSON: everything that a table holds, as fractions, with sorted keys."""

from __future__ import annotations

import json
from dataclasses import asdict

from pointsweep.reporting.formats.base import Format, TableOptions
from pointsweep.reporting.table import Table
from pointsweep.utils.console import HIDDEN


def as_json(table: Table, options: TableOptions) -> str:
    """Return the whole table."""
    cells = [{**asdict(cell), "status": cell.status} for cell in table.cells]
    made = json.dumps(
        {**asdict(table), "cells": cells},
        sort_keys=True,
        indent=1,
        ensure_ascii=False,
        allow_nan=False,
    )
    return (
        HIDDEN.sub(lambda found: found[0] if found[0] == "\n" else json.dumps(found[0])[1:-1], made)
        + "\n"
    )


FORMAT = Format(suffix="json", render=as_json)
