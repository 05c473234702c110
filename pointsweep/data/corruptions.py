"""The seven corruptions of ModelNet-C at five severities, for clouds in the unit sphere: made again
from their published parameters.

Source: Benchmarking and Analyzing Point Cloud Classification under Corruptions (arXiv 2202.03377)
and its program; l = severity 0..4.

    scale           every axis times U(1/s, s), s = 1.6, 1.7, 1.8, 1.9, 2.0; then centred and
                    scaled to the unit sphere
    jitter          every coordinate plus N(0, 0.01 (l + 1))
    rotate          about x, y and z by U(-a, a) each, a = 6 (l + 1) degrees; points (as rows)
                    times Rz Ry Rx
    dropout_global  a random 25, 37.5, 50, 62.5, 75 % of the points dropped
    dropout_local   100 (l + 1) points dropped in 1 to 7 clusters of random sizes, each the
                    points nearest to a random point
    add_global      10 (l + 1) points added, uniform in the unit ball
    add_local       100 (l + 1) points added in 1 to 7 clusters of random sizes, each
                    N(a random point, sd U(0.075, 0.125)); a point p that falls outside the
                    unit sphere goes to p / |p|^2

The published files were made with one stream of random numbers over all clouds and files; here
every cloud has a generator of its own, seeded by (corruption, severity, cloud), so a cloud stays
the same whatever is done before it. The numbers are therefore drawn from the same distributions as
ModelNet-C's but are not those of its files. Letters: P points.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

REVISION = 1  # of what is below; part of the caches' keys
# of a cloud before it is corrupted: the first ones stored, as in the program
NUM_POINTS = 1024
NUM_SEVERITIES = 5
SCALES = (1.6, 1.7, 1.8, 1.9, 2.0)
DROP_RATES = (0.25, 0.375, 0.5, 0.625, 0.75)

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def scale(points: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """points (P, 3) -> (P, 3), again in the unit sphere."""
    limit = SCALES[severity]
    points = points * random.uniform(1 / limit, limit, 3)
    points = points - points.mean(axis=0)

    return points / np.linalg.norm(points, axis=1).max()


def jitter(
    points: np.ndarray, severity: int, random: np.random.Generator
) -> np.ndarray:
    """points (P, 3) -> (P, 3)."""
    return points + 0.01 * (severity + 1) * random.standard_normal(points.shape)


def rotate(
    points: np.ndarray, severity: int, random: np.random.Generator
) -> np.ndarray:
    """points (P, 3) -> (P, 3)."""
    limit = math.pi / 30 * (severity + 1)
    angles = random.uniform(-limit, limit, 3)
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])

    return points @ (about_z @ about_y @ about_x)


def dropout_global(
    points: np.ndarray, severity: int, random: np.random.Generator
) -> np.ndarray:
    """points (P, 3) -> (floor(P (1 - rate)), 3), shuffled."""
    num_left = int(len(points) * (1 - DROP_RATES[severity]))
    return random.permutation(points)[:num_left]


def dropout_local(
    points: np.ndarray, severity: int, random: np.random.Generator
) -> np.ndarray:
    """points (P, 3) -> (P - 100 (severity + 1), 3)."""
    for size in cluster_sizes(severity, random):
        center = points[random.integers(len(points))]
        distance = ((points - center) ** 2).sum(axis=1)
        farther = np.argsort(distance, kind="stable")[size:]
        points = points[np.sort(farther)]

    return points


def add_global(
    points: np.ndarray, severity: int, random: np.random.Generator
) -> np.ndarray:
    """points (P, 3) -> (P + 10 (severity + 1), 3), the new ones last."""
    count = 10 * (severity + 1)
    direction = random.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)

    radius = random.uniform(size=(count, 1)) ** (1 / 3)

    return np.concatenate([points, direction * radius])


def add_local(
    points: np.ndarray, severity: int, random: np.random.Generator
) -> np.ndarray:
    """points (P, 3) -> (P + 100 (severity + 1), 3), the new ones last."""
    sizes = cluster_sizes(severity, random)
    centers = points[random.choice(len(points), len(sizes), replace=False)]
    spread = random.uniform(0.075, 0.125, len(sizes))
    scatter = random.standard_normal((sum(sizes), 3))
    offsets = np.repeat(spread, sizes)[:, None] * scatter
    added = np.repeat(centers, sizes, axis=0) + offsets
    squared = (added**2).sum(axis=1, keepdims=True)

    return np.concatenate([points, np.where(squared > 1, added / squared, added)])


def cluster_sizes(severity: int, random: np.random.Generator) -> list[int]:
    """1 to 7 sizes, together 100 (severity + 1); each point belongs to any cluster alike."""
    number = int(random.integers(1, 8))
    clusters = random.integers(number, size=100 * (severity + 1))  # of each point
    sizes: list[int] = np.bincount(clusters, minlength=number).tolist()

    return sizes


CORRUPTIONS: dict[str, Corruption] = {
    "scale": scale, "jitter": jitter, "rotate": rotate, "dropout_global": dropout_global,
    "dropout_local": dropout_local,
    "add_global": add_global, "add_local": add_local,
}  # fmt: skip


def corrupt(points: np.ndarray, corruption: str, severity: int) -> np.ndarray:
    """Clouds (n, P, 3) -> (n, P', 3) float32, the first NUM_POINTS of each corrupted; `clean` gives
    those as they are.

    The parameters are meant for clouds in the unit sphere, so a cloud is corrupted in the frame in
    which the whole of it has mean 0 and largest norm 1, and goes back to its own place and size.
    For ModelNet40, stored like that, this changes nothing. Raises ValueError if a cloud has fewer
    points than are needed.
    """
    if points.shape[1] < NUM_POINTS:
        raise ValueError(
            f"corruptions need clouds of {NUM_POINTS} points, these have {points.shape[1]}"
        )
    if corruption == "clean":
        return np.array(points[:, :NUM_POINTS], dtype=np.float32)

    change = CORRUPTIONS[corruption]
    number = list(CORRUPTIONS).index(corruption)
    corrupted = []

    for index, stored in enumerate(points):
        cloud = np.asarray(stored, dtype=np.float64)
        center = cloud.mean(axis=0)
        radius = np.linalg.norm(cloud - center, axis=1).max()
        random = np.random.default_rng([number, severity, index])
        scaled = (cloud[:NUM_POINTS] - center) / radius
        corrupted.append(change(scaled, severity, random) * radius + center)

    return np.stack(corrupted).astype(np.float32)
