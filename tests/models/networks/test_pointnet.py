"""PointNet: its published size, and its transforms against the formulas."""

from __future__ import annotations

import pytest
import torch

from pointsweep.config.networks import PointNetConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.errors import ConfigError
from pointsweep.models.networks.pointnet import PointNet, Transform
from pointsweep.models.point_model import count_parameters
from tests.models.networks.common import by_hand, clouds, dense, head, printed, settle


def network(classes: int = 5, **fields) -> PointNet:
    torch.manual_seed(0)
    return PointNet(PointNetConfig(name="pointnet", **fields), classes, "fixed")


def transform_size(width: int) -> int:
    found = dense(width, 64) + dense(64, 128) + dense(128, 1024) + dense(1024, 512) + dense(512, 256)
    return found + 256 * width**2 + width**2


def test_the_count_is_the_formulas_and_rounds_to_the_papers():
    points = dense(3, 64) + dense(64, 64) + dense(64, 64) + dense(64, 128) + dense(128, 1024)
    total = count_parameters(network(40)).total
    assert total == points + transform_size(3) + transform_size(64) + head(1024, 40) == 3_480_049
    assert round(total / 1e6, 1) == printed("PointNet")
    assert count_parameters(network(40, input_transform=False, feature_transform=False)).total == points + head(1024, 40)


def test_transforms_start_as_the_identity():
    whole, bare = network(), network(input_transform=False, feature_transform=False)
    bare.load_state_dict({name: value for name, value in whole.state_dict().items() if name in bare.state_dict()})
    assert torch.equal(whole.eval()(clouds()), bare.eval()(clouds()))


def test_a_transform_equals_its_formula():
    made = settle(Transform(3))
    for cloud, found in zip(clouds(), made(clouds()), strict=True):
        pooled = by_hand(made.points, cloud).amax(dim=0, keepdim=True)  # (1, 1024)
        matrix = by_hand(made.matrix, by_hand(made.cloud, pooled)).reshape(3, 3)
        torch.testing.assert_close(found, cloud @ matrix, atol=1e-5, rtol=1e-4)


def test_the_network_equals_its_formula_without_transforms():
    made = settle(network(input_transform=False, feature_transform=False))
    for cloud, found in zip(clouds(), made(clouds()), strict=True):
        pooled = by_hand(made.high, by_hand(made.low, cloud)).amax(dim=0, keepdim=True)
        torch.testing.assert_close(found, by_hand(made.head, pooled)[0], atol=1e-5, rtol=1e-4)


def test_a_wrong_value_is_refused():
    with pytest.raises(ConfigError, match=r"network.dropout: must be in \[0, 1\), got 1.0"):
        trial_from_dict({"dataset": "synthetic", "network": {"name": "pointnet", "dropout": 1}})
