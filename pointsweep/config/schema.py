"""What a trial is: a frozen tree of dataclasses that holds everything that can change its numbers, and the key made of it.

Nothing here imports torch, so sweeps are checked and tables are printed without it. Each registered class (a method, a
backbone ...) brings its own `Config` below one of the bases of this file; `registry.py` finds it by name, `checks.py` fills it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

# Values of `backbone.weights` besides a file's path. What is drawn depends on `weights_seed`; `random` and `reinitialised` read
# no checkpoint.
WEIGHT_KINDS = ("pretrained", "random", "shuffled", "reinitialised")
DRAWN_WEIGHTS = ("random", "shuffled", "reinitialised")
WITHOUT_CHECKPOINT = ("random", "reinitialised")


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

    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)  # of every split; the first says which epoch is best
    num_categories: ClassVar[int] = 0  # above 0: part segmentation; every point has a label, and every cloud a category

    num_points: int = 1024
    presample: int = 1200
    scale: tuple[float, float] = (1.0, 1.0)  # per axis, uniform in this range
    translate: float = 0.0  # per axis, uniform in +- this
    rotate: Literal["none", "gravity", "all"] = "none"  # a uniform turn about the y axis, or about any
    center: bool = True  # subtract the mean, after scaling
    unit_sphere: bool = False  # then divide by the largest norm
    # A fourth channel: the height above the cloud's lowest point, after scaling, before centring (APPT's program).
    heights: bool = added(False)
    val_fraction: float = 0.0  # of every class of the training split, kept out for validation
    # In which order test clouds are put into batches. It is without effect unless a model sees the other clouds of its batch.
    test_order: Literal["file", "by_class", "shuffled"] = added("file")
    train_limit: int | None = None  # at most so many training clouds (the first of every class in turn); null = all
    test_limit: int | None = None
    # Test or validation clouds that are training clouds too are refused; true: they are trained on, and every table says so.
    allow_overlap: bool = added(False)

    @property
    def has_validation(self) -> bool:
        """Whether there are validation clouds."""
        return self.val_fraction > 0

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
class PartDatasetConfig(DatasetConfig):
    """Base of the data sets of part segmentation: `num_points` are drawn at random of every cloud, without a `presample`."""

    metrics: ClassVar[tuple[str, ...]] = ("instance_miou", "class_miou", "accuracy")  # accuracy: of the points


@dataclass(frozen=True)
class TokenizerConfig(NamedConfig):
    """Base of the tokenizers' configs."""


@dataclass(frozen=True)
class BackboneConfig(NamedConfig):
    """Fields every backbone has.

    `weights`: `pretrained`, a file's path, or a control, which every record and table marks: `shuffled` (the values of each
    pretrained tensor permuted), `reinitialised` (as the architecture's own program starts it), `random` (N(0, 0.02) at any width).
    """

    class_token: ClassVar[bool] = True  # false: no token stands before those of the points
    stand_in: ClassVar[bool] = False  # for tests and smoke runs: nobody compares with it
    max_blocks: ClassVar[int] = 12  # of the checkpoint

    weights: str = "pretrained"
    sha256: str | None = None  # of the weight file, checked when given
    # Of what is drawn. A number: one frozen network for all seeds of a trial; null: the trial's seed, a new network for each.
    weights_seed: int | None = 0
    num_blocks: int | None = None  # the first so many blocks; 0 = none (tokenizer, positions, norm and head stay); null = all
    attention_dropout: float = 0.0  # in training; the table of spec 2.8
    drop_path: float = 0.0  # in training; grows linearly from 0 at the first block to this at the last

    def problems(self) -> Iterator[str]:
        if self.num_blocks is not None and self.num_blocks < 0:
            yield f"num_blocks: must be at least 0 (no blocks) or null (all), got {self.num_blocks}"
        if self.num_blocks is not None and self.num_blocks > self.max_blocks:
            yield f"num_blocks: {self.name} has {self.max_blocks} blocks, got {self.num_blocks}"
        for name in ("attention_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name}: must be in [0, 1), got {getattr(self, name)}"


@dataclass(frozen=True)
class MethodConfig(NamedConfig):
    """Base of the methods' configs. `modalities` are those of the backbones the method can be put into."""

    modalities: ClassVar[tuple[str, ...]] = ("1d", "2d", "3d")
    compats: ClassVar[tuple[str, ...]] = ("fixed",)
    needs_blocks: ClassVar[bool] = True  # false: it can be used with `backbone.num_blocks: 0`


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
    init_std: float = added(0.02)  # of the learnable table and of the class token's position

    def problems(self) -> Iterator[str]:
        if not 1 <= self.num_views <= 10:
            yield f"num_views: must be from 1 to 10, got {self.num_views}"
        if not any(self.line):
            yield "line: must not be the zero vector"
        if self.init_std < 0:
            yield f"init_std: must not be negative, got {self.init_std}"


@dataclass(frozen=True)
class HeadConfig(Config):
    """The classifier over concat(class token, max over the other tokens) (spec 2.6): ScanObjectNN's program by default.

    `pool` null is `class_max`, where there is a class token, else `mean_max`; `mean_plus_max` is their sum, one token wide.
    On a data set of parts the head is that of `segmentation.py`, which takes `dropout` and `segmentation_widths` alone.
    """

    order: Literal["max_cls", "cls_max"] = "max_cls"
    bias: bool = False  # of the first two linear layers; true in the ModelNet program
    hidden: int = 256
    dropout: float = 0.5
    pool: Literal["class_max", "mean_max", "mean_plus_max"] | None = added(None)
    kind: Literal["two_layers", "one_layer"] = added("two_layers")  # hidden layers; one_layer: Point-BERT's, without batch norm
    last_hidden: int | None = added(None)  # of the second hidden layer; null = hidden
    input_dropout: float = added(0.0)
    segmentation_widths: tuple[int, int, int, int] = added((1536, 1024, 512, 256))  # two layers to spread features, two behind

    def problems(self) -> Iterator[str]:
        if self.hidden < 1 or (self.last_hidden is not None and self.last_hidden < 1):
            yield f"hidden: must be at least 1, as last_hidden, got {self.hidden} and {self.last_hidden}"
        if min(self.segmentation_widths) < 1:
            yield f"segmentation_widths: must be at least 1, got {list(self.segmentation_widths)}"
        for name in ("dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name}: must be in [0, 1), got {getattr(self, name)}"


PAPER_WARMUP = 10  # the default of `warmup_epochs`


@dataclass(frozen=True)
class TrainConfig(Config):
    """Optimisation (spec 2.8): AdamW, linear warm-up then cosine without a shift.

    The papers have one learning rate an epoch, and the first epoch of a warm-up trains at `min_lr`. With `warmup_fraction` the rate
    changes with every step and rises from the first step on, over that share of all steps: for short trainings.
    """

    epochs: int = 300
    batch_size: int = 32
    eval_batch_size: int = 64
    votes: int = added(1)  # test predictions are the mean over so many copies, all but the first augmented as in training
    lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_epochs: int = PAPER_WARMUP
    warmup_fraction: float | None = added(None)  # null: the papers' warm-up by epochs; takes the place of warmup_epochs
    cosine_epochs: int | None = None  # period of the cosine; null = epochs
    weight_decay: float = 0.05  # of what `decayed` says
    # `matrices`: not biases and other 1-D parameters; `all`: everything that trains, as in APPT's program.
    decayed: Literal["matrices", "all"] = added("matrices")
    adam_eps: float = added(1e-8)  # of AdamW; 1e-4 in APPT's program
    decay_tokens: bool = True  # false: no decay on parameters whose name holds "token" (the ModelNet program)
    clip_norm: float = 10.0
    label_smoothing: float = 0.0
    init: Literal["xavier", "trunc_normal"] = "xavier"  # of what is trained: ScanObjectNN's or ModelNet's program (spec 2.8)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = added(False)  # the layers with the most traffic compiled, on a GPU: other roundings, so another trial

    @property
    def full_rate_after(self) -> int:
        """How many epochs there are of which a part, or all, is warm-up."""
        if self.warmup_fraction is None:
            return self.warmup_epochs
        return math.ceil(self.warmup_fraction * self.epochs)

    def problems(self) -> Iterator[str]:
        for name in ("epochs", "eval_batch_size", "votes"):
            if getattr(self, name) < 1:
                yield f"{name}: must be at least 1, got {getattr(self, name)}"
        if self.batch_size < 2:
            yield f"batch_size: must be at least 2 (batch normalisation), got {self.batch_size}"
        if not 0 <= self.min_lr <= self.lr:
            yield f"min_lr: must be from 0 to lr ({self.lr}), got {self.min_lr}"
        if self.warmup_epochs < 0:
            yield f"warmup_epochs: must not be negative, got {self.warmup_epochs}"
        if self.adam_eps <= 0:
            yield f"adam_eps: must be positive, got {self.adam_eps}"
        if self.decayed == "all" and not self.decay_tokens:
            yield "decay_tokens: false spares tokens, and decayed: all spares nothing; set one of the two"
        if self.warmup_fraction is not None:
            if not 0 < self.warmup_fraction < 1:
                yield f"warmup_fraction: must lie between 0 and 1, got {self.warmup_fraction}"
            if self.warmup_epochs != PAPER_WARMUP:
                yield "warmup_fraction: takes the place of warmup_epochs; set one of the two"
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
        return self._key

    @functools.cached_property
    def _key(self) -> str:  # asked for again and again by whoever handles thousands of trials
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars; `checks.trial_from_dict` is its inverse."""
        return typing.cast(dict[str, Any], _plain(self))


PARTS = {"dataset": "datasets", "network": "networks", "tokenizer": "tokenizers", "backbone": "backbones", "method": "methods"}
MODEL_PARTS = ("tokenizer", "backbone", "positions", "method", "head")


PROGRAMS = 2  # raised whenever `compat: official` of a backbone with a method starts to give other numbers


def canonical_json(config: Config) -> str:
    """Sorted, compact JSON of all fields; `added` fields at their default are left out, revisions above 1 are put in."""
    return json.dumps(_canonical(config), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical(value: Any) -> Any:
    if isinstance(value, Config):
        kept = [f for f in fields(value) if not (f.metadata.get("added") and getattr(value, f.name) == f.default)]
        node = {f.name: _canonical(getattr(value, f.name)) for f in kept}
        if isinstance(value, TrialConfig) and value.compat == "official" and value.network is None:
            node["program"] = PROGRAMS
        return node | ({"revision": value.revision} if value.revision > 1 else {})
    if isinstance(value, float):
        return value + 0.0  # -0.0 is 0.0
    return [_canonical(item) for item in value] if isinstance(value, tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return list(value) if isinstance(value, tuple) else value


def with_seed(config: TrialConfig, seed: int) -> TrialConfig:
    """The same trial with another seed; a fold and a `weights_seed` that are left open are those of the seed."""
    dataset, backbone = config.dataset, config.backbone
    if getattr(dataset, "fold", 0) is None:
        dataset = dataclasses.replace(dataset, fold=seed % 10)  # type: ignore[call-arg]
    if backbone is not None and backbone.weights_seed is None:
        # Where nothing is drawn the trial is that of the default, whatever the seed.
        draw = seed if backbone.weights in DRAWN_WEIGHTS else 0
        backbone = dataclasses.replace(backbone, weights_seed=draw)
    return dataclasses.replace(config, dataset=dataset, backbone=backbone, seed=seed)


def without_seed(config: TrialConfig) -> TrialConfig:
    """What the seeds of an arm have in common: seed 0, and of folds and drawn weights that change with the seed the first."""
    dataset, backbone = config.dataset, config.backbone
    if hasattr(dataset, "fold"):
        dataset = dataclasses.replace(dataset, fold=0)  # type: ignore[call-arg]
    if backbone is not None and backbone.weights in DRAWN_WEIGHTS:
        backbone = dataclasses.replace(backbone, weights_seed=0)
    return dataclasses.replace(config, dataset=dataset, backbone=backbone, seed=0)
