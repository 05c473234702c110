"""PointNet++: its published size, and the network against a reference that goes group by group."""

from __future__ import annotations

import pytest
import torch

from pointsweep.config.networks import PointNet2Config
from pointsweep.config.validation import trial_from_dict
from pointsweep.errors import ConfigError
from pointsweep.models.networks.pointnet2 import PointNet2
from pointsweep.models.point_model import count_parameters
from pointsweep.ops.point_ops import farthest_points
from tests.models.networks.common import by_hand, closest, clouds, dense, head, printed, settle


def network(classes: int = 5, **fields) -> PointNet2:
    torch.manual_seed(0)
    return PointNet2(PointNet2Config(name="pointnet2", **fields), classes, "fixed")


def test_the_count_is_the_formulas_and_rounds_to_the_papers():
    stages = ((3, 64, 64, 128), (3 + 128, 128, 128, 256), (3 + 256, 256, 512, 1024))
    expected = sum(dense(a, b) + dense(b, c) + dense(c, d) for a, b, c, d in stages) + head(1024, 40)
    total = count_parameters(network(40)).total
    assert total == expected == 1_475_688
    assert round(total / 1e6, 1) == printed("PointNet++")


def reference(made: PointNet2, cloud: torch.Tensor) -> torch.Tensor:
    """One cloud, one group at a time: the points of a ball, or the nearest of them where there are too many."""
    places, x = cloud, torch.empty(len(cloud), 0)
    for stage, (stride, radius, count) in enumerate(((2, 0.3, 6), (4, 0.6, 12))):
        centers = places[farthest_points(places[None], len(places) // stride)[0]]
        rows = []
        for center in centers:
            inside = [i for i in closest(center, places, count) if (places[i] - center).norm() < radius]
            group = torch.cat([places[inside] - center, x[inside]], dim=1)
            rows.append(by_hand(made.stages[stage], group).amax(dim=0))
        places, x = centers, torch.stack(rows)
    pooled = by_hand(made.stages[2], torch.cat([places, x], dim=1)).amax(dim=0, keepdim=True)
    return by_hand(made.head, pooled)[0]


def test_the_network_equals_a_slow_reference():
    made = settle(network(radii=(0.3, 0.6), neighbours=6))
    for cloud, found in zip(clouds(), made(clouds()), strict=True):
        torch.testing.assert_close(found, reference(made, cloud), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strides": [0, 4]}, r"network.strides\[0\]: must be at least 1, got 0"),
        ({"radii": [0.2, 0.0]}, r"network.radii\[1\]: must be positive, got 0.0"),
        ({"neighbours": 0}, "network.neighbours: must be at least 1, got 0"),
    ],
)
def test_a_wrong_value_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        trial_from_dict({"dataset": "synthetic", "network": {"name": "pointnet2", **fields}})


def test_clouds_too_small_for_the_stages_are_refused():
    with pytest.raises(ValueError, match="clouds of 8 points are too small: the stages need at least 16"):
        network(strides=(4, 4))(clouds(size=8))
