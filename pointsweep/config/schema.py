"""The configuration of a trial: everything that can change its numbers, and the key made of it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from pointsweep.config import official, registry
from pointsweep.config.backbones import DRAWN_WEIGHTS, BackboneConfig
from pointsweep.config.base import Compat, Config, NamedConfig, Natural
from pointsweep.config.datasets import DatasetConfig
from pointsweep.config.methods import MethodConfig
from pointsweep.config.networks import NetworkConfig
from pointsweep.config.parts import PROBES, HeadConfig, PositionsConfig, TrainConfig
from pointsweep.config.tokenizers import TokenizerConfig

# The parts that are chosen by name, each with its kind in the registry.
PARTS = {
    "dataset": "datasets",
    "network": "networks",
    "tokenizer": "tokenizers",
    "backbone": "backbones",
    "method": "methods",
}
UNNAMED: dict[str, type[Config]] = {
    "positions": PositionsConfig,
    "head": HeadConfig,
    "train": TrainConfig,
}
MODEL_PARTS = ("tokenizer", "backbone", "positions", "method", "head")
PROGRAMS = 3  # raised whenever `compat: official` of a backbone with a method gives other numbers


def component(kind: str, value: Any) -> Any:
    """Return a component's configuration from one, from plain data with its name, or from its name
    alone.
    """
    if isinstance(value, NamedConfig):
        return value

    if isinstance(value, str):
        value = {"name": value}

    name = value.get("name") if isinstance(value, dict) else None
    if isinstance(name, str) and name not in registry.config_classes(kind):
        registry.discover(kind, name)

    return registry.union(kind).validate_python(value)


def _of(kind: str) -> BeforeValidator:
    return BeforeValidator(functools.partial(component, kind))


@functools.cache
def _default_of(part: type[Config]) -> Config:
    """Return a part with its defaults: one for all trials, as thousands may have it."""
    return part()


class TrialConfig(Config):
    """Everything that can change a trial's numbers, and nothing else.

    Either `network` is set, or `tokenizer`, `backbone`, `positions`, `method` and `head` are.
    """

    dataset: Annotated[DatasetConfig, _of("datasets")]
    network: Annotated[NetworkConfig, _of("networks")] | None = None
    tokenizer: Annotated[TokenizerConfig, _of("tokenizers")] | None = None
    backbone: Annotated[BackboneConfig, _of("backbones")] | None = None
    positions: PositionsConfig | None = None
    method: Annotated[MethodConfig, _of("methods")] | None = None
    head: HeadConfig | None = None
    train: TrainConfig = TrainConfig()
    compat: Compat = "fixed"
    seed: Natural = 0

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, data: Any) -> Any:
        """Add the parts that may be left out, and what `compat: official` chooses."""
        if not isinstance(data, dict):
            return data

        filled = official.with_defaults(data)
        if filled.get("train") is None:
            filled["train"] = _default_of(TrainConfig)

        if filled.get("network") is None:
            for name in ("positions", "head"):
                if filled.get(name) is None:
                    filled[name] = _default_of(UNNAMED[name])

        return filled

    @property
    def probes(self) -> bool:
        """Return whether the head is a probe: a classifier that is fitted to frozen features."""
        return self.head is not None and self.head.kind in PROBES

    @property
    def trains(self) -> bool:
        """Return whether there is anything to train; false: one look at the training clouds."""
        if self.network is not None:
            return self.network.trainable

        return not self.probes

    def key(self) -> str:
        """Return 16 hex digits that name the trial's folder.

        They are the same in every process, in every version and for every order of the file's keys.
        """
        return self._key

    @functools.cached_property
    def _key(self) -> str:
        # Asked for again and again by whoever handles thousands of trials.
        # The text itself is not kept: with thousands of trials it is most of the memory.
        return hashlib.sha256(self._json_of_key().encode()).hexdigest()[:16]

    def canonical(self) -> dict[str, str]:
        node = super().canonical()
        if self.compat == "official" and self.network is None:
            node["program"] = json.dumps(PROGRAMS)

        return node

    def problems(self) -> Iterator[tuple[str, str]]:
        parts_are_there = True
        for part, text in missing_or_extra(dict(self)):
            parts_are_there = False
            yield part, text

        if parts_are_there:
            yield from self._misfits()

    def _misfits(self) -> Iterator[tuple[str, str]]:
        """Yield what does not go together though each part is right by itself."""
        dataset = self.dataset
        backbone = self.backbone
        method = self.method
        network = self.network

        if method is not None and backbone is not None:
            modality = registry.modality(backbone)
            possible = ("1d", "2d") if modality is None else (modality,)
            if not set(possible) & set(method.modalities):
                needed = " or ".join(method.modalities)
                text = (
                    f"{method.name} needs a {needed} backbone; {backbone.name} is"
                    f" {' or '.join(possible)}"
                )

                yield "method", text

        if backbone is not None and backbone.num_blocks == 0:
            yield from self._without_blocks()

        for part in (network or method, backbone):
            if part is not None and self.compat not in part.compats:
                allowed = ", ".join(part.compats)
                yield (
                    "compat",
                    f"{part.name} has no {self.compat} form here; allowed: {allowed}",
                )

        if dataset.num_categories and network is not None:
            text = (
                f"{network.name} classifies whole clouds; {dataset.name} needs a backbone and a"
                " method"
            )
            yield "network", text

        if dataset.num_categories and self.compat != "fixed":
            text = (
                f"the published programs are those of classification; allowed on {dataset.name}:"
                " fixed"
            )
            yield "compat", text

        takes_heights = self.tokenizer is not None and self.tokenizer.name == "point_pn"
        if dataset.heights and not takes_heights:
            text = "the tokenizer point_pn alone takes heights; leave them out with any other"
            yield "dataset.heights", text

        takes_features = network is not None and network.takes_features
        if dataset.point_features and not takes_features:
            model = network.name if network is not None else "the tokenizer"
            with_features = []
            for name, kind in registry.config_classes("networks").items():
                if getattr(kind, "takes_features", False):
                    with_features.append(name)

            text = (
                f"{', '.join(dataset.point_features)}: {model} takes coordinates alone; allowed:"
                f" [xyz], or one of the networks {', '.join(with_features)}"
            )

            yield "dataset.features", text

        yield from self._too_many()
        scrambled = self.positions.scrambled if self.positions is not None else None
        has_plane = backbone is None or registry.modality(backbone) in ("2d", None)

        if scrambled is not None and not has_plane:
            text = "planes alone have encodings that can be scrambled; leave it out on 1d and 3d"
            yield "positions.scrambled", text

        if self.probes:
            yield from self._probe_misfits()

        if (
            self.head
            and backbone
            and self.head.pool == "class_max"
            and not backbone.class_token
        ):
            yield (
                "head.pool",
                f"{backbone.name} has no class token; allowed: mean_max, mean_plus_max",
            )

    def _too_many(self) -> Iterator[tuple[str, str]]:
        """Yield what a method counts beyond what the model has: it would be cut without a word.

        A default is a paper's number and fits itself to a smaller model. A stand-in for smoke runs
        takes the place of a larger one, whose numbers these are.
        """
        if self.method is None or self.backbone is None or self.backbone.stand_in:
            return

        blocks = self.backbone.num_blocks
        available = {
            "blocks": self.backbone.max_blocks if blocks is None else blocks,
            "tokens": getattr(self.tokenizer, "num_tokens", None),
            "points": self.dataset.num_points,
        }

        fields = type(self.method).model_fields

        for name, kind in self.method.counted.items():
            value = getattr(self.method, name)
            most = available[kind]
            if most is None or value == fields[name].default:
                continue

            if value > most:
                text = f"{value} of {most} {kind}; allowed: at most {most}"
                yield f"method.{name}", text

    def _probe_misfits(self) -> Iterator[tuple[str, str]]:
        """Yield what a probe of frozen features cannot be taken of."""
        assert (
            self.head
            and self.tokenizer
            and self.backbone
            and self.positions
            and self.method
        )

        kind = self.head.kind

        if self.method.name != "head_only":
            text = (
                f"{self.method.name} trains, and head.kind: {kind} trains nothing; allowed:"
                " head_only"
            )
            yield "method", text

        if registry.modality(self.backbone) != "3d" or self.tokenizer.name != "patch":
            text = (
                f"{kind} looks at pretrained features, and the tokenizer {self.tokenizer.name}"
                " starts new before"
            )
            yield (
                "head.kind",
                f"{text} {self.backbone.name}; allowed: the tokenizer patch of a 3d backbone",
            )

        if self.positions.kind == "learnable":
            yield (
                "positions.kind",
                f"learnable needs training, and head.kind: {kind} has none",
            )

        if self.dataset.num_categories or self.compat != "fixed":
            yield "head.kind", f"{kind} classifies whole clouds under compat: fixed"

    def _without_blocks(self) -> Iterator[tuple[str, str]]:
        """Yield what cannot be done with a backbone that has no blocks."""
        if self.method is not None and self.method.needs_blocks:
            methods = registry.config_classes("methods")
            able = [name for name, kind in methods.items() if not kind.needs_blocks]  # type: ignore[attr-defined]
            yield (
                "method",
                (
                    f"{self.method.name} works in the blocks, backbone.num_blocks: 0 leaves none;"
                    f" allowed: {', '.join(able)}"
                ),
            )

        if self.dataset.num_categories:
            yield (
                "backbone.num_blocks",
                (
                    "0 leaves no block for the head of parts to read; allowed on"
                    f" {self.dataset.name}: 1 or more, null"
                ),
            )


def missing_or_extra(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (part, message) for parts that a trial must have, and for those that a network takes
    the place of.
    """
    if data.get("network") is not None:
        for part in MODEL_PARTS:
            if data.get(part):
                yield part, "a network takes the place of this part; leave it out"
        needed = ["dataset"]
    else:
        needed = ["dataset", "tokenizer", "backbone", "method"]

    for part in needed:
        if data.get(part) is None:
            yield part, missing(part)


def missing(part: str) -> str:
    """Return the message for a part that must be named and is not."""
    return f"missing; name one of: {', '.join(registry.names(PARTS[part]))}"


def dataset_of_seed(dataset: DatasetConfig, seed: int) -> DatasetConfig:
    """Return the data set of one seed: a fold that is left open is that of the seed."""
    if getattr(dataset, "fold", 0) is None:
        return dataset.model_copy(update={"fold": seed % 10})

    return dataset


def with_seed(config: TrialConfig, seed: int) -> TrialConfig:
    """Return the same trial with another seed.

    A fold and a `weights_seed` that are left open are those of the seed.
    """
    changes: dict[str, Any] = {
        "dataset": dataset_of_seed(config.dataset, seed),
        "seed": seed,
    }

    backbone = config.backbone

    if backbone is not None and backbone.weights_seed is None:
        # Where nothing is drawn the trial is that of the default, whatever the seed.
        draw = seed if backbone.weights in DRAWN_WEIGHTS else 0
        changes["backbone"] = backbone.model_copy(update={"weights_seed": draw})

    return config.model_copy(update=changes)


def without_seed(config: TrialConfig) -> TrialConfig:
    """Return what the seeds of an arm have in common.

    That is seed 0, and of folds and drawn weights that change with the seed the first.
    """
    changes: dict[str, Any] = {"seed": 0}
    if hasattr(config.dataset, "fold"):
        changes["dataset"] = config.dataset.model_copy(update={"fold": 0})

    backbone = config.backbone
    if backbone is not None and backbone.weights in DRAWN_WEIGHTS:
        changes["backbone"] = backbone.model_copy(update={"weights_seed": 0})

    return config.model_copy(update=changes)
