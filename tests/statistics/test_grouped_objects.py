"""Tests and intervals where a data set has several clouds of an object: the object is the unit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import norm

from pointsweep.reporting.build import independent_clouds
from pointsweep.reporting.compare import of_models
from pointsweep.results.records import Record
from pointsweep.statistics.paired_objects import (
    bootstrap,
    effective_clouds,
    groups_of,
    mcnemar,
    model_tests,
    packed,
    packed_groups,
    sign_flip,
)
from pointsweep.statistics.seeds import wilson

OBJECTS, COPIES = 120, 5
GROUPS = np.repeat(np.arange(OBJECTS), COPIES)


def right(generator: np.random.Generator, share: float, shared_noise: float, models: int = 1) -> np.ndarray:
    """Which clouds are right (models, n), at a share; clouds of an object have a part of their noise in common."""
    common = generator.normal(size=(models, OBJECTS))[:, GROUPS]
    own = generator.normal(size=(models, len(GROUPS)))
    latent = np.sqrt(shared_noise) * common + np.sqrt(1 - shared_noise) * own
    found: np.ndarray = latent < norm.ppf(share)
    return found


def record(correct: np.ndarray, groups: np.ndarray | None, **dataset) -> Record:
    facts = {"name": "scanobjectnn", "digest": "d", "num_test": len(correct)} | dataset
    if groups is not None:
        facts["test_groups"] = packed_groups(groups)
    accuracy = float(correct.mean())
    return Record(
        key="k",
        config={"dataset": {"name": facts["name"], **({"way": 5} if facts["name"] == "modelnet40_fewshot" else {})}},
        metrics={"last": {"epoch": 1, "test/accuracy": accuracy}},
        parameters={},
        dataset=facts,
        weights_origin="none",
        correct={"last": packed(correct)},
    )


@pytest.mark.parametrize("shared_noise", [0.5, 0.8])
@pytest.mark.parametrize("share", [0.6, 0.85])
def test_wilsons_interval_covers_where_clouds_of_an_object_are_alike(share, shared_noise):
    generator = np.random.default_rng(0)
    covered, naive = [], []
    for _ in range(1500):
        correct = right(generator, share, shared_noise)[0]
        clouds = effective_clouds(correct, GROUPS)
        low, high = wilson(correct.mean() * clouds, clouds)
        covered.append(low <= share <= high)
        low, high = wilson(correct.sum(), len(correct))
        naive.append(low <= share <= high)
    assert np.mean(covered) >= 0.93
    assert np.mean(naive) < 0.90  # the reason for it


def test_independent_clouds_count_in_full():
    generator = np.random.default_rng(1)
    found = [effective_clouds(right(generator, 0.8, 0.0)[0], GROUPS) for _ in range(200)]
    assert np.mean(found) > 0.9 * len(GROUPS)
    assert effective_clouds(np.ones(7, dtype=bool), None) == 7


def test_clouds_that_are_all_alike_count_as_objects():
    """Of equal copies the share's variance is p (1 - p) / G, with G - 1 in place of G for its estimate."""
    generator = np.random.default_rng(2)
    correct = (generator.random(OBJECTS) < 0.7)[GROUPS]
    assert effective_clouds(correct, GROUPS) == pytest.approx(OBJECTS, rel=0.01)
    assert effective_clouds(np.ones(len(GROUPS), dtype=bool), GROUPS) == OBJECTS


def enumerated(net: list[int]) -> float:
    """The mid-p by all signs of all objects."""
    sums = [abs(sum(s * n for s, n in zip(signs, net, strict=True))) for signs in itertools.product((1, -1), repeat=len(net))]
    reached = abs(sum(net))
    beyond = sum(value > reached for value in sums)
    own = sum(value == reached for value in sums)
    return (beyond + own / 2) / len(sums)


@pytest.mark.parametrize("net", [[3, 2, -1, 2, 1, 1], [5, 5, 5, -5, 1, 2, 2], [1, 1, 1, 1, 1, -1, -1], [2, -2, 2, -2, 1, -1, 3, -3]])
def test_the_sign_test_equals_enumeration(net):
    with_zeros = np.array([0, *net, 0])
    assert sign_flip(with_zeros) == pytest.approx(enumerated(net), rel=1e-12)


@pytest.mark.parametrize(("gained", "lost"), [(12, 3), (5, 5), (30, 18), (200, 150)])
def test_with_one_cloud_an_object_the_sign_test_is_mcnemars(gained, lost):
    net = np.concatenate([np.ones(gained), -np.ones(lost), np.zeros(20)]).astype(np.int64)
    assert sign_flip(net) == pytest.approx(mcnemar(gained, lost), rel=1e-9)


def test_too_few_objects_carry_no_p_value():
    assert sign_flip(np.array([5, 5, 5, 5])) is None
    assert sign_flip(np.zeros(50, dtype=np.int64)) is None


@pytest.mark.parametrize("shared_noise", [0.5, 0.8])
def test_two_equal_models_are_told_apart_in_five_percent(shared_noise):
    """McNemar's test of the clouds says so several times as often."""
    generator = np.random.default_rng(3)
    by_objects, by_clouds = [], []
    for _ in range(1500):
        one, other = right(generator, 0.8, shared_noise, models=2)
        net = np.bincount(GROUPS, weights=one.astype(int) - other.astype(int)).astype(np.int64)
        p = sign_flip(net)
        by_objects.append(p is not None and p < 0.05)
        clouds = mcnemar(int((one & ~other).sum()), int((other & ~one).sum()))
        by_clouds.append(clouds is not None and clouds < 0.05)
    assert np.mean(by_objects) <= 0.065
    assert np.mean(by_clouds) > 0.10


def test_the_bootstrap_draws_objects():
    """Of one seed the standard error is that of the objects' gains: sqrt(sum of squares) / n."""
    generator = np.random.default_rng(4)
    one, other = right(generator, 0.8, 0.8)[0], right(generator, 0.6, 0.8)[0]
    drawn = bootstrap({0: one}, {0: other}, replicates=4000, groups=GROUPS)
    gains = np.bincount(GROUPS, weights=one.astype(float) - other.astype(float))
    expected = np.sqrt(((gains - gains.mean()) ** 2).sum()) / len(GROUPS)
    assert drawn.mean == pytest.approx(one.mean() - other.mean())
    assert drawn.standard_error == pytest.approx(expected, rel=0.05)
    assert drawn.objects == OBJECTS
    assert drawn.standard_error > 1.5 * bootstrap({0: one}, {0: other}).standard_error


def test_records_carry_the_objects_of_their_clouds():
    generator = np.random.default_rng(5)
    groups = generator.permutation(GROUPS)
    text = packed_groups(groups)
    assert len(text) < 2000
    found = groups_of(record(np.ones(len(groups), dtype=bool), groups))
    assert found is not None
    same = found[:, None] == found[None, :]
    assert np.array_equal(same, groups[:, None] == groups[None, :])
    assert found[0] == 0


def test_models_are_compared_object_by_object():
    generator = np.random.default_rng(6)
    one, other = right(generator, 0.9, 0.8)[0], right(generator, 0.7, 0.8)[0]
    arms = {"one": {0: record(one, GROUPS)}, "other": {0: record(other, GROUPS)}}
    (test,) = model_tests(["one", "other"], arms, "last")
    net = np.bincount(GROUPS, weights=one.astype(int) - other.astype(int)).astype(np.int64)
    assert test.objects == OBJECTS
    assert test.p == pytest.approx(sign_flip(net))
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    words = f"seed 0: {gained} clouds gained, {lost} lost; exact test of the signs of 120 objects, mid-p: p < 0.001"
    assert of_models(test).startswith(words)


def test_trials_with_other_objects_are_not_compared():
    correct = np.ones(len(GROUPS), dtype=bool)
    arms = {"one": {0: record(correct, GROUPS)}, "other": {0: record(correct, None)}}
    assert model_tests(["one", "other"], arms, "last") == ()


def test_an_episode_of_few_shot_learning_is_one_unit():
    correct = np.arange(100) % 3 > 0
    arms = {name: {0: record(correct, None, name="modelnet40_fewshot")} for name in ("one", "other")}
    assert model_tests(["one", "other"], arms, "last") == ()


def test_a_cell_of_one_seed_has_the_interval_of_its_objects():
    correct = (np.random.default_rng(7).random(OBJECTS) < 0.7)[GROUPS]
    assert independent_clouds(record(correct, None), "last") == len(GROUPS)
    assert independent_clouds(record(correct, GROUPS), "last") == effective_clouds(correct, GROUPS)


def test_objects_of_another_number_of_clouds_are_refused():
    wrong = record(np.ones(10, dtype=bool), np.arange(9) // 2)
    with pytest.raises(ValueError, match="objects of 9 clouds, expected 10"):
        groups_of(wrong)
