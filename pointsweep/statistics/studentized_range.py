"""The studentized range: the distribution behind all pairs of several means at once.

Source: Tukey 1953, "The problem of multiple comparisons"; the integral as in Copenhaver & Holland
1988 (J. Stat. Comput. Simul. 30). scipy.stats.studentized_range gives the same numbers (tests), but
takes a second to import and to invert, which every printed table would wait for.
"""

from __future__ import annotations

import functools
import math

import numpy as np

NUM_NORMAL_NODES = 80  # for the position of the smallest of the means
STEP, WIDEST = 0.02, 16.0  # of the table of ranges
NUM_SPREAD_NODES = 120  # for the estimated standard deviation, on a logarithmic scale
MOST_STEPS = 100
PRECISION = 1e-10  # of the logarithm of a chance
FARTHEST = 8.0  # standard normal values beyond it have no weight


def range_tail(q: float, num_means: int, freedom: float) -> float:
    """Return the chance that the range of equal means, over their estimated standard error, is
    larger than `q`.

    `freedom`: degrees of freedom of the estimate, 1 or more, also between whole numbers.
    """
    if q <= 0:
        return 1.0

    spread, weight = _spread(freedom)  # (S,) each
    return float(np.clip(weight @ _normal_tail(q * spread, num_means), 0.0, 1.0))


@functools.lru_cache(maxsize=4096)
def range_quantile(level: float, num_means: int, freedom: float) -> float:
    """Return the `q` that is exceeded with the chance `level`: a root of the logarithms, which are
    nearly a line.
    """

    def excess(log_q: float) -> float:
        tail = range_tail(math.exp(log_q), num_means, freedom)
        return math.log(max(tail, 1e-300)) - math.log(level)

    low, high = -8.0, 1.0
    while excess(high) > 0:
        low, high = high, high + 1.0

    above, below = excess(low), excess(high)
    root = high
    for _ in range(MOST_STEPS):  # the Illinois variant of regula falsi
        root = high - below * (high - low) / (below - above)
        value = excess(root)
        if abs(value) < PRECISION:
            break

        if value > 0:
            low, above = root, value
            below /= 2
        else:
            high, below = root, value
            above /= 2

    return math.exp(root)


def _normal_tail(widths: np.ndarray, num_means: int) -> np.ndarray:
    """Return the chance that `num_means` standard normal values lie farther apart than each of the
    widths (S,).

    By cubic interpolation between the points of a table.
    """
    tail, slope = _normal_table(num_means)
    positions = np.minimum(widths / STEP, len(tail) - 1.001)
    left = positions.astype(np.int64)
    x = positions - left
    rise = tail[left + 1] - tail[left]
    bend = STEP * (slope[left] + slope[left + 1]) - 2 * rise
    turn = rise - STEP * slope[left] - bend
    curve = turn + x * bend
    values: np.ndarray = tail[left] + x * (STEP * slope[left] + x * curve)

    return values


@functools.lru_cache(maxsize=256)
def _normal_table(num_means: int) -> tuple[np.ndarray, np.ndarray]:
    """Return that chance for the widths 0, STEP, 2 STEP ... WIDEST, and its slope; (W,) both."""
    from scipy.special import ndtr

    widths = np.arange(0.0, WIDEST + STEP / 2, STEP)
    smallest = np.linspace(-FARTHEST, FARTHEST, NUM_NORMAL_NODES)
    step = smallest[1] - smallest[0]
    density = _density(smallest)
    above = 1 - ndtr(smallest)  # (Z,)
    largest = smallest + widths[:, None]
    within = ndtr(largest) - ndtr(smallest)  # (W, Z)
    exceeding = above ** (num_means - 1) - within ** (num_means - 1)
    tail = num_means * step * (exceeding @ density)

    growth = within ** (num_means - 2) * _density(largest)
    slope = -num_means * (num_means - 1) * step * (growth @ density)

    return tail, slope


def _density(values: np.ndarray) -> np.ndarray:
    density: np.ndarray = np.exp(-values * values / 2) / np.sqrt(2 * np.pi)
    return density


@functools.lru_cache(maxsize=4096)
def _spread(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Return values of an estimated standard deviation over the true one, and the weight of each;
    (S,) both.
    """
    from scipy.special import chdtri, gammaln

    least = np.sqrt(chdtri(freedom, 1 - 1e-12) / freedom)
    most = np.sqrt(chdtri(freedom, 1e-15) / freedom)
    logs = np.linspace(np.log(least), np.log(most), NUM_SPREAD_NODES)
    spread = np.exp(logs)
    half = freedom / 2
    log_constant = np.log(2) + half * np.log(half) - gammaln(half)
    log_density = log_constant + freedom * logs - half * spread * spread

    weight = np.exp(log_density) * (logs[1] - logs[0])

    return spread, weight
