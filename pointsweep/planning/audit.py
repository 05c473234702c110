"""Audit of a sweep's arms: faults found before anything is launched.

An arm is a trial but for its seed and the settings of data and training. Refused: two arms that the
table says differ and that do not, trained weights that no gradient reaches, a model under `compat:
fixed` whose logits depend on the other clouds of a batch. Said: the same under `official`, with the
amount; counts that do not print as the paper's. data/facts.py looks at the clouds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pointsweep.config import registry
from pointsweep.config.backbones import (
    WITHOUT_CHECKPOINT,
    BackboneConfig,
    LibraryBackboneConfig,
)
from pointsweep.config.parts import TrainConfig
from pointsweep.config.schema import MODEL_PARTS, TrialConfig
from pointsweep.errors import Finding
from pointsweep.models.backbones.base import Backbone
from pointsweep.models.point_model import NEAR_IDENTITY
from pointsweep.planning.arm_groups import OF_WEIGHTS, Key, model_key
from pointsweep.planning.probe import Probe, probe, run_once
from pointsweep.results.records import Published

LEAK = 1e-4  # of its own movement: what rounding may do


@dataclass(frozen=True)
class Arm:
    """One model of a sweep, the cells that it fills, and what a paper prints for them."""

    config: TrialConfig
    cells: tuple[str, ...]
    published: tuple[Published, ...] = ()

    @property
    def name(self) -> str:
        """The first cell, and how many more there are."""
        return self.cells[0] + (
            f" (and {len(self.cells) - 1} more)" if len(self.cells) > 1 else ""
        )


def audit(
    arms: Sequence[Arm], parameters: Mapping[str, Mapping[str, int]]
) -> list[Finding]:
    """All findings, refusals first. `parameters` are the counts of each arm's config, by key."""
    probed: list[tuple[Arm, Probe]] = []
    broken: set[Key] = set()
    findings: list[Finding] = []

    for key, arm in _models(arms).items():
        message = _broken(arm.config)
        if message:
            broken.add(key)
            findings.append(
                Finding(True, f"{arm.name}: the model does not run: {message}")
            )
        else:
            probed.append((arm, probe(arm.config)))

    findings += [
        *_dead_knobs(probed),
        *_unreached(probed),
        *_leaks(probed),
        *_counts(arms, parameters),
    ]

    running = [arm for arm in arms if model_key(arm.config) not in broken]
    findings += [*_near_identities(running), *_models_by_name(running)]

    return sorted(findings, key=lambda finding: not finding.refuses)


def _models(arms: Sequence[Arm]) -> dict[Key, Arm]:
    """Return one arm for every model, with all cells that have it."""
    first: dict[Key, Arm] = {}
    cells: dict[Key, list[str]] = {}

    for arm in arms:
        key = model_key(arm.config)
        first.setdefault(key, arm)
        cells.setdefault(key, []).extend(arm.cells)

    return {
        key: Arm(model_of(arm.config), tuple(cells[key])) for key, arm in first.items()
    }


def model_of(config: TrialConfig) -> TrialConfig:
    """The trial that stands for its model: training and random changes of clouds at their
    defaults.
    """
    dataset = arm_of(config).dataset.replace(
        scale=(1.0, 1.0), rotate="none", translate=0.0
    )
    return config.replace(
        seed=0, dataset=dataset, train=TrainConfig(init=config.train.init)
    )


def runs(config: TrialConfig) -> bool:
    """Return whether the arm's model can be built and reads clouds of its size."""
    return not _broken(model_of(config))


@functools.cache
def _broken(config: TrialConfig) -> str:
    """Return why a model cannot read clouds of its size (more neighbours than points, say), or
    cannot be built; empty if it can.
    """
    try:
        run_once(config)
        probe(config)
    except Exception as error:
        # a method of somebody else's may raise anything: the sweep is refused with its words
        return f"{type(error).__name__}: {error}"

    return ""


def arm_of(config: TrialConfig) -> TrialConfig:
    """The trial that stands for its arm: seed 0, and no more of data and training than a model
    sees.
    """
    dataset = config.dataset.replace(
        train_limit=None, test_limit=None, test_order="file", val_fraction=0.0
    )
    return config.replace(seed=0, dataset=dataset)


def flat(config: Any, path: str = "") -> dict[str, Any]:
    """Dotted keys and values of a plain nested config."""
    if not isinstance(config, Mapping):
        return {path: config}

    return {
        key: value
        for name, part in config.items()
        for key, value in flat(part, f"{path}.{name}" if path else str(name)).items()
    }


def _knobs(first: TrialConfig, second: TrialConfig) -> dict[str, tuple[Any, Any]]:
    """The settings of the model in which two arms differ."""
    parts = (*MODEL_PARTS, "network", "compat")
    a = flat(first.to_dict(only=parts))
    b = flat(second.to_dict(only=parts))

    return {key: (a.get(key), b.get(key)) for key in a | b if a.get(key) != b.get(key)}


def _dead_knobs(probed: Sequence[tuple[Arm, Probe]]) -> Iterator[Finding]:
    for (first, seen), (second, also) in _alike(probed):
        knobs = _knobs(first.config, second.config)
        # a probe draws its own
        of_weights = any(f"backbone.{name}" in knobs for name in OF_WEIGHTS)
        if not knobs or of_weights or seen.differs(also):
            continue
        # Few tokens can hide a setting (a cap, a size that none reaches): before an arm is refused
        # it is looked at in full.
        if probe(first.config, full_size=True).differs(
            probe(second.config, full_size=True)
        ):
            continue

        settings = ", ".join(
            f"{key}: {a} or {b}" for key, (a, b) in sorted(knobs.items())
        )
        yield Finding(
            True,
            f"{first.name} and {second.name} are the same model: {settings} changes nothing",
        )


def _alike(
    probed: Sequence[tuple[Arm, Probe]],
) -> Iterator[tuple[tuple[Arm, Probe], tuple[Arm, Probe]]]:
    """The pairs that may be the same model: of equal tensors, and with outputs of an equal sum. No
    work over all pairs.
    """
    groups: dict[Any, list[tuple[float, int]]] = {}
    for number, (_, seen) in enumerate(probed):
        kind = (
            tuple(sorted(seen.trained.items())),
            seen.starts_at_zero,
            tuple(seen.outputs.shape),
        )
        groups.setdefault(kind, []).append((float(seen.outputs.double().sum()), number))

    pairs = []
    for own in groups.values():
        own.sort()
        for position, (total, number) in enumerate(own):
            outputs = probed[number][1].outputs
            # what `differs` lets pass, over all outputs
            close = float((1e-6 + 1e-5 * outputs.abs()).sum())
            for other_total, other in own[position + 1 :]:
                if not other_total - total <= close:
                    break
                pairs.append((min(number, other), max(number, other)))

    for first, second in sorted(pairs):
        yield probed[first], probed[second]


def _unreached(probed: Sequence[tuple[Arm, Probe]]) -> Iterator[Finding]:
    for arm, seen in probed:
        names = seen.unreached
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield Finding(
                True,
                f"{arm.name}: no gradient reaches {', '.join(names[:3])}{more}, which the table"
                " counts as trained",
            )

        idle = seen.idle and _idle_in_full(arm.config, seen)
        if idle:
            parts = f"{', '.join(idle[:3])}{f' and {len(idle) - 3} more' if len(idle) > 3 else ''}"
            yield Finding(
                True,
                f"{arm.name}: no gradient reaches {parts}, which the table counts as trained",
            )

        if seen.thawed:
            more = f" and {len(seen.thawed) - 3} more" if len(seen.thawed) > 3 else ""
            thawed = f"{', '.join(seen.thawed[:3])}{more}"
            reason = (
                "of the frozen backbone would train, and the method does not declare it"
                " (Method.thaws)"
            )

            yield Finding(True, f"{arm.name}: {thawed} {reason}")

        if seen.ignored:
            numbers = ", ".join(map(str, seen.ignored))
            yield Finding(
                True,
                f"{arm.name}: the logits of cloud {numbers} of a batch do not depend on that cloud",
            )

        if not seen.outputs.isfinite().all():
            yield Finding(
                True, f"{arm.name}: the logits of a small cloud are not finite"
            )

        if (
            arm.config.backbone is not None
            and arm.config.trains
            and not any(name.startswith("head.") for name in seen.trained)
        ):
            yield Finding(True, f"{arm.name}: the head is not trained")


def _idle_in_full(config: TrialConfig, seen: Probe) -> list[str]:
    """The tensors with idle parts that have such parts with all tokens and points too: few tokens
    may leave a part nothing to do.
    """
    in_full = {name.partition("[")[0] for name in probe(config, full_size=True).idle}
    return [name for name in seen.idle if name.partition("[")[0] in in_full]


def _leaks(probed: Sequence[tuple[Arm, Probe]]) -> Iterator[Finding]:
    for arm, seen in probed:
        if seen.leak > LEAK:
            fixed = arm.config.compat == "fixed"
            text = (
                f"{arm.name}: a test cloud's logits depend on the other clouds of its batch"
                f" ({seen.leak:.1%} of what its own move)"
            )

            yield Finding(
                fixed, text + ("" if fixed else ", as in the published program")
            )


def _near_identities(arms: Sequence[Arm]) -> Iterator[Finding]:
    """Frozen stacks that hardly change the tokens: an arm with one compares with no transformer at
    all.
    """
    by_backbone: dict[BackboneConfig, list[Arm]] = {}
    for arm in arms:
        config = arm.config
        # What a checkpoint holds is not kept with a plan; of those the record says it
        # (recording.py).
        if (
            config.backbone is None
            or config.backbone.weights not in WITHOUT_CHECKPOINT
            or config.backbone.stand_in
        ):
            continue

        if config.method is not None and config.method.name != "full":
            by_backbone.setdefault(config.backbone, []).append(arm)

    for backbone, mine in by_backbone.items():
        change = _change_per_block(backbone)
        if change is None or change >= NEAR_IDENTITY:
            continue

        cells = tuple(cell for arm in mine for cell in arm.cells)
        yield Finding(
            False,
            f"{Arm(mine[0].config, cells).name}: each frozen block of {backbone.name} (weights:"
            f" {backbone.weights}) changes the tokens by {change:.1%}: close to an identity, so a"
            " comparison with it is one with no transformer; weights: shuffled keeps the scales of"
            " the pretrained tensors",
        )


def _models_by_name(arms: Sequence[Arm]) -> Iterator[Finding]:
    """Return what was found of models that a file names: their modality, width, blocks, causality
    and positions, each once.
    """
    by_model: dict[str, list[str]] = {}
    for arm in arms:
        if isinstance(arm.config.backbone, LibraryBackboneConfig):
            by_model.setdefault(_described(arm.config.backbone), []).extend(arm.cells)

    for text, cells in by_model.items():
        yield Finding(False, f"{Arm(arms[0].config, tuple(cells)).name}: {text}")


@functools.lru_cache(maxsize=64)
def _described(backbone: BackboneConfig) -> str:
    with torch.device("meta"):
        built: Backbone = registry.load("backbones", backbone.name)(backbone)
    return built.describe()


@functools.lru_cache(maxsize=64)
def _change_per_block(backbone: BackboneConfig) -> float | None:
    drawn: Backbone = registry.load("backbones", backbone.name)(backbone)
    drawn.load()
    return drawn.change_per_block()


def _counts(
    arms: Sequence[Arm], parameters: Mapping[str, Mapping[str, int]]
) -> Iterator[Finding]:
    for arm in arms:
        counts = parameters.get(arm.config.key())
        for published in arm.published:
            if counts is None or published.params_m is None:
                continue

            digits = len(str(published.params_m).partition(".")[2])
            both = counts["trainable_without_head"], counts["trainable"]
            if all(round(count / 1e6, digits) != published.params_m for count in both):
                built = " or ".join(f"{count / 1e6:.3f}M" for count in both)
                printed = f"{published.source} prints {published.params_m}M"
                yield Finding(
                    False,
                    f"{arm.name}: {built} trained (without or with the head), {printed}",
                )

                break
