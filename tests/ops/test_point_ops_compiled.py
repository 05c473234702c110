"""Farthest points and neighbours, compiled and not: the indices of a plain loop and of a stable sort, ties included."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from pointsweep.ops import point_ops as geometry
from pointsweep.ops.point_ops import compiled, farthest_points, nearest

PATHS = [
    pytest.param(True, marks=pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba (extra: fast) is absent")),
    False,
]


@pytest.fixture(params=PATHS, ids=["compiled", "plain"], autouse=True)
def _path(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(geometry, "compiled", lambda device: None)


def loop(points: torch.Tensor, count: int) -> torch.Tensor:
    """As PointNet++'s programs have it."""
    clouds, size = points.shape[:2]
    chosen, distance = torch.zeros(clouds, count, dtype=torch.long), torch.full((clouds, size), 1e10)
    farthest, rows = torch.zeros(clouds, dtype=torch.long), torch.arange(clouds)
    for step in range(count):
        chosen[:, step] = farthest
        new = ((points - points[rows, farthest].unsqueeze(1)) ** 2).sum(-1)
        distance = torch.minimum(distance, new)
        farthest = distance.max(-1)[1]
    return chosen


def sorted_neighbours(queries: torch.Tensor, points: torch.Tensor, count: int) -> torch.Tensor:
    distance = ((queries.unsqueeze(2) - points.unsqueeze(1)) ** 2).sum(-1)
    return distance.sort(dim=2, stable=True).indices[:, :, :count].sort(dim=2).values


def clouds(kind: str, size: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    if kind == "grid":  # nearly every distance is met many times, and points stand on each other
        return torch.randint(0, 5, (3, size, 3), generator=random).float()
    if kind == "flat":
        return torch.randn(3, size, 3, generator=random) * torch.tensor([1.0, 0.0, 1.0])
    if kind == "one place":
        return torch.ones(3, size, 3)
    return torch.randn(3, size, 3, generator=random) * 10.0 ** torch.arange(-3, 6, 3)[:, None, None]


KINDS = ["normal", "grid", "flat", "one place"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "count"), [(1, 1), (31, 31), (33, 20), (300, 128)])
def test_farthest_points_are_those_of_the_loop(kind, size, count):
    points = clouds(kind, size)
    assert torch.equal(farthest_points(points, count), loop(points, count))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "count"), [(1, 1), (40, 40), (64, 17), (300, 81)])
def test_neighbours_are_those_of_a_stable_sort(kind, size, count):
    points = clouds(kind, size)
    queries = torch.cat([points[:, : size // 2], points[:, :1] + 0.25], dim=1)
    assert torch.equal(nearest(queries, points, count), sorted_neighbours(queries, points, count))


def test_neighbours_among_features_break_ties_by_the_first(monkeypatch):
    features = torch.randint(0, 3, (2, 50, 4), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(nearest(features, features, 9), sorted_neighbours(features, features, 9))


def test_features_that_are_not_numbers_stop_nothing():
    features = torch.full((2, 30, 4), torch.nan)
    assert nearest(features, features, 9).shape == (2, 30, 9)
    assert farthest_points(torch.full((2, 30, 3), torch.nan), 5).shape == (2, 5)


def test_points_near_the_origin_are_skipped_also_where_nothing_else_is_left():
    points = torch.tensor([[[1.0, 0, 0], [0.01, 0, 0], [-1.0, 0, 0], [0.5, 0, 0]], [[0.0, 0, 0]] * 4])
    assert farthest_points(points, 4, skip_near_origin=True).tolist() == [[0, 2, 3, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("points", [2048, 1024])
def test_real_clouds(data_root, points):
    from pointsweep.config.validation import trial_from_dict
    from pointsweep.errors import MissingDataError
    from pointsweep.training.runner import load_dataset

    try:
        config = trial_from_dict({"dataset": {"name": "modelnet40"}, "network": "pointnet"}).dataset
        whole = torch.from_numpy(load_dataset(config).test.points[:4, :points].copy())
    except MissingDataError as error:
        pytest.skip(str(error))
    found = farthest_points(whole, 512)
    assert torch.equal(found, loop(whole, 512))
    centers = geometry.gather(whole, found)
    assert torch.equal(nearest(centers, whole, 81), sorted_neighbours(centers, whole, 81))


def test_the_number_of_threads_changes_nothing():
    points = clouds("normal", 300)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append((farthest_points(points, 100), nearest(points, points, 20)))
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


INTERPRETED = """
import torch
from pointsweep.ops.point_ops_triton import farthest_points
from tests.ops.test_point_ops_compiled import clouds, loop
for kind in ("normal", "grid", "flat", "one place"):
    points = clouds(kind, 40)
    assert torch.equal(farthest_points(points, torch.full((3, 40), 1e10), 24), loop(points, 24)), kind
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is absent: it comes with torch's CUDA build")
def test_the_cuda_kernel_interpreted_gives_the_same():
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind):
    points = clouds(kind, 300)
    assert compiled("cuda") is not None
    assert torch.equal(farthest_points(points.cuda(), 128).cpu(), loop(points, 128))
    assert torch.equal(nearest(points.cuda(), points.cuda(), 81).cpu(), sorted_neighbours(points, points, 81))
