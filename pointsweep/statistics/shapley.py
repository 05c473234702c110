"""Contribution of each component of a method: Shapley shares from a factorial sweep, with intervals
over seeds.

Source: Shapley 1953, "A value for n-person games". A component's share is its gain averaged over
all orders in which the components could be added; the shares add up to what all of them together
gain over none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from pointsweep.statistics.seeds import Summary, summary

Factors = Mapping[str, bool]


def shares(
    values: Mapping[frozenset[str], float], components: Sequence[str]
) -> dict[str, float]:
    """The share of each component, from the value with every subset of them. Raises ValueError
    naming a subset that is missing.
    """
    for size in range(len(components) + 1):
        for subset in itertools.combinations(components, size):
            if frozenset(subset) not in values:
                raise ValueError(
                    f"no value with {' + '.join(subset) or 'none of the components'}"
                )

    total = len(components)
    result = {}
    for component in components:
        others = [name for name in components if name != component]
        gains = []
        for size in range(total):
            num_orders = math.factorial(size) * math.factorial(total - size - 1)
            for subset in itertools.combinations(others, size):
                without_it = frozenset(subset)
                with_it = without_it | {component}
                gains.append(num_orders * (values[with_it] - values[without_it]))

        result[component] = math.fsum(gains) / math.factorial(total)

    return result


def attribution(
    arms: Sequence[tuple[Factors, Mapping[int, float]]],
) -> dict[str, Summary]:
    """The mean share and its t-interval, by component, over the seeds that all arms have. An arm:
    its factors, its values by seed.

    Raises ValueError where arms name different factors, two are the same combination, one is
    missing, or no seed is shared.
    """
    components = list(arms[0][0])
    if any(set(factors) != set(components) for factors, _ in arms):
        raise ValueError("the rows name different factors")

    by_subset: dict[frozenset[str], Mapping[int, float]] = {}
    for factors, values in arms:
        subset = frozenset(name for name, present in factors.items() if present)
        if subset in by_subset:
            names = " + ".join(sorted(subset)) or "none of the components"
            raise ValueError(f"two rows with {names}")

        by_subset[subset] = values

    seeds = set.intersection(*map(set, by_subset.values()))
    if not seeds:
        raise ValueError("no seed has every row")

    shares_of: dict[str, list[float]] = {name: [] for name in components}
    for seed in sorted(seeds):
        worth = {subset: values[seed] for subset, values in by_subset.items()}
        for name, share in shares(worth, components).items():
            shares_of[name].append(share)

    return {name: summary(values) for name, values in shares_of.items()}
