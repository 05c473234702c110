"""Settings of a cell: nested or dotted keys laid over one another, each remembering where it was
set.

Naming another component (`method: lora`) replaces the named one that was there whole, and what is
lost with it is remembered. Settings without a name are merged into the component there is, or into
the one that is named later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pointsweep.config.schema import MODEL_PARTS, PARTS


@dataclass(frozen=True)
class Location:
    """Location of a setting: the path as shown, and the line."""

    path: str
    line: int | None


@dataclass(frozen=True)
class Dropped:
    """A setting that went when another component took the place of its own."""

    key: str
    value: Any
    owner: str
    location: Location


@dataclass(frozen=True)
class Conditional:
    """A value that a conditional setting gave a cell. What is laid later may have put another in
    its place.
    """

    key: str
    value: Any
    location: Location
    source: str  # the file that it stands in


@dataclass
class Settings:
    """The data of one trial as `checks.check_trial` takes it, the place of every leaf, and what was
    dropped on the way.
    """

    data: dict[str, Any] = field(default_factory=dict)
    locations: dict[str, Location] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    conditional: list[Conditional] = field(default_factory=list)

    def copy(self) -> Settings:
        """Return a copy that can be laid over without changing this."""
        data = {k: dict(v) if isinstance(v, dict) else v for k, v in self.data.items()}
        return Settings(
            data, dict(self.locations), list(self.dropped), list(self.conditional)
        )

    def overlay(
        self, other: Mapping[str, Any], location: Callable[[str], Location]
    ) -> None:
        """Put settings over these, components before their fields; `location` tells where a key of
        them stands.
        """
        for key in sorted(other, key=lambda key: rank(key, other[key])):
            self.set(key, other[key], location(key))

    def set(self, key: str, value: Any, location: Location) -> None:
        """Set one dotted key; the value may be a mapping, or a name for a part that has one."""
        part, _, rest = key.partition(".")
        if rest:
            node = value
            for name in reversed(rest.split(".")):
                node = {name: node}

            value = node
        elif part in PARTS and isinstance(value, str):
            value = {"name": value}

        if not isinstance(value, Mapping) or part in ("compat", "seed"):
            self.drop(part)
            self.data[part] = value
            self.locations[part] = location
            return

        current = self.data.get(part)
        if not isinstance(current, dict):
            self.drop(part)
            current = {}
        elif part in PARTS and _names_another(value, current):
            self._remember(part, current)
            self.drop(part)
            current = {}

        if part == "network":
            for other in MODEL_PARTS:
                self.drop(other)

        self.data[part] = merge(current, value)
        self.locations.setdefault(part, location)
        for leaf in leaves(value, part):
            # A dotted key already names its leaf; a mapping's leaves are named below it.
            below = leaf.removeprefix(key)
            self.locations[leaf] = Location(location.path + below, location.line)

    def drop(self, key: str) -> None:
        """Remove a dotted key, or a part and all that was set in it."""
        part, _, rest = key.partition(".")
        if not rest:
            self.data.pop(part, None)
        elif isinstance(self.data.get(part), dict):
            self.data[part].pop(rest, None)

        for path in [p for p in self.locations if p == key or p.startswith(f"{key}.")]:
            del self.locations[path]

    def _remember(self, part: str, component: Mapping[str, Any]) -> None:
        """Keep note of the fields of a component that another one is about to replace."""
        owner = str(component["name"])
        for key, value in component.items():
            path = f"{part}.{key}"
            if key != "name":
                self.dropped.append(Dropped(path, value, owner, self.location(path)))

    def name(self, part: str) -> Any:
        """Return the name of the component that a part has, None without one; of another part its
        value.
        """
        node = self.data.get(part)
        if isinstance(node, Mapping) and part in PARTS:
            return node.get("name")

        return node

    def location(self, path: str) -> Location:
        """Return where what is wrong at `path` was set: the leaf itself, or the nearest thing
        around it.
        """
        key = path
        while key:
            location = self.locations.get(key)
            if location is not None:
                return Location(location.path + path.removeprefix(key), location.line)

            key = key.rpartition(".")[0]

        return Location(path, None)


def _names_another(value: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Return whether a value names another component than the one that there is."""
    return "name" in value and current.get("name") not in (None, value["name"])


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


def rank(key: str, value: Any) -> int:
    """The order in which settings of one layer are laid: a network, then other components, then
    their fields.
    """
    part, _, rest = key.partition(".")
    names = (
        value is None
        or isinstance(value, str)
        or (isinstance(value, Mapping) and "name" in value)
    )

    component = part in PARTS and (rest == "name" or (not rest and names))

    if not component:
        return 2

    return 0 if part == "network" else 1


def keys_of(key: str, value: Any) -> Iterator[str]:
    """All dotted keys that one setting sets: `method: lora` sets method.name, `train: {lr: 1}` sets
    train.lr.
    """
    part, _, rest = key.partition(".")
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from keys_of(f"{key}.{name}", item)
    elif part in PARTS and not rest and isinstance(value, str):
        yield f"{part}.name"
    else:
        yield key


def overlap(one: str, other: str) -> bool:
    """Return whether two dotted keys are one, or one stands below the other, or one is a network
    and the other what it replaces.
    """
    if one == other or one.startswith(f"{other}.") or other.startswith(f"{one}."):
        return True

    if "network.name" not in (one, other):
        return False

    parts = {one.partition(".")[0], other.partition(".")[0]}
    return not parts.isdisjoint(MODEL_PARTS)


def clashes(
    ones: Mapping[str, Any], others: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """The keys that two mappings of settings both set: the key, and under which entry of either it
    stands.
    """
    other_leaves = list(_leaves_by_key(others))
    for leaf, key in _leaves_by_key(ones):
        for other_leaf, other_key in other_leaves:
            if overlap(leaf, other_leaf):
                yield max(leaf, other_leaf, key=len), key, other_key


def _leaves_by_key(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every dotted key that settings set, with the entry that sets it."""
    for key, value in settings.items():
        for leaf in keys_of(key, value):
            yield leaf, key


def set_twice(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The keys that one mapping sets twice, e.g. by train: {lr: 1} and train.lr: 2, with the two
    entries.
    """
    seen: dict[str, str] = {}
    for leaf, key in _leaves_by_key(settings):
        for other, other_key in seen.items():
            is_below = leaf.startswith(f"{other}.") or other.startswith(f"{leaf}.")
            if leaf == other or is_below:
                yield max(leaf, other, key=len), other_key, key

        seen[leaf] = key


def leaves(value: Mapping[str, Any], path: str) -> Iterator[str]:
    """The dotted paths of all values of a nested mapping."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from leaves(item, f"{path}.{key}")
        else:
            yield f"{path}.{key}"
