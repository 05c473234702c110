"""Conditions of a sweep file: `when:`, `exclude:` and the keys of constraints, checked against the
fields that a trial has.

A condition looks at the configuration as it will run, defaults included. One that names an unknown
key, component or field, or a value of another type, could never hold; it is a problem, not a
condition that does not apply.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from pointsweep.config import registry
from pointsweep.config.schema import MODEL_PARTS, PARTS, UNNAMED, TrialConfig
from pointsweep.config.validation import field_problems, field_types
from pointsweep.errors import unknown
from pointsweep.sweep.overlay import keys_of

PARTS_OF_A_TRIAL = tuple(part for part in TrialConfig.model_fields if part != "seed")
MODALITIES = ("1d", "2d", "3d")

When = Mapping[str, Any]


def lookup(data: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key of a trial's data, defaults included; None where the trial
    has no such key.

    A component is known by its name: the value of `method` is that of `method.name`.
    """
    part, _, rest = key.partition(".")
    is_network = data.get("network") is not None

    if is_network and part in MODEL_PARTS:
        return None

    node = data.get(part)
    owner: Any
    if part in PARTS:
        name = node.get("name") if isinstance(node, Mapping) else node
        if rest in ("", "name"):
            return name

        known = registry.config_classes(PARTS[part])
        owner = known.get(name) if isinstance(name, str) else None
    elif part in UNNAMED:
        owner = UNNAMED[part]
    else:
        fields = TrialConfig.model_fields
        if node is None and part in fields and not rest:
            return fields[part].default

        return node

    value = default_of(owner, rest)
    if isinstance(node, Mapping):
        value = node.get(rest, value)

    return list(value) if isinstance(value, tuple) else value


def default_of(owner: Any, field: str) -> Any:
    """Return what a component has where nobody sets it: a field's default, or the modality that its
    class states.
    """
    if owner is None:
        return None
    if field in field_names(owner):
        return owner.model_fields[field].default
    if field == "modality":
        return getattr(owner, field, None)

    return None


@functools.cache
def field_names(owner: Any) -> frozenset[str]:
    """Return the names of the fields of a configuration, class variables left out."""
    return frozenset(owner.model_fields)


def opened(when: When) -> dict[str, Any]:
    """Return a condition with nested mappings as dotted keys: {method: {name: lora}} is {method:
    lora}.
    """
    flat: dict[str, Any] = {}
    for key, value in when.items():
        if isinstance(value, Mapping):
            for name, item in value.items():
                flat[f"{key}.{name}"] = item
        else:
            flat[str(key)] = value

    return {key.removesuffix(".name"): value for key, value in flat.items()}


def matches(data: Mapping[str, Any], when: When) -> bool:
    """Return whether every key has the value, or one of the values, that `when` lists."""
    expected = opened(when)
    return all(
        lookup(data, key) in alternatives(key, expected[key]) for key in expected
    )


def alternatives(key: str, value: Any) -> list[Any]:
    """Return the values that a condition allows; a list is one value of a field that is a list."""
    if not isinstance(value, list):
        return [value]

    if any(isinstance(item, list) for item in value):
        return value

    field = key.partition(".")[2]
    for owner in owners(key, {}):
        if _is_list(owner, field):
            return [value]

    return value


def _is_list(owner: Any, field: str) -> bool:
    default = default_of(owner, field)
    return isinstance(default, tuple)


def owners(key: str, when: When) -> list[Any]:
    """Return the configurations that may have the field of a key: of the components that the
    condition names, else of all.
    """
    part = key.partition(".")[0]
    if part in UNNAMED:
        return [UNNAMED[part]]
    if part not in PARTS:
        return []

    kind = PARTS[part]
    known_names = registry.names(kind)
    named = opened(when).get(part)

    if named is None:
        names = known_names
    elif isinstance(named, list):
        names = named
    else:
        names = [named]

    return [registry.config_class(kind, name) for name in names if name in known_names]


def key_problem(key: str, when: When) -> str | None:
    """Return what is wrong with a key that a condition or a constraint looks at; None if a trial
    can have it.
    """
    part, _, rest = key.partition(".")
    if part == "seed":
        return "a condition cannot look at the seed: all seeds of a cell have one configuration"
    if part not in PARTS_OF_A_TRIAL:
        return unknown("key", part, PARTS_OF_A_TRIAL, "Allowed")
    if part not in PARTS and part not in UNNAMED:
        return f"{part} has no fields" if rest else None
    if rest in ("", "name") and part in PARTS:
        return None
    if not rest:
        return f"names no field; write {part}.FIELD"

    candidates = owners(key, when)
    if not candidates or any(_has(owner, rest) for owner in candidates):
        return None  # an unknown component is a problem of its own

    fields: set[str] = set()
    for owner in candidates:
        fields |= field_names(owner)

    text = unknown("field", rest, sorted(fields - {"name"}), "Fields")
    hint = text.removeprefix(f"unknown field '{rest}'.")

    named = opened(when).get(part)

    if named is None:
        owner_name = part
    elif isinstance(named, list):
        owner_name = " or ".join(map(str, named))
    else:
        owner_name = str(named)

    return f"{owner_name} has no field '{rest}'.{hint}"


def _has(owner: Any, field: str) -> bool:
    if field in field_names(owner):
        return True

    return field == "modality" and hasattr(owner, "modality")


def value_problem(key: str, value: Any, when: When) -> str | None:
    """Return why a key can never have one value; None if it can."""
    part, _, rest = key.partition(".")
    if part in PARTS and not rest:
        if value is None and part == "network":
            return None

        names = registry.names(PARTS[part])
        if isinstance(value, str) and value in names:
            return None

        return unknown(part, value, registry.offered(PARTS[part]), "Known")

    if rest == "modality":
        if value in MODALITIES:
            return None
        return unknown("modality", value, MODALITIES, "Allowed")

    if part == "compat":
        candidates = [TrialConfig]
    else:
        candidates = [owner for owner in owners(key, when) if _has(owner, rest)]

    first_problem = None
    for owner in candidates:
        messages = field_problems(owner, rest or part, value)
        if not messages:
            return None  # a value that one component can have is no problem

        first_problem = first_problem or messages[0]

    return first_problem


def problems(when: When) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for everything in a condition that can never hold."""
    if not when:
        yield "", "is empty: a condition names keys and their values"

    for key, value in opened(when).items():
        wrong = key_problem(key, when)
        if wrong is not None:
            yield key, wrong
            continue

        if isinstance(value, list) and not value:
            yield key, "lists no value, so that it never holds"

        for item in alternatives(key, value):
            wrong = value_problem(key, item, when)
            if wrong is not None:
                yield key, wrong


def setting_problems(
    settings: Mapping[str, Any], when: When
) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for settings that no trial can have, whether or not their condition
    holds anywhere.
    """
    flattened = flat(settings)
    # The components that the trial will have: those of the condition, and those named here.
    components: dict[str, Any] = {}

    for key, value in opened(when).items():
        if key in PARTS:
            components[key] = value

    for key, value in flattened.items():
        if key.endswith(".name"):
            components[key.removesuffix(".name")] = value

    for key, value in flattened.items():
        key = key.removesuffix(".name")
        if value is None and key in PARTS_OF_A_TRIAL:
            continue

        wrong = key_problem(key, components) or value_problem(key, value, components)
        if wrong is not None:
            yield key, wrong


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as dotted keys, each with its value."""
    flattened: dict[str, Any] = {}
    for key, value in settings.items():
        for leaf in keys_of(str(key), value):
            flattened[leaf] = _inner(value, leaf.removeprefix(str(key)).strip("."))

    return flattened


def _inner(value: Any, path: str) -> Any:
    if not path:
        return value

    for name in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(name, value)

    return value


def condition_text(when: When) -> str:
    """Return a condition in words: "method lora, backbone clip_text or dinov2"."""
    phrases: list[str] = []
    for key, value in opened(when).items():
        values = " or ".join(map(str, alternatives(key, value)))
        phrases.append(f"{key} {values}")

    return ", ".join(phrases)


def kinds_of(key: str) -> set[type]:
    """Return the types that the value of a key may have, over all components with that field."""
    rest = key.partition(".")[2]
    kinds: set[type] = set()

    for owner in owners(key, {}):
        if rest in field_names(owner):
            kinds |= field_types(owner, rest)

    return kinds
