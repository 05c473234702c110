"""Layers of the networks against the equations of their papers, point by point."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pointsweep.geometry import ball
from pointsweep.layers import EdgeConv
from pointsweep.networks.pointmlp import Stage
from pointsweep.networks.pointnet import Transform


@torch.no_grad()
def test_edge_convolution_is_the_maximum_over_neighbours():
    torch.manual_seed(0)
    layer, x = EdgeConv(3, 5, neighbours=4).eval(), torch.randn(2, 9, 3)
    found = layer(x)
    for b in range(2):
        for i in range(9):
            near = (x[b] - x[b, i]).norm(dim=1).argsort()[:4]
            edges = torch.stack([layer.linear(torch.cat([x[b, j] - x[b, i], x[b, i]])) for j in near])
            torch.testing.assert_close(found[b, i], F.leaky_relu(layer.norm(edges), 0.2).amax(dim=0), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pointmlps_neighbourhoods_have_one_deviation_a_cloud():
    torch.manual_seed(0)
    stage = Stage(4, neighbours=3, num_blocks=1).eval()
    seen = []
    stage.widen.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    places, features = torch.randn(2, 8, 3), torch.randn(2, 8, 4)
    stage(places, features)
    away = seen[0][..., :4]  # relative features of each neighbourhood, scaled
    torch.testing.assert_close(away.flatten(1).std(dim=1), torch.ones(2), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_pointnets_transform_starts_as_the_identity():
    x = torch.randn(2, 7, 3)
    torch.testing.assert_close(Transform(3).eval()(x), x)


def test_a_ball_holds_the_nearest_within_the_radius_and_is_filled_with_the_nearest():
    points = torch.tensor([[[0.0, 0, 0], [0.1, 0, 0], [0.3, 0, 0], [5.0, 0, 0]]])
    found = ball(points[:, :1], points, 0.2, 4)[0, 0]
    assert sorted(found.tolist()) == [0, 0, 0, 1]
    assert set(ball(points[:, 3:], points, 0.2, 3)[0, 0].tolist()) == {3}
