"""PointMLP: its published size, the geometric affine module by hand, and the network against a slow reference."""

from __future__ import annotations

import pytest
import torch

from pointsweep.config.networks import PointMLPConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.errors import ConfigError
from pointsweep.models.networks.pointmlp import GeometricAffine, PointMLP
from pointsweep.models.point_model import count_parameters
from pointsweep.ops.point_ops import farthest_points
from tests.models.networks.common import by_hand, closest, clouds, dense, head, printed, settle


def network(classes: int = 5, **fields) -> PointMLP:
    torch.manual_seed(0)
    return PointMLP(PointMLPConfig(name="pointmlp", **fields), classes, "fixed")


def test_the_count_is_the_formulas_and_without_the_head_rounds_to_the_papers():
    with torch.device("meta"):
        counts = count_parameters(network(40))
    # A transfer layer, two residual blocks of two layers before the maximum and two behind it; alpha and beta.
    stages = sum(9 * dense(2 * c, 2 * c, bias=False) + 2 * c for c in (64, 128, 256, 512))
    assert counts.trainable_without_head == dense(3, 64, bias=False) + stages == 12_570_560
    assert counts.total == counts.trainable_without_head + head(1024, 40) == 13_238_504
    assert round(counts.trainable_without_head / 1e6, 1) == printed("PointMLP")


def spread(away: torch.Tensor) -> torch.Tensor:
    """Root of the mean square distance from the mean over everything that a cloud's groups hold (n - 1 in the denominator)."""
    return (((away - away.mean()) ** 2).sum() / (away.numel() - 1)).sqrt()


@pytest.mark.parametrize("kind", ["anchor", "center"])
def test_the_affine_module_normalises_every_cloud_by_itself(kind):
    made = GeometricAffine(4, kind)
    with torch.no_grad():
        made.alpha.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        made.beta.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    neighbour = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0])[:, None, None, None]
    own = neighbour[:, :, 0]
    for i, found in enumerate(made(neighbour, own)):
        away = neighbour[i] - (own[i][:, None] if kind == "anchor" else neighbour[i].mean(dim=1, keepdim=True))
        torch.testing.assert_close(found, made.alpha * away / (spread(away) + 1e-5) + made.beta)


def residual(blocks: torch.nn.Sequential, rows: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        rows = (rows + by_hand(block.layers, rows)).clamp(min=0)
    return rows


def reference(made: PointMLP, cloud: torch.Tensor, count: int) -> torch.Tensor:
    """One cloud, one group at a time."""
    places, x = cloud, by_hand(made.embed, cloud)
    for stage in made.stages:
        chosen = farthest_points(places[None], len(places) // 2)[0]
        groups = [closest(places[i], places, count) for i in chosen]
        away = torch.stack([x[group] - x[i] for group, i in zip(groups, chosen, strict=True)])
        scaled = stage.affine.alpha * away / (spread(away) + 1e-5) + stage.affine.beta
        rows = []
        for group, i in zip(scaled, chosen, strict=True):
            wide = by_hand(stage.transfer, torch.cat([group, x[i].expand(count, -1)], dim=1))
            rows.append(residual(stage.pre, wide).amax(dim=0))
        places, x = places[chosen], residual(stage.pos, torch.stack(rows))
    return by_hand(made.head, x.amax(dim=0, keepdim=True))[0]


def test_the_network_equals_a_slow_reference():
    made = settle(network(embed_dim=6, num_stages=2, neighbours=5))
    for cloud, found in zip(clouds(), made(clouds()), strict=True):
        torch.testing.assert_close(found, reference(made, cloud, 5), atol=1e-5, rtol=1e-4)


def test_a_wrong_value_is_refused():
    with pytest.raises(ConfigError, match="network.neighbours: must be at least 2, got 1"):
        trial_from_dict({"dataset": "synthetic", "network": {"name": "pointmlp", "neighbours": 1}})
