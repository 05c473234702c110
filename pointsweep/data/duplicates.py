"""Copies of a cloud, found in whatever order their points are, moved, scaled, and rounded to
float32.

Every cloud is moved to its mean and scaled to the unit sphere in float64. Candidates are pairs of
clouds whose second and third moments agree, for moments do not depend on the order of the points. A
candidate counts as a copy only if each of its points has a partner in the other cloud.

Another sample of the same surface is no copy. Letters: P points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, combinations_with_replacement

import numpy as np
from scipy.spatial import KDTree

# Rounding coordinates of the unit sphere to float32 moves them by 1e-7; to five decimals, as text
# files do, by 5e-6.
POINT_TOLERANCE = 2e-5
MOMENT_TOLERANCE = 1e-4
CHUNK = 256  # clouds whose moments are computed at once

# 6 of the second and 10 of the third degree
MONOMIALS = [
    *combinations_with_replacement(range(3), 2),
    *combinations_with_replacement(range(3), 3),
]


def copy_groups(clouds: Sequence[np.ndarray]) -> np.ndarray:
    """Return a group number (n,) for clouds (P, 3) of any sizes: two clouds are copies if they
    share a number.

    The number is the index of the group's first cloud.
    """
    sizes = np.array([len(cloud) for cloud in clouds], dtype=np.int64)
    groups = np.arange(len(sizes))

    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        if len(members) > 1:
            _join_copies([clouds[int(number)] for number in members], members, groups)

    return groups


def shared_clouds(
    groups_by_split: Mapping[str, np.ndarray], first: str, second: str
) -> np.ndarray:
    """Return the rows of the split `second` whose clouds are copies of clouds of `first`."""
    return np.flatnonzero(np.isin(groups_by_split[second], groups_by_split[first]))


def groups_of_splits(
    clouds_by_split: Mapping[str, Sequence[np.ndarray]],
) -> dict[str, np.ndarray]:
    """Return `copy_groups` over all splits together, as one array (n,) for every split."""
    groups = copy_groups(list(chain.from_iterable(clouds_by_split.values())))
    result = {}
    start = 0

    for split, clouds in clouds_by_split.items():
        result[split] = groups[start : start + len(clouds)]
        start += len(clouds)

    return result


def _join_copies(
    clouds: Sequence[np.ndarray], numbers: np.ndarray, groups: np.ndarray
) -> None:
    """Give copies among clouds of one size the group of the first of them; `numbers` are their
    indices in `groups`.
    """
    chunks = []
    for start in range(0, len(clouds), CHUNK):
        chunks.append(_moments(_normalised(clouds[start : start + CHUNK])))

    moments = np.concatenate(chunks)
    tree = KDTree(moments)

    for row in range(len(clouds)):
        if groups[numbers[row]] != numbers[row]:
            continue  # a copy of an earlier cloud, with which its own copies were compared

        near = tree.query_ball_point(moments[row], MOMENT_TOLERANCE, p=np.inf)
        for other in sorted(near):
            is_open = other > row and groups[numbers[other]] == numbers[other]
            if is_open and are_copies(clouds[row], clouds[other]):
                groups[numbers[other]] = numbers[row]


def are_copies(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether each point of one cloud has a partner in the other, both clouds moved and
    scaled to the unit sphere.
    """
    if len(first) != len(second):
        return False

    one, other = _normalised([first, second])
    for points, partners in ((one, other), (other, one)):
        distances, _ = KDTree(partners).query(
            points, distance_upper_bound=POINT_TOLERANCE
        )
        if not np.isfinite(distances).all():
            return False

    return True


def _normalised(clouds: Sequence[np.ndarray]) -> np.ndarray:
    """Return clouds (n, P, 3) of one size in the unit sphere, float64; a cloud of equal points
    becomes zeros.
    """
    points = np.array(clouds, dtype=np.float64)
    points -= points.mean(axis=1, keepdims=True)
    radius = np.linalg.norm(points, axis=2).max(axis=1)
    points /= np.where(radius > 0, radius, 1.0)[:, None, None]

    return points


def _moments(points: np.ndarray) -> np.ndarray:
    """Return the means (n, 16) of all products of two and three coordinates of clouds (n, P, 3)."""
    columns = []
    for axes in MONOMIALS:
        product = points[..., axes[0]]
        for axis in axes[1:]:
            product = product * points[..., axis]

        columns.append(product.mean(axis=1))

    return np.stack(columns, axis=1)
