"""What a trial is: a frozen tree of dataclasses that holds everything that can change its numbers, and the key made of it.

Nothing here imports torch, so sweeps are checked and tables are printed without it. Each registered class (a method, a
backbone ...) brings its own `Config` below one of the bases of this file; `registry.py` finds it by name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from pointsweep import registry
from pointsweep.errors import ConfigError, Problem, unknown


def added(default: Any) -> Any:
    """A field that came after trials had been stored: left out of the key while it has this default, so old keys stay."""
    return field(default=default, metadata={"added": True})


@dataclass(frozen=True)
class Config:
    """A node of the tree. A subclass lists its fields and yields, from `problems`, what types cannot say."""

    # Raised by one whenever the code behind this config starts to give other numbers for the same fields: keys change.
    revision: ClassVar[int] = 1

    def problems(self) -> Iterator[str]:
        """Yields "field: message" for every value that is out of range."""
        yield from ()


@dataclass(frozen=True)
class NamedConfig(Config):
    """The config of something registered. `name` is its name in the registry, the YAML file and the table."""

    name: str = ""


@dataclass(frozen=True)
class DatasetConfig(NamedConfig):
    """Fields every data set has; augmentation follows each paper's program (spec 2.9, 4.4).

    A training cloud is cut to `presample` points by farthest point sampling, then to a random `num_points` of those; a test
    cloud is cut to `num_points` by farthest point sampling. Lengths are in the data set's own units, angles in radians.
    """

    num_points: int = 1024
    presample: int = 1200
    scale: tuple[float, float] = (1.0, 1.0)  # per axis, uniform in this range
    translate: float = 0.0  # per axis, uniform in +- this
    rotate: Literal["none", "gravity", "all"] = "none"  # a uniform turn about the y axis, or about any
    center: bool = True  # subtract the mean, after scaling
    unit_sphere: bool = False  # then divide by the largest norm
    val_fraction: float = 0.0  # of every class of the training split, kept out for validation
    train_limit: int | None = None  # at most so many training clouds (the first of every class in turn); null = all
    test_limit: int | None = None

    def problems(self) -> Iterator[str]:
        if self.num_points < 8:
            yield f"num_points: must be at least 8, got {self.num_points}"
        if self.presample < self.num_points:
            yield f"presample: must be at least num_points ({self.num_points}), got {self.presample}"
        if not 0 < self.scale[0] <= self.scale[1]:
            yield f"scale: must be two positive numbers, the smaller first, got {list(self.scale)}"
        if self.translate < 0:
            yield f"translate: must not be negative, got {self.translate}"
        if not 0 <= self.val_fraction < 1:
            yield f"val_fraction: must be in [0, 1), got {self.val_fraction}"
        for limit in ("train_limit", "test_limit"):
            value = getattr(self, limit)
            if value is not None and value < 1:
                yield f"{limit}: must be at least 1 or null, got {value}"


@dataclass(frozen=True)
class TokenizerConfig(NamedConfig):
    """Base of the tokenizers' configs."""


@dataclass(frozen=True)
class BackboneConfig(NamedConfig):
    """Fields every backbone has. `weights`: `pretrained`, `random` (marked in every record and table) or a file's path."""

    weights: str = "pretrained"
    sha256: str | None = None  # of the weight file, checked when given
    weights_seed: int = 0  # draws the weights when they are random; the frozen network stays the same over a trial's seeds
    num_blocks: int | None = None  # the first so many blocks; null = all
    attention_dropout: float = 0.0  # in training; the table of spec 2.8
    drop_path: float = 0.0  # in training; grows linearly from 0 at the first block to this at the last

    def problems(self) -> Iterator[str]:
        if self.num_blocks is not None and self.num_blocks < 1:
            yield f"num_blocks: must be at least 1 or null, got {self.num_blocks}"
        for name in ("attention_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name}: must be in [0, 1), got {getattr(self, name)}"


@dataclass(frozen=True)
class MethodConfig(NamedConfig):
    """Base of the methods' configs. `modalities` are those of the backbones the method can be put into."""

    modalities: ClassVar[tuple[str, ...]] = ("1d", "2d", "3d")


@dataclass(frozen=True)
class NetworkConfig(NamedConfig):
    """Base of the configs of whole networks, which take the place of tokenizer + backbone + method + head."""

    trainable: ClassVar[bool] = True
    compats: ClassVar[tuple[str, ...]] = ("fixed",)


@dataclass(frozen=True)
class PositionsConfig(Config):
    """Positional encoding of the tokens (Any2Point, spec 2.1-2.4 and the `pe` row of 2.10).

    `virtual`: the source encodings at the places where the centres fall on `num_views` virtual lines (1d) or planes (2d),
    averaged over the views; on a 3d backbone its own encoding of the centres. The projection also says which tokens share
    a cell in Any2Point's adapter, whatever `kind` is.
    """

    kind: Literal["virtual", "none", "sinusoidal", "learnable"] = "virtual"
    num_views: int = 6
    view_set: Literal["pointclip", "uniform"] = "pointclip"
    injection: Literal["once", "each_block", "twice_then_each"] = "once"
    line: tuple[float, float, float] = (-1.0, 0.0, 1.0)  # direction of the 1d projection (`pos_cor`)
    translation: float = -1.8  # of the 2d projection along the line of sight (`trans`)

    def problems(self) -> Iterator[str]:
        if not 1 <= self.num_views <= 10:
            yield f"num_views: must be from 1 to 10, got {self.num_views}"
        if not any(self.line):
            yield "line: must not be the zero vector"


@dataclass(frozen=True)
class HeadConfig(Config):
    """The classifier over concat(class token, max over the other tokens) (spec 2.6): ScanObjectNN's program by default."""

    order: Literal["max_cls", "cls_max"] = "max_cls"
    bias: bool = False  # of the first two linear layers; true in the ModelNet program
    hidden: int = 256
    dropout: float = 0.5

    def problems(self) -> Iterator[str]:
        if self.hidden < 1:
            yield f"hidden: must be at least 1, got {self.hidden}"
        if not 0 <= self.dropout < 1:
            yield f"dropout: must be in [0, 1), got {self.dropout}"


@dataclass(frozen=True)
class TrainConfig(Config):
    """Optimisation (spec 2.8): AdamW, linear warm-up then cosine without a shift, one learning rate an epoch."""

    epochs: int = 300
    batch_size: int = 32
    eval_batch_size: int = 64
    lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_epochs: int = 10
    cosine_epochs: int | None = None  # period of the cosine; null = epochs
    weight_decay: float = 0.05  # not on biases and other 1-D parameters
    decay_tokens: bool = True  # false: no decay on parameters whose name holds "token" (the ModelNet program)
    clip_norm: float = 10.0
    label_smoothing: float = 0.0
    init: Literal["xavier", "trunc_normal"] = "xavier"  # of what is trained: ScanObjectNN's or ModelNet's program (spec 2.8)
    precision: Literal["fp32", "bf16"] = "fp32"

    def problems(self) -> Iterator[str]:
        for name in ("epochs", "eval_batch_size"):
            if getattr(self, name) < 1:
                yield f"{name}: must be at least 1, got {getattr(self, name)}"
        if self.batch_size < 2:
            yield f"batch_size: must be at least 2 (batch normalisation), got {self.batch_size}"
        if not 0 <= self.min_lr <= self.lr:
            yield f"min_lr: must be from 0 to lr ({self.lr}), got {self.min_lr}"
        if self.warmup_epochs < 0:
            yield f"warmup_epochs: must not be negative, got {self.warmup_epochs}"
        if self.weight_decay < 0 or self.clip_norm <= 0:
            yield "weight_decay must not be negative and clip_norm must be positive"
        if not 0 <= self.label_smoothing < 1:
            yield f"label_smoothing: must be in [0, 1), got {self.label_smoothing}"


@dataclass(frozen=True)
class TrialConfig(Config):
    """Everything that can change a trial's numbers, and nothing else. Either `network` or the five parts below it are set."""

    dataset: DatasetConfig
    network: NetworkConfig | None = None
    tokenizer: TokenizerConfig | None = None
    backbone: BackboneConfig | None = None
    positions: PositionsConfig | None = None
    method: MethodConfig | None = None
    head: HeadConfig | None = None
    train: TrainConfig = TrainConfig()
    compat: Literal["fixed", "official"] = "fixed"
    seed: int = 0

    def key(self) -> str:
        """16 hex digits that name the trial's folder: the same in every process, version and order of keys."""
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars; `trial_from_dict` is its inverse."""
        return typing.cast(dict[str, Any], _plain(self))


PARTS = {"dataset": "datasets", "network": "networks", "tokenizer": "tokenizers", "backbone": "backbones", "method": "methods"}
MODEL_PARTS = ("tokenizer", "backbone", "positions", "method", "head")
UNNAMED = {"positions": PositionsConfig, "head": HeadConfig, "train": TrainConfig}


def canonical_json(config: Config) -> str:
    """Sorted, compact JSON of all fields; `added` fields at their default are left out, revisions above 1 are put in."""
    return json.dumps(_canonical(config), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical(value: Any) -> Any:
    if isinstance(value, Config):
        kept = [f for f in fields(value) if not (f.metadata.get("added") and getattr(value, f.name) == f.default)]
        node = {f.name: _canonical(getattr(value, f.name)) for f in kept}
        return node | ({"revision": value.revision} if value.revision > 1 else {})
    return [_canonical(item) for item in value] if isinstance(value, tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return list(value) if isinstance(value, tuple) else value


def trial_from_dict(data: Mapping[str, Any]) -> TrialConfig:
    """Builds a trial from plain data, strictly. Raises ConfigError with every problem, each under its dotted path."""
    config, problems = check_trial(data)
    if config is None or problems:
        raise ConfigError("trial", [Problem(path, message) for path, message in problems])
    return config


def check_trial(data: Mapping[str, Any]) -> tuple[TrialConfig | None, list[tuple[str, str]]]:
    """The trial, or None, and all (dotted path, message) that are wrong with it."""
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
    if config.compat == "official" and (config.network is None or "official" not in config.network.compats):
        name = config.network.name if config.network else getattr(config.method, "name", "")
        yield "compat", f"{name} has no official form here; allowed: fixed"


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
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and number:
        if value != value or value in (float("inf"), float("-inf")):
            problems.append((path, f"must be a finite number, got {value}"))
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        problems.append((path, f"must be {words.get(hint, hint)}, got {value!r}"))
    return value


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


def with_seed(config: TrialConfig, seed: int) -> TrialConfig:
    """The same trial with another seed."""
    return dataclasses.replace(config, seed=seed)
