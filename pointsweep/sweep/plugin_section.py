"""The plug-ins of a sweep: `plugins:` of its files, and components that are named by an import
path, "package.module:Class".

Nothing of them is imported unless the user has allowed it. Installed packages need no permission.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pointsweep.config import plugins, registry
from pointsweep.config.plugins import HOW_TO_ALLOW, Source
from pointsweep.config.schema import PARTS
from pointsweep.errors import ConfigError, PluginError, Problem
from pointsweep.results import metrics
from pointsweep.results.kept_plugins import metric_at, register_metrics
from pointsweep.sweep.overrides import Override
from pointsweep.sweep.yaml_document import Document

KEY = "plugins"
IMPORT_PATH = re.compile(
    r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*"
)
# keys below which no component is named
NO_SETTINGS = ("published", "plugins", "title", "name", "cite")

Path_ = tuple[Hashable, ...]


@dataclass
class Named:
    """A place at which a component or metric is named: `holder[key]`. `kind` is that of the
    registry, or "metrics".
    """

    kind: str
    holder: Any
    key: Any
    place: str
    line: int | None = None

    @property
    def value(self) -> str:
        """The name as it stands there."""
        text: str = self.holder[self.key]
        return text

    def problem(self, error: PluginError) -> Problem:
        """Return what to say where the name cannot be used."""
        return Problem(self.place, str(error), self.line)


def read_plugins(
    documents: Sequence[Document], late: list[Override], folder: Path, allowed: bool
) -> tuple[Source, ...]:
    """Import what the files of a sweep name, register it, and put its name in the place of each
    import path.

    `late` are the overrides of trial settings, which may name components too. Raises ConfigError:
    where the user has not allowed it before anything is imported.
    """
    file = documents[-1].source
    listed, problems = _listed(documents)
    named = [*_named_in(documents), *_named_by(late)]
    paths = [component for component in named if IMPORT_PATH.fullmatch(component.value)]
    listed_names = {plugin.name for plugin, _ in listed}
    located = _located(paths, listed_names, folder, problems)

    if problems:
        raise ConfigError(file, problems)

    plugin_of: dict[str, Source] = {}
    place_of: dict[str, Problem] = {}
    for plugin, place in [*listed, *located]:
        plugin_of.setdefault(plugin.name, plugin)
        place_of.setdefault(plugin.name, place)

    refused = []
    for name, plugin in plugin_of.items():
        if not plugins.is_allowed(plugin, allowed):
            refused.append((plugin, place_of[name]))

    if refused:
        raise ConfigError(file, [_refusal(refused)])

    sources = tuple(plugin_of.values())
    if sources:
        _adopt(file, sources, place_of)
        _replace_paths(file, paths, plugin_of)

    _discover(file, named)
    return sources


def _listed(
    documents: Sequence[Document],
) -> tuple[list[tuple[Source, Problem]], list[Problem]]:
    """Return the sources under `plugins:`, each with its place in the file, and what is wrong with
    others.
    """
    sources: list[tuple[Source, Problem]] = []
    problems: list[Problem] = []

    for document in documents:
        entries = document.data.get(KEY) or []
        if not isinstance(entries, list):
            continue  # said as a part of another shape

        for number, entry in enumerate(entries):
            path: Path_ = (KEY, number)
            place = Problem(
                f"{document.shown}{document.where(*path)}", "", document.line(path)
            )
            try:
                if not isinstance(entry, str):
                    raise PluginError(
                        f"must be the name of a file or folder of Python, got {entry!r}"
                    )

                folder = Path(document.source).parent
                source = plugins.read_source(folder / Path(entry).expanduser())
                for other, _ in sources:
                    if other.name == source.name and other != source:
                        raise PluginError(
                            f"two plug-ins are called {source.name}; rename one"
                        )

                sources.append((source, place))
            except PluginError as error:
                problems.append(replace(place, message=str(error)))

    return sources, problems


def _located(
    paths: Sequence[Named], listed: set[str], folder: Path, problems: list[Problem]
) -> list[tuple[Source, Problem]]:
    """Return the sources of import paths that no `plugins:` lists; what is found nowhere is added
    to the problems.
    """
    sources = []
    for named in paths:
        module = named.value.partition(":")[0]
        top = module.partition(".")[0]
        if top in listed:
            continue

        try:
            source = plugins.locate(top, folder)
            if source is None:
                raise PluginError(
                    f"{named.value}: there is no module {top}: no {top}.py beside this file, nor an"
                    " installed package"
                )

            sources.append((source, Problem(named.place, "", named.line)))
        except PluginError as error:
            problems.append(named.problem(error))

    return sources


def _refusal(refused: Sequence[tuple[Source, Problem]]) -> Problem:
    names = ", ".join(str(Path(source.folder, source.shown)) for source, _ in refused)
    first = refused[0][1]
    text = f"would import Python code: {names}. Nothing of it was run; "
    return replace(first, message=text + f"if you trust it, {HOW_TO_ALLOW}")


def _adopt(file: str, sources: Sequence[Source], places: Mapping[str, Problem]) -> None:
    """Import the sources and register what is in them. Raises ConfigError."""
    try:
        modules = plugins.adopt(sources)
        register_metrics(sources, modules)
    except PluginError as error:
        place = places[error.plugin or sources[0].name]
        raise ConfigError(file, [replace(place, message=str(error))]) from error


def _replace_paths(
    file: str, paths: Sequence[Named], sources: Mapping[str, Source]
) -> None:
    """Put the stated name of a component in the place of its import path. Raises ConfigError with
    all that is wrong.
    """
    problems = []
    for named in paths:
        module, _, attribute = named.value.partition(":")
        source = sources[module.partition(".")[0]]
        try:
            if named.kind == "metrics":
                named.holder[named.key] = f"test/{metric_at(source, module, attribute)}"
                continue

            kind, name = plugins.component_at(source, module, attribute)
            if kind != named.kind:
                raise PluginError(
                    f"{named.value} is one of the {kind}, not of the {named.kind}"
                )

            named.holder[named.key] = name
        except PluginError as error:
            problems.append(named.problem(error))

    if problems:
        raise ConfigError(file, problems)


def _discover(file: str, named: Sequence[Named]) -> None:
    """Look for names that are not known here in what installed packages offer. Raises
    ConfigError.
    """
    problems = []
    for component in named:
        try:
            if component.kind == "metrics":
                name = component.value.rpartition("/")[2]
                if name not in metrics.METRICS:
                    metrics.discover(name)
            elif component.value not in registry.names(component.kind):
                registry.discover(component.kind, component.value)
        except PluginError as error:
            problems.append(component.problem(error))

    if problems:
        raise ConfigError(file, problems)


# Where components are named


def _named_in(documents: Sequence[Document]) -> Iterator[Named]:
    for document in documents:
        yield from _walk(document, document.data, ())
        metric = document.data.get("metric")
        if isinstance(metric, str):
            yield Named(
                kind="metrics",
                holder=document.data,
                key="metric",
                place=f"{document.shown}metric",
                line=document.line(("metric",)),
            )


def _named_by(late: list[Override]) -> Iterator[Named]:
    for number, override in enumerate(late):
        holder: dict[str, Any] = {override.key: override.value}
        for named in _walk(None, holder, ()):
            named.place = f"override {override.text}"
            if named.holder is holder:
                named.holder = _Late(late, number)
                named.key = "value"

            yield named


class _Late:
    """The value of an override, which is replaced as a whole."""

    def __init__(self, late: list[Override], number: int) -> None:
        self.late = late
        self.number = number

    def __getitem__(self, key: str) -> Any:
        return self.late[self.number].value

    def __setitem__(self, key: str, value: Any) -> None:
        self.late[self.number] = replace(self.late[self.number], value=value)


def _walk(document: Document | None, node: Any, path: Path_) -> Iterator[Named]:
    """Yield every place below a node at which a component is named."""
    if isinstance(node, dict):
        for key, value in node.items():
            inner = (*path, key)
            part, _, rest = str(key).partition(".")
            if part in PARTS and rest in ("", "name"):
                yield from _names(
                    document, PARTS[part], holder=node, key=key, path=inner
                )
            elif str(key) not in NO_SETTINGS:
                yield from _walk(document, value, inner)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _walk(document, value, (*path, number))


def _names(
    document: Document | None, kind: str, holder: Any, key: Any, path: Path_
) -> Iterator[Named]:
    """Yield the names that a value gives: itself, {name: ...}, {choices: [...]}, or a list of
    these.
    """
    value = holder[key]
    if isinstance(value, str):
        place, line = "", None
        if document is not None:
            place = f"{document.shown}{document.where(*path)}"
            line = document.line(path)

        yield Named(kind, holder, key, place=place, line=line)
        return

    inner_keys: list[Any] = []
    if isinstance(value, dict):
        inner_keys = [name for name in ("name", "choices") if name in value]
    elif isinstance(value, list):
        inner_keys = list(range(len(value)))

    for inner_key in inner_keys:
        inner_path = (*path, inner_key)
        yield from _names(document, kind, holder=value, key=inner_key, path=inner_path)
