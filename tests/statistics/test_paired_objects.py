"""McNemar against enumeration and scipy; the bootstrap against the formula of a crossed design, and its coverage."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pointsweep.statistics.paired_objects import _mcnemar_all, bootstrap, flips, mcnemar, model_tests, packed, unpacked
from tests.reporting.test_tables import record


def enumerated(gained: int, lost: int) -> float:
    """Mid-p over all 2^n equally likely outcomes: those more extreme, and half of those as extreme, than what was seen."""
    seen = abs(gained - lost)
    sizes = [abs(2 * sum(way) - gained - lost) for way in itertools.product((0, 1), repeat=gained + lost)]
    return (sum(size > seen for size in sizes) + 0.5 * sum(size == seen for size in sizes)) / len(sizes)


@pytest.mark.parametrize("total", range(5, 13))
def test_mcnemar_equals_enumeration(total):
    for gained in range(total + 1):
        assert mcnemar(gained, total - gained) == pytest.approx(enumerated(gained, total - gained), abs=1e-14)


def test_mcnemar_equals_scipys_binomial_test_but_for_half_the_point():
    for gained, lost in ((41, 12), (100, 80), (3, 30)):
        exact = scipy_stats.binomtest(gained, gained + lost).pvalue
        assert mcnemar(gained, lost) == pytest.approx(exact - scipy_stats.binom.pmf(gained, gained + lost, 0.5))


def test_too_few_differing_objects_carry_no_p_value():
    assert [mcnemar(n, 0) is None for n in range(7)] == [True, True, True, True, True, False, False]
    assert mcnemar(5, 0) == pytest.approx(0.03125)


def test_many_tests_at_once_are_the_same_tests_bit_for_bit():
    pairs = [*itertools.product(range(12), repeat=2), (410, 380), (3, 900), (20_000, 19_000)]
    assert _mcnemar_all(*np.array(pairs).T) == [mcnemar(*pair) for pair in pairs]


def test_mcnemar_keeps_its_level():
    generator = np.random.default_rng(0)
    differing = generator.binomial(2882, 0.05, 4000)
    rejected = [mcnemar(int(k), int(n - k)) < 0.05 for n, k in zip(differing, generator.binomial(differing, 0.5), strict=True)]
    assert np.mean(rejected) < 0.055


def test_correctness_survives_packing():
    for count in (1, 7, 8, 9, 2882):
        correct = np.random.default_rng(count).random(count) < 0.9
        assert (unpacked(packed(correct), count) == correct).all()
    assert len(packed(np.ones(2882))) < 500
    with pytest.raises(ValueError, match="correctness of 1 to 8 objects, expected 9"):
        unpacked(packed(np.ones(8)), 9)


def test_flips_count_what_each_gains():
    gained, lost = flips(np.array([[0b11100, 1], [0, 0]], np.uint64), np.array([[0b10010, 0], [0, 2**63]], np.uint64))
    assert (gained.tolist(), lost.tolist()) == ([3, 0], [1, 1])


def test_models_are_compared_where_they_share_seed_and_objects():
    """Against sets of objects, the trials of an arm on data of several sizes: a seed is on the same data in both arms, or left out."""
    generator = np.random.default_rng(1)
    sizes = {0: 2882, 1: 9, 2: 581, 3: 64}
    right = {name: {seed: generator.random(n) < 0.7 for seed, n in sizes.items()} for name in ("a", "b", "c")}
    arms = {
        name: {
            seed: record(
                f"{name}{seed}", 0.5, correct={"last": packed(bits)}, dataset={"digest": str(len(bits)), "num_test": len(bits)}
            )
            for seed, bits in mine.items()
        }
        for name, mine in right.items()
    }
    arms["b"][3] = replace(arms["b"][3], dataset={"digest": "other", "num_test": 64})
    arms["c"].pop(1)
    found = {(test.first, test.second, test.seed): (test.gained, test.lost) for test in model_tests("abc", arms, "last")}
    objects = {name: {seed: set(np.flatnonzero(bits)) for seed, bits in mine.items()} for name, mine in right.items()}
    pairs = [("a", "b", 0), ("a", "b", 1), ("a", "b", 2), ("b", "c", 0), ("b", "c", 2)]
    assert found == {
        (x, y, seed): (len(objects[x][seed] - objects[y][seed]), len(objects[y][seed] - objects[x][seed])) for x, y, seed in pairs
    }
    assert model_tests("abc", arms, "best_val") == () == model_tests([], {}, "last")


def drawn(generator: np.random.Generator, seeds: int, objects: int, seed_sd: float = 0.3) -> list[dict[int, np.ndarray]]:
    """Correctness of two equal arms: objects are easy or hard for both, a seed makes an arm better or worse everywhere."""
    ease = generator.normal(1.0, 1.0, objects)
    level = generator.normal(0, seed_sd, (2, seeds, 1))
    right = ease + level + generator.normal(0, 0.7, (2, seeds, objects)) > 0
    return [dict(enumerate(arm)) for arm in right]


def test_the_bootstraps_variance_is_that_of_the_crossed_design():
    first, second = drawn(np.random.default_rng(3), 6, 500)
    gain = np.stack([first[s].astype(float) - second[s] for s in range(6)])
    by_object, apart = gain.mean(0), gain - gain.mean(0)  # of the objects, and what a seed adds to each
    # Given the objects drawn, the mean over seeds stands still; over their drawings the seeds' deviations have the spread of the
    # seeds and that of their deviations' means over 500 drawn objects, widened by 6 / 5.
    of_objects = by_object.var() / 500
    of_seeds = 6 / 5 * (apart.mean(1).var() + apart.var(axis=1).mean() / 500) / 6
    found = bootstrap(first, second, 6000)
    assert found.mean == pytest.approx(gain.mean())
    assert found.standard_error**2 == pytest.approx(of_objects + of_seeds, rel=0.06)  # 6,000 drawings know it to 1.8 %


def test_one_seed_draws_objects_alone():
    first, second = drawn(np.random.default_rng(4), 1, 800)
    gain = first[0].astype(float) - second[0]
    found = bootstrap(first, second, 4000)
    assert found.standard_error == pytest.approx(gain.std() / math.sqrt(800), rel=0.05)
    assert (found.high - found.mean) == pytest.approx(1.96 * found.standard_error, rel=1e-3)
    assert bootstrap(first, second, 300) == bootstrap(first, second, 300)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("seed_sd", [0.1, 0.3, 1.0])
def test_the_bootstraps_interval_covers_the_truth(seeds, seed_sd):
    generator = np.random.default_rng(5)
    found = [bootstrap(*drawn(generator, seeds, 200, seed_sd), replicates=200) for _ in range(300)]
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= 0.93  # two equal arms: the truth is 0


def test_arms_without_a_common_seed_are_refused():
    with pytest.raises(ValueError, match="share no seed"):
        bootstrap({0: np.ones(3, bool)}, {1: np.ones(3, bool)})
