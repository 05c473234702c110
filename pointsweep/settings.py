"""Settings of a cell: nested or dotted keys laid over one another, each remembering where it was set.

Naming another component (`method: lora`) replaces it whole; settings without a name are merged into the one there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pointsweep.config import MODEL_PARTS, PARTS


@dataclass(frozen=True)
class Place:
    """Where a setting stands: the path as shown, and the line."""

    path: str
    line: int | None


@dataclass
class Settings:
    """The data of one trial as `config.check_trial` takes it, and the place of every leaf."""

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)

    def copy(self) -> Settings:
        """A copy that can be laid over without changing this."""
        return Settings({k: dict(v) if isinstance(v, dict) else v for k, v in self.data.items()}, dict(self.places))

    def lay(self, other: Mapping[str, Any], place: Callable[[str], Place]) -> None:
        """Lays settings over these; `place` tells where a key of them stands."""
        for key, value in other.items():
            self.set(key, value, place(key))

    def set(self, key: str, value: Any, place: Place) -> None:
        """Sets one dotted key; the value may be a mapping, or a name for a part that has one."""
        part, _, rest = key.partition(".")
        if rest:
            node = value
            for name in reversed(rest.split(".")):
                node = {name: node}
            value = node
        elif part in PARTS and isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or part in ("compat", "seed"):
            self.data[part] = value
            self.places[part] = place
            return
        current = self.data.get(part)
        renamed = part in PARTS and "name" in value and isinstance(current, dict) and current.get("name") != value["name"]
        if renamed or not isinstance(current, dict):
            self.drop(part)
            current = {}
        if part == "network":
            for other in MODEL_PARTS:
                self.drop(other)
        self.data[part] = merge(current, value)
        self.places.setdefault(part, place)
        for leaf in leaves(value, part):
            # A dotted key already names its leaf; a mapping's leaves are named below it.
            below = leaf.removeprefix(key)
            self.places[leaf] = Place(place.path + below, place.line)

    def drop(self, key: str) -> None:
        """Removes a dotted key, or a part and all that was set in it."""
        part, _, rest = key.partition(".")
        if not rest:
            self.data.pop(part, None)
        elif isinstance(self.data.get(part), dict):
            self.data[part].pop(rest, None)
        for path in [p for p in self.places if p == key or p.startswith(f"{key}.")]:
            del self.places[path]

    def get(self, key: str) -> Any:
        """The value at a dotted key; of a part that has a name, the name."""
        node: Any = self.data
        for name in key.split("."):
            node = node.get(name) if isinstance(node, Mapping) else None
        return node.get("name") if isinstance(node, Mapping) and key in PARTS else node

    def matches(self, when: Mapping[str, Any]) -> bool:
        """Whether every key has the value, or one of the values, that `when` lists."""
        return all(self.get(key) in (value if isinstance(value, list) else [value]) for key, value in when.items())

    def place(self, path: str) -> Place:
        """Where what is wrong at `path` was set: the leaf itself, or the nearest thing around it."""
        wanted = path
        while wanted:
            if wanted in self.places:
                found = self.places[wanted]
                return Place(found.path + path.removeprefix(wanted), found.line)
            wanted = wanted.rpartition(".")[0]
        return Place(path, None)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping laid over another; dotted keys inside are opened."""
    merged = dict(below)
    for key, value in above.items():
        head, _, rest = str(key).partition(".")
        if rest:
            value = merge({}, {rest: value})
        both = isinstance(value, Mapping) and isinstance(merged.get(head), Mapping)
        merged[head] = merge(merged[head], value) if both else value
    return merged


def leaves(value: Mapping[str, Any], path: str) -> Iterator[str]:
    """The dotted paths of all values of a nested mapping."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from leaves(item, f"{path}.{key}")
        else:
            yield f"{path}.{key}"
