"""Geometry of point clouds: farthest points, neighbours, position features, and projections to
virtual lines and planes.

Tensors in, tensors out, every sample by itself. Sources: Any2Point (arXiv 2404.07989) and its
program, PointCLIP (arXiv 2112.02413) for the views, Point-NN (arXiv 2303.08134) for PosE,
PointNet++ (arXiv 1706.02413) for balls; section numbers are those of the method specification.
Letters: B clouds, P points, N tokens, G centres, C channels, K neighbours, M views.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import math
import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointsweep.ops.vmap import folded

# Clouds whose distances to all centres are held at once: bounds the memory of `nearest`, and on a
# CPU keeps them in the cache.
SLICE = {"cpu": 2, "cuda": 32}


@functools.cache
def compiled(device_type: str) -> Any:
    """Return the module with the compiled farthest points of a device, and on a CPU with its
    neighbours; None where the compiler is not installed.
    """
    name = {"cpu": "numba", "cuda": "triton"}.get(device_type)
    if name is None or importlib.util.find_spec(name) is None:
        return None

    return importlib.import_module(f"pointsweep.ops.point_ops_{name}")


def farthest_points(
    points: Tensor, count: int, skip_near_origin: bool = False
) -> Tensor:
    """Indices (B, count) of farthest point sampling of points (B, P, 3), starting from index 0
    (spec 1.1); of ties the first point.

    The first n of them are the sample of n points. `skip_near_origin` never picks points with |p|^2
    <= 1e-3, as pointnet2_ops does. Raises ValueError for points without exactly three coordinates,
    and if there are fewer points than `count`.
    """
    if points.dim() != 3 or points.shape[2] != 3:
        raise ValueError(f"points must be (B, P, 3), got {tuple(points.shape)}")
    if count > points.shape[1]:
        raise ValueError(
            f"cannot sample {count} points from clouds of {points.shape[1]}"
        )

    return folded(
        functools.partial(_sampled, count=count, skip_near_origin=skip_near_origin),
        points.detach(),
    )


def _sampled(points: Tensor, count: int, skip_near_origin: bool) -> Tensor:
    nearest_chosen = torch.full(
        points.shape[:2], 1e10, dtype=points.dtype, device=points.device
    )
    if skip_near_origin:
        x, y, z = points.unbind(2)
        nearest_chosen[x * x + y * y + z * z <= 1e-3] = -1.0

    fast = compiled(points.device.type) if points.dtype == torch.float32 else None
    if fast is None or (points.is_cuda and points.shape[1] > fast.MOST_POINTS):
        return _farthest_points(points, nearest_chosen, count)

    if points.is_cuda:
        chosen: Tensor = fast.farthest_points(points, nearest_chosen, count)
        return chosen

    return torch.from_numpy(
        fast.farthest_points(points.numpy(), nearest_chosen.numpy(), count)
    )


def _farthest_points(points: Tensor, nearest_chosen: Tensor, count: int) -> Tensor:
    """Select farthest points without a compiler. Squares are rounded before they are added: fused,
    they depend on the CPU.
    """
    x, y, z = points.transpose(1, 2).contiguous().unbind(1)  # (B, P) each
    rows = torch.arange(len(points), device=points.device)
    chosen = torch.zeros(len(points), count, dtype=torch.long, device=points.device)
    distance, part = torch.empty_like(x), torch.empty_like(x)
    last = chosen[:, 0]

    for step in range(1, count):
        torch.sub(x, x[rows, last].unsqueeze(1), out=distance).square_()
        for axis in (y, z):
            distance += torch.sub(
                axis, axis[rows, last].unsqueeze(1), out=part
            ).square_()

        torch.minimum(nearest_chosen, distance, out=nearest_chosen)
        last = nearest_chosen.argmax(dim=1)
        chosen[:, step] = last

    return chosen


def pyramid(points: Tensor, strides: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Indices (B, G) of the centres of the first of several stages among points (B, P, 3), and how
    many each stage has.

    Farthest point sampling is nested: the centres of a later stage are the first ones of the stage
    before. Raises ValueError if there are too few points for one centre in the last stage.
    """
    products = itertools.accumulate(strides, operator.mul)
    counts = [points.shape[1] // product for product in products]

    if counts[-1] < 1:
        raise ValueError(
            f"clouds of {points.shape[1]} points are too small: the stages need at least"
            f" {math.prod(strides)}"
        )

    return farthest_points(points, counts[0]), counts


def nearest(queries: Tensor, points: Tensor, count: int) -> Tensor:
    """Indices (B, G, count) of the points (B, P, C) nearest to each query (B, G, C), ascending; of
    ties the first points.

    Points are coordinates (C = 3) or features; distances are compared in single precision. Raises
    ValueError if queries and points differ in B or C, and if there are fewer points than `count`.
    """
    if queries.shape[::2] != points.shape[::2]:
        raise ValueError(
            "queries (B, G, C) and points (B, P, C) must agree in B and C, got"
            f" {tuple(queries.shape)} and {tuple(points.shape)}"
        )
    if count > points.shape[1]:
        raise ValueError(
            f"cannot find {count} neighbours among {points.shape[1]} points; lower the number of"
            " neighbours"
        )

    return folded(
        functools.partial(_neighbours, count=count), queries.detach(), points.detach()
    )


def _neighbours(queries: Tensor, points: Tensor, count: int) -> Tensor:
    fast = compiled("cpu") if points.device.type == "cpu" else None
    is_single = points.dtype == queries.dtype == torch.float32
    if fast is not None and points.shape[2] == 3 and is_single:
        near = fast.nearest_places(queries.numpy(), points.numpy(), count)
        return torch.from_numpy(near)

    size = SLICE.get(points.device.type, 2)
    pairs = zip(queries.split(size), points.split(size), strict=True)
    return torch.cat([_least(_distances(q, p), count) for q, p in pairs])


def _distances(queries: Tensor, points: Tensor) -> Tensor:
    """Return the distances of queries (B, G, C) to points (B, P, C), squared where C = 3: (B, G,
    P).
    """
    # Expanded differences, not |q|^2 - 2qp + |p|^2: exact enough that ties do not depend on the
    # other samples.
    if queries.shape[2] != 3:
        return torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist")

    # (B, G, P) each
    distance = queries[:, :, None, 0] - points[:, None, :, 0]
    difference = queries[:, :, None, 1] - points[:, None, :, 1]
    distance.square_().add_(difference.square_())
    torch.sub(queries[:, :, None, 2], points[:, None, :, 2], out=difference)

    return distance.add_(difference.square_())


def _least(values: Tensor, count: int) -> Tensor:
    """Indices (B, G, count), ascending, of the least of values (B, G, P), none negative; of ties
    the first.
    """
    # Floats that are not negative are ordered as their bits are; so is what is not a number, after
    # a divergence.
    keys = values.float().view(torch.int32)
    if keys.device.type != "cpu":
        order = keys.long() << 32 | torch.arange(keys.shape[2], device=keys.device)
        return (
            order.topk(count, dim=2, largest=False, sorted=False)
            .indices.sort(dim=2)
            .values
        )

    rows, fast = keys.flatten(0, 1).numpy(), compiled("cpu")
    least_of_rows = fast.least if fast is not None else _least_of_rows
    indices = least_of_rows(rows, count)

    return torch.from_numpy(indices).view(*values.shape[:2], count)


def _least_of_rows(keys: np.ndarray, count: int) -> np.ndarray:
    """Return where the least of each row stand, without a compiler: keys (n, P) -> (n, count)."""
    limit = np.partition(keys, count - 1, axis=1)[:, count - 1 : count]
    taken = keys <= limit

    if np.count_nonzero(taken) > count * len(keys):  # ties at the limit
        below, ties = keys < limit, keys == limit
        taken = below | (
            ties & (ties.cumsum(axis=1) <= count - below.sum(axis=1, keepdims=True))
        )

    return (np.flatnonzero(taken) % keys.shape[1]).reshape(-1, count)


def ball(queries: Tensor, points: Tensor, radius: float, count: int) -> Tensor:
    """Indices (B, G, K) of the points (B, P, 3) within `radius` of each query (B, G, 3), at most
    `count`; K = min(count, P).

    Where there are more, the nearest: the program of PointNet++ takes the first by index, so its
    result depends on the order of the points. Where there are fewer, the nearest one again and
    again, which no maximum notices.
    """
    index = nearest(queries, points, min(count, points.shape[1]))
    distance = (
        (gather(points, index) - queries.unsqueeze(2)).square().sum(dim=3)
    )  # (B, G, K)
    closest = index.gather(2, distance.argmin(dim=2, keepdim=True))  # (B, G, 1)

    return torch.where(distance < radius**2, index, closest)


def interpolation(queries: Tensor, places: Tensor, count: int = 3) -> Tensor:
    """Weights (B, P, N) that spread values at places (B, N, 3) to queries (B, P, 3): 1 / d^2 of the
    nearest `count`, in sum 1.

    Source: PointNet++ (arXiv 1706.02413), its feature propagation. A matrix, so that its product
    has a deterministic gradient.
    """
    near = nearest(queries, places, min(count, places.shape[1]))  # (B, P, K)
    closeness = 1 / (
        (gather(places, near) - queries.unsqueeze(2)).square().sum(dim=3) + 1e-8
    )
    closeness = closeness / closeness.sum(dim=2, keepdim=True)

    return queries.new_zeros(*queries.shape[:2], places.shape[1]).scatter(
        2, near, closeness
    )


def gather(values: Tensor, index: Tensor) -> Tensor:
    """values (B, P, C) at index (B, ...) -> (B, ..., C)."""
    flat = index.reshape(len(index), -1, 1).expand(-1, -1, values.shape[2])
    return values.gather(1, flat).reshape(*index.shape, values.shape[2])


def pos_e(
    relative: Tensor,
    dim: int,
    alpha: float = 1000.0,
    beta: float = 100.0,
    interleaved: bool = False,
) -> Tensor:
    """PosE of relative coordinates (..., 3) -> (..., dim): per axis, dim/6 sines, then dim/6
    cosines (spec 1.1).

    `interleaved`: a sine, its cosine, the next sine and so on, which is the order of Point-NN's
    program.
    """
    if dim % 6:
        raise ValueError(f"PosE needs a width divisible by 6, got {dim}")

    exponents = torch.arange(dim // 6, device=relative.device, dtype=relative.dtype) / (
        dim // 6
    )
    angles = beta * relative.unsqueeze(-1) / alpha**exponents  # (..., 3, dim / 6)
    if interleaved:
        # A complex number is a pair in memory; this is several times as fast as `stack`.
        # (..., 3, dim / 6, 2)
        pairs = torch.view_as_real(torch.complex(angles.sin(), angles.cos()))
        return pairs.flatten(-3)

    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def coordinates(points: Tensor) -> Tensor:
    """points (B, P, 3 + F) -> (B, P, 3): without the features; as they are where there are none."""
    return points if points.shape[2] == 3 else points[:, :, :3].contiguous()


def with_height(points: Tensor) -> Tensor:
    """points (B, P, 3) -> (B, P, 4): the height above the cloud's lowest point as a fourth channel;
    y points up.
    """
    height = points[:, :, 1:2]
    return torch.cat([points, height - height.amin(dim=1, keepdim=True)], dim=2)


# Euler angles (x, y, z) in units of pi; six faces, then the corners of PointCLIP's few-shot list
# (spec 2.2)
POINTCLIP_VIEWS = (
    (0, 0, 0.5), (0.5, 0, 0.5), (1, 0, 0.5), (1.5, 0, 0.5), (0, -0.5, 0.5), (0, 0.5, 0.5),
    (1.25, -0.25, 0.5), (1.25, 0.25, 0.5), (1.75, -0.25, 0.5), (1.75, 0.25, 0.5),
)  # fmt: skip


def rotations(num_views: int) -> Tensor:
    """The first `num_views` of PointCLIP's views as matrices (M, 3, 3) = Rx Ry Rz, for column
    vectors.
    """
    if not 1 <= num_views <= len(POINTCLIP_VIEWS):
        raise ValueError(
            f"there are 1 to {len(POINTCLIP_VIEWS)} views, asked for {num_views}"
        )

    matrices = []
    for x, y, z in POINTCLIP_VIEWS[:num_views]:
        matrices.append(_turn(0, x) @ _turn(1, y) @ _turn(2, z))

    return torch.stack(matrices).to(torch.get_default_dtype())


def _turn(axis: int, half_turns: float) -> Tensor:
    """Rotation about one axis by half_turns * pi, exact at quarter turns."""
    cos = math.cos(math.pi * half_turns)
    sin = math.sin(math.pi * half_turns)

    if (2 * half_turns) % 1 == 0:
        cos, sin = round(cos), round(sin)

    matrix = torch.eye(3, dtype=torch.float64)
    i, j = [k for k in range(3) if k != axis]
    sign = -1 if axis == 1 else 1
    matrix[i, i] = matrix[j, j] = cos
    matrix[i, j], matrix[j, i] = -sign * sin, sign * sin

    return matrix


def view_lines(num_views: int, direction: Tensor) -> Tensor:
    """Directions (M, 3) of the virtual lines: R_j^T d / |d| for PointCLIP's views (spec 2.3)."""
    return torch.einsum("mij,i->mj", rotations(num_views), direction / direction.norm())


def uniform_lines(num_views: int) -> Tensor:
    """Directions (M, 3) spread over half a turn about the gravity axis: (cos(pi j / M), 0, sin(pi j
    / M)) (spec 2.2).
    """
    angles = torch.arange(num_views) * math.pi / num_views
    return torch.stack([angles.cos(), torch.zeros(num_views), angles.sin()], dim=1)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which products of coordinates keep their precision.

    A place on a line of 512 units, or a pixel of 224, is a whole number or two apart in bf16, and
    the last one lies beyond the end.
    """
    if device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)

    return nullcontext()


def project_lines(
    centers: Tensor, lines: Tensor, length: int, compat: str = "fixed"
) -> Tensor:
    """Places (B, M, N) of centers (B, N, 3) on lines (M, 3) of `length` units (spec 2.3).

    `fixed` clamps length * u - 0.5 to [0, length - 0.001]; `official` takes it modulo the length,
    which sends both ends of the line to the same place (T6).
    """
    with without_autocast(centers.device):
        centred = centers - centers.mean(dim=1, keepdim=True)
        along = torch.einsum("bnc,mc->bmn", centred, lines)

    low = along.amin(dim=2, keepdim=True)
    high = along.amax(dim=2, keepdim=True)
    spread = high - low
    smallest = torch.finfo(along.dtype).tiny
    scaled = (along - low) / spread.clamp(min=smallest)
    unit = torch.where(spread > 0, scaled, torch.zeros_like(along))
    places = length * unit - 0.5

    if compat == "official":
        return places % length

    return places.clamp(0, length - 1e-3)


def project_planes(
    centers: Tensor,
    views: Tensor,
    translation: float,
    size: tuple[int, int],
    stretch: float = 1.0,
) -> Tensor:
    """Pixels (B, M, N, 2) = (X, Y) of centers (B, N, 3) seen from views (M, 3, 3) on a plane of
    size (width, height) (spec 2.4).

    Perspective along z after a shift by `translation`; what falls outside wraps around. `stretch`
    multiplies y before the scaling to pixels: the audio program's second aspect factor (T13).
    """
    width, height = size
    with without_autocast(centers.device):
        turned = torch.einsum("mij,bnj->bmni", views, centers)  # (B, M, N, 3)
        x, y, z = turned.unbind(-1)

    depth = z - translation + 1e-12
    columns = (x / depth + 1) * width / 2 - 0.5
    rows = (y / depth * stretch + 1) * height / 2 - 0.5

    return torch.stack([columns % width, rows % height], dim=-1)


def line_cells(places: Tensor, cell: float, length: int) -> tuple[Tensor, int]:
    """Segment ids (B, M, N) of places on a line, and how many segments there are."""
    return (places / cell).floor().long(), math.ceil(length / cell)


def plane_cells(
    places: Tensor, cell: float, size: tuple[int, int]
) -> tuple[Tensor, int]:
    """Patch ids (B, M, N) = column + row * columns of pixels (B, M, N, 2), and how many patches
    there are.
    """
    columns, rows = math.ceil(size[0] / cell), math.ceil(size[1] / cell)
    place = (places / cell).floor().long()

    return place[..., 0] + place[..., 1] * columns, columns * rows


def voxel_ids(centers: Tensor, size: float) -> Tensor:
    """Ids (B, N) of the voxels of edge `size` that hold centers (B, N, 3): a voxel's id is the
    index of the first center in it.

    The grid starts at each sample's own minimum (spec 2.5). The voxels are not counted: a number
    that the batch decides would have to be waited for on a GPU, and shapes that depend on it could
    not be compiled.
    """
    offsets = centers - centers.amin(dim=1, keepdim=True)
    grid = (offsets / size).floor().long()  # (B, N, 3)
    same = (grid.unsqueeze(2) == grid.unsqueeze(1)).all(dim=3)  # (B, N, N)

    return same.int().argmax(dim=2)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from the CPU to a GPU through pinned memory, so that the CPU does not
    wait for the copy.
    """
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)

    return tensor.to(device)
