"""Formulas, written out or taken from scipy."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pointsweep.statistics.seeds import Summary, by_mean, difference, holm, summary, verdict, wilson


def test_mean_sd_and_interval_by_hand():
    result = summary([0.80, 0.82, 0.87])
    assert result.mean == pytest.approx(0.83)
    assert result.sd == pytest.approx((((0.03) ** 2 + 0.01**2 + 0.04**2) / 2) ** 0.5)
    half = 4.302652729911275 * result.sd / 3**0.5  # t at 97.5 % with 2 degrees of freedom
    assert (result.low, result.high) == (pytest.approx(0.83 - half), pytest.approx(0.83 + half))


def test_one_value_carries_no_spread():
    result = summary([0.5])
    assert (result.mean, result.sd, result.low, result.high) == (0.5, None, None, None)


def test_the_order_of_the_values_changes_no_bit():
    values = [random.Random(i).random() for i in range(7)]
    assert len({summary(random.Random(i).sample(values, 7)) for i in range(50)}) == 1


def test_a_paired_difference_equals_scipys_paired_test():
    first, second = {0: 0.81, 1: 0.84, 2: 0.80, 3: 0.90}, {1: 0.80, 0: 0.79, 2: 0.81, 7: 0.1}
    result = difference(first, second)
    reference = scipy_stats.ttest_rel([0.81, 0.84, 0.80], [0.79, 0.80, 0.81]).confidence_interval(0.95)
    assert (result.low, result.high, result.n) == (pytest.approx(reference.low), pytest.approx(reference.high), 3)


def test_arms_without_a_common_seed_are_not_compared():
    with pytest.raises(ValueError, match="share no seed"):
        difference({0: 0.5}, {1: 0.5})


@pytest.mark.parametrize(
    ("first", "second", "resolved"),
    [
        ({0: 0.80, 1: 0.81, 2: 0.80}, {0: 0.70, 1: 0.70, 2: 0.71}, True),
        ({0: 0.80, 1: 0.70, 2: 0.75}, {0: 0.70, 1: 0.75, 2: 0.71}, False),
        ({0: 0.80}, {0: 0.1}, False),  # one seed shows no order, however far apart
        ({0: 0.5, 1: 0.5}, {0: 0.4, 1: 0.4}, False),  # no spread: the interval has no width to judge by
    ],
)
def test_what_the_seeds_resolve(first, second, resolved):
    assert difference(first, second).resolved is resolved


def test_equal_values_have_no_spread_whatever_the_rounding():
    for value in (0.1, 0.7, 1 / 3, 0.81):
        assert summary([value] * 6) == Summary(value, 0.0, 6, value, value)
    # 0.9 - 0.8 and 0.8 - 0.7 differ in the last bits, which no seeds resolve.
    constant = difference({0: 0.9, 1: 0.8}, {0: 0.8, 1: 0.7})
    assert constant.constant
    assert not constant.resolved


def test_arms_stand_from_the_highest_mean_down_and_equal_ones_by_name():
    assert by_mean({"b": {0: 0.5}, "a": {1: 0.5}, "c": {0: 0.4, 1: 0.9}, "empty": {}}) == ["c", "a", "b"]
    assert by_mean({}) == []


# Tests and their correction


def test_the_p_value_is_that_of_scipys_paired_test():
    first, second = {0: 0.81, 1: 0.84, 2: 0.80, 3: 0.77}, {0: 0.79, 1: 0.80, 2: 0.81, 3: 0.70}
    reference = scipy_stats.ttest_rel(list(first.values()), list(second.values()))
    assert difference(first, second).p == pytest.approx(reference.pvalue)


@pytest.mark.parametrize("values", [([0.8], [0.7]), ([0.8, 0.8, 0.8], [0.7, 0.7, 0.7])])
def test_one_seed_or_no_spread_carries_no_p_value(values):
    first, second = (dict(enumerate(each)) for each in values)
    assert difference(first, second).p is None


def test_holm_equals_r():
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm") and p.adjust(c(0.04, 0.001, 0.03), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.04, 0.001, 0.03]) == pytest.approx([0.06, 0.003, 0.06])
    # A comparison without a p-value still counts.
    assert holm([0.02, None]) == [pytest.approx(0.04), None]


def test_wilson_equals_scipy():
    for correct, total in ((0, 10), (81, 263), (2455, 2882), (581, 581)):
        reference = scipy_stats.binomtest(correct, total).proportion_ci(0.95, "wilson")
        assert wilson(correct, total) == (pytest.approx(reference.low, abs=1e-12), pytest.approx(reference.high))


def test_wilson_and_the_t_interval_cover_what_they_say():
    generator = np.random.default_rng(1)
    within = [low <= 0.9 <= high for k in generator.binomial(581, 0.9, 2000) for low, high in [wilson(int(k), 581)]]
    assert 0.935 < np.mean(within) < 0.965
    runs = [summary(list(values)) for values in generator.normal(0.8, 0.01, (2000, 3))]
    assert 0.935 < np.mean([run.low <= 0.8 <= run.high for run in runs]) < 0.965


@pytest.mark.parametrize(
    ("values", "kind", "reason"),
    [
        ([0.900, 0.901, 0.899], "reproduced", "inside the margin (3 seeds)"),
        ([0.870, 0.871, 0.869], "not", "lower (3 seeds)"),
        ([0.930, 0.931, 0.929], "not", "higher (3 seeds)"),
        ([0.88, 0.90, 0.92], "undecided", "the interval reaches over the margin (3 seeds)"),
        ([0.90], "reproduced", "inside the margin (one result, interval over the test objects)"),
        ([0.15], "not", "lower (one result, interval over the test objects)"),
        ([0.15, 0.15], "not", "lower (the same with 2 seeds, interval over the test objects)"),
        ([0.89], "undecided", "the interval reaches over the margin (one result, interval over the test objects)"),
    ],
)
def test_verdicts_on_a_published_number(values, kind, reason):
    found = verdict(values, 0.90, 2882)
    assert (found.kind, found.reason) == (kind, reason)
    low, high = scipy_stats.binomtest(2594, 2882).proportion_ci(0.95, "wilson")
    assert found.margin == pytest.approx((high - low) / 2, rel=1e-3)  # 1.1 points


def test_a_verdicts_interval_is_students_over_seeds_and_wilsons_over_objects():
    values = [0.71, 0.70, 0.726]
    found = verdict(values, 0.9, 2882)
    interval = scipy_stats.ttest_1samp(values, 0.9).confidence_interval(0.9)
    assert (found.low + 0.9, found.high + 0.9) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert (found.difference, found.basis) == (pytest.approx(0.712 - 0.9), "seeds")
    alone = verdict([0.15], 0.818, 300)
    wilsons = scipy_stats.binomtest(45, 300).proportion_ci(0.9, "wilson")
    assert (alone.low + 0.818, alone.high + 0.818) == (pytest.approx(wilsons.low), pytest.approx(wilsons.high))
    assert alone.basis == "objects"


def test_verdicts_are_wrong_no_more_often_than_they_say():
    generator = np.random.default_rng(2)
    margin = verdict([0.9], 0.9, 2882).margin
    for seeds in (2, 3, 10):
        at_the_margin = [verdict(list(v), 0.9, 2882).kind for v in generator.normal(0.9 + margin, 0.002, (1500, seeds)).tolist()]
        assert 0.035 < at_the_margin.count("reproduced") / 1500 < 0.065
        assert 0.035 < at_the_margin.count("not") / 1500 < 0.065
