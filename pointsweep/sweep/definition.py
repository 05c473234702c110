"""Whose table a name is in a store: the file and the overrides that it was last run with.

Two files of one name would take each other's table; the second one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pointsweep.results.kept_plugins import keep_plugins
from pointsweep.results.records import CHECKSUM, checksum, plan_json
from pointsweep.storage.base import Store
from pointsweep.sweep.sweep import Sweep


def write_definition(sweep: Sweep, store: Store) -> None:
    """Write what `pointsweep tables NAME` needs: of a part of a table, the whole table that it
    belongs to.
    """
    stored = sweep.stored
    store.write(f"sweeps/{stored.name}/sweep.yaml", stored.text.encode())
    origin: dict[str, Any] = {
        "source": _path(stored),
        "overrides": list(stored.overrides),
    }

    if stored.plugins:
        origin["plugins"] = keep_plugins(store, stored.name, stored.plugins)

    store.write(f"sweeps/{stored.name}/plan.json", plan_json(stored.layout(), **origin))


def name_conflict(sweep: Sweep, store: Store) -> str | None:
    """Return why a sweep may not have its name in this store: it is that of another file's table.
    None if it may.
    """
    stored = sweep.stored
    plan = _read(store, stored.name)
    source = plan.get("source")

    if source is None:  # of a version that did not keep it
        return None

    same_file = source == _path(stored) and plan.get("overrides") == list(
        stored.overrides
    )
    if same_file or _same_table(stored, plan, store):
        return None

    command = " ".join([str(source), *map(str, plan.get("overrides") or ())])
    return (
        f"{sweep.source}: the name {stored.name!r} is that of another table in {store.url}, made by"
        f" {command}. Give this file a name of its own (name: ...), or let it take the place of"
        " that table with --replace"
    )


def _same_table(sweep: Sweep, plan: Mapping[str, Any], store: Store) -> bool:
    """Return whether a copy of a file, or the same file in another folder, says the same."""
    if sweep.search is None:
        return bool(plan.get("layout") == json.loads(sweep.layout().to_json()))

    name = f"sweeps/{sweep.name}/sweep.yaml"
    return (
        store.exists(name)
        and store.read(name) == sweep.text.encode()
        and plan.get("overrides") == list(sweep.overrides)
    )


def _read(store: Store, name: str) -> Mapping[str, Any]:
    """The stored definition; empty where there is none, or none that can be read: the launch writes
    it anew.
    """
    try:
        plan = json.loads(store.read(f"sweeps/{name}/plan.json"))
        if CHECKSUM in plan and checksum(plan) != plan[CHECKSUM]:
            return {}  # edited or damaged
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return {}

    return plan if isinstance(plan, dict) else {}


def _path(sweep: Sweep) -> str:
    return str(Path(sweep.source).resolve())
