"""Audit of a sweep's arms: faults found before anything is launched.

An arm is a trial but for its seed and the settings of data and training. Refused: two arms that the
table says differ and that do not, trained weights that no gradient reaches, a model under `compat:
fixed` whose logits depend on the other clouds of a batch. Reported without a refusal: the same
under `official`, with the amount; counts that do not print as the paper's. data/facts.py examines
the clouds.
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
        first = self.cells[0]
        if len(self.cells) > 1:
            return f"{first} (and {len(self.cells) - 1} more)"

        return first


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

    models = {}
    for key, arm in first.items():
        models[key] = Arm(model_of(arm.config), tuple(cells[key]))

    return models


def model_of(config: TrialConfig) -> TrialConfig:
    """The trial that stands for its model: training and random changes of clouds at their
    defaults.
    """
    stored = arm_of(config).dataset
    dataset = stored.replace(scale=(1.0, 1.0), rotate="none", translate=0.0)
    train = TrainConfig(init=config.train.init)

    return config.replace(seed=0, dataset=dataset, train=train)


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

    values: dict[str, Any] = {}
    for name, section in config.items():
        values |= flat(section, f"{path}.{name}" if path else str(name))

    return values


def _knobs(first: TrialConfig, second: TrialConfig) -> dict[str, tuple[Any, Any]]:
    """The settings of the model in which two arms differ."""
    parts = (*MODEL_PARTS, "network", "compat")
    one = flat(first.to_dict(only=parts))
    other = flat(second.to_dict(only=parts))

    knobs = {}

    for key in one | other:
        pair = one.get(key), other.get(key)
        if pair[0] != pair[1]:
            knobs[key] = pair

    return knobs


def _dead_knobs(probed: Sequence[tuple[Arm, Probe]]) -> Iterator[Finding]:
    for (first, first_probe), (second, second_probe) in _alike(probed):
        knobs = _knobs(first.config, second.config)
        # a probe draws its own
        of_weights = any(f"backbone.{name}" in knobs for name in OF_WEIGHTS)
        if not knobs or of_weights or first_probe.differs(second_probe):
            continue

        # Few tokens can hide a setting (a cap, a size that none reaches): before an arm is refused
        # it is looked at in full.
        first_in_full = probe(first.config, full_size=True)
        second_in_full = probe(second.config, full_size=True)
        if first_in_full.differs(second_in_full):
            continue

        settings = [f"{key}: {a} or {b}" for key, (a, b) in sorted(knobs.items())]
        yield Finding(
            True,
            f"{first.name} and {second.name} are the same model: {', '.join(settings)} changes"
            " nothing",
        )


def _alike(
    probed: Sequence[tuple[Arm, Probe]],
) -> Iterator[tuple[tuple[Arm, Probe], tuple[Arm, Probe]]]:
    """The pairs that may be the same model: of equal tensors, and with outputs of an equal sum. No
    work over all pairs.
    """
    # by names and shapes: the sum of each arm's outputs, and its number
    groups: dict[Any, list[tuple[float, int]]] = {}
    for number, (_, result) in enumerate(probed):
        tensors = tuple(sorted(result.trained.items()))
        kind = (tensors, result.starts_at_zero, tuple(result.outputs.shape))
        total = float(result.outputs.double().sum())
        groups.setdefault(kind, []).append((total, number))

    pairs = []
    for members in groups.values():
        members.sort()
        for position, (total, number) in enumerate(members):
            _, result = probed[number]
            # what `differs` lets pass, over all outputs
            close = float((1e-6 + 1e-5 * result.outputs.abs()).sum())
            for other_total, other in members[position + 1 :]:
                if not other_total - total <= close:
                    break
                pairs.append((min(number, other), max(number, other)))

    for first, second in sorted(pairs):
        yield probed[first], probed[second]


def _unreached(probed: Sequence[tuple[Arm, Probe]]) -> Iterator[Finding]:
    for arm, result in probed:
        for text in _gradient_problems(arm.config, result):
            yield Finding(True, f"{arm.name}: {text}")

        if result.ignored:
            numbers = ", ".join(map(str, result.ignored))
            yield Finding(
                True,
                f"{arm.name}: the logits of cloud {numbers} of a batch do not depend on that cloud",
            )

        if not result.outputs.isfinite().all():
            yield Finding(
                True, f"{arm.name}: the logits of a small cloud are not finite"
            )

        has_head = arm.config.backbone is not None and arm.config.trains
        if has_head and not any(name.startswith("head.") for name in result.trained):
            yield Finding(True, f"{arm.name}: the head is not trained")


def _gradient_problems(config: TrialConfig, result: Probe) -> Iterator[str]:
    """Yield what trains though it should not, and what should train and has no gradient."""
    if result.unreached:
        names = _listed(result.unreached)
        yield f"no gradient reaches {names}, which the table counts as trained"

    unreached = (
        _without_gradient_in_full(config, result) if result.without_gradient else []
    )
    if unreached:
        yield f"no gradient reaches {_listed(unreached)}, which the table counts as trained"

    if result.thawed:
        yield (
            f"{_listed(result.thawed)} of the frozen backbone would train, and the method does not"
            " declare it (Method.thaws)"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _without_gradient_in_full(config: TrialConfig, result: Probe) -> list[str]:
    """The tensors with parts that no gradient reaches, with all tokens and points too: few tokens
    may leave a part nothing to do.
    """
    in_full = {
        name.partition("[")[0]
        for name in probe(config, full_size=True).without_gradient
    }
    return [
        name for name in result.without_gradient if name.partition("[")[0] in in_full
    ]


def _leaks(probed: Sequence[tuple[Arm, Probe]]) -> Iterator[Finding]:
    for arm, result in probed:
        if result.leak <= LEAK:
            continue

        text = (
            f"{arm.name}: a test cloud's logits depend on the other clouds of its batch"
            f" ({result.leak:.1%} of what its own move)"
        )
        if arm.config.compat == "fixed":
            yield Finding(True, text)
        else:
            yield Finding(False, f"{text}, as in the published program")


def _near_identities(arms: Sequence[Arm]) -> Iterator[Finding]:
    """Frozen stacks that hardly change the tokens: an arm with one compares with no transformer at
    all.
    """
    by_backbone: dict[BackboneConfig, list[Arm]] = {}
    for arm in arms:
        backbone, method = arm.config.backbone, arm.config.method
        if backbone is None or method is None or method.name == "full":
            continue

        # What a checkpoint holds is not kept with a plan: of those the record has the remark
        # (record_builder.py).
        if backbone.weights in WITHOUT_CHECKPOINT and not backbone.stand_in:
            by_backbone.setdefault(backbone, []).append(arm)

    for backbone, arms_of_backbone in by_backbone.items():
        change = _change_per_block(backbone)
        if change is None or change >= NEAR_IDENTITY:
            continue

        cells: list[str] = []
        for arm in arms_of_backbone:
            cells += arm.cells

        name = Arm(arms_of_backbone[0].config, tuple(cells)).name
        yield Finding(
            False,
            f"{name}: each frozen block of {backbone.name} (weights:"
            f" {backbone.weights}) changes the tokens by {change:.1%}: close to an identity, so a"
            " comparison with it is one with no transformer; weights: shuffled keeps the scales of"
            " the pretrained tensors",
        )


def _models_by_name(arms: Sequence[Arm]) -> Iterator[Finding]:
    """Yield a remark on each model that a sweep file names: its modality, width, blocks, causality
    and positions.
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

            _, _, decimals = str(published.params_m).partition(".")
            both = counts["trainable_without_head"], counts["trainable"]
            digits = len(decimals)
            rounded = [round(count / 1e6, digits) for count in both]

            if published.params_m not in rounded:
                built = " or ".join(f"{count / 1e6:.3f}M" for count in both)
                printed = f"{published.source} prints {published.params_m}M"
                yield Finding(
                    False,
                    f"{arm.name}: {built} trained (without or with the head), {printed}",
                )

                break
