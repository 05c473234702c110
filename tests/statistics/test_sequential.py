"""The sequential test and the rule of the seeds, simulated: false claims, power and runs; by hand where a formula is at hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pointsweep.reporting.build import build
from pointsweep.results.records import Adaptive, CellLayout, Layout, Record, layout_from_json
from pointsweep.statistics.adaptive_seeds import settle
from pointsweep.statistics.seeds import difference, holm, summary
from pointsweep.statistics.sequential import chance, evidence, last_level, sequential_p

Values = np.ndarray


def layout(rows: int, rule: Adaptive) -> Layout:
    names = tuple((f"row {row}",) for row in range(rows))
    cells = tuple(CellLayout(row, 0, tuple((seed, f"{row}/{seed}") for seed in range(rule.most))) for row in range(rows))
    return Layout("t", "t", ("",), names, ("column",), cells, adaptive=rule)


def records(values: Values, seeds: int | None = None) -> dict[str, Record]:
    """values (rows, seeds) -> a record for each."""
    return {
        f"{row}/{seed}": Record(f"{row}/{seed}", {}, {"last": {"test/accuracy": float(value)}}, {}, {}, "")
        for row, line in enumerate(values)
        for seed, value in enumerate(line[:seeds])
    }


def drawn(generator: np.random.Generator, gains: list[float], seeds: int) -> Values:
    """(rows, seeds), the reference first; paired differences have sd 1."""
    noise = generator.normal(0, math.sqrt(0.5), (len(gains) + 1, seeds)) + generator.normal(0, 1, seeds)
    return noise + np.array([0.0, *gains])[:, None]


def simulated(gains: list[float], rule: Adaptive, sweeps: int, fixed: int = 10) -> tuple[float, float, float, float]:
    """False claims a sweep; share of the true gains found; share that a fixed design finds; runs as a share of its runs."""
    generator, plan = np.random.default_rng(7), layout(len(gains) + 1, rule)
    false, found, fixed_found, runs = 0, 0, 0, 0
    for _ in range(sweeps):
        values = drawn(generator, gains, rule.most)
        settled, compared = settle(plan, records(values))
        claims = [each.state == "decided" for each in compared]
        false += any(claim for claim, gain in zip(claims, gains, strict=True) if not gain)
        found += sum(claim for claim, gain in zip(claims, gains, strict=True) if gain)
        runs += sum(len(cell.keys) for cell in settled.cells)
        arms = [dict(enumerate(line[:fixed])) for line in values.tolist()]
        p_values = holm([difference(arm, arms[0]).p for arm in arms[1:]])
        fixed_found += sum(p is not None and p < 0.05 for p, gain in zip(p_values, gains, strict=True) if gain)
    true = max(sum(gain != 0 for gain in gains), 1) * sweeps
    return false / sweeps, found / true, fixed_found / true, runs / (sweeps * fixed * (len(gains) + 1))


@pytest.mark.parametrize("rows", [2, 4])
def test_of_two_thousand_sweeps_without_a_difference_at_most_one_in_twenty_shows_one(rows):
    false, *_ = simulated([0.0] * (rows - 1), Adaptive(3, 10), 2000)
    assert false <= 0.05


def test_at_equal_power_a_third_of_the_runs_is_saved():
    """Max 12 finds what a fixed design of 10 finds; sweeps of no, large and very large gains (in sd of the differences)."""
    results = [simulated(gains, Adaptive(3, 12), 300) for gains in ([0, 1.2, 2.5], [0, 2, 4], [2, 3, 5])]
    found, fixed, runs = (np.mean([result[i] for result in results]) for i in (1, 2, 3))
    assert found >= fixed - 0.01
    assert runs <= 0.7


@pytest.mark.slow
@pytest.mark.parametrize("rule", [Adaptive(2, 5), Adaptive(3, 5), Adaptive(3, 10), Adaptive(3, 20), Adaptive(5, 10)])
def test_the_error_rate_is_kept_whatever_the_looks(rule):
    for gains in ([0.0], [0.0] * 3, [0.0] * 9, [0.0, 2.0, 4.0]):
        false, *_ = simulated(gains, rule, 4000, fixed=rule.most)
        assert false <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.slow
def test_runs_saved_in_more_sweeps():
    for gains, most in (([0, 0, 0], 0.7), ([0, 1.2, 2.5], 0.78), ([0, 2, 4], 0.68), ([2, 3, 5], 0.6)):
        _, found, fixed, runs = simulated(gains, Adaptive(3, 12), 3000)
        print(gains, found, fixed, runs)
        assert found >= fixed - 0.01
        assert runs <= most


def test_a_single_look_is_the_paired_t_test():
    for values in ([0.1, 0.3, 0.2, 0.25], [0.1, -0.3, 0.2, 0.25]):
        p = scipy_stats.ttest_1samp(values, 0.0).pvalue
        assert sequential_p(evidence(summary(values), 4), 4, 4) == pytest.approx(p, rel=0.03, abs=2e-3)
    assert last_level(0.05, 4, 4) == pytest.approx(0.05, rel=0.03)


def test_the_sequential_p_value_is_uniform_or_larger_without_a_difference():
    generator = np.random.default_rng(11)
    p_values = []
    for _ in range(4000):
        values = generator.normal(size=6).tolist()
        p_values.append(sequential_p(min(evidence(summary(values[:n]), 6) for n in (3, 4, 5, 6)), 3, 6))
    for level in (0.01, 0.05, 0.2):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / 4000))


def test_the_chance_is_that_of_drawn_continuations():
    """Under a flat prior the true mean is the present one plus t-distributed error; the rest is drawn about it with the present sd."""
    differences, most, level = summary([0.1, 0.5, 0.2, -0.1, 0.4]), 10, 0.05
    assert differences.sd is not None
    generator = np.random.default_rng(3)
    error = generator.standard_t(4, 200_000) * differences.sd * math.sqrt(1 / 5 + 1 / 5)  # of the mean of the five to come
    final = (5 * differences.mean + 5 * (differences.mean + error)) / (differences.sd * math.sqrt(10))
    wanted = np.mean(np.abs(final) > scipy_stats.t.ppf(1 - level / 2, 9))
    assert chance(differences, most, level) == pytest.approx(wanted, abs=0.005)


def test_values_without_spread_are_no_evidence():
    assert evidence(summary([0.1, 0.1, 0.1]), 10) == math.inf
    assert chance(summary([0.1, 0.1, 0.1]), 10, 0.05) == 1.0
    assert chance(summary([0.0, 0.0, 0.0]), 10, 0.05) == 0.0


# The rule


def test_only_open_comparisons_get_further_seeds():
    generator = np.random.default_rng(0)
    values = drawn(generator, [40.0, 0.9], 10)
    settled, compared = settle(layout(3, Adaptive(3, 10)), records(values, 3))
    assert [each.state for each in compared] == ["decided", "waiting"]
    assert [len(cell.keys) for cell in settled.cells] == [4, 3, 4]


def test_what_is_asked_is_a_function_of_the_records_asked_for():
    """Records beyond those change nothing: a store that has more, a kill in the middle, another order."""
    rule, generator = Adaptive(3, 8), np.random.default_rng(5)
    for _ in range(20):
        plan, everything = layout(4, rule), records(drawn(generator, [0.0, 1.0, 2.0], 8))
        whole = settle(plan, everything)
        done: dict[str, Record] = {}
        while True:
            asked = [key for cell in settle(plan, done)[0].cells for _, key in cell.keys if key not in done]
            if not asked:
                break
            key = str(generator.choice(asked))
            done[key] = everything[key]
        assert settle(plan, done) == whole


def test_a_trial_that_failed_holds_up_its_own_comparison_alone():
    everything = records(drawn(np.random.default_rng(2), [0.8, 1.0], 6))
    del everything["1/2"]
    _, compared = settle(layout(3, Adaptive(3, 6)), everything)
    assert compared[0].state == "waiting"
    assert compared[0].n == 3
    assert compared[1].state != "waiting"


def test_the_table_says_how_many_seeds_and_why():
    plan = layout(3, Adaptive(3, 10))
    values = drawn(np.random.default_rng(1), [40.0, 0.0], 10) / 100
    table = build(layout_from_json(plan.to_json()), records(values), {})
    assert [cell.expected for cell in table.cells] == [cell.n for cell in table.cells]
    assert table.cells[1].n == 3
    assert table.cells[1].stopped == "told apart"
    assert table.comparisons == ()  # no tests that do not know of the looks
    [note] = [note for note in table.notes if note.startswith("column, against row 0: > row 1 +")]
    assert "~ row 2" in note


def test_looking_at_the_ordinary_test_after_every_seed_would_claim_too_often():
    """The number of docs/statistics.md: looks at 3 to 10 seeds."""
    values = np.random.default_rng(0).normal(size=(20_000, 10))
    p_values = np.stack([scipy_stats.ttest_1samp(values[:, :n], 0.0, axis=1).pvalue for n in range(3, 11)])
    assert np.mean(p_values.min(axis=0) < 0.05) == pytest.approx(0.167, abs=0.01)
