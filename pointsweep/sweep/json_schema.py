"""The JSON Schema of a sweep file, for editors: what they complete, explain and underline.

The components' part comes from their configuration classes. It is written in draft 7, which every
editor knows. What needs the whole file (two keys that clash, a condition that never holds) is found
by `pointsweep.sweep.sweep.load` alone.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pointsweep.config import registry
from pointsweep.config.base import MOST_WHOLE, Compat, Config, NamedConfig
from pointsweep.config.schema import PARTS, UNNAMED
from pointsweep.results.metrics import BUILT_IN, table_metrics
from pointsweep.sweep.ablation import GENERATORS, SIDES
from pointsweep.sweep.parser import PROTOCOLS
from pointsweep.sweep.plugin_section import IMPORT_PATH
from pointsweep.sweep.published import COLUMNS
from pointsweep.sweep.resources import Budget, Resources
from pointsweep.sweep.search_section import PerArmConfig, SearchConfig, StudyConfig
from pointsweep.sweep.search_space import OBJECTIVES, SAMPLERS, SCHEDULERS
from pointsweep.sweep.seeds import MOST_SEEDS
from pointsweep.sweep.yaml_document import shipped_folder

Schema = dict[str, Any]

FILE = "sweep.schema.json"
TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}
SCALAR: Schema = {"type": ["string", "number", "boolean"]}
ONE_OR_MORE = {"minItems": 1}


def sweep_schema() -> Schema:
    """Return the JSON Schema (draft 7) of a sweep file, of pointsweep's own components.

    Components of others are accepted by their import paths, with any fields.
    """
    fields = _field_schemas()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "pointsweep sweep file",
        "description": "One file is one table: rows x columns x seeds, or a search.",
        **_closed(_sections()),
        "definitions": {
            **_components(),
            **_settings(fields),
            **_tables(),
            **_searches(),
        },
    }


def schema_text() -> str:
    """Return the schema as the text of its file."""
    return json.dumps(sweep_schema(), indent=1) + "\n"


def shipped_file() -> Path:
    """Return the file of the schema that comes with pointsweep, beside its sweeps."""
    return shipped_folder() / FILE


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _closed(properties: Mapping[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    """Return the schema of a mapping with these keys and no others."""
    schema: Schema = {"type": "object", "additionalProperties": False}
    if required:
        schema["required"] = list(required)

    return {**schema, "properties": dict(properties)}


def _list_of(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _any_of(*options: Schema) -> Schema:
    return {"anyOf": list(options)}


def _whole(least: int, most: int | None = None) -> Schema:
    schema: Schema = {"type": "integer", "minimum": least}
    if most is None:
        return schema

    return {**schema, "maximum": most}


def _mapping(keys: Schema, values: Schema, **more: Any) -> Schema:
    return {
        "type": "object",
        "propertyNames": keys,
        "additionalProperties": values,
        **more,
    }


# Components

OF_OTHERS: Schema = {"type": "string", "pattern": f"^{IMPORT_PATH.pattern}$"}


def _own(kind: str) -> dict[str, type[NamedConfig]]:
    """Return the configuration classes of pointsweep's own components of a kind, by name."""
    own: dict[str, type[NamedConfig]] = {}
    for name, config in registry.config_classes(kind).items():
        if not registry.source_of(kind, name):
            own[name] = config

    return own


def _components() -> dict[str, Schema]:
    """Return the schema of every component, and of the parts that have no name."""
    schemas: dict[str, Schema] = {}
    for part, kind in PARTS.items():
        for name, config in _own(kind).items():
            schemas[f"{part}.{name}"] = {**model_schema(config), "required": ["name"]}

    for part, unnamed in UNNAMED.items():
        schemas[part] = model_schema(unnamed)

    return schemas


@functools.cache
def model_schema(config: type[Config]) -> Schema:
    """Return the schema of one configuration class, with the descriptions of its fields."""
    schema: Schema = _cleaned(config.model_json_schema())
    for name, text in _docstrings(config).items():
        if name in schema["properties"]:
            schema["properties"][name]["description"] = " ".join(text.split())

    return schema


def _cleaned(schema: Any) -> Any:
    """Drop titles, and write lists of a fixed length as draft 7 has them."""
    if isinstance(schema, list):
        return [_cleaned(item) for item in schema]
    if not isinstance(schema, dict):
        return schema

    cleaned = {}
    for key, value in schema.items():
        if key == "title" and isinstance(value, str):
            continue

        if key == "prefixItems":
            key, value = "items", value[0]  # all entries have one type

        cleaned[key] = _cleaned(value)

    return cleaned


def _docstrings(config: type[Config]) -> dict[str, str]:
    """Return what stands in quotes below the fields of a class and of its bases."""
    texts: dict[str, str] = {}
    for kind in reversed(config.__mro__):
        if not issubclass(kind, Config) or kind is Config:
            continue

        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(tree, ast.ClassDef)
        for statement, text in itertools.pairwise(tree.body):
            if not isinstance(statement, ast.AnnAssign):
                continue

            field = statement.target
            if not isinstance(field, ast.Name) or not isinstance(text, ast.Expr):
                continue

            if isinstance(text.value, ast.Constant):
                texts[field.id] = inspect.cleandoc(str(text.value.value))

    return texts


# Settings of a trial


def _field_schemas() -> dict[str, Schema]:
    """Return the schema of every dotted key of a trial: over all components that have the field."""
    by_key: dict[str, Schema] = {}
    for part, kind in PARTS.items():
        own = _own(kind)
        options: dict[str, list[Schema]] = {}
        for config in own.values():
            for field, schema in model_schema(config)["properties"].items():
                if field != "name":
                    options.setdefault(field, []).append(schema)

        by_key[f"{part}.name"] = _any_of({"enum": list(own)}, OF_OTHERS)
        for field, schemas in options.items():
            by_key[f"{part}.{field}"] = _merged(schemas)

    for part, unnamed in UNNAMED.items():
        for field, schema in model_schema(unnamed)["properties"].items():
            without_default = dict(schema)
            without_default.pop("default", None)
            by_key[f"{part}.{field}"] = without_default

    return by_key


def _merged(schemas: list[Schema]) -> Schema:
    """Return a schema for what any of several allows. Defaults differ from component to
    component.
    """
    distinct: dict[str, Schema] = {}
    described = {}

    for schema in schemas:
        bare = {}
        for key, value in schema.items():
            if key not in ("default", "description"):
                bare[key] = value

        distinct.setdefault(json.dumps(bare, sort_keys=True), bare)
        if "description" in schema:
            described["description"] = schema["description"]

    merged = _any_of(*distinct.values())
    if len(distinct) == 1:
        (merged,) = distinct.values()

    return {**merged, **described}


def _settings(fields: Mapping[str, Schema]) -> dict[str, Schema]:
    """Return the definitions of settings: parts, dotted keys, lists of values, and conditions."""
    schemas: dict[str, Schema] = {}
    for key, schema in fields.items():
        # A component's own definition may have the name of a field of its part.
        schemas[f"field.{key}"] = schema

    keys: dict[str, Schema] = {}

    for part in (*PARTS, *UNNAMED):
        schemas[f"part.{part}"] = _part(part, fields)
        keys[part] = _ref(f"part.{part}")

    keys["compat"] = {
        "enum": list(get_args(Compat)),
        "description": "fixed, or official: as the published program does it.",
    }

    for key in fields:
        keys[key] = _ref(f"field.{key}")

    lists: dict[str, Schema] = {}
    alternatives: dict[str, Schema] = {}
    for key, schema in keys.items():
        lists[key] = _list_of(schema)
        alternatives[key] = _any_of(schema, _list_of(schema))

    schemas["key"] = {"enum": list(keys)}
    schemas["settings"] = {"type": "object", "properties": keys}
    schemas["values"] = {"type": "object", "properties": lists}
    schemas["condition"] = {
        "type": "object",
        "minProperties": 1,
        "propertyNames": _any_of(_ref("key"), {"const": "backbone.modality"}),
        "properties": alternatives,
    }

    return schemas


def _part(part: str, fields: Mapping[str, Schema]) -> Schema:
    if part in UNNAMED:
        return _any_of({"type": "null"}, _ref(part))

    names = list(_own(PARTS[part]))
    own = {}
    for key in fields:
        if key.startswith(f"{part}."):
            own[key.removeprefix(f"{part}.")] = _ref(f"field.{key}")

    own.pop("name")
    components = [_ref(f"{part}.{name}") for name in names]
    component_of_others = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": OF_OTHERS},
    }

    return _any_of(
        {"enum": [*names, None]},
        *components,
        OF_OTHERS,
        component_of_others,
        _closed(own),  # settings of whichever component is named elsewhere
    )


def _settings_and(own: Mapping[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    """Return the schema of settings with some keys of another meaning beside them."""
    names = _ref("key")
    if own:
        names = _any_of(names, {"enum": list(own)})

    schema: Schema = {
        "type": "object",
        "allOf": [_ref("settings")],
        "properties": dict(own),
        "propertyNames": names,
    }
    if required:
        schema["required"] = list(required)

    return schema


# Sections


def _sections() -> dict[str, Schema]:
    """Return the keys of a file."""
    published = _mapping({"enum": [*COLUMNS, "file"]}, SCALAR)
    exclude = {
        "when": _ref("condition"),
        "because": {**SCALAR, "description": "The reason, which the table shows."},
    }

    profile = {"only": _any_of(SCALAR, _list_of(SCALAR))}
    own_metrics = []

    for name in table_metrics():
        if name.partition("/")[2] in BUILT_IN:
            own_metrics.append(name)

    return {
        "name": {
            "type": ["string", "integer"],
            "description": "The folder in the store and the MLflow experiment: a-z 0-9 _ -",
        },
        "title": {
            "type": ["string", "number", "boolean", "null"],
            "description": "Stands above the table.",
        },
        "base": {
            **_settings_and({"from": {"type": "string"}}),
            "description": (
                "Settings of every cell; from: a sweep file whose base and settings are inherited."
            ),
        },
        "settings": {
            **_list_of(_settings_and({"when": _ref("condition")}, ("when",))),
            "description": (
                "Conditional settings: stronger than base, weaker than rows, columns and axes."
            ),
        },
        "rows": {**_ref("axis")},
        "columns": {**_ref("axis")},
        "axes": {
            "type": "object",
            "allOf": [_ref("values")],
            "properties": {"zip": _ref("zip")},
            "propertyNames": _any_of(_ref("key"), {"const": "zip"}),
            "description": (
                "Further axes, nested under the rows; without columns the last one is printed"
                " across."
            ),
        },
        "exclude": {
            **_list_of(
                {"type": "object", "required": list(exclude), "properties": exclude}
            ),
            "description": "Cells that are left out, each with a reason.",
        },
        "seeds": _seeds(),
        "metric": {
            **_any_of({"enum": own_metrics}, OF_OTHERS),
            "description": "What the cells show.",
        },
        "protocol": {"enum": list(PROTOCOLS), "description": "Which epoch counts."},
        "published": {
            **published,
            "description": "Selects lines of published.csv; rows and columns add to it.",
        },
        "cite": {
            "type": "string",
            "description": "The source of numbers whose line names none.",
        },
        "resources": _resources(),
        "profiles": {
            "type": "object",
            "additionalProperties": _any_of({"type": "null"}, _settings_and(profile)),
            "description": "Additions to a profile, or profiles of one's own.",
        },
        "search": _ref("search"),
        "per_arm": _ref("per_arm"),
        "plugins": {
            **_list_of({"type": "string"}),
            "description": (
                "Python files or packages of your own, relative to this file; needs"
                " --allow-plugins."
            ),
        },
    }


def _seeds() -> Schema:
    rule = {
        "min": _whole(2),
        "max": _whole(3, MOST_SEEDS),
        "until": {"const": "decided"},
        "against": {
            **SCALAR,
            "description": "The row that all others are compared with; default: the first.",
        },
    }
    listed = {**_list_of(_whole(0, MOST_WHOLE)), **ONE_OR_MORE, "uniqueItems": True}
    return {
        **_any_of(
            _whole(1, MOST_SEEDS), listed, _closed(rule, ("min", "max", "until"))
        ),
        "description": (
            "A number of seeds, a list, or a rule that spends further seeds where rows are not told"
            " apart."
        ),
    }


def _resources() -> Schema:
    keys = dict(model_schema(Resources)["properties"])
    keys["budget"] = model_schema(Budget)
    text = "What one pack takes of the machines, and what the whole sweep may."
    return {**_any_of({"type": "null"}, _closed(keys)), "description": text}


def _tables() -> dict[str, Schema]:
    """Return the definitions of rows, columns and axes."""
    selected = {"type": "object", "additionalProperties": SCALAR}
    by_column = {"type": "object", "additionalProperties": _any_of(SCALAR, selected)}
    published = _any_of(SCALAR, by_column, {"type": "null"})
    factors = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"type": "boolean"},
    }

    entry = {
        "label": {**SCALAR, "description": "What the table prints."},
        "when": {
            **_ref("condition"),
            "description": "The cells that this row or column is for.",
        },
        "published": {
            **published,
            "description": "What the paper calls it, or its number in percent.",
        },
        "factors": {
            **factors,
            "description": "Of a factorial: which components it has.",
        },
        "because": {
            **SCALAR,
            "description": "Why it cannot be run; it then sets nothing.",
        },
    }

    nothing: Schema = {"type": "null"}  # for an item of the zip that has none
    lists = {
        "label": _list_of(entry["label"]),
        "when": _list_of(_any_of(_ref("condition"), nothing)),
        "published": _list_of(entry["published"]),
        "factors": _list_of(_any_of(factors, nothing)),
    }

    # Not `anyOf`: an editor underlines what is wrong in the form that is meant.
    one_key = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "allOf": [_ref("values")],
        "properties": {"zip": _ref("zip"), "ablate": _ref("ablate")},
        "propertyNames": _any_of(_ref("key"), {"enum": ["zip", "ablate"]}),
    }

    return {
        "entry": _settings_and(entry, ("label",)),
        "zip": {
            "type": "object",
            "minProperties": 1,
            "allOf": [_ref("values")],
            "properties": lists,
            "propertyNames": _any_of(_ref("key"), {"enum": list(lists)}),
            "description": "Keys that vary together, lists of one length.",
        },
        "ablate": _ablate(),
        "axis": {
            "description": (
                "A list of labelled settings, one key with its values, a zip, or an ablation."
            ),
            "if": {"type": "array"},
            "then": _list_of(_ref("entry")),
            "else": one_key,
        },
    }


def _ablate() -> Schema:
    sides = {side: _settings_and({}) for side in SIDES}
    names = {**_list_of(SCALAR), **ONE_OR_MORE, "uniqueItems": True}
    chosen = _any_of({"const": "all"}, names)
    return _closed(
        {
            "components": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": _closed(sides, ("without",)),
                "description": "Each with the settings that switch it off (without) and on (with).",
            },
            "whole": {
                **SCALAR,
                "description": "The label of the row with all components.",
            },
            "bare": {**SCALAR, "description": "The label of the row with none."},
            **dict.fromkeys(GENERATORS, chosen),
            "published": {
                "type": "object",
                "description": "What the paper calls the rows, by label.",
            },
        },
        ("components",),
    )


# Searches


def _searches() -> dict[str, Schema]:
    choices: Schema = {"type": "array", **ONE_OR_MORE}
    parameter = _any_of(
        choices,
        _range("float", "number"),
        _range("int", "integer"),
        _closed({"choices": choices, "when": _ref("condition")}, ("choices",)),
    )

    objectives = {name: {"const": direction} for name, direction in OBJECTIVES.items()}
    text_or_list = _any_of({"type": "string"}, _list_of({"type": "string"}))
    point = {"type": "object", "propertyNames": _ref("key")}

    samplers: dict[str, dict[str, Schema]] = {}

    for name, kinds in SAMPLERS.items():
        samplers[name] = {key: {"type": TYPES[kind]} for key, kind in kinds.items()}

    schedulers: dict[str, dict[str, Schema]] = {}
    for name, options in SCHEDULERS.items():
        schedulers[name] = {key: _whole(1) for key in options}

    # What the models of the sections leave open.
    read_apart: dict[str, Schema] = {
        "space": _mapping(_ref("key"), parameter, minProperties=1),
        "constraints": text_or_list,
        "objectives": {**_closed(objectives), "minProperties": 1},
        "sampler": _any_of(*_choices(samplers)),
        "scheduler": _any_of({"type": "null"}, *_choices(schedulers)),
        "enqueue": _any_of(point, _list_of(point)),
    }

    inner = _section(StudyConfig, read_apart, "space")

    return {
        "search": _section(SearchConfig, read_apart, "space"),
        "per_arm": _section(PerArmConfig, {"search": inner}, "search"),
    }


def _section(
    config: type[Config], open_keys: Mapping[str, Schema], required: str
) -> Schema:
    """Return the schema of a section: that of its model, with the keys that the model leaves
    open.
    """
    keys = {}
    for name, schema in model_schema(config)["properties"].items():
        keys[name] = {**schema, **open_keys.get(name, {})}
        if keys[name].get("default", "") is None:
            del keys[name]["default"]

    return _closed(keys, (required,))


def _range(kind: str, type_name: str) -> Schema:
    limits = {**_list_of({"type": type_name}), "minItems": 2, "maxItems": 2}
    step: Schema = {"type": [type_name, "null"], "exclusiveMinimum": 0}
    return _closed(
        {
            kind: limits,
            "log": {"type": "boolean"},
            "step": step,
            "when": _ref("condition"),
        },
        (kind,),
    )


def _choices(named: Mapping[str, Mapping[str, Schema]]) -> Iterator[Schema]:
    """Yield the schema of a bare name, then of every name with its options."""
    yield {"enum": list(named)}
    for name, options in named.items():
        yield _closed({"name": {"const": name}, **options}, ("name",))


if __name__ == "__main__":
    shipped_file().write_text(schema_text(), encoding="utf-8")
