"""Two arms object by object: which test objects one gets right and the other does not.

McNemar's exact test, mid-p, for two trained models (Fagerland, Lydersen, Laake 2013, BMC Med. Res. Methodol. 13:91), and a bootstrap
over objects and seeds for the difference of two arms (Owen 2007, "The pigeonhole bootstrap", Ann. Appl. Statist. 1). The first speaks
of the two models at hand, and another seed may say otherwise; only the second speaks of the arms.
Letters: S seeds, n objects, R replicates.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pointsweep.records import Record
from pointsweep.stats import LEVEL, holm

REPLICATES = 2000
CHUNK = 250  # replicates drawn at once: 250 x 2,882 counts are 6 MB


def packed(correct: np.ndarray) -> str:
    """Whether each object was right, bool (n,), as base64 of its bits: 480 characters for 2,882 objects."""
    return base64.b64encode(np.packbits(correct.astype(bool)).tobytes()).decode()


def unpacked(text: str, count: int) -> np.ndarray:
    """The inverse of `packed`, bool (count,). Raises ValueError if the text holds another number of objects."""
    return np.unpackbits(np.frombuffer(_bits(text, count), dtype=np.uint8), count=count).astype(bool)


def _bits(text: str, count: int) -> bytes:
    bits = binascii.a2b_base64(text)
    if len(bits) != (count + 7) // 8:
        raise ValueError(f"correctness of {8 * len(bits) - 7} to {8 * len(bits)} objects, expected {count}")
    return bits


def mcnemar(gained: int, lost: int) -> float | None:
    """The two-sided mid-p of exact McNemar, given how many objects only one of two models gets right, and how many only the other.

    None where so few differ that no outcome could reach 5 %: then there is no p-value to be had.
    """
    from scipy.special import bdtr

    differing, less = gained + lost, min(gained, lost)
    if 0.5**differing >= 1 - LEVEL:
        return None
    below = float(bdtr(less - 1, differing, 0.5)) if less else 0.0
    at_most = float(bdtr(less, differing, 0.5))
    # Of an even split every outcome is as extreme or more so; half of its own chance is taken off, as everywhere.
    return 1 - (at_most - below) / 2 if gained == lost else at_most + below


def _mcnemar_all(gained: np.ndarray, lost: np.ndarray) -> list[float | None]:
    """`mcnemar` of each pair, (n,) each: in one call of the same function, a table may have ten thousand."""
    from scipy.special import bdtr

    differing, less = gained + lost, np.minimum(gained, lost)
    below = np.where(less > 0, bdtr(less - 1.0, differing, 0.5), 0.0)
    at_most = bdtr(less.astype(np.float64), differing, 0.5)
    values = np.where(gained == lost, 1 - (at_most - below) / 2, at_most + below).tolist()
    untold = (0.5**differing >= 1 - LEVEL).tolist()
    return [None if none else value for none, value in zip(untold, values, strict=True)]


@dataclass(frozen=True)
class ModelTest:
    """Two models of one seed: objects that only the first gets right (`gained`) and only the second (`lost`)."""

    first: str
    second: str
    seed: int
    gained: int
    lost: int
    p: float | None
    adjusted: float | None = None  # by Holm, over the tests it was made with


def flips(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gained and lost (n,) of n pairs of models, whose correctness on the same objects is a bit each, uint64 (n, words)."""
    gained, lost = (np.bitwise_count(bits).sum(axis=1, dtype=np.int64) for bits in (one & ~other, other & ~one))
    return gained, lost


def correctness(record: Record, protocol: str) -> np.ndarray | None:
    """Which test objects a trial got right, bool (n,); None where its record is older than that."""
    text = record.correct.get(protocol)
    return None if text is None else unpacked(text, int(record.dataset["num_test"]))


def _matrix(records: Sequence[Record], protocol: str) -> np.ndarray:
    """Which objects each trial got right, a bit each, uint64 (n, words); where one has fewer objects, zeros fill its row."""
    rows = [_bits(record.correct[protocol], int(record.dataset["num_test"])) for record in records]
    width = -(-max(map(len, rows), default=0) // 8) * 8
    return np.frombuffer(b"".join(row.ljust(width, b"\0") for row in rows), dtype=np.uint64).reshape(len(rows), width // 8)


def same_objects(one: Record, other: Record) -> bool:
    """Whether two trials were tested on the same clouds, so that they can be compared cloud by cloud."""
    if one.dataset is other.dataset:  # as records that were read together share their parts
        return True
    return all(one.dataset.get(key) == other.dataset.get(key) for key in ("digest", "num_test"))


def model_tests(order: Sequence[str], arms: Mapping[str, Mapping[int, Record]], protocol: str) -> tuple[ModelTest, ...]:
    """Of each arm and the next in `order`, one for every seed that both have; adjusted over all of them together."""
    kept = {name: {seed: r for seed, r in arms[name].items() if protocol in r.correct} for name in order}
    pairs = [
        (first, second, seed)
        for first, second in itertools.pairwise(order)
        for seed in sorted(kept[first].keys() & kept[second].keys())
        if same_objects(kept[first][seed], kept[second][seed])
    ]
    if not pairs:
        return ()
    trials = [(name, seed) for name, mine in kept.items() for seed in mine]
    bits = _matrix([kept[name][seed] for name, seed in trials], protocol)
    rows = {trial: row for row, trial in enumerate(trials)}
    gained, lost = flips(
        bits[[rows[first, seed] for first, _, seed in pairs]], bits[[rows[second, seed] for _, second, seed in pairs]]
    )
    p_values = _mcnemar_all(gained, lost)
    found = zip(pairs, gained.tolist(), lost.tolist(), p_values, holm(p_values), strict=True)
    return tuple(ModelTest(*pair, *tested) for pair, *tested in found)


@dataclass(frozen=True)
class Bootstrap:
    """The difference of two arms, first minus second, over the drawing of objects and seeds; `seeds` = 1: over objects alone."""

    mean: float
    standard_error: float
    low: float
    high: float
    seeds: int
    objects: int


def bootstrap(first: Mapping[int, np.ndarray], second: Mapping[int, np.ndarray], replicates: int = REPLICATES) -> Bootstrap:
    """Correctness of two arms by seed, bool (n,) each -> their difference, paired by seed and object.

    Objects and seeds are drawn independently, each with replacement. Two repairs make it fit for 2 to 5 seeds: the seeds' deviations
    are widened by sqrt(S / (S - 1)), for a bootstrap's variance is that much too small, and the interval is mean ± t * standard
    error, where quantiles of a handful of seeds would be far too narrow. Raises ValueError where the arms share no seed.
    """
    from scipy.special import ndtri, stdtrit

    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise ValueError("the arms share no seed")
    gain = np.stack([first[seed].astype(np.int8) - second[seed].astype(np.int8) for seed in shared]).astype(np.float64)  # (S, n)
    count, objects = gain.shape
    drawn = _replicates(gain, replicates)
    error, mean = float(drawn.std(ddof=1)), float(gain.mean())
    quantile = float(ndtri(0.5 + LEVEL / 2)) if count == 1 else float(stdtrit(_freedom(gain), 0.5 + LEVEL / 2))
    return Bootstrap(mean, error, mean - quantile * error, mean + quantile * error, count, objects)


def _freedom(gain: np.ndarray) -> float:
    """gain (S, n) -> the degrees of freedom of its mean's variance over seeds and objects (Satterthwaite 1946, Biometrics Bull. 2).

    Of two seeds only one: their spread is so uncertain that the approximation covers 90 % (simulated), and one degree at least 99 %.
    """
    count, objects = gain.shape
    by_seed, by_object = float(gain.mean(axis=1).var(ddof=1)) / count, float(gain.mean(axis=0).var()) / objects
    if count == 2 or not by_seed + by_object:
        return count - 1
    return (by_seed + by_object) ** 2 / (by_seed**2 / (count - 1) + by_object**2 / max(objects - 1, 1))


def _replicates(gain: np.ndarray, replicates: int) -> np.ndarray:
    """gain (S, n) -> means (R,) of as many drawings, the same ones at every call."""
    count, objects = gain.shape
    generator = np.random.default_rng(0)
    means = []
    for start in range(0, replicates, CHUNK):
        size = min(CHUNK, replicates - start)
        weights = generator.multinomial(objects, np.full(objects, 1 / objects), size=size) / objects  # (R, n)
        by_seed = weights @ gain.T  # (R, S)
        middle = by_seed.mean(axis=1, keepdims=True)
        widened = middle + (by_seed - middle) * math.sqrt(count / max(count - 1, 1))
        seeds = generator.multinomial(count, np.full(count, 1 / count), size=size) / count  # (R, S)
        means.append((widened * seeds).sum(axis=1))
    return np.concatenate(means)
