"""Power by formula against simulated trials and against printed tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pointsweep.statistics.paired_objects import mcnemar
from pointsweep.statistics.power import assumed_sd, pooled_sd, power_of_models, power_of_seeds, smallest_gain


@pytest.mark.parametrize(("seeds", "effect", "comparisons"), [(3, 3.0, 1), (3, 4.0, 3), (5, 1.5, 1), (10, 1.0, 2), (2, 10.0, 1)])
def test_the_power_over_seeds_is_within_three_points_of_simulation(seeds, effect, comparisons):
    values = np.random.default_rng(0).normal(effect * 0.004, 0.004, (20_000, seeds))
    p = scipy_stats.ttest_1samp(values, 0.0, axis=1).pvalue
    assert power_of_seeds(effect * 0.004, seeds, 0.004, comparisons) == pytest.approx(np.mean(p < 0.05 / comparisons), abs=0.03)


def test_a_paired_t_test_of_ten_pairs_has_the_power_that_r_prints():
    # R: power.t.test(n = 10, delta = 1, sd = 1, type = "paired") gives 0.8030962 (of the upper tail, all but 1e-6 of it)
    assert power_of_seeds(1.0, 10, 1.0) == pytest.approx(0.8030962, abs=1e-4)


def test_without_a_gain_the_power_is_the_level():
    assert power_of_seeds(0.0, 3, 0.01) == pytest.approx(0.05)
    assert power_of_seeds(0.5, 3, 0.001) == pytest.approx(1.0)


def test_the_power_over_objects_is_within_three_points_of_simulation():
    generator = np.random.default_rng(1)
    for gain, discordant in ((0.017, 0.08), (0.01, 0.08), (0.002, 0.05)):
        chances = [(discordant + gain) / 2, (discordant - gain) / 2, 1 - discordant]
        counts = generator.multinomial(2882, chances, 4000)
        simulated = np.mean([mcnemar(int(a), int(b)) < 0.05 for a, b, _ in counts])
        assert power_of_models(gain, 2882, discordant) == pytest.approx(simulated, abs=0.03)


def test_the_smallest_gain_is_where_the_power_reaches_the_target():
    found = smallest_gain(lambda gain: power_of_seeds(gain, 3, 0.005))
    assert found is not None
    assert power_of_seeds(found, 3, 0.005) == pytest.approx(0.9, abs=1e-3)
    assert smallest_gain(lambda gain: 0.5) is None


def test_the_assumed_spread_is_that_of_two_half_correlated_binomials():
    generator = np.random.default_rng(2)
    cause = generator.random((2000, 500)) < 0.5  # each object's outcome is shared by the arms with chance one half
    one, two, both = (generator.random((2000, 500)) < 0.9 for _ in range(3))
    apart = (np.where(cause, both, one).astype(float) - np.where(cause, both, two)).mean(axis=1)
    assert assumed_sd(0.9, 500) == pytest.approx(apart.std(), rel=0.05)


def test_spreads_are_pooled_by_their_degrees_of_freedom():
    sd, freedom = pooled_sd([(0.01, 3), (0.02, 2)])
    assert freedom == 3
    assert sd == pytest.approx(math.sqrt((2 * 0.01**2 + 0.02**2) / 3))
    assert pooled_sd([]) is None
    assert pooled_sd([(0.0, 3)]) is None
