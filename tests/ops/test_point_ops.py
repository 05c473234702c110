"""Golden values of the method specification, and slow references."""

from __future__ import annotations

import pytest
import torch

from pointsweep.ops.point_ops import (
    ball,
    farthest_points,
    gather,
    line_cells,
    nearest,
    plane_cells,
    pos_e,
    project_lines,
    project_planes,
    pyramid,
    rotations,
    uniform_lines,
    view_lines,
    voxel_ids,
    with_height,
)

FOUR = torch.tensor([[[0.1, 0.2, 0.3], [-0.4, 0.5, -0.6], [0.7, -0.8, 0.9], [0.0, 0.0, 0.0]]])  # the points of spec 2.3


def clouds(count: int = 3, points: int = 60) -> torch.Tensor:
    return torch.randn(count, points, 3, generator=torch.Generator().manual_seed(0))


def naive_farthest(cloud: torch.Tensor, count: int) -> list[int]:
    chosen, nearest_chosen = [0], torch.full((len(cloud),), 1e10)
    for _ in range(count - 1):
        nearest_chosen = torch.minimum(nearest_chosen, ((cloud - cloud[chosen[-1]]) ** 2).sum(dim=1))
        chosen.append(int(nearest_chosen.argmax()))
    return chosen


def test_farthest_points_equal_a_plain_loop():
    points = clouds()
    assert farthest_points(points, 25).tolist() == [naive_farthest(cloud, 25) for cloud in points]


def test_farthest_points_are_nested():
    points = clouds()
    inner = gather(points, farthest_points(points, 32))
    assert farthest_points(inner, 16).tolist() == [list(range(16))] * len(points)


def test_farthest_points_can_skip_the_origin_as_the_cuda_operator_does():
    points = torch.tensor([[[1.0, 0, 0], [0.01, 0, 0], [-1.0, 0, 0], [0.5, 0, 0]]])
    assert farthest_points(points, 4).tolist() == [[0, 2, 1, 3]]
    assert 1 not in farthest_points(points, 3, skip_near_origin=True)[0].tolist()


def test_too_many_points_or_neighbours_are_refused():
    with pytest.raises(ValueError, match="cannot sample 61 points from clouds of 60"):
        farthest_points(clouds(), 61)
    with pytest.raises(ValueError, match="cannot find 61 neighbours among 60 points"):
        nearest(clouds(), clouds(), 61)


def test_shapes_that_do_not_fit_are_refused():
    """Compiled loops would read and write beyond the memory of the smaller tensor."""
    with pytest.raises(ValueError, match=r"points must be \(B, P, 3\), got \(3, 60, 2\)"):
        farthest_points(clouds()[:, :, :2], 5)
    for queries in (clouds(count=1), clouds(count=4), clouds()[:, :, :2]):
        with pytest.raises(ValueError, match="must agree in B and C, got"):
            nearest(queries, clouds(), 5)


def test_nearest_equal_sorted_distances_and_contain_the_centre():
    points = clouds(count=20)
    found = nearest(points[:, :5], points, 7)
    for b in range(len(points)):
        distance = torch.cdist(points[b, :5].double(), points[b].double())
        assert [set(row) for row in found[b].tolist()] == [set(row) for row in distance.argsort(dim=1)[:, :7].tolist()]
        assert all(g in found[b, g] for g in range(5))


def test_pos_e_golden_values():
    expected = [
        -0.544021,
        0.310984,
        -0.839072,
        0.950415,
        -0.912945,
        -0.591127,
        0.408082,
        0.806578,
        -0.988032,
        0.812649,
        0.154251,
        0.582754,
    ]
    assert pos_e(torch.tensor([0.1, -0.2, 0.3]), 12).tolist() == pytest.approx(expected, abs=1e-5)


def test_point_nn_interleaves_the_sines_and_cosines_of_an_axis():
    expected = [
        -0.544021,
        -0.839072,
        0.310984,
        0.950415,
        -0.912945,
        0.408082,
        -0.591127,
        0.806578,
        -0.988032,
        0.154251,
        0.812649,
        0.582754,
    ]
    found = pos_e(torch.tensor([0.1, -0.2, 0.3]), 12, interleaved=True)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_the_six_views_are_exact():
    assert rotations(6).tolist() == [
        [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
        [[0, -1, 0], [0, 0, -1], [1, 0, 0]],
        [[0, -1, 0], [-1, 0, 0], [0, 0, -1]],
        [[0, -1, 0], [0, 0, 1], [-1, 0, 0]],
        [[0, 0, -1], [1, 0, 0], [0, -1, 0]],
        [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
    ]


def test_every_view_is_a_rotation():
    views = rotations(10).double()
    torch.testing.assert_close(views @ views.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand(10, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(views), torch.ones(10, dtype=torch.float64))


SCAN = {
    0: [76.5, 76.5, 25.166667, 12.333333], 1: [76.5, 38.0, 76.5, 18.75], 2: [43.5, 76.5, 76.5, 46.25], 5: [43.5, 76.5, 76.5, 46.25],
    3: [50.833333, 76.5, 76.5, 47.625], 4: [32.5, 76.5, 76.5, 29.75],
}  # fmt: skip
MODELNET = {
    0: [76.5, 38.0, 76.5, 57.25], 1: [32.5, 76.5, 76.5, 29.75], 2: [25.166667, 76.5, 76.5, 28.375],
    3: [76.5, 76.5, 50.833333, 63.666667], 4: [35.038462, 76.5, 76.5, 46.884615], 5: [76.5, 76.5, 76.5, 38.0],
}  # fmt: skip


@pytest.mark.parametrize(("direction", "golden"), [((-1.0, 0.0, 1.0), SCAN), ((1.0, -1.0, 0.0), MODELNET)])
def test_official_line_projection_golden_values(direction, golden):
    places = project_lines(FOUR, view_lines(6, torch.tensor(direction)), 77, "official")
    for view, expected in golden.items():
        assert places[0, view].tolist() == pytest.approx(expected, abs=1e-4)
    if golden is SCAN:
        assert line_cells(places, 2, 77)[0][0, 0].tolist() == [38, 38, 12, 6]
        assert line_cells(places, 2, 77)[1] == 39


def test_fixed_line_projection_keeps_the_two_ends_apart():
    places = project_lines(clouds(), view_lines(6, torch.tensor([-1.0, 0.0, 1.0])), 77)
    assert places.amin() == 0
    assert 76 < places.amax() < 77
    assert (places.amax(dim=2) - places.amin(dim=2) > 76).all()


def test_a_cloud_that_is_flat_along_a_line_is_placed_at_its_start():
    flat = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 2.0, 0.0]]])
    assert project_lines(flat, torch.tensor([[1.0, 0.0, 0.0]]), 77).tolist() == [[[0.0, 0.0]]]


def test_plane_projection_golden_values():
    pixels = project_planes(FOUR, rotations(6), -1.8, (518, 518))
    assert pixels[0, 0, :, 0].tolist() == pytest.approx([233.833333, 150.583333, 335.240741, 258.5], abs=1e-3)
    assert pixels[0, 0, :, 1].tolist() == pytest.approx([270.833333, 172.166667, 325.648148, 258.5], abs=1e-3)
    ids, number = plane_cells(pixels, 26, (518, 518))
    assert ids[0, 0].tolist() == [208, 125, 252, 189]
    assert number == 400


def test_official_audio_projection_golden_values():
    pixels = project_planes(FOUR, rotations(6), -1.4, (192, 304), stretch=304 / 192)
    assert pixels[0, 0, :, 0].tolist() == pytest.approx([84.205882, 35.5, 128.891304, 95.5], abs=1e-3)
    assert pixels[0, 0, :, 1].tolist() == pytest.approx([165.656863, 31.166667, 224.746377, 151.5], abs=1e-3)
    ids, number = plane_cells(pixels, 16, (192, 304))
    assert ids[0, 0].tolist() == [125, 14, 176, 113]
    assert number == 228


def test_places_on_a_line_of_512_and_on_a_plane_are_the_same_under_autocast():
    """In bf16 they would be two units apart, and the last beyond the end of the line's table."""
    lines, views = uniform_lines(6), rotations(6)
    places, pixels = project_lines(clouds(), lines, 512), project_planes(clouds(), views, -1.8, (224, 224))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (clouds()[0] @ lines.T).dtype == torch.bfloat16  # as a product is otherwise
        assert torch.equal(project_lines(clouds(), lines, 512), places)
        assert torch.equal(project_planes(clouds(), views, -1.8, (224, 224)), pixels)
    assert places.max() < 512


def test_uniform_lines_are_spread_over_half_a_turn():
    lines = uniform_lines(4)
    angles = torch.atan2(lines[:, 2], lines[:, 0])
    assert angles.tolist() == pytest.approx([0, torch.pi / 4, torch.pi / 2, 3 * torch.pi / 4], abs=1e-6)


def test_voxels_start_at_each_cloud_and_are_named_by_their_first_point():
    cloud = torch.tensor([[0.0, 0, 0], [0.05, 0, 0], [0.11, 0, 0]])
    ids = voxel_ids(torch.stack([cloud, cloud + 7]), 0.1)
    assert ids.tolist() == [[0, 0, 2]] * 2


def test_a_ball_holds_the_nearest_points_inside_it_and_fills_up_with_the_nearest_of_all():
    points = clouds()
    centers = points[:, :9]
    found = ball(centers, points, 0.9, 5)
    assert found.shape == (3, 9, 5)
    sizes = set()
    for b in range(3):
        for g in range(9):
            distance = (points[b] - centers[b, g]).norm(dim=1)
            inside = [i for i in distance.argsort()[:5].tolist() if distance[i] < 0.9]
            expected = inside + [int(distance.argmin())] * (5 - len(inside))
            assert sorted(found[b, g].tolist()) == sorted(expected)
            sizes.add(len(inside))
    assert {1, 5} <= sizes  # both full and nearly empty balls were met


def test_a_ball_does_not_depend_on_the_order_of_the_points():
    points = clouds()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    found, moved = gather(points, ball(points[:, :9], points, 0.9, 5)), points[:, order]
    again = gather(moved, ball(points[:, :9], moved, 0.9, 5))
    assert torch.equal(found.sum(dim=3).sort(dim=2).values, again.sum(dim=3).sort(dim=2).values)


def test_a_ball_asks_for_no_more_points_than_there_are():
    points = clouds(points=4)
    assert ball(points, points, 9.0, 7).sort(dim=2).values.tolist() == [[[0, 1, 2, 3]] * 4] * 3


def test_neighbours_among_features_equal_a_sort_of_all_distances():
    features = torch.randn(2, 30, 10, generator=torch.Generator().manual_seed(0))
    found = nearest(features, features, 6).sort(dim=2).values
    expected = ((features.unsqueeze(2) - features.unsqueeze(1)) ** 2).sum(dim=3).argsort(dim=2)[:, :, :6].sort(dim=2).values
    assert torch.equal(found, expected)


def test_the_centres_of_later_stages_are_farthest_points_of_earlier_ones():
    points = clouds()
    order, counts = pyramid(points, (2, 3))
    assert counts == [30, 10]
    centers = gather(points, order)
    assert torch.equal(gather(centers, farthest_points(centers, 10)), centers[:, :10])
    with pytest.raises(ValueError, match="clouds of 60 points are too small: the stages need at least 64"):
        pyramid(points, (8, 8))


def test_the_height_is_above_each_clouds_lowest_point():
    assert with_height(FOUR)[0, :, 3].tolist() == pytest.approx([1.0, 1.3, 0.0, 0.8])
    assert torch.equal(with_height(FOUR)[:, :, :3], FOUR)
