"""Overrides of the command line: `KEY=VALUE` in Hydra's grammar, its words read as those of a file.
The only file with hydra.

And what a table in the store is called. A file's own table has the file's name; overrides that make
it another table make a view. A view's name says what it is of: `quickstart+train.lr=5e-3`. What
only fills cells of the file's own table (`--only`, fewer seeds) or says where and how long it runs
(`resources`, a search's budget) is no view.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pointsweep.config import scalars
from pointsweep.config.schema import TrialConfig
from pointsweep.errors import unknown
from pointsweep.sweep.search_space import RANGE

Path = tuple[str | int, ...]
PARTS = tuple(TrialConfig.model_fields)
# A name alone may stand for {name: ...} here; each with its default.
NAMED = {"sampler": "tpe", "scheduler": None}


@dataclass(frozen=True)
class Override:
    """One override. `delete`: `~KEY`, which takes the key out."""

    text: str
    key: str
    value: Any = None
    delete: bool = False


def parse(text: str) -> Override:
    """Return what an override says. Raises ValueError if it is none, or gives several values."""
    from hydra.core.override_parser.overrides_parser import create_functions
    from hydra.core.override_parser.overrides_visitor import (
        HydraErrorListener,
        HydraOverrideVisitor,
    )
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException
    from hydra.grammar.gen.OverrideLexer import (
        CommonTokenStream,
        InputStream,
        OverrideLexer,
    )
    from hydra.grammar.gen.OverrideParser import OverrideParser

    class Visitor(HydraOverrideVisitor):  # type: ignore[misc]
        """Hydra's reading of lists, mappings and quotes, with the scalars of YAML 1.2."""

        def visitPrimitive(self, ctx: Any) -> Any:
            word = super().visitPrimitive(ctx)
            if isinstance(word, QuotedString):
                return word

            return scalars.value_of(self.written(ctx, word))

        def visitDictKey(self, ctx: Any) -> str:
            return self.written(ctx, super().visitDictKey(ctx))

        def written(self, ctx: Any, word: Any) -> str:
            """Return a word as it stands on the command line; Hydra has unescaped the texts."""
            return word if isinstance(word, str) else ctx.getText().strip()

    listener = HydraErrorListener()
    lexer = OverrideLexer(InputStream(text))
    parser = OverrideParser(CommonTokenStream(lexer))

    for part in (lexer, parser):
        part.removeErrorListeners()
        part.addErrorListener(listener)

    try:
        parsed = Visitor(create_functions()).visit(parser.override())
        parsed.input_line = text
        parsed.validate()
    except HydraException as error:
        raise ValueError(f"not an override: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError("not an override: it is nested too deeply") from error

    if parsed.package is not None:
        raise ValueError(
            "not an override: a sweep file has no packages, so @ has no meaning here"
        )
    if parsed.is_sweep_override():
        raise ValueError("one value only; to vary a key use an axis: +axes.KEY=[...]")

    return Override(text, parsed.key_or_group, parsed.value(), parsed.is_delete())


# Where the file itself is changed


def assign(data: dict[str, Any], key: str, value: Any) -> Path:
    """Set a dotted key of a file's data, at any depth; return its path. Raises ValueError where it
    cannot stand.
    """
    names = key.split(".")
    if (
        names[0] == "seeds"
        and len(names) > 1
        and not isinstance(data.get("seeds"), dict)
        and not names[1].isdigit()
    ):
        data["seeds"] = {}  # a rule takes the place of a number or a list

    path = _path(data, names)
    node: Any = data
    for depth, name in enumerate(path[:-1]):
        node = _below(node, name, path[: depth + 1])

    node[path[-1]] = value
    return path


def remove(data: dict[str, Any], key: str) -> Path:
    """Take a dotted key out of a file's data; return its path. Raises ValueError if it is not
    there.
    """
    path = _path(data, key.split("."))
    node: Any = data

    for depth, name in enumerate(path):
        if isinstance(node, dict) and name not in node:
            raise ValueError(unknown("key", _shown(path[depth:]), node, "There are"))

        has_keys = isinstance(node, (dict, list))
        if not has_keys:
            raise ValueError(
                f"{_shown(path[:depth])} is {scalars.spelled(node)}, which has no keys"
            )

        if depth == len(path) - 1:
            del node[name]
        else:
            node = node[name]

    return path


def _path(data: Any, names: list[str]) -> Path:
    """Split a dotted key along the data: settings (train.lr) are one key, all else is nested."""
    path: list[str | int] = []
    node = data

    while names:
        count = _length(node, names, inside_space=path[-1:] == ["space"])
        name: str | int = ".".join(names[:count])
        if isinstance(node, list):
            name = _index(node, names[0], tuple(path))
            node = node[name]
        elif isinstance(node, dict):
            node = node.get(name)
        else:
            node = None

        path.append(name)
        names = names[count:]

    return tuple(path)


def _length(node: Any, names: list[str], inside_space: bool) -> int:
    """Return how many of the names are the next key."""
    if isinstance(node, dict):
        for count in range(len(names), 0, -1):
            key = ".".join(names[:count])
            is_complete = count == len(names)
            if key in node and (
                is_complete or isinstance(node[key], (dict, list)) or key in NAMED
            ):
                return count

    if isinstance(node, list) or names[0] not in PARTS:
        return 1

    if inside_space:
        for count in range(1, len(names)):
            if names[count] in RANGE:
                return count

    return len(names)


def _below(node: Any, name: Any, path: Path) -> Any:
    """Return what stands at a name, made where there is nothing yet."""
    if isinstance(node, list):
        if isinstance(node[name], (dict, list)):
            return node[name]
        raise ValueError(
            f"{_shown(path)} is {scalars.spelled(node[name])}, which has no keys"
        )

    child = node.get(name)
    default = NAMED.get(str(name))
    if child is None and default is not None:
        child = default

    if isinstance(child, str) and name in NAMED:
        child = node[name] = {"name": child}
    elif child is None:
        child = node[name] = {}

    if not isinstance(child, (dict, list)):
        raise ValueError(
            f"{_shown(path)} is {scalars.spelled(child)}, which has no keys; set it whole:"
            f" {_shown(path)}={{...}}"
        )

    return child


def _index(node: list[Any], text: str, path: Path) -> int:
    if text.isdigit() and int(text) < len(node):
        return int(text)
    raise ValueError(
        f"{_shown(path)} is a list of {len(node)}: its entries are named by number, from 0 to"
        f" {len(node) - 1}, not {text}"
    )


def _shown(path: Path) -> str:
    return ".".join(map(str, path))


# What a table is called

# Overrides under which a table stays the same table. A changed seed list is looked at by what it
# trains.
NEUTRAL = (
    "profile",
    "name",
    "resources",
    "search.trials",
    "search.hours",
    "search.storage",
    "per_arm.trials",
    "per_arm.hours",
)
LONGEST = 80
PLAIN = re.compile(r"[A-Za-z0-9.,=_~+-]+")


def changes_the_table(text: str) -> bool:
    """Return whether an override may make a table another one; what cannot be read is reported
    elsewhere.
    """
    key = _key(text)
    neutral = (*NEUTRAL, "seeds")

    return not any(key == name or key.startswith(f"{name}.") for name in neutral)


def changes_seeds(text: str) -> bool:
    """Return whether an override says which seeds run."""
    key = _key(text)
    return key == "seeds" or key.startswith("seeds.")


def names_the_sweep(texts: Iterable[str]) -> bool:
    """Return whether the command line gives the table a name of its own."""
    return any(_key(text) == "name" for text in texts)


def _key(text: str) -> str:
    try:
        return parse(text).key
    except ValueError:
        return ""


def view_name(name: str, texts: Sequence[str]) -> str:
    """Return the name of a view: the sweep's, and what was overridden; a digest where that is no
    part of a file's name.
    """
    overrides = "+".join(sorted(text.lstrip("+") for text in texts))
    if not overrides:
        return name

    plain = "".join(PLAIN.findall(overrides))[:LONGEST]
    if plain != overrides or plain != plain.lower():
        plain = f"{plain.lower()}-{hashlib.sha256(overrides.encode()).hexdigest()[:6]}"

    return f"{name}+{plain}"
