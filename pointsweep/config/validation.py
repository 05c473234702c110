"""Validation of plain data as a TrialConfig: pydantic finds the errors, and this module words them.

Every wrong name, type and value is reported with its dotted path, what was found, what is allowed
and the nearest name, all of a trial together.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pointsweep.config import official, registry, scalars
from pointsweep.config.base import MOST_WHOLE, Config
from pointsweep.config.schema import (
    MODEL_PARTS,
    PARTS,
    UNNAMED,
    TrialConfig,
    component,
    missing,
    missing_or_extra,
)
from pointsweep.errors import ConfigError, Problem, unknown

__all__ = [
    "MOST_WHOLE"
]  # of config.base, for those who check whole numbers of a file themselves

PathAndText = tuple[str, str]
# Validated parts of trials by name and repr of their data. Most cells of a sweep have most parts
# in common, and each of these is validated a single time.
KnownParts = dict[tuple[str, str], Config]

# pydantic's error types of a value of another type, and the type that is expected
TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "list_type": "a list",
}


def trial_from_dict(data: Mapping[str, Any]) -> TrialConfig:
    """Build a trial from plain data, strictly.

    Raises ConfigError with every problem, each under its dotted path.
    """
    config, problems = check_trial(data)
    if config is None:
        raise ConfigError(
            "trial", [Problem(path, message) for path, message in problems]
        )

    return config


def check_trial(
    data: Mapping[str, Any], known: KnownParts | None = None
) -> tuple[TrialConfig | None, list[PathAndText]]:
    """Return the trial and no problems, or None and every problem as (dotted path, message).

    `known` is a cache of validated parts that the caller keeps from call to call.
    """
    problems = list(missing_or_extra(dict(data)))
    given = official.with_defaults(data)

    # A network replaces the parts of a point model; `missing_or_extra` has reported those.
    if given.get("network") is not None:
        for part in MODEL_PARTS:
            given.pop(part, None)

    if known is not None:
        _reuse(given, known)

    try:
        config = TrialConfig.model_validate(given)
    except ValidationError as error:
        reported = {path for path, _ in problems}
        for path, message in problems_of(error, TrialConfig):
            if path not in reported:
                problems.append((path, message))

        return None, problems

    if known is not None:
        _remember(given, config, known)

    return (None if problems else config), problems


def _reuse(given: dict[str, Any], known: KnownParts) -> None:
    """Replace data by the configuration that equal data has been validated as."""
    for part, value in given.items():
        known_part = known.get((part, repr(value)))
        if known_part is not None:
            given[part] = known_part


def _remember(given: Mapping[str, Any], config: TrialConfig, known: KnownParts) -> None:
    for part, value in given.items():
        part_config = getattr(config, part)
        if isinstance(part_config, Config) and not isinstance(value, Config):
            known[part, repr(value)] = part_config


def problems_of(
    error: ValidationError, model: type[Config], path: str = ""
) -> list[PathAndText]:
    """Return (dotted path, message) for everything that pydantic found wrong with a model's
    data. `path` is that of the data itself.
    """
    # a dict as an ordered set: each option of a union reports the same value
    problems: dict[PathAndText, None] = {}
    for item in error.errors(include_url=False):
        owner, where, field = _located(model, item["loc"])
        shown = ".".join(filter(None, (path, where)))
        location = _ErrorLocation(owner, shown, field)
        problems.setdefault(location.problem(item))

    return list(problems)


def _located(
    model: type[Config], loc: tuple[Any, ...]
) -> tuple[type[Config], str, str]:
    """Return the configuration class that an error is about, its dotted path, and the field in that
    class; no field where the error is about a whole configuration.

    `loc` is pydantic's: names of fields and numbers of list entries, and between them names that
    are not in the data, those of the branches of unions.
    """
    names = list(loc)
    owner = model
    path = ""
    field = ""

    while names:
        name = names.pop(0)
        if isinstance(name, int):
            path += f"[{name}]"
            continue

        field = name
        path += f".{name}" if path else str(name)
        nested = _nested(owner, name)

        if owner is not TrialConfig and names:
            if nested is not None:
                owner, field = nested, ""
                continue
            # The field has no configuration below it, so any further name is that of a union's
            # branch; numbers are those of list entries.
            names = [entry for entry in names if isinstance(entry, int)]

        if owner is not TrialConfig or not names:
            continue

        if name in UNNAMED:
            owner, field = UNNAMED[name], ""
        elif name in PARTS and names[0] in registry.names(PARTS[name]):
            # A component is a branch of a union that its `name` selects, and pydantic puts that
            # name into `loc`; it is no part of the path that a user writes.
            owner, field = registry.config_class(PARTS[name], names.pop(0)), ""

    return owner, path, field


def _nested(owner: type[Config], name: str) -> type[Config] | None:
    """Return the class of a field that is a configuration itself."""
    field = owner.model_fields.get(name)
    if (
        field is not None
        and isinstance(field.annotation, type)
        and issubclass(field.annotation, Config)
    ):
        return field.annotation

    return None


class _ErrorLocation:
    """Location of an error: the dotted path that a user sees, and the configuration class and field
    that determine which values are allowed.
    """

    def __init__(self, owner: type[Config], path: str, field: str) -> None:
        self.owner = owner
        self.path = path
        self.field = field

    def problem(self, item: Any) -> PathAndText:
        """Return the path and the message of one of pydantic's errors."""
        kind, value = item["type"], item["input"]
        # pydantic reports a tuple of fixed length that is too short as entries that are missing
        entry_is_missing = kind == "missing" and isinstance(item["loc"][-1], int)
        is_length = kind in ("too_long", "too_short")

        if entry_is_missing or (is_length and "maxItems" in self._schema()):
            return self._wrong_length(len(value))

        message = self._name_message(kind, item)
        if not message:
            message = self._value_message(kind, value, item["msg"])

        return self.path, message

    def _name_message(self, kind: str, item: Any) -> str:
        """Return the message for a wrong or missing name of a field or a component; empty for
        another error.
        """
        if kind == "extra_forbidden":
            return self._no_field(str(item["loc"][-1]))

        if kind == "union_tag_invalid":
            names = registry.offered(PARTS[self.path])
            return unknown(self.path, item["input"]["name"], names, "Known")

        if self.owner is TrialConfig and self.path in PARTS and kind != "conflict":
            return self._needs_name(kind, item["input"])

        return ""

    def _value_message(self, kind: str, value: Any, message: str) -> str:
        """Return the message for a wrong value; `message` is pydantic's own."""
        # errors that our own validators raise, with a message for users
        if kind in ("conflict", "inexact"):
            return message

        if self.field and _is_union(self._schema()):
            choices = " or ".join(_choices(self._schema()))
            return f"must be {choices}, got {scalars.shown(_as_written(value))}"

        if kind == "literal_error":
            return unknown("value", value, map(str, self._allowed()), "Allowed")
        if kind == "too_short":
            return "must have at least one entry, got []"
        if kind == "finite_number":
            return f"must be a finite number, got {value}"

        nested = _nested(self.owner, self.field)
        if kind == "model_type" and nested is not None:
            return (
                f"must be a mapping of {', '.join(nested.model_fields)}, got {value!r}"
            )
        if kind in TYPES:
            return f"must be {TYPES[kind]}, got {scalars.shown(_as_written(value))}"
        if kind == "too_many_bits":
            return f"{message}, got {value}"

        return f"{limits_text(self._schema()) or message}, got {_as_written(value)!r}"

    def _needs_name(self, kind: str, value: Any) -> str:
        text = missing(self.path)
        if kind == "missing" or value is None:
            return text

        return f"needs a name, got {value!r}; {text.removeprefix('missing; ')}"

    def _wrong_length(self, length: int) -> PathAndText:
        path = self.path
        if path.endswith("]"):
            path = path[: path.rindex("[")]

        return path, f"must have {self._schema()['maxItems']} entries, got {length}"

    def _no_field(self, key: str) -> str:
        if self.owner is TrialConfig:
            return unknown("part", key, TrialConfig.model_fields, "Parts")

        # not `rpartition`: the unknown key may itself be empty or contain dots
        section = self.path.removesuffix(key).rstrip(".")
        owner = section.rpartition(".")[2]
        stated_name = self.owner.model_fields.get("name")

        if stated_name is not None and stated_name.default:
            owner = stated_name.default

        names = [name for name in self.owner.model_fields if name != "name"]
        text = unknown("field", key, names, "Fields")
        hint = text.removeprefix(f"unknown field '{key}'.")

        return f"{owner} has no field '{key}'.{hint}"

    def _schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the field, or of an entry of its list."""
        return _field_schema(self.owner, self.field)

    def _allowed(self) -> list[Any]:
        """Return the values that the field, or an entry of its list, may have as a literal."""
        allowed: list[Any] = []
        is_entry = self.path.endswith("]")
        for option in _options(self._schema()):
            if is_entry:
                option = option.get("items", option)

            if "enum" in option:
                allowed += option["enum"]
            elif "const" in option:
                allowed.append(option["const"])

        return allowed


@functools.cache
def _field_schema(owner: type[Config], field: str) -> dict[str, Any]:
    schema: dict[str, Any] = owner.model_json_schema()["properties"][field]
    return schema


def _options(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the schemas of a union's options, or the schema itself. An option that is a union in
    turn, as in `(A | B) | None`, gives its own options.
    """
    options: list[Mapping[str, Any]] = []
    for option in schema.get("anyOf", [schema]):
        options += option.get("anyOf", [option])

    return options


def _is_union(schema: Mapping[str, Any]) -> bool:
    """Return whether several options are left when null is not counted."""
    kinds = [option.get("type") for option in _options(schema)]
    return len(kinds) - kinds.count("null") > 1


def _choices(schema: Mapping[str, Any]) -> list[str]:
    """Return in words what each option of a union allows, null left out: "auto", "a number of at
    least 0".
    """
    choices: dict[str, None] = {}
    options = _options(schema)
    kinds = {option.get("type") for option in options}

    for option in sorted(options, key=lambda option: "const" not in option):
        kind = option.get("type")
        if "const" in option:
            choices[str(option["const"])] = None
        elif kind == "number":
            choices[f"a number{_limit(option)}"] = None
        elif kind == "integer" and "number" not in kinds:  # "a number" covers both
            choices[f"a whole number{_limit(option)}"] = None

    return list(choices)


def _limit(schema: Mapping[str, Any]) -> str:
    """Return the lower limit of a number, as it continues "a number"; empty without one."""
    if "minimum" in schema:
        return f" from {schema['minimum']} on"
    if "exclusiveMinimum" in schema:
        return f" above {schema['exclusiveMinimum']}"

    return ""


def limits_text(schema: Mapping[str, Any]) -> str:
    """Return in words which numbers a field's JSON Schema allows: "must be at least 1 or null";
    empty if the schema sets no limits.
    """
    options = _options(schema)
    or_null = " or null" if {"type": "null"} in options else ""

    for option in options:
        # An error of a range in a list is one of an entry, which may not be null. All entries of a
        # tuple of fixed length (`prefixItems`) have the same limits in our configurations.
        if option.get("type") == "array":
            entry_schemas = option.get("prefixItems") or [option.get("items", {})]
            return limits_text(entry_schemas[0])

        if option.get("type") in ("integer", "number"):
            limits = _limits(option)
            return f"must {limits}{or_null}" if limits else ""

    return ""


def _limits(schema: Mapping[str, Any]) -> str:
    """Return the limits of a number, as they continue "must": "be at least 1", "not be negative";
    empty without any.
    """
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    multiple = schema.get("multipleOf")

    if multiple is not None:
        return f"be a multiple of {multiple}"
    if low is not None and below is not None:
        return f"be in [{low}, {below})"
    if low is not None and high is not None:
        return f"be from {low} to {high}"
    if above is not None and below is not None:
        return f"lie between {above} and {below}"
    if low is not None:
        return "not be negative" if low == 0 else f"be at least {low}"
    if above is not None:
        return "be positive" if above == 0 else f"be above {above}"
    if high is not None:
        return f"be at most {high}"

    return ""


def _as_written(value: Any) -> Any:
    """Return a value as a YAML file has it, where a tuple is a list."""
    return list(value) if isinstance(value, tuple) else value


# A single field, a single part


@functools.cache
def _field_validator(cls: type[Config], name: str) -> TypeAdapter[Any]:
    """Return a validator of one field alone, as strict as the whole configuration's."""
    field = cls.model_fields[name]
    hint: Any = field.annotation
    for constraint in field.metadata:
        hint = Annotated[hint, constraint]

    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))


def field_problems(cls: type[Config], name: str, value: Any) -> list[str]:
    """Return what is wrong with one field's value; empty if the field can have it."""
    try:
        _field_validator(cls, name).validate_python(value)
    except ValidationError as error:
        location = _ErrorLocation(cls, name, name)
        messages = []
        for item in error.errors(include_url=False):
            item["loc"] = (name, *item["loc"])
            _, message = location.problem(item)
            messages.append(message)

        return messages

    return []


def field_types(cls: type[Config], name: str) -> set[type]:
    """Return the types that one field's value may have, without that of None; for a Literal the
    types of its values.
    """
    return set(_types(cls.model_fields[name].annotation))


def _types(hint: Any) -> Iterator[type]:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        yield from _types(typing.get_args(hint)[0])
    elif origin in (types.UnionType, Union):
        for option in typing.get_args(hint):
            yield from _types(option)
    elif origin is Literal:
        yield from (type(value) for value in typing.get_args(hint))
    elif hint is not type(None):
        yield origin or hint


def component_problems(name: str, data: Any) -> list[PathAndText]:
    """Return (dotted path, message) for what is wrong with one part of a trial, validated without
    the others.
    """
    return _part(name, data)[1]


def sound_parts(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the valid parts of a trial by name, each validated without the others."""
    parts: dict[str, Any] = {}
    for name in TrialConfig.model_fields:
        if name not in PARTS and name not in UNNAMED:
            continue
        # A trial without a `train` section has one with all defaults; another part is absent.
        if data.get(name) is None and name != "train":
            continue

        part, problems = _part(name, data.get(name))
        if part is not None and not problems:
            parts[name] = part

    return parts


def _part(name: str, data: Any) -> tuple[Any, list[PathAndText]]:
    """Return one part of a trial, or None, and what is wrong with it."""
    try:
        if name in UNNAMED:
            return UNNAMED[name].model_validate({} if data is None else data), []
        return component(PARTS[name], data), []
    except ValidationError as error:
        return None, problems_of_part(error, name)


def problems_of_part(error: ValidationError, name: str) -> list[PathAndText]:
    """Return (dotted path, message) for what pydantic found wrong with one part of a trial."""
    problems: dict[PathAndText, None] = {}
    for item in error.errors(include_url=False):
        item["loc"] = (name, *item["loc"])
        owner, where, field = _located(TrialConfig, item["loc"])
        problems.setdefault(_ErrorLocation(owner, where, field).problem(item))

    return list(problems)
