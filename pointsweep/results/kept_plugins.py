"""The code of a sweep's plug-ins as the store keeps it beside the sweep's file: read, and imported
where that is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from pointsweep.config.plugins import (
    HOW_TO_ALLOW,
    Source,
    adopt,
    imported,
    is_allowed,
    read_source,
)
from pointsweep.errors import PluginError
from pointsweep.results import metrics
from pointsweep.results.metrics import Metric
from pointsweep.results.plugin_origin import PREFIX, plugins_differ
from pointsweep.results.records import Record
from pointsweep.storage.base import Store

FOLDER = "plugins"  # of a sweep in the store


def keep_plugins(
    store: Store, name: str, sources: Iterable[Source]
) -> list[dict[str, Any]]:
    """Write the code of a sweep's plug-ins; return what its plan.json says of them."""
    listed = []
    for source in sources:
        files = []
        for file, text in source.files:
            store.write(f"sweeps/{name}/{FOLDER}/{file}", text.encode())
            files.append(file)

        listed.append({"name": source.name, "folder": source.folder, "files": files})

    return listed


def kept_plugins(store: Store, name: str) -> tuple[Source, ...]:
    """Return the plug-ins that a sweep was last run with, as they were then. Nothing is
    imported.
    """
    sources = []
    for about in _listed(store, name):
        files = []
        for file in about["files"]:
            data = store.read(f"sweeps/{name}/{FOLDER}/{file}")
            files.append((str(file), data.decode()))

        folder = store.location(f"sweeps/{name}/{FOLDER}") if files else ""
        sources.append(Source(str(about["name"]), tuple(files), folder))

    return tuple(sources)


def plugins_here(store: Store, name: str) -> dict[str, str]:
    """Return the digest of each of a sweep's plug-ins as it is on this machine now, by its name in
    an origin.

    Their files are read, and nothing is imported. What is not here has none.
    """
    digests = {}
    for about in _listed(store, name):
        if not about["files"]:
            continue  # a package that is installed

        first = str(about["files"][0])
        is_package = "/" in first
        path = Path(str(about["folder"]), str(about["name"]) if is_package else first)

        with suppress(PluginError):
            digests[f"{PREFIX}{about['name']}"] = read_source(path).digest

    return digests


def as_members(sources: Iterable[Source]) -> dict[str, bytes]:
    """Return the code of plug-ins as members of a bundle, by name."""
    members = {}
    for source in sources:
        for file, text in source.files:
            members[f"{FOLDER}/{file}"] = text.encode()

    return members


def from_members(members: Mapping[str, bytes], shown: str) -> tuple[Source, ...]:
    """Return the plug-ins among the members of a bundle, which messages call `shown`. Raises
    ValueError for one that is no text.
    """
    files: dict[str, list[tuple[str, str]]] = {}
    for name, data in sorted(members.items()):
        file = name.removeprefix(f"{FOLDER}/")
        if file != name:
            top = file.partition("/")[0].removesuffix(".py")
            files.setdefault(top, []).append((file, data.decode()))

    folder = f"{shown}/{FOLDER}"
    sources = [Source(name, tuple(texts), folder) for name, texts in files.items()]
    return tuple(sources)


def other_code(record: Record, sources: Iterable[Source]) -> str:
    """Return which plug-in a trial ran in another form than the given one; empty if none."""
    current = {}
    for source in sources:
        if not source.is_installed:
            current[f"{PREFIX}{source.name}"] = source.digest

    return plugins_differ(record.origin, current)


def import_kept(store: Store, name: str, allowed: bool) -> None:
    """Import the plug-ins that a sweep was last run with. Raises PluginError, also where nobody has
    allowed it.
    """
    import_all(kept_plugins(store, name), name, allowed)


def import_all(sources: Iterable[Source], name: str, allowed: bool) -> None:
    """Import the plug-ins that a sweep was run with. Raises PluginError, also where nobody has
    allowed it.
    """
    sources = list(sources)
    refused = [source for source in sources if not is_allowed(source, allowed)]

    if refused:
        names = ", ".join(f"{source.folder}/{source.shown}" for source in refused)
        text = (
            f"{name} was run with Python code of its user: {names}. Nothing of it was run now; if"
            f" you trust it, {HOW_TO_ALLOW}"
        )

        raise PluginError(text)

    register_metrics(sources, adopt(sources))


def register_metrics(
    sources: Iterable[Source], modules: Mapping[str, ModuleType]
) -> None:
    """Register the metrics that stand in plug-ins' modules. Raises PluginError."""
    for source in sources:
        if source.is_installed:
            continue
        for value in vars(modules[source.name]).values():
            if isinstance(value, Metric):
                metrics.register(value, source.shown)


def metric_at(source: Source, module: str, attribute: str) -> str:
    """Return the name of the metric that "module:name" names, registered. Raises PluginError."""
    metric = getattr(imported(source, module), attribute, None)
    if not isinstance(metric, Metric):
        raise PluginError(
            f"{module} has no metric {attribute}; one is made by {attribute} = computed_metric(...)"
        )

    metrics.register(metric, source.shown)
    return metric.name


def _listed(store: Store, name: str) -> list[Mapping[str, Any]]:
    """Return what a sweep's plan.json says of its plug-ins; nothing where it cannot be read, which
    is said elsewhere.
    """
    with suppress(FileNotFoundError, ValueError, RecursionError):
        plan = json.loads(store.read(f"sweeps/{name}/plan.json"))
        listed = plan.get("plugins") if isinstance(plan, dict) else None
        if isinstance(listed, list):
            return listed

    return []
