"""Point-PN: its published sizes, and the network against a reference that goes group by group."""

from __future__ import annotations

import pytest
import torch

from pointsweep.config.networks import PointPNConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.errors import ConfigError
from pointsweep.models.networks.point_pn import PointPN
from pointsweep.models.point_model import count_parameters
from pointsweep.ops.point_ops import farthest_points, pos_e
from tests.models.networks.common import by_hand, closest, clouds, dense, head, printed, settle


def network(classes: int = 5, **fields) -> PointPN:
    torch.manual_seed(0)
    return PointPN(PointPNConfig(name="point_pn", **fields), classes, "fixed")


def encoder_size(width: int, channels: int = 4) -> int:
    """Raw embedding; per stage the layer over (neighbour, centre) and bottlenecks of half the width."""
    found = dense(channels, width, bias=False)
    for before, after, blocks in ((1, 2, 2), (2, 4, 1), (4, 8, 1), (8, 8, 1)):
        c, d = before * width, after * width
        found += dense(2 * c, d, bias=False) + blocks * (dense(d, d // 2) + dense(d // 2, d))
    return found


def test_the_count_is_the_formulas_and_that_of_the_published_program():
    scan, shapes = count_parameters(network(15)), count_parameters(network(40, heights=False, normalisation="mn40"))
    assert scan.trainable_without_head == encoder_size(36) == 477_432
    assert shapes.trainable_without_head == encoder_size(36, channels=3) == 477_396
    assert scan.total == 477_432 + head(288, 15) == 762_119
    assert round(scan.total / 1e6, 1) == round(shapes.total / 1e6, 1) == printed("Point-PN")


def test_at_width_96_it_is_the_point_embedding_of_appt():
    assert count_parameters(network(embed_dim=96)).trainable_without_head == encoder_size(96) == 3_369_792


def reference(made: PointPN, cloud: torch.Tensor, count: int) -> torch.Tensor:
    """One cloud, one group at a time: linear layer, (x + E) E, bottlenecks, max + mean."""
    height = cloud[:, 1:2] - cloud[:, 1].min()
    places, x = cloud, by_hand(made.embed, torch.cat([cloud, height], dim=1) if made.config.heights else cloud)
    for stage in made.stages:
        chosen = farthest_points(places[None], len(places) // 2)[0]
        groups = [closest(places[i], places, count) for i in chosen]
        relative = torch.stack([places[group] - places[i] for group, i in zip(groups, chosen, strict=True)])
        if made.config.normalisation == "mn40":
            relative = relative / (relative.std() + 1e-5)
        else:
            relative = relative / (relative.abs().amax(dim=1, keepdim=True) + 1e-6)
        rows = []
        for away, group, i in zip(relative, groups, chosen, strict=True):
            wide = torch.cat([x[group], x[i].expand(count, -1)], dim=1) @ stage.pair.weight.t()
            wide = by_hand(stage.norm, wide).clamp(min=0)
            e = pos_e(away, wide.shape[1])
            wide = (wide + e) * e
            for block in stage.blocks:
                wide = (wide + by_hand(block.layers, wide)).clamp(min=0)
            rows.append(wide.amax(dim=0) + wide.mean(dim=0))
        places, x = places[chosen], torch.stack(rows)
    return by_hand(made.head, (x.amax(dim=0) + x.mean(dim=0))[None])[0]


@pytest.mark.parametrize("fields", [{}, {"heights": False, "normalisation": "mn40"}])
def test_the_network_equals_a_slow_reference(fields):
    made = settle(network(embed_dim=6, expansions=(2, 1), blocks=(2, 1), neighbours=5, **fields))
    for cloud, found in zip(clouds(), made(clouds()), strict=True):
        torch.testing.assert_close(found, reference(made, cloud, 5), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 32}, "network.embed_dim: must be a multiple of 6, got 32"),
        ({"blocks": [1, 1]}, r"network.blocks: must be 4 numbers of at least 0, one a stage, got \[1, 1\]"),
    ],
)
def test_a_wrong_value_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        trial_from_dict({"dataset": "synthetic", "network": {"name": "point_pn", **fields}})
