"""The studentized range against scipy's, and against the t distribution."""

from __future__ import annotations

import math

import pytest
from scipy import stats as scipy_stats

from pointsweep.statistics.studentized_range import range_quantile, range_tail


@pytest.mark.parametrize(("num_means", "freedom"), [(2, 1), (3, 2), (5, 2.5), (5, 8), (10, 18), (30, 58)])
def test_tails_are_scipys(num_means, freedom):
    for q in (0.5, 3.0, 5.0, 12.0):
        expected = scipy_stats.studentized_range.sf(q, num_means, freedom)
        assert range_tail(q, num_means, freedom) == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize(("num_means", "freedom"), [(3, 2), (5, 8), (10, 18)])
@pytest.mark.parametrize("level", [0.001, 0.05, 0.3])
def test_quantiles_are_scipys(num_means, freedom, level):
    expected = scipy_stats.studentized_range.ppf(1 - level, num_means, freedom)
    assert range_quantile(level, num_means, freedom) == pytest.approx(expected, rel=1e-6)


def test_quantiles_are_those_of_printed_tables():
    # Pearson & Hartley, Biometrika Tables for Statisticians, table 29: upper 5 % points
    assert range_quantile(0.05, 5, 8) == pytest.approx(4.89, abs=0.005)
    assert range_quantile(0.05, 3, 20) == pytest.approx(3.58, abs=0.005)
    assert range_quantile(0.05, 10, 10) == pytest.approx(5.60, abs=0.005)


def test_two_means_give_students_t():
    for freedom in (1, 2, 7, 40):
        t = scipy_stats.t.ppf(0.975, freedom)
        assert range_quantile(0.05, 2, freedom) == pytest.approx(t * math.sqrt(2), rel=1e-6)
    assert range_tail(0.0, 4, 3) == 1.0
