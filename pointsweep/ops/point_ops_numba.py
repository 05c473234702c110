"""Farthest points and neighbours compiled by numba for the CPU: the same indices as point_ops.py's
own, bit for bit.

Only imported where numba is (`pip install pointsweep[fast]`). Distances are float32, ((dx dx + dy
dy) + dz dz), every step rounded: of fast-math only that numbers are finite and zeros have no sign
is taken, which contracts nothing to fused products. Sources: QuickFPS (Han et al., IEEE TCAD 2023)
for the boxes that a new point cannot reach; here exact, ties included. Letters: B clouds, P points,
G centres, K neighbours.
"""

from __future__ import annotations

import numpy as np
from numba import njit

FAST = {"nnan", "nsz"}
LEAF = 32  # points in a box
# a box's points share a cell of a grid of 2^BITS a side, or lie in cells next to each other on a
# Morton curve
BITS = 4


def farthest_points(
    points: np.ndarray, nearest_chosen: np.ndarray, count: int
) -> np.ndarray:
    """Indices (B, count) int64 of points (B, P, 3) float32; nearest_chosen (B, P) is where the
    distances start.
    """
    chosen = np.zeros((len(points), count), dtype=np.int64)
    _farthest(points, nearest_chosen, chosen)

    return chosen


def nearest_places(queries: np.ndarray, points: np.ndarray, count: int) -> np.ndarray:
    """Indices (B, G, count) int64, ascending, of the points (B, P, 3) nearest to queries (B, G, 3),
    both float32.
    """
    indices = np.empty((*queries.shape[:2], count), dtype=np.int64)
    _nearest(queries, points, indices)

    return indices


def least(keys: np.ndarray, count: int) -> np.ndarray:
    """Indices (n, count) int64, ascending, of the least of keys (n, P) int32; of equal ones the
    first.
    """
    indices = np.empty((len(keys), count), dtype=np.int64)
    _least(keys, indices)

    return indices


@njit(cache=True, fastmath=FAST)
def _farthest(points, nearest_chosen, chosen):
    clouds, size = points.shape[:2]
    boxes = (size + LEAF - 1) // LEAF
    # Arrays of their own: of parts of one array the compiler would not know that they do not
    # overlap.
    room = boxes * LEAF
    x = np.empty(room, np.float32)
    y = np.empty(room, np.float32)
    z = np.empty(room, np.float32)
    near = np.empty(room, np.float32)
    low = np.empty((3, boxes), np.float32)
    high = np.empty((3, boxes), np.float32)
    top, bound = np.empty(boxes, np.float32), np.empty(boxes, np.float32)

    for b in range(clouds):
        order = _morton_order(points[b])
        for j in range(room):
            i = order[min(j, size - 1)]
            x[j], y[j], z[j] = points[b, i, 0], points[b, i, 1], points[b, i, 2]
            # never the farthest
            near[j] = nearest_chosen[b, i] if j < size else np.float32(-2)

        for axis, values in enumerate((x, y, z)):
            for k in range(boxes):
                low[axis, k] = values[k * LEAF : (k + 1) * LEAF].min()
                high[axis, k] = values[k * LEAF : (k + 1) * LEAF].max()

        top[:] = np.float32(np.inf)
        px = points[b, 0, 0]
        py = points[b, 0, 1]
        pz = points[b, 0, 2]

        for step in range(1, chosen.shape[1]):
            _reach(low, high, px, py, pz, bound)
            for k in range(boxes):
                # Rounding keeps the order of numbers, so no point of the box can be nearer than its
                # bound, as computed.
                if bound[k] < top[k]:
                    top[k] = _update(x, y, z, near, k * LEAF, px, py, pz)

            at = _first_farthest(top, near, order, size)
            chosen[b, step] = order[at]
            if near[at] <= 0:
                # all the rest lie on chosen points, or are never picked: nothing will change any
                # more
                chosen[b, step:] = order[at]
                break

            px = x[at]
            py = y[at]
            pz = z[at]


@njit(cache=True, fastmath=FAST)
def _morton_order(cloud):
    """Rows of a cloud (P, 3) along a Morton curve; within a cell ascending."""
    size, side = len(cloud), 1 << BITS
    code, order = np.zeros(size, np.int64), np.empty(size, np.int64)

    for axis in range(3):
        low, high = cloud[:, axis].min(), cloud[:, axis].max()
        scale = np.float32(side) / (high - low) if high > low else np.float32(0)
        for i in range(size):
            cell = min(int((cloud[i, axis] - low) * scale), side - 1)
            for bit in range(BITS):
                code[i] |= ((cell >> bit) & 1) << (3 * bit + axis)

    start = np.zeros(side**3 + 1, np.int64)
    for i in range(size):
        start[code[i] + 1] += 1

    for cell in range(side**3):
        start[cell + 1] += start[cell]

    for i in range(size):
        order[start[code[i]]] = i
        start[code[i]] += 1

    return order


@njit(cache=True, fastmath=FAST, inline="always")
def _reach(low, high, px, py, pz, bound):
    """The least squared distance between a point and each box."""
    zero = np.float32(0)
    for k in range(len(bound)):
        dx = max(max(low[0, k] - px, px - high[0, k]), zero)
        dy = max(max(low[1, k] - py, py - high[1, k]), zero)
        dz = max(max(low[2, k] - pz, pz - high[2, k]), zero)
        bound[k] = dx * dx + dy * dy + dz * dz


@njit(cache=True, fastmath=FAST, inline="always")
def _update(x, y, z, near, start, px, py, pz):
    """Lowers the distances of one box to the chosen points by a new one; the largest that is
    left.
    """
    best = np.float32(-2)
    for j in range(start, start + LEAF):
        dx = x[j] - px
        dy = y[j] - py
        dz = z[j] - pz
        left = min(near[j], dx * dx + dy * dy + dz * dz)
        near[j] = left
        best = max(best, left)

    return best


@njit(cache=True, fastmath=FAST, inline="always")
def _first_farthest(top, near, order, size):
    """Return where the farthest point stands; of several the one whose row in the cloud is the
    first.
    """
    best = np.float32(-2)
    first_row = size
    at = 0

    for k in range(len(top)):
        best = max(best, top[k])

    for k in range(len(top)):
        if top[k] == best:
            for j in range(k * LEAF, (k + 1) * LEAF):
                if near[j] == best and order[j] < first_row:
                    first_row, at = order[j], j

    return at


@njit(cache=True, fastmath=FAST)
def _nearest(queries, points, indices):
    clouds, size = points.shape[:2]
    x = np.empty(size, np.float32)
    y = np.empty(size, np.float32)
    z = np.empty(size, np.float32)
    distance = np.empty(size, np.float32)
    taken = np.empty(size + 1, np.int64)

    for b in range(clouds):
        x[:], y[:], z[:] = points[b, :, 0], points[b, :, 1], points[b, :, 2]
        for g in range(queries.shape[1]):
            px = queries[b, g, 0]
            py = queries[b, g, 1]
            pz = queries[b, g, 2]

            for i in range(size):
                dx = px - x[i]
                dy = py - y[i]
                dz = pz - z[i]
                distance[i] = dx * dx + dy * dy + dz * dz

            _select(distance.view(np.int32), indices[b, g], taken)


@njit(cache=True)
def _least(keys, indices):
    taken = np.empty(keys.shape[1] + 1, np.int64)
    for row in range(len(keys)):
        _select(keys[row], indices[row], taken)


@njit(cache=True)
def _select(keys, indices, taken):
    """Fill `indices` with where the least keys stand, ascending. Floats that are not negative are
    ordered as their bits are.
    """
    count = len(indices)
    low = keys.min()
    high = keys.max()

    # to the least limit below which, itself included, there are enough
    while low < high:
        middle = low + (high - low) // 2
        below = _not_above(keys, middle)
        if below == count:
            low = high = middle
        elif below > count:
            high = middle
        else:
            low = middle + 1

    spare = _not_above(keys, low) - count  # ties at the limit that are too many
    num_taken = 0
    if spare == 0:
        for i in range(len(keys)):
            taken[num_taken] = i
            num_taken += keys[i] <= low
    else:
        ties = count - _not_above(keys, low - 1)
        for i in range(len(keys)):
            taken[num_taken] = i
            num_taken += (keys[i] < low) | ((keys[i] == low) & (ties > 0))
            ties -= keys[i] == low

    indices[:] = taken[:count]


@njit(cache=True)
def _not_above(keys, limit):
    number = np.int32(0)
    for i in range(len(keys)):
        number += np.int32(keys[i] <= limit)

    return number
