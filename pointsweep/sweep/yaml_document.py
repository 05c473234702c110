"""A YAML file as plain data that remembers on which line everything stands; and files that inherit
from one another.

Scalars are read as YAML 1.2 reads them (scalars.py): 5e-4 is a number, 1:30 and 2026-01-01 are
texts.
"""

from __future__ import annotations

import codecs
import difflib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pointsweep.config import scalars
from pointsweep.errors import ConfigError, Problem

MOST_PATHS = 100_000  # a few aliases of aliases make a small file endless
SHAPES: dict[str, tuple[type, str]] = {
    "exclude": (list, "a list of {when: ..., because: ...}"),
    "settings": (list, "a list of {when: ..., KEY: VALUE}"),
    "published": (
        dict,
        "a mapping of the columns of published.csv to values, or file: to one of your own",
    ),
    "profiles": (dict, "a mapping of names to settings"),
    "plugins": (list, "a list of Python files or packages, relative to this file"),
}


TAG = "tag:yaml.org,2002:"
MERGE = (
    "merge keys are not supported (YAML 1.2 has none): write the keys out, or put what cells share"
    " into base, settings or a file that base.from names"
)


class _Loader(yaml.SafeLoader):
    """YAML loader that composes nodes whose tags are those of the core schema; remembers where
    anchors stand.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.anchored: set[int] = set()  # positions in the text

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """Return the tag of a node that has none."""
        if kind is yaml.ScalarNode and implicit[0]:
            return TAG + scalars.kind_of(value)

        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return tag

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, as the base class does."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) and not isinstance(event, yaml.AliasEvent):
            self.anchored.add(event.start_mark.index)

        return super().compose_node(parent, index)  # type: ignore[no-untyped-call]


@dataclass
class Document:
    """The data of a file, and the line of every path in it, e.g. ("rows", 2, "method.rank") ->
    14.
    """

    source: str
    data: dict[str, Any]
    text: str = ""
    lines: dict[tuple[Hashable, ...], int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    shown: str = ""  # stands before the places of a file that others inherit from
    # numbers and truth values as they are written
    texts: dict[tuple[Hashable, ...], str] = field(default_factory=dict)
    # paths of what has an anchor
    anchored: set[tuple[Hashable, ...]] = field(default_factory=set)
    # paths that the command line has set
    overridden: set[tuple[Hashable, ...]] = field(default_factory=set)

    def text_of(self, path: tuple[Hashable, ...], value: object) -> str:
        """Return a value as the file writes it: 0x1F, not 31."""
        return self.texts.get(path, scalars.spelled(value))

    def override(self, path: tuple[Hashable, ...]) -> None:
        """Forget how the file writes what the command line has set."""
        self.overridden.add(path)
        for by_path in (self.texts, self.lines):
            for below in [p for p in by_path if p[: len(path)] == path]:
                del by_path[below]

    def line(self, path: tuple[Hashable, ...]) -> int | None:
        """The line of a path, or of the nearest thing around it; None for what the command line has
        set.
        """
        if path and path not in self.lines:
            for overridden in self.overridden:
                common = min(len(overridden), len(path))
                if overridden[:common] == path[:common]:
                    return None

        while path and path not in self.lines:
            path = path[:-1]

        return self.lines.get(path)

    def where(self, *path: Hashable) -> str:
        """A path as it is shown: rows[2].method.rank."""
        text = ""
        for part in path:
            if isinstance(part, int):
                text += f"[{part}]"
            elif text:
                text += f".{part}"
            else:
                text = str(part)

        return text


def read(path: Path) -> Document:
    """Read a file. Raises ConfigError if it is no YAML mapping; other faults become problems of the
    document.
    """
    text = _decoded(path)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()  # type: ignore[no-untyped-call]
    except yaml.YAMLError as error:
        raise ConfigError(str(path), [_syntax_problem(error)]) from error
    except RecursionError as error:
        raise ConfigError(str(path), [Problem("", "is nested too deeply")]) from error

    document = Document(str(path), {}, text)
    builder = _Builder(document, loader.anchored)
    try:
        data = None if node is None else builder.build(node, ())
    except RecursionError as error:
        message = "is nested too deeply, or a part of it contains itself"
        raise ConfigError(str(path), [Problem("", message)]) from error

    if not isinstance(data, dict):
        raise ConfigError(
            str(path), [Problem("", "must be a mapping with name, base, rows ...")]
        )

    document.data = data
    for path_of_problem, message in drop_misshapen(data):
        document.problems.append(
            Problem(".".join(path_of_problem), message, document.line(path_of_problem))
        )

    return document


def _decoded(path: Path) -> str:
    """Return a file's text: UTF-8, or UTF-16 with a byte order mark, with any line ends."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            str(path), [Problem("", f"cannot be read: {error}")]
        ) from error

    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if utf16 else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        problem = (
            f"cannot be read: byte 0x{content[error.start]:02x} is no"
            f" {encoding.upper()[:6].rstrip('-')}; save the file as UTF-8"
        )

        raise ConfigError(str(path), [Problem("", problem, line)]) from error

    return text.replace("\r\n", "\n").replace("\r", "\n")


def _syntax_problem(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark else None
    message = " ".join(str(getattr(error, "problem", None) or error).split())

    if message == "but found another document":
        return Problem("", "holds a second document (---); one file is one sweep", line)
    if "'\\t'" in message:
        return Problem(
            "", "not YAML: a tab stands where YAML allows spaces alone", line
        )

    return Problem("", f"not YAML: {message}", line)


def drop_misshapen(data: dict[str, Any]) -> list[tuple[tuple[str, ...], str]]:
    """Take out the parts of a file that are no list or mapping where one belongs; return what to
    say of each, by its path.
    """
    problems: list[tuple[tuple[str, ...], str]] = []
    for key, (kind, shape) in SHAPES.items():
        value = data.get(key)
        if value is not None and not isinstance(value, kind):
            problems.append(((key,), f"must be {shape}, got {value!r}"))
            del data[key]

    profiles = data.get("profiles") or {}
    for name, settings in list(profiles.items()):
        path = ("profiles", str(name))
        if not str(name):
            problems.append((path, "a profile needs a name, got ''"))
        elif settings is not None and not isinstance(settings, dict):
            problems.append((path, f"must be a mapping of settings, got {settings!r}"))
        else:
            continue

        del profiles[name]

    return problems


class _Builder:
    """Builder that turns the nodes of one file into plain data; what is wrong is added to the
    document's problems.
    """

    def __init__(self, document: Document, anchored: set[int]) -> None:
        self.document = document
        self.anchored = anchored
        self.refused: set[tuple[Hashable, ...]] = set()

    def complain(
        self, path: tuple[Hashable, ...], message: str, node: yaml.Node
    ) -> None:
        problem = Problem(self.document.where(*path), message, node.start_mark.line + 1)
        self.document.problems.append(problem)

    def build(self, node: yaml.Node, path: tuple[Hashable, ...]) -> Any:
        """Return the data of a node."""
        document = self.document
        document.lines[path] = node.start_mark.line + 1

        if len(document.lines) > MOST_PATHS:
            message = f"has more than {MOST_PATHS} values, aliases counted each time"
            raise ConfigError(document.source, [Problem("", message)])

        if node.start_mark.index in self.anchored:
            document.anchored.add(path)

        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)

        if node.tag not in (TAG + "seq", TAG + "map"):
            self.complain(path, _tag_message(node.tag), node)
            self.refused.add(path)
            return None

        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]

        return self._mapping(node, path)

    def _mapping(self, node: yaml.Node, path: tuple[Hashable, ...]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, path)
            if key is None:
                continue

            if key in data:
                self.complain((*path, key), "stands twice", key_node)

            value = self.build(value_node, (*path, key))
            if (*path, key) not in self.refused:
                data[key] = value

            self.document.lines[*path, key] = key_node.start_mark.line + 1

        return data

    def _key(self, node: yaml.Node, path: tuple[Hashable, ...]) -> str | None:
        """Return a key as it is written; None for one that is refused."""
        if not isinstance(node, yaml.ScalarNode):
            self.complain(path, "a key is a text, found a list or a mapping", node)
            return None

        plain = node.style is None
        if plain and node.value == "<<":
            self.complain((*path, "<<"), MERGE, node)
            return None

        if node.tag == TAG + "null":
            shown = node.value or "an empty one"
            self.complain(
                path,
                f"a key is a text, found {shown}; put it in quotes if it is meant",
                node,
            )
            return None

        text: str = node.value
        return text

    def _scalar(self, node: yaml.ScalarNode, path: tuple[Hashable, ...]) -> Any:
        kind = node.tag.removeprefix(TAG)
        if kind not in ("null", "bool", "int", "float", "str"):
            self.complain(path, _tag_message(node.tag), node)
            self.refused.add(path)
            return None

        try:
            value = scalars.value_of(node.value, kind)
        except ValueError as error:
            self.complain(path, f"cannot be read: {error}", node)
            self.refused.add(path)
            return None

        if kind not in ("null", "str"):
            self.document.texts[path] = node.value

        return value


def _tag_message(tag: str) -> str:
    return (
        f"the tag {tag} is not allowed; a sweep file has texts, numbers, truth values, lists and"
        " mappings"
    )


def shipped_folder() -> Path:
    """Return the folder of the sweeps that come with the package: in it where it is installed,
    beside it in a checkout.
    """
    package = Path(__file__).parents[1]
    installed = package / "sweeps"

    if installed.is_dir():
        return installed

    return package.parent / "sweeps"


def is_shipped(path: str | Path) -> bool:
    """Tell whether a sweep file is one of those that come with the package."""
    return Path(path).resolve().is_relative_to(shipped_folder().resolve())


def shipped_names() -> list[str]:
    """Return the names of the sweeps that come with the package."""
    return sorted(path.stem for path in shipped_folder().glob("*.yaml"))


def found_file(name: str) -> str:
    """Return the path of a sweep file that is named with or without its folder and ending.

    Looked for here, in the folder `sweeps` here, and among the sweeps that come with the package.
    Raises ConfigError with the nearest name.
    """
    if Path(name).is_file():
        return name

    folders = _folders()
    for folder in folders:
        for ending in ("", ".yaml", ".yml"):
            path = folder / f"{name}{ending}"
            if path.suffix in (".yaml", ".yml") and path.is_file():
                return str(path)

    stem = Path(name).name
    if name.endswith((".yaml", ".yml")):
        stem = Path(name).stem

    known: set[str] = set()
    for folder in folders:
        for pattern in ("*.yaml", "*.yml"):
            known.update(path.stem for path in folder.glob(pattern))

    near = difflib.get_close_matches(stem, sorted(known), n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    folders_text = ", ".join(map(str, folders))
    text = (
        f"cannot be read: there is no such sweep file.{hint} Looked in: {folders_text}"
    )
    raise ConfigError(name, [Problem("", text)])


def is_file_name(text: str) -> bool:
    """Tell whether a word of the command line names a sweep file rather than an override."""
    if "=" in text or text.startswith(("~", "+")):
        return False
    if text.endswith((".yaml", ".yml")):
        return True

    for folder in _folders():
        for ending in (".yaml", ".yml"):
            if (folder / f"{text}{ending}").is_file():
                return True

    return False


def _folders() -> list[Path]:
    """Return the folders in which a sweep's name is looked for."""
    folders = [Path(), Path("sweeps")]
    shipped = shipped_folder()

    if shipped.is_dir() and shipped.resolve() != Path("sweeps").resolve():
        folders.append(shipped)

    return [folder for folder in folders if folder.is_dir()]


def family(path: Path) -> list[Document]:
    """Return a file and those it inherits from by `base: {from: ...}`, the eldest first. Raises
    ConfigError for a circle.

    `from` names a file relative to the one that it stands in, or else a sweep that comes with the
    package.
    """
    documents: list[Document] = []
    seen: list[Path] = []
    current: Path | None = path

    while current is not None:
        if current.resolve() in seen:
            circle = " -> ".join(file.name for file in [*seen, current])
            text = f"the files inherit in a circle: {circle}"
            line = documents[-1].line(("base", "from"))
            raise ConfigError(str(path), [Problem("base.from", text, line)])

        seen.append(current.resolve())
        documents.append(_read_parent(current, documents))
        base = documents[-1].data.get("base")
        parent = base.get("from") if isinstance(base, Mapping) else None
        current = _parent_file(current, str(parent)) if parent is not None else None

    for document in documents[1:]:
        document.shown = f"{Path(document.source).name}: "

    return documents[::-1]


def _parent_file(child: Path, name: str) -> Path:
    beside = child.parent / name
    if beside.is_file():
        return beside

    for candidate in (name, f"{name}.yaml"):
        shipped = shipped_folder() / candidate
        if shipped.suffix and shipped.is_file():
            return shipped

    return beside


def _read_parent(path: Path, children: list[Document]) -> Document:
    if children and not path.is_file():
        child = children[-1]
        near = "none"
        if path.parent.is_dir():
            near = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml")))

        shipped = difflib.get_close_matches(path.stem, shipped_names(), n=1, cutoff=0.5)
        hint = ""
        if shipped:
            hint = f". Did you mean '{shipped[0]}.yaml', which comes with pointsweep?"

        text = f"no file {path}; in that folder: {near}{hint}"
        raise ConfigError(
            child.source, [Problem("base.from", text, child.line(("base", "from")))]
        )

    return read(path)
