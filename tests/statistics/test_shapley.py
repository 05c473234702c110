"""Shares against games whose answer is known, and against the definition over all orders."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pointsweep.statistics.shapley import attribution, shares


def game(components: str, seed: int = 0) -> dict[frozenset[str], float]:
    generator = np.random.default_rng(seed)
    subsets = itertools.chain.from_iterable(itertools.combinations(components, size) for size in range(len(components) + 1))
    return {frozenset(subset): float(generator.normal()) for subset in subsets}


def test_the_glove_game():
    # Two left gloves and a right one; a pair is worth 1: the right glove gets 2/3 (Shapley 1953).
    values = {s: float("r" in s and len(s) > 1) for s in game("abr")}
    assert shares(values, "abr") == pytest.approx({"a": 1 / 6, "b": 1 / 6, "r": 2 / 3})


def test_shares_equal_the_mean_over_all_orders():
    values = game("wxyz", 1)
    wanted = dict.fromkeys("wxyz", 0.0)
    for order in itertools.permutations("wxyz"):
        for at, name in enumerate(order):
            wanted[name] += (values[frozenset(order[: at + 1])] - values[frozenset(order[:at])]) / 24
    found = shares(values, "wxyz")
    assert found == pytest.approx(wanted)
    assert sum(found.values()) == pytest.approx(values[frozenset("wxyz")] - values[frozenset()])


def arms(noise: float, seeds: int, generator: np.random.Generator) -> list:
    gains = {"a": 0.02, "b": 0.01}
    subsets = [dict(zip("ab", way, strict=True)) for way in itertools.product((False, True), repeat=2)]
    return [
        (way, {s: 0.8 + sum(gains[n] for n in "ab" if way[n]) + float(generator.normal(0, noise)) for s in range(seeds)})
        for way in subsets
    ]


def test_the_interval_covers_the_true_share():
    generator = np.random.default_rng(2)
    found = [attribution(arms(0.005, 3, generator))["a"] for _ in range(1500)]
    assert 0.935 < np.mean([one.low <= 0.02 <= one.high for one in found]) < 0.965


def test_one_seed_gives_shares_without_an_interval():
    found = attribution(arms(0.0, 1, np.random.default_rng(0)))
    assert found["b"].mean == pytest.approx(0.01)
    assert found["b"].low is None


def test_what_is_no_factorial_is_refused():
    full = arms(0.0, 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no value with a"):
        attribution([arm for arm in full if arm[0] != {"a": True, "b": False}])
    with pytest.raises(ValueError, match="two rows with a"):
        attribution([*full, full[2]])
    with pytest.raises(ValueError, match="different factors"):
        attribution([*full, ({"a": True}, {0: 1.0})])
    with pytest.raises(ValueError, match="no seed has every row"):
        attribution([*full[:3], (full[3][0], {7: 0.5})])
