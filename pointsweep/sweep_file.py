"""A YAML file as plain data that remembers on which line everything stands; and files that inherit from one another.

Numbers are read as YAML 1.2 reads them: 5e-4 is a number, and only true and false are truth values.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pointsweep.errors import ConfigError, Problem

MOST_PATHS = 100_000  # a few aliases of aliases make a small file endless
SHAPES: dict[str, tuple[type, str]] = {
    "exclude": (list, "a list of {when: ..., because: ...}"),
    "settings": (list, "a list of {when: ..., KEY: VALUE}"),
    "published": (dict, "a mapping of the columns of published.csv to values"),
    "profiles": (dict, "a mapping of names to settings"),
}


class _Loader(yaml.SafeLoader):
    """SafeLoader with the numbers and truth values of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)


@dataclass
class Document:
    """The data of a file, and the line of every path in it, e.g. ("rows", 2, "method.rank") -> 14."""

    source: str
    data: dict[str, Any]
    text: str = ""
    lines: dict[tuple[Hashable, ...], int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: tuple[Hashable, ...]) -> int | None:
        """The line of a path, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def where(self, *path: Hashable) -> str:
        """A path as it is shown: rows[2].method.rank."""
        text = ""
        for part in path:
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
        return text


def read(path: Path) -> Document:
    """Reads a file. Raises ConfigError if it is not there or is no YAML mapping; duplicate keys are problems of the document."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [Problem("", f"cannot be read: {error}")]) from error
    try:
        node = yaml.compose(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(str(path), [Problem("", f"not YAML: {what}", mark.line + 1 if mark else None)]) from error
    except RecursionError as error:
        raise ConfigError(str(path), [Problem("", "is nested too deeply")]) from error
    document = Document(str(path), {}, text)
    try:
        data = _build(node, (), document) if node is not None else None
    except RecursionError as error:
        raise ConfigError(str(path), [Problem("", "is nested too deeply, or a part of it contains itself")]) from error
    if not isinstance(data, dict):
        raise ConfigError(str(path), [Problem("", "must be a mapping with name, base, rows ...")])
    document.data = data
    for key, text in drop_misshapen(data):
        document.problems.append(Problem(key, text, document.line((key,))))
    return document


def drop_misshapen(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Takes out the parts of a file that are no list or mapping where one belongs; what to say of each."""
    wrong = [key for key, (kind, _) in SHAPES.items() if data.get(key) is not None and not isinstance(data[key], kind)]
    return [(key, f"must be {SHAPES[key][1]}, got {data.pop(key)!r}") for key in wrong]


def _build(node: yaml.Node, path: tuple[Hashable, ...], document: Document) -> Any:
    document.lines[path] = node.start_mark.line + 1
    if len(document.lines) > MOST_PATHS:
        raise ConfigError(document.source, [Problem("", f"has more than {MOST_PATHS} values, aliases counted each time")])
    if not node.tag.startswith("tag:yaml.org,2002:") or ":python/" in node.tag:
        document.problems.append(Problem(document.where(*path), f"the tag {node.tag} is not allowed", node.start_mark.line + 1))
        return None
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, i), document) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node, path, document)
    data: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = str(_scalar(key_node, path, document))
        line = key_node.start_mark.line + 1
        if key in data:
            document.problems.append(Problem(document.where(*path, key), "stands twice", line))
        data[key] = _build(value_node, (*path, key), document)
        document.lines[*path, key] = line
    return data


def _scalar(node: yaml.Node, path: tuple[Hashable, ...], document: Document) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)  # type: ignore[no-untyped-call]
    except (yaml.YAMLError, ValueError) as error:
        where = document.where(*path)
        document.problems.append(Problem(where, f"cannot be read: {getattr(error, 'problem', error)}", node.start_mark.line + 1))
        return None
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def family(path: Path) -> list[Document]:
    """A file and those it inherits from by `base: {from: ...}`, the eldest first. Raises ConfigError for a circle."""
    documents: list[Document] = []
    seen: list[Path] = []
    current: Path | None = path
    while current is not None:
        if current.resolve() in seen:
            circle = " -> ".join(p.name for p in [*seen, current])
            raise ConfigError(
                str(path),
                [Problem("base.from", f"the files inherit in a circle: {circle}", documents[-1].line(("base", "from")))],
            )
        seen.append(current.resolve())
        documents.append(_read_parent(current, documents))
        base = documents[-1].data.get("base")
        parent = base.get("from") if isinstance(base, Mapping) else None
        current = current.parent / str(parent) if parent is not None else None
    return documents[::-1]


def _read_parent(path: Path, children: list[Document]) -> Document:
    if children and not path.is_file():
        child = children[-1]
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) if path.parent.is_dir() else "none"
        raise ConfigError(
            child.source, [Problem("base.from", f"no file {path}; in that folder: {near}", child.line(("base", "from")))]
        )
    return read(path)
