"""The cost of a plan grows with its models, not with its cells: what is expensive is done once for each model."""

from __future__ import annotations

from typing import Literal

import pytest

from pointsweep.config import registry
from pointsweep.config.methods import HeadOnlyConfig
from pointsweep.models.methods.head_only import HeadOnly
from pointsweep.planning import audit
from pointsweep.planning.arm_groups import model_key, training_key
from pointsweep.planning.dry_run_arm import PER_FIELD, Arm, chosen
from pointsweep.planning.plan import count_arms, findings
from pointsweep.planning.probe import probe
from pointsweep.sweep.sweep import load

SWEEP = """
name: arms
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, source_points: 64, train_per_class: 4, test_per_class: 4, num_classes: 4, val_fraction: 0.25}
  tokenizer: {name: point_pn_light, num_tokens: 4, neighbours: 4}
  backbone: {name: tiny}
  train: {epochs: 2, batch_size: 8, warmup_epochs: 0}
"""  # fmt: skip


class CountedConfig(HeadOnlyConfig):
    """A method of somebody else's that counts how often it is built."""

    name: Literal["counted"] = "counted"  # type: ignore[assignment]


class Counted(HeadOnly):
    built = 0

    def attach(self, *given):
        Counted.built += 1
        super().attach(*given)


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setitem(registry._REGISTERED, "methods", dict(registry._REGISTERED["methods"]))
    registry.register("methods", CountedConfig, f"{__name__}:Counted")
    probe.cache_clear()
    audit._broken.cache_clear()
    yield Counted
    registry.union.cache_clear()


def sweep_of(tmp_path, rest):
    path = tmp_path / "arms.yaml"
    path.write_text(SWEEP + rest)
    return load(path)


def rates(count):
    return "{train.lr: [" + ", ".join(f"{number}.0e-4" for number in range(1, count + 1)) + "]}"


def trials_of(sweep):
    return {trial.config.key(): trial.config for trial in sweep.trials()}


def test_as_many_models_are_built_for_forty_rates_as_for_four(tmp_path, counted):
    built = {}
    for count in (4, 40):
        probe.cache_clear()
        audit._broken.cache_clear()
        counted.built = 0
        sweep = sweep_of(tmp_path, f"rows:\n  - {{label: ours, method: counted}}\ncolumns: {rates(count)}\nseeds: [0, 1]\n")
        trials = trials_of(sweep)
        counts = count_arms(trials)
        assert set(counts) == set(trials)
        assert len(trials) == 2 * count
        assert [finding.text for finding in findings(sweep, counts)] == []
        built[count] = counted.built
    assert built[4] == built[40] > 0


def test_a_structure_is_probed_once_and_a_setting_is_trained_with_a_few_values(tmp_path):
    rows = "rows:\n" + "".join(f"  - {{label: r{rank}, method: {{name: lora, rank: {rank}}}}}\n" for rank in (1, 2, 3))
    sweep = sweep_of(tmp_path, f"{rows}columns: {rates(30)}\naxes: {{train.weight_decay: [0.1, 0.2]}}\nseeds: 1\n")
    configs = [cell.trials[0] for cell in sweep.cells]
    assert len(configs) == 180
    assert len({model_key(config) for config in configs}) == 3
    before = probe.cache_info().misses
    audit.audit([audit.Arm(audit.arm_of(config), (str(number),)) for number, config in enumerate(configs)], {})
    assert probe.cache_info().misses - before <= 3
    arms = [Arm(config, str(number)) for number, config in enumerate(configs)]
    taken = chosen(arms)
    assert {arm.config.method.rank for arm in taken} == {1, 2, 3}
    assert len({arm.config.train.lr for arm in taken}) == PER_FIELD
    assert len({arm.config.train.weight_decay for arm in taken}) == 2
    assert len(taken) <= 3 + PER_FIELD + 2


@pytest.mark.parametrize(
    ("setting", "same_model", "same_training"),
    [
        ("train.lr: [0.1, 0.2]", True, True),
        ("dataset.rotate: [none, gravity]", True, True),
        ("dataset.val_fraction: [0.25, 0.5]", True, True),
        ("backbone.weights_seed: [0, 1]", True, True),
        ("train.init: [xavier, trunc_normal]", False, True),
        ("dataset.num_points: [48, 64]", False, True),
        ("dataset.num_classes: [3, 4]", False, True),
        ("compat: [fixed, official]", False, False),
        ("method.bottleneck: [4, 8]", False, False),
        ("head.dropout: [0.1, 0.2]", False, False),
        ("positions.num_views: [1, 2]", False, False),
        ("backbone.num_blocks: [1, 2]", False, False),
        ("tokenizer.num_tokens: [4, 5]", False, False),
    ],
)
def test_what_makes_another_model_and_another_training(tmp_path, setting, same_model, same_training):
    sweep = sweep_of(tmp_path, f"axes: {{{setting}}}\nrows:\n  - {{label: ours, method: any2point}}\nseeds: 1\n")
    first, second = (cell.trials[0] for cell in sweep.cells)
    assert (model_key(first) == model_key(second)) is same_model
    assert (training_key(first) == training_key(second)) is same_training


def test_a_number_counted_once_is_that_of_every_seed_and_rate(tmp_path):
    sweep = sweep_of(
        tmp_path, f"rows:\n  - {{label: a, method: head_only}}\n  - {{label: b, method: lora}}\ncolumns: {rates(3)}\nseeds: 3\n"
    )
    trials = trials_of(sweep)
    counts = count_arms(trials)
    for key, config in trials.items():
        assert counts[key] == count_arms({key: config})[key]
    assert len({counts[key]["trainable"] for key in trials}) == 2


def test_features_of_points_make_another_model(tmp_path):
    """A network has more parameters with normals than without: neither's count stands for the other's."""
    base = """
name: features
base:
  dataset: {name: files, root: mine, num_points: 64, presample: 64, num_classes: 4}
  network: pointnet2
rows:
  - {label: coordinates}
  - {label: and normals, dataset.features: [xyz, normal]}
seeds: 1
"""
    path = tmp_path / "features.yaml"
    path.write_text(base)
    plain, with_normals = (cell.trials[0] for cell in load(path).cells)
    assert model_key(plain) != model_key(with_normals)
    assert training_key(plain) != training_key(with_normals)
    counts = count_arms({"plain": plain, "with normals": with_normals})
    # three more inputs of each of the first layer's 64 channels
    assert counts["with normals"]["total"] - counts["plain"]["total"] == 3 * 64
