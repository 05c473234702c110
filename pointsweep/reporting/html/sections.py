"""Parts shared by the report's sections: their form, and settings as dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pointsweep.reporting.table import Table, TableCell


@dataclass(frozen=True)
class Section:
    """A section of the page: `template` draws it with `values`. `lead` is text, or markup."""

    name: str
    title: str
    lead: str
    template: str
    values: Mapping[str, Any] = field(default_factory=dict)


def row_name(table: Table, cell: TableCell) -> str:
    """Return the row's labels in one."""
    return " / ".join(table.rows[cell.row])


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config with dotted keys, {"method.rank": 4}; lists become tuples, which sets can
    hold.
    """
    settings: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            settings |= flat(value, f"{prefix}{key}.")
        else:
            settings[f"{prefix}{key}"] = _frozen(value)

    return settings


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    return value
