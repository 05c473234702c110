"""Two arms object by object: which test objects one gets right and the other does not.

McNemar's exact test, mid-p, for two trained models (Fagerland, Lydersen, Laake 2013, BMC Med. Res.
Methodol. 13:91), and a bootstrap over objects and seeds for the difference of two arms (Owen 2007,
"The pigeonhole bootstrap", Ann. Appl. Statist. 1). The first speaks of the two models at hand, and
another seed may say otherwise; only the second speaks of the arms. Where a data set has several
clouds of an object (ScanObjectNN's perturbed variants), the object is the unit: its clouds are
neither tested nor drawn apart. McNemar's test becomes the exact sign-flip test of the objects' net
gains (Fisher 1935), the same test where every object has one cloud. Wilson's interval gets the
number of independent clouds that carry as much (Kish 1965, Survey Sampling). Letters: S seeds, n
clouds, G objects, R replicates.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pointsweep.results.agreement import packed as packed
from pointsweep.results.records import Record
from pointsweep.statistics.seeds import LEVEL, holm

REPLICATES = 2000
CHUNK = 250  # replicates drawn at once: 250 x 2,882 counts are 6 MB


def unpacked(text: str, count: int) -> np.ndarray:
    """The inverse of `packed`, bool (count,). Raises ValueError if the text holds another number of
    objects.
    """
    data = np.frombuffer(_bits(text, count), dtype=np.uint8)
    return np.unpackbits(data, count=count).astype(bool)


def _bits(text: str, count: int) -> bytes:
    bits = binascii.a2b_base64(text)
    if len(bits) != (count + 7) // 8:
        raise ValueError(
            f"correctness of {8 * len(bits) - 7} to {8 * len(bits)} objects, expected {count}"
        )

    return bits


def packed_groups(groups: np.ndarray) -> str:
    """Return which object each cloud is of (n,), as base64: numbers from 0 in the order of the
    clouds.
    """
    _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int32)
    rank[np.argsort(first)] = np.arange(len(first))

    data = rank[numbers].astype("<i4").tobytes()

    return base64.b64encode(zlib.compress(data, 9)).decode()


def groups_of(record: Record) -> np.ndarray | None:
    """Return which object each test cloud is of (n,); None where each is one, or where it is not
    known. Raises ValueError.
    """
    text = record.dataset.get("test_groups")
    if not text:
        return None

    try:
        groups = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<i4")
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(
            f"trial {record.key}: the objects of its test clouds cannot be read: {error}"
        ) from error

    if len(groups) != record.dataset["num_test"]:
        raise ValueError(
            f"trial {record.key}: objects of {len(groups)} clouds, expected"
            f" {record.dataset['num_test']}"
        )

    return groups


def effective_clouds(correct: np.ndarray, groups: np.ndarray | None) -> float:
    """Return how many independent clouds carry as much as these (n,) about a share: from as many as
    there are objects up to n.
    """
    count = len(correct)
    if groups is None:
        return float(count)

    share = float(correct.mean())
    sizes = np.bincount(groups)
    objects = len(sizes)

    # nothing varies: no more is known than of so many objects
    if not 0 < share < 1 or objects < 2:
        return float(objects)

    residuals = np.bincount(groups, weights=correct) - share * sizes
    # of the share, over objects
    variance = float((residuals**2).sum()) * objects / (objects - 1) / count**2
    independent = share * (1 - share) / variance if variance else float(count)

    return min(float(count), max(float(objects), independent))


def sign_flip(net: np.ndarray) -> float | None:
    """The two-sided mid-p of objects' net gains (G,), whole numbers, if each could as well have the
    other sign.

    None where so few objects differ that no outcome could reach 5 %.
    """
    sizes = np.abs(net[net != 0]).astype(np.int64)
    if 0.5 ** len(sizes) >= 1 - LEVEL:
        return None

    chances = np.ones(1)  # of the sums -total ... total, with what was added up to now
    for size, number in enumerate(np.bincount(sizes).tolist()):
        if size == 0 or number == 0:
            continue

        steps = np.zeros(2 * size * number + 1)
        steps[:: 2 * size] = _binomial(number)
        chances = np.convolve(chances, steps)

    total = len(chances) // 2
    reached = abs(int(net.sum()))
    below = chances[: total - reached]
    above = chances[total + reached + 1 :]
    equal = float(chances[total - reached])

    if reached:
        equal += float(chances[total + reached])

    return min(1.0, float(below.sum() + above.sum()) + equal / 2)


def _binomial(number: int) -> np.ndarray:
    """The chances (number + 1,) of so many of `number` fair coins."""
    from scipy.special import gammaln

    hits = np.arange(number + 1)
    misses = number - hits
    logs = gammaln(number + 1) - gammaln(hits + 1) - gammaln(misses + 1)
    chances: np.ndarray = np.exp(logs - number * math.log(2))

    return chances


def mcnemar(gained: int, lost: int) -> float | None:
    """The two-sided mid-p of exact McNemar, given how many objects only one of two models gets
    right, and how many only the other.

    None where so few differ that no outcome could reach 5 %: then there is no p-value to be had.
    """
    from scipy.special import bdtr

    differing, less = gained + lost, min(gained, lost)

    if 0.5**differing >= 1 - LEVEL:
        return None

    below = float(bdtr(less - 1, differing, 0.5)) if less else 0.0
    at_most = float(bdtr(less, differing, 0.5))
    # Of an even split every outcome is as extreme or more so; half of its own chance is taken off,
    # as everywhere.
    if gained == lost:
        return 1 - (at_most - below) / 2

    return at_most + below


def _mcnemar_all(gained: np.ndarray, lost: np.ndarray) -> list[float | None]:
    """`mcnemar` of each pair, (n,) each: in one call of the same function, a table may have ten
    thousand.
    """
    from scipy.special import bdtr

    differing, less = gained + lost, np.minimum(gained, lost)
    below = np.where(less > 0, bdtr(less - 1.0, differing, 0.5), 0.0)
    at_most = bdtr(less.astype(np.float64), differing, 0.5)
    values = np.where(gained == lost, 1 - (at_most - below) / 2, at_most + below)
    is_reachable = 0.5**differing < 1 - LEVEL

    p_values: list[float | None] = values.tolist()

    for pair in np.flatnonzero(~is_reachable).tolist():
        p_values[pair] = None

    return p_values


@dataclass(frozen=True)
class ModelTest:
    """Two models of one seed: clouds that only the first gets right (`gained`) and only the second
    (`lost`).

    `objects`: how many objects the clouds are of, which are then tested; 0: every cloud is one.
    """

    first: str
    second: str
    seed: int
    gained: int
    lost: int
    p: float | None
    adjusted: float | None = None  # by Holm, over the tests it was made with
    objects: int = 0


def flips(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gained and lost (n,) of n pairs of models, whose correctness on the same objects is a bit
    each, uint64 (n, words).
    """
    gained = np.bitwise_count(one & ~other).sum(axis=1, dtype=np.int64)
    lost = np.bitwise_count(other & ~one).sum(axis=1, dtype=np.int64)

    return gained, lost


def correctness(record: Record, protocol: str) -> np.ndarray | None:
    """Return which test objects a trial got right, bool (n,); None where its record is older than
    that.
    """
    text = record.correct.get(protocol)
    if text is None:
        return None

    return unpacked(text, int(record.dataset["num_test"]))


def _matrix(records: Sequence[Record], protocol: str) -> np.ndarray:
    """Return which objects each trial got right, a bit each, uint64 (n, words); where one has fewer
    objects, zeros fill its row.
    """
    rows = []
    for record in records:
        num_test = int(record.dataset["num_test"])
        rows.append(_bits(record.correct[protocol], num_test))

    longest = max(map(len, rows), default=0)
    width = -(-longest // 8) * 8  # bytes, whole words of 8
    data = b"".join(row.ljust(width, b"\0") for row in rows)

    return np.frombuffer(data, dtype=np.uint64).reshape(len(rows), width // 8)


def same_objects(one: Record, other: Record) -> bool:
    """Return whether two trials were tested on the same clouds, so that they can be compared cloud
    by cloud.
    """
    # as records that were read together share their parts
    if one.dataset is other.dataset:
        return True

    for key in ("digest", "num_test", "test_groups"):
        if one.dataset.get(key) != other.dataset.get(key):
            return False

    return True


def one_episode(record: Record) -> bool:
    """Return whether a trial is one episode of few-shot learning: the unit is then the episode, and
    its clouds carry no test.
    """
    return "way" in (record.config.get("dataset") or {})


def _comparable(
    order: Sequence[str], records: Mapping[tuple[str, int], Record]
) -> Iterator[tuple[str, str, int]]:
    """Yield each arm, the next in `order` and a seed with which both were tested on the same
    objects.
    """
    seeds = sorted({seed for _, seed in records})
    for first, second in itertools.pairwise(order):
        for seed in seeds:
            one, other = records.get((first, seed)), records.get((second, seed))
            if one is not None and other is not None and same_objects(one, other):
                yield first, second, seed


def model_tests(
    order: Sequence[str], arms: Mapping[str, Mapping[int, Record]], protocol: str
) -> tuple[ModelTest, ...]:
    """Test each arm and the next in `order`, one test for every seed that both have; adjusted over
    all of them together.
    """
    with_objects: dict[tuple[str, int], Record] = {}
    for name in order:
        for seed, record in arms[name].items():
            if protocol in record.correct and not one_episode(record):
                with_objects[name, seed] = record

    pairs = list(_comparable(order, with_objects))
    if not pairs:
        return ()

    bits = _matrix(list(with_objects.values()), protocol)
    row_of = {trial: row for row, trial in enumerate(with_objects)}
    first_rows = []
    second_rows = []

    for first, second, seed in pairs:
        first_rows.append(row_of[first, seed])
        second_rows.append(row_of[second, seed])

    gained, lost = flips(bits[first_rows], bits[second_rows])
    p_values = _mcnemar_all(gained, lost)
    num_objects = [0] * len(pairs)
    groups_by_text: dict[str, np.ndarray | None] = {}

    for number, (first, second, seed) in enumerate(pairs):
        one, other = with_objects[first, seed], with_objects[second, seed]
        text = str(one.dataset.get("test_groups") or "")
        if text not in groups_by_text:
            groups_by_text[text] = groups_of(one)

        groups = groups_by_text[text]
        if groups is not None:
            p_values[number] = sign_flip(_net(one, other, protocol, groups))
            num_objects[number] = int(groups.max()) + 1

    adjusted = holm(p_values)
    tests = []
    for number, (first, second, seed) in enumerate(pairs):
        test = ModelTest(
            first,
            second,
            seed=seed,
            gained=int(gained[number]),
            lost=int(lost[number]),
            p=p_values[number],
            adjusted=adjusted[number],
            objects=num_objects[number],
        )
        tests.append(test)

    return tuple(tests)


def _net(one: Record, other: Record, protocol: str, groups: np.ndarray) -> np.ndarray:
    """Return of each object (G,) the clouds that only the first gets right, less those that only
    the second does.
    """
    first = correctness(one, protocol)
    second = correctness(other, protocol)
    assert first is not None
    assert second is not None
    gains = first.astype(np.int8) - second.astype(np.int8)

    return np.bincount(groups, weights=gains).round().astype(np.int64)


@dataclass(frozen=True)
class Bootstrap:
    """The difference of two arms, first minus second, over the drawing of objects and seeds;
    `seeds` = 1: over objects alone.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    seeds: int
    objects: int


def bootstrap(
    first: Mapping[int, np.ndarray],
    second: Mapping[int, np.ndarray],
    replicates: int = REPLICATES,
    groups: np.ndarray | None = None,
) -> Bootstrap:
    """Correctness of two arms by seed, bool (n,) each -> their difference, paired by seed and
    object.

    `groups` (n,) says which object a cloud is of; None: every cloud is one. Objects and seeds are
    drawn independently, each with replacement. Two repairs make it fit for 2 to 5 seeds: the seeds'
    deviations are widened by sqrt(S / (S - 1)), for a bootstrap's variance is that much too small,
    and the interval is mean ± t * standard error, where quantiles of a handful of seeds would be
    far too narrow. Raises ValueError where the arms share no seed.
    """
    from scipy.special import ndtri, stdtrit

    shared = sorted(first.keys() & second.keys())

    if not shared:
        raise ValueError("the arms share no seed")

    gains = []
    for seed in shared:
        gains.append(first[seed].astype(np.int8) - second[seed].astype(np.int8))

    gain = np.stack(gains).astype(np.float64)  # (S, n)
    mean = float(gain.mean())
    sizes = np.ones(gain.shape[1])

    if groups is not None:
        sizes = np.bincount(groups).astype(np.float64)
        # (S, G): an object's clouds together
        gain = np.stack([np.bincount(groups, weights=row) for row in gain])

    count, objects = gain.shape
    drawn = _replicates(gain, sizes, replicates)
    error = float(drawn.std(ddof=1))

    if count == 1:
        quantile = float(ndtri(0.5 + LEVEL / 2))
    else:
        quantile = float(stdtrit(_freedom(gain, sizes), 0.5 + LEVEL / 2))

    return Bootstrap(
        mean,
        standard_error=error,
        low=mean - quantile * error,
        high=mean + quantile * error,
        seeds=count,
        objects=objects,
    )


def _freedom(gain: np.ndarray, sizes: np.ndarray) -> float:
    """gain (S, G) of objects of `sizes` (G,) clouds -> the degrees of freedom of its mean's
    variance over seeds and objects.

    Source: Satterthwaite 1946, Biometrics Bull. 2.

    Of two seeds only one: their spread is so uncertain that the approximation covers 90 %
    (simulated), and one degree at least 99 %.
    """
    count, objects = gain.shape
    clouds = float(sizes.sum())
    by_seed = 0.0

    if count > 1:
        by_seed = float((gain.sum(axis=1) / clouds).var(ddof=1)) / count

    residuals = gain.mean(axis=0) - gain.mean(axis=0).sum() / clouds * sizes
    by_object = float((residuals**2).sum()) / clouds**2

    if count == 2 or not by_seed + by_object:
        return count - 1

    seed_share = by_seed**2 / (count - 1)
    object_share = by_object**2 / max(objects - 1, 1)
    return (by_seed + by_object) ** 2 / (seed_share + object_share)


def _replicates(gain: np.ndarray, sizes: np.ndarray, replicates: int) -> np.ndarray:
    """gain (S, G) of objects of `sizes` (G,) clouds -> means (R,) of as many drawings, the same
    ones at every call.
    """
    count, objects = gain.shape
    seed_chances = np.full(count, 1 / count)
    object_chances = np.full(objects, 1 / objects)
    generator = np.random.default_rng(0)
    means = []

    for start in range(0, replicates, CHUNK):
        size = min(CHUNK, replicates - start)
        draws = generator.multinomial(objects, object_chances, size=size)
        weights = draws / objects  # (R, G)
        by_seed = weights @ gain.T / (weights @ sizes)[:, None]  # (R, S)

        middle = by_seed.mean(axis=1, keepdims=True)
        widened = middle + (by_seed - middle) * math.sqrt(count / max(count - 1, 1))

        draws = generator.multinomial(count, seed_chances, size=size)
        seed_weights = draws / count  # (R, S)
        means.append((widened * seed_weights).sum(axis=1))

    return np.concatenate(means)
