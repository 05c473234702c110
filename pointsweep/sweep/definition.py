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


def note(sweep: Sweep, store: Store) -> None:
    """Write what `pointsweep tables NAME` needs: of a part of a table, the whole table that it
    belongs to.
    """
    whole = sweep.stored
    store.write(f"sweeps/{whole.name}/sweep.yaml", whole.text.encode())
    origin: dict[str, Any] = {"source": _path(whole), "overrides": list(whole.overrides)}
    if whole.plugins:
        origin["plugins"] = keep_plugins(store, whole.name, whole.plugins)
    store.write(f"sweeps/{whole.name}/plan.json", plan_json(whole.layout(), **origin))


def taken(sweep: Sweep, store: Store) -> str | None:
    """Return why a sweep may not have its name in this store: it is that of another file's table.
    None if it may.
    """
    whole = sweep.stored
    plan = _read(store, whole.name)
    source = plan.get("source")
    if source is None:  # of a version that did not keep it
        return None
    same_file = source == _path(whole) and plan.get("overrides") == list(whole.overrides)
    if same_file or _same_table(whole, plan, store):
        return None
    said = " ".join([str(source), *map(str, plan.get("overrides") or ())])
    return (
        f"{sweep.source}: the name {whole.name!r} is that of another table in {store.url}, made by"
        f" {said}. Give this file a name of its own (name: ...), or let it take the place of that"
        " table with --replace"
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
