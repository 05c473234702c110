"""Formulas, written out or taken from scipy."""

from __future__ import annotations

import random

import pytest
from scipy import stats as scipy_stats

from pointsweep.stats import Summary, difference, ranking, summary


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


def test_ranking_runs_from_the_best_down():
    steps = ranking({"a": {0: 0.1, 1: 0.1}, "b": {0: 0.3, 1: 0.5}, "c": {0: 0.2, 1: 0.2}, "empty": {}})
    assert [name for name, _ in steps] == ["b", "c", "a"]
    assert steps[0][1] is not None
    assert steps[0][1].mean == pytest.approx(0.2)
    assert steps[-1][1] is None


def test_equal_values_have_no_spread_whatever_the_rounding():
    for value in (0.1, 0.7, 1 / 3, 0.81):
        assert summary([value] * 6) == Summary(value, 0.0, 6, value, value)
    # 0.9 - 0.8 and 0.8 - 0.7 differ in the last bits, which no seeds resolve.
    constant = difference({0: 0.9, 1: 0.8}, {0: 0.8, 1: 0.7})
    assert constant.constant
    assert not constant.resolved


def test_a_difference_can_point_against_the_order_of_the_means():
    first, second = {0: 0.5, 1: 0.51, 2: 0.9}, {0: 0.55, 1: 0.56001}
    [(name, step), _] = ranking({"first": first, "second": second})
    assert name == "first"
    assert step is not None
    assert step.n == 2
    assert step.resolved
    assert step.high is not None
    assert step.high < 0


def test_ties_and_arms_without_a_common_seed_have_a_fixed_order():
    assert ranking({"b": {0: 0.5}, "a": {1: 0.5}}) == [("a", None), ("b", None)]
    assert ranking({}) == []
