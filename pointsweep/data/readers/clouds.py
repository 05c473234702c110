"""Checks of clouds and labels as files give them, and their way to float32. All is computed in
float64.

What is refused is what a model could not learn from once the cloud is centred and scaled:
coordinates that are not finite, a cloud of one place, a no-data value that shrinks everything else
to a dot, coordinates that float32 had already rounded to a coarse grid when they were stored,
labels that are no whole numbers.

Letters: n clouds, P points.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MIN_POINTS = 4  # three points always lie in a plane
CHUNK = 256  # clouds that are in memory as float64 at once
# A cloud's farthest point may lie so many times as far from the middle as half of its points do.
# The 12,308 shapes of ModelNet40 stay below 9.
MAX_SPREAD = 100.0
# of a cloud's radius: the distance between neighbouring numbers of the stored type
MAX_STEP = 0.01
# What float32 may move a coordinate by, as a part of the radius, before a cloud has to be centred
# first.
MAX_ROUNDING = 1e-6
# Of clouds that are used as they are stored: beyond these, squared distances leave the range that
# point_ops.py computes in.
RADII = (1e-6, 1e4)


def check_clouds(
    points: np.ndarray, labels: np.ndarray, num_classes: int, source: str
) -> None:
    """Check points (n, P, 3) as they are stored and their labels (n,) or (n, 1).

    Raises ValueError naming the file, the first bad cloud, what was found in it, and how many such
    clouds there are.
    """
    if points.ndim != 3 or points.shape[2] != 3 or points.dtype.kind not in "fiu":
        raise ValueError(
            f"{source}: data must be float or whole numbers (n, P, 3), found {points.dtype}"
            f" {points.shape}"
        )
    if len(points) == 0 or points.shape[1] == 0:
        raise ValueError(f"{source}: holds no points")
    if points.shape[1] < MIN_POINTS:
        raise ValueError(
            f"{source}: clouds of {points.shape[1]} points, at least {MIN_POINTS} are needed"
        )
    if labels.shape not in ((len(points),), (len(points), 1)):
        raise ValueError(
            f"{source}: {len(points)} clouds but labels of shape {labels.shape}"
        )

    whole_labels(labels, num_classes, source)
    bad: list[str] = []
    for start in range(0, len(points), CHUNK):
        bad += faults(points[start : start + CHUNK], start)

    if bad:
        more = f" ({len(bad)} clouds are refused)" if len(bad) > 1 else ""
        raise ValueError(f"{source}: {bad[0]}{more}")


def whole_labels(labels: np.ndarray, num_classes: int, source: str) -> np.ndarray:
    """Return labels (n,) or (n, 1) as int64 (n,). Whole numbers that are stored as floats are
    taken.

    Raises ValueError naming the first label that is no whole number from 0 to `num_classes` - 1.
    """
    expected = f"whole numbers from 0 to {num_classes - 1} are allowed"
    labels = labels.reshape(-1)

    if labels.dtype.kind not in "fiu":
        first = f", the first is {labels[0]!r}" if len(labels) else ""
        raise ValueError(
            f"{source}: labels are of type {labels.dtype}{first}; {expected}"
        )

    if labels.dtype.kind == "f":
        broken = np.flatnonzero(~np.isfinite(labels) | (labels != np.floor(labels)))
        if len(broken):
            value = labels[broken[0]]
            raise ValueError(
                f"{source}: cloud {broken[0]} has label {value:g}; {expected} ({len(broken)} such"
                " labels)"
            )

    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        value = labels[wrong[0]]
        raise ValueError(
            f"{source}: cloud {wrong[0]} has label {value:g}, allowed 0 to {num_classes - 1}"
            f" ({len(wrong)} such labels)"
        )

    return labels.astype(np.int64)


def unit_sphere(points: np.ndarray) -> np.ndarray:
    """Return clouds (n, P, 3) with each cloud's mean subtracted and its largest norm made 1, as
    float32.
    """
    result = np.empty(points.shape, dtype=np.float32)
    for start in range(0, len(points), CHUNK):
        centred = _centred(points[start : start + CHUNK])
        radius = np.linalg.norm(centred, axis=2).max(axis=1)
        result[start : start + CHUNK] = centred / radius[:, None, None]

    return result


def as_stored(points: np.ndarray, source: str) -> np.ndarray:
    """Return clouds (n, P, 3) as float32 in their own units, for sets that are not scaled when they
    are read.

    A cloud that float32 cannot hold where it lies (map coordinates) is moved to its mean first;
    such a cloud is centred in training anyway. Raises ValueError for a cloud too small or too large
    for float32 arithmetic.
    """
    result = np.empty(points.shape, dtype=np.float32)
    for start in range(0, len(points), CHUNK):
        chunk = points[start : start + CHUNK]
        centred = _centred(chunk)
        radius = np.linalg.norm(centred, axis=2).max(axis=1)

        for number in np.flatnonzero((radius < RADII[0]) | (radius > RADII[1])):
            raise ValueError(
                f"{source}: cloud {start + number} has a radius of {radius[number]:g}, allowed"
                f" {RADII[0]:g} to {RADII[1]:g}: this set is used in the units in which it is"
                " stored; scale it"
            )

        if points.dtype == np.float32:
            result[start : start + CHUNK] = chunk
            continue

        largest = np.abs(chunk.astype(np.float64)).max(axis=(1, 2))
        rounding = largest * 2.0**-24  # half a unit in the last digit of float32
        is_far = rounding > MAX_ROUNDING * radius
        result[start : start + CHUNK] = np.where(is_far[:, None, None], centred, chunk)

    return result


def _centred(points: np.ndarray) -> np.ndarray:
    """Return clouds (n, P, 3) around their means, as `_scaled` gives them."""
    points = _scaled(points)
    return points - points.mean(axis=1, keepdims=True)


def _scaled(points: np.ndarray) -> np.ndarray:
    """Return clouds (n, P, 3) as float64; huge and tiny ones are divided by their largest
    coordinate.

    So their squares neither overflow nor vanish.
    """
    points = points.astype(np.float64)
    largest = np.abs(points).max(axis=(1, 2))
    is_extreme = (largest > 1e100) | ((largest < 1e-100) & (largest > 0))
    points[is_extreme] /= largest[is_extreme, None, None]

    return points


def faults(points: np.ndarray, first: int) -> Iterator[str]:
    """Yield what is wrong with each bad cloud of points (n, P, 3); `first` is the number of the
    first one.
    """
    finite = np.isfinite(points)
    is_finite = finite.all(axis=(1, 2))
    scaled = _scaled(np.where(is_finite[:, None, None], points, 0))
    # Around the median, which single far points do not move.
    middles = np.median(scaled, axis=1, keepdims=True)
    distances = np.linalg.norm(scaled - middles, axis=2)  # (n, P)
    farthest = distances.max(axis=1)
    typical = np.median(distances, axis=1)

    for row in range(len(points)):
        name = f"cloud {first + row}"
        cloud = points[row]
        if not is_finite[row]:
            point, axis = np.argwhere(~finite[row])[0]
            yield (
                f"{name} holds a coordinate that is not finite: {cloud[point, axis]} at point"
                f" {point}"
            )
        elif (cloud == cloud[0]).all():
            yield f"{name} is a single point repeated: {_shown(cloud[0])}"
        elif farthest[row] > MAX_SPREAD * typical[row]:
            yield f"{name} {_far_point(cloud, distances[row], typical[row])}"
        elif (step := _step(cloud)) > MAX_STEP:
            yield (
                f"{name} was rounded when it was stored: {cloud.dtype} holds steps of"
                f" {100 * step:.2g} % of its radius at {_shown(cloud[0])}; store it as float64, or"
                " moved to its centre"
            )


def _far_point(cloud: np.ndarray, distances: np.ndarray, typical: float) -> str:
    if typical == 0:
        far_point = cloud[distances.argmin()]
        return (
            f"has more than half of its points at one place, {_shown(far_point)}: a no-data value,"
            " or filled up?"
        )

    far = np.flatnonzero(distances > MAX_SPREAD * typical)
    point = far[0]
    offsets = np.abs(cloud[point] - np.median(cloud, axis=0))
    value = cloud[point, offsets.argmax()]
    count = f" and {len(far) - 1} more" if len(far) > 1 else ""

    return (
        f"has the coordinate {value:g} at point {point}{count}, {distances[point] / typical:.2g}"
        " times as far out as half of its points: a no-data value? It would shrink all others to"
        " a dot"
    )


def _step(cloud: np.ndarray) -> float:
    """Return the distance between neighbouring numbers of a cloud's type at its largest coordinate,
    by its radius.
    """
    if cloud.dtype.kind != "f":
        return 0.0

    # As float64 also for float16, whose own differences may overflow.
    radius = float(np.abs(cloud - cloud.mean(axis=0, dtype=np.float64)).max())
    return float(np.spacing(np.abs(cloud).max())) / radius


def _shown(point: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in point) + ")"
