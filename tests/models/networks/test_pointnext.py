"""PointNeXt-S: its two published sizes, and the network against a reference that goes group by group."""

from __future__ import annotations

import pytest
import torch

from pointsweep.config.networks import PointNeXtConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.errors import ConfigError
from pointsweep.models.networks.pointnext import PointNeXt
from pointsweep.models.point_model import count_parameters
from pointsweep.ops.point_ops import farthest_points
from tests.models.networks.common import by_hand, closest, clouds, dense, head, printed, settle


def network(classes: int = 5, **fields) -> PointNeXt:
    torch.manual_seed(0)
    return PointNeXt(PointNeXtConfig(name="pointnext", **fields), classes, "fixed")


def size(classes: int, channels: int, width: int = 32) -> int:
    found = channels * width + width
    for c in (width, 2 * width, 4 * width, 8 * width):  # to 2C through C, and a linear layer past them
        found += dense(3 + c, c, bias=False) + dense(c, 2 * c, bias=False) + c * 2 * c + 2 * c
    top = 16 * width
    return found + dense(3 + top, top, bias=False) + dense(top, top, bias=False) + head(top, classes, bias=False)


def test_the_count_is_the_formulas_and_those_of_the_published_configurations():
    scan, shapes = count_parameters(network(15)).total, count_parameters(network(40, heights=False)).total
    assert scan == size(15, 4) == 1_367_119
    assert shapes == size(40, 3) == 1_373_512
    assert (round(scan / 1e6, 3), round(shapes / 1e6, 3)) == (1.367, 1.374)
    assert round(scan / 1e6, 1) == round(shapes / 1e6, 1) == printed("PointNeXt")


def test_width_64_has_the_published_size():
    with torch.device("meta"):
        assert round(count_parameters(network(40, heights=False, width=64)).total / 1e6, 3) == 4.523


def reference(made: PointNeXt, cloud: torch.Tensor) -> torch.Tensor:
    """One cloud, one group at a time: the points of a ball, or the nearest of them where there are too many."""
    config = made.config
    height = cloud[:, 1:2] - cloud[:, 1].min()
    x = by_hand(made.stem, torch.cat([cloud, height], dim=1) if config.heights else cloud)
    places = cloud
    for index, stage in enumerate(made.stages):
        radius = config.radius * config.radius_scaling**index
        chosen = farthest_points(places[None], len(places) // 2)[0]
        rows = []
        for i in chosen:
            inside = [j for j in closest(places[i], places, config.neighbours) if (places[j] - places[i]).norm() < radius]
            offsets = (places[inside] - places[i]) / (radius if config.normalised_offsets else 1)
            pooled = by_hand(stage.outer, by_hand(stage.inner, torch.cat([offsets, x[inside]], dim=1))).amax(dim=0)
            rows.append((pooled + (by_hand(stage.skip, x[i]) if config.residual else 0)).clamp(min=0))
        places, x = places[chosen], torch.stack(rows)
    pooled = by_hand(made.all, torch.cat([places, x], dim=1)).amax(dim=0, keepdim=True)
    return by_hand(made.head, pooled)[0]


@pytest.mark.parametrize("fields", [{}, {"heights": False, "residual": False, "normalised_offsets": False}])
def test_the_network_equals_a_slow_reference(fields):
    made = settle(network(width=8, num_stages=3, neighbours=6, radius=0.3, **fields))
    for cloud, found in zip(clouds(), made(clouds()), strict=True):
        torch.testing.assert_close(found, reference(made, cloud), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"radius": 0.0}, "network.radius: must be positive, got 0.0"),
        ({"width": 0}, "network.width: must be at least 1, got 0"),
    ],
)
def test_a_wrong_value_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        trial_from_dict({"dataset": "synthetic", "network": {"name": "pointnext", **fields}})
