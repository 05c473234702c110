"""Plain data -> TrialConfig, strictly: every wrong name, type and value with its path, what is allowed and the nearest name."""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Literal

from pointsweep import registry
from pointsweep.config import official, scalars
from pointsweep.config.schema import MODEL_PARTS, PARTS, Config, HeadConfig, PositionsConfig, TrainConfig, TrialConfig
from pointsweep.errors import ConfigError, Problem, unknown

MOST_WHOLE = 2**63 - 1  # seeds and sizes are 64-bit numbers in torch and numpy
UNNAMED = {"positions": PositionsConfig, "head": HeadConfig, "train": TrainConfig}


def trial_from_dict(data: Mapping[str, Any]) -> TrialConfig:
    """Builds a trial from plain data, strictly. Raises ConfigError with every problem, each under its dotted path."""
    config, problems = check_trial(data)
    if config is None or problems:
        raise ConfigError("trial", [Problem(path, message) for path, message in problems])
    return config


def check_trial(data: Mapping[str, Any]) -> tuple[TrialConfig | None, list[tuple[str, str]]]:
    """The trial, or None, and all (dotted path, message) that are wrong with it."""
    data = official.with_defaults(data)
    problems: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    whole = data.get("network") is not None
    for name in ("dataset", "network") if whole else ("dataset", "tokenizer", "backbone", "positions", "method", "head"):
        values[name] = _part(name, data.get(name), problems)
    values["train"] = _part("train", data.get("train"), problems)
    if whole:
        problems += [(part, "a network takes the place of this part; leave it out") for part in MODEL_PARTS if data.get(part)]
    known = {f.name for f in fields(TrialConfig)}
    problems += [(name, unknown("part", name, known, "Parts")) for name in data if name not in known]
    hints = _hints(TrialConfig)
    for name in ("compat", "seed"):
        if name in data:
            values[name] = _convert(data[name], hints[name], name, problems)
    if problems:
        return None, problems
    config = TrialConfig(**values)
    problems += _cross_problems(config)
    return config, problems


def _cross_problems(config: TrialConfig) -> Iterator[tuple[str, str]]:
    if config.seed < 0:
        yield "seed", f"must not be negative, got {config.seed}"
    if config.method is not None and config.backbone is not None:
        modality = registry.modality(config.backbone)
        if modality not in config.method.modalities:
            needed = " or ".join(config.method.modalities)
            yield "method", f"{config.method.name} needs a {needed} backbone; {config.backbone.name} is {modality}"
    if config.backbone is not None and config.backbone.num_blocks == 0:
        yield from _without_blocks(config)
    whole = config.network or config.method
    if whole is not None and config.compat not in whole.compats:
        yield "compat", f"{whole.name} has no {config.compat} form here; allowed: {', '.join(whole.compats)}"
    if config.dataset.num_categories and config.network is not None:
        yield "network", f"{config.network.name} classifies whole clouds; {config.dataset.name} needs a backbone and a method"
    if config.dataset.num_categories and config.compat != "fixed":
        yield "compat", f"the published programs are those of classification; allowed on {config.dataset.name}: fixed"
    if config.dataset.heights and (config.tokenizer is None or config.tokenizer.name != "point_pn"):
        yield "dataset.heights", "the tokenizer point_pn alone takes heights; leave them out with any other"
    if config.head and config.backbone and config.head.pool == "class_max" and not config.backbone.class_token:
        yield "head.pool", f"{config.backbone.name} has no class token; allowed: mean_max, mean_plus_max"


def _without_blocks(config: TrialConfig) -> Iterator[tuple[str, str]]:
    """What cannot be done with a backbone that has no blocks."""
    if config.method is not None and config.method.needs_blocks:
        names = registry.names("methods")
        able = [name for name in names if not registry.config_class("methods", name).needs_blocks]
        yield (
            "method",
            f"{config.method.name} works in the blocks, backbone.num_blocks: 0 leaves none; allowed: {', '.join(able)}",
        )
    if config.dataset.num_categories:
        yield (
            "backbone.num_blocks",
            f"0 leaves no block for the head of parts to read; allowed on {config.dataset.name}: 1 or more, null",
        )


def _part(name: str, data: Any, problems: list[tuple[str, str]]) -> Any:
    """One part of a trial. A string stands for its name alone; parts without a name may be left out."""
    if name in UNNAMED:
        return build(UNNAMED[name], {} if data is None else data, name, problems)
    if isinstance(data, str):
        data = {"name": data}
    kind = PARTS[name]
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        wanted = f"missing; name one of: {', '.join(registry.names(kind))}"
        problems.append((name, wanted if data is None else f"needs a name, got {data!r}; {wanted}"))
        return None
    if data["name"] not in registry.names(kind):
        problems.append((name, unknown(name, data["name"], registry.names(kind), "Known")))
        return None
    return build(registry.config_class(kind, data["name"]), data, name, problems)


def field_problems(cls: Any, name: str, value: Any) -> list[str]:
    """Return what is wrong with the type of one field's value; empty if the field can have it."""
    problems: list[tuple[str, str]] = []
    _convert(value, _hints(cls)[name], name, problems)
    return [message for _, message in problems]


def field_types(cls: Any, name: str) -> set[type]:
    """Return the types that one field's value may have, None left out; of a literal those of its values."""
    hint = _hints(cls)[name]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hints = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    else:
        hints = [hint]
    found: set[type] = set()
    for each in hints:
        if typing.get_origin(each) is Literal:
            found.update(type(value) for value in typing.get_args(each))
        else:
            found.add(typing.get_origin(each) or each)
    return found


def component_problems(name: str, data: Any) -> list[tuple[str, str]]:
    """Return (dotted path, message) for what is wrong with one part of a trial, looked at by itself."""
    problems: list[tuple[str, str]] = []
    _part(name, data, problems)
    return problems


def sound_parts(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a trial that are right, each looked at by itself, by name."""
    found: dict[str, Any] = {}
    for name in ("dataset", "network", "tokenizer", "backbone", "positions", "method", "head", "train"):
        given = data.get(name)
        if given is None and name != "train":
            continue
        problems: list[tuple[str, str]] = []
        part = _part(name, given, problems)
        if part is not None and not problems:
            found[name] = part
    return found


def build(cls: type[Config], data: Any, path: str, problems: list[tuple[str, str]]) -> Any:
    """A `cls` from a mapping, strictly typed. Appends what is wrong to `problems` and then returns None."""
    if not isinstance(data, Mapping):
        problems.append((path, f"must be a mapping, got {data!r}"))
        return None
    hints, before = _hints(typing.cast(Any, cls)), len(problems)
    owner = data.get("name") or path.rsplit(".", 1)[-1]
    for key in data:
        if key not in hints:
            names = sorted(hints)
            problems.append((f"{path}.{key}", _no_field(str(owner), str(key), names)))
    values = {k: _convert(v, hints[k], f"{path}.{k}", problems) for k, v in data.items() if k in hints}
    if len(problems) > before:
        return None
    config = cls(**values)
    for text in config.problems():
        name, _, message = text.partition(": ")
        problems.append((f"{path}.{name}", message) if message and name in hints else (path, text))
    return config


def _no_field(owner: str, key: str, names: list[str]) -> str:
    text = unknown("field", key, [n for n in names if n != "name"], "Fields")
    return f"{owner} has no field '{key}'." + text.removeprefix(f"unknown field '{key}'.")


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def _convert(value: Any, hint: Any, path: str, problems: list[tuple[str, str]]) -> Any:
    """`value` as the hinted type; whole numbers are taken for floats, nothing else is coerced."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _convert(value, next(a for a in args if a is not type(None)), path, problems)
    if origin is Literal:
        if value not in args or isinstance(value, bool) != isinstance(args[0], bool):
            problems.append((path, unknown("value", value, map(str, args), "Allowed")))
        return value
    if origin is tuple:
        return _convert_tuple(value, args, path, problems)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _convert_float(value, path, problems)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        problems.append((path, f"must be {words.get(hint, hint)}, got {scalars.shown(value)}"))
    elif hint is int and abs(value) > MOST_WHOLE:
        problems.append((path, f"must be a whole number of at most {MOST_WHOLE}, got {value}"))
    return value


def _convert_float(value: int | float, path: str, problems: list[tuple[str, str]]) -> float:
    """Return a number as a finite float; -0.0 is 0.0, so that both have one key."""
    try:
        made = float(value)
    except OverflowError:
        made = math.inf
    if not math.isfinite(made):
        problems.append((path, f"must be a finite number, got {value}"))
        return 0.0
    if made != value:
        problems.append((path, f"{value} has more digits than a floating-point number keeps; the nearest is {int(made)}"))
    return made + 0.0


def _convert_tuple(value: Any, args: tuple[Any, ...], path: str, problems: list[tuple[str, str]]) -> Any:
    if not isinstance(value, (list, tuple)):
        problems.append((path, f"must be a list, got {value!r}"))
        return value
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(value) != len(args):
        problems.append((path, f"must have {len(args)} entries, got {len(value)}"))
        return value
    return tuple(_convert(item, arg, f"{path}[{i}]", problems) for i, (item, arg) in enumerate(zip(value, args, strict=True)))
