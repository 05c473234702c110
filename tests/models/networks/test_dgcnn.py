"""DGCNN: its published size, and the network against a reference that goes edge by edge."""

from __future__ import annotations

import pytest
import torch

from pointsweep.config.networks import DGCNNConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.errors import ConfigError
from pointsweep.models.networks.dgcnn import DGCNN
from pointsweep.models.point_model import count_parameters
from tests.models.networks.common import by_hand, closest, clouds, dense, printed, settle


def network(classes: int = 5, **fields) -> DGCNN:
    torch.manual_seed(0)
    return DGCNN(DGCNNConfig(name="dgcnn", **fields), classes, "fixed")


def test_the_count_is_the_formulas_and_rounds_to_the_papers():
    edges = sum(dense(2 * a, b, bias=False) for a, b in ((3, 64), (64, 64), (64, 128), (128, 256)))
    head = dense(2048, 512, bias=False) + dense(512, 256) + 256 * 40 + 40
    total = count_parameters(network(40)).total
    assert total == edges + dense(512, 1024, bias=False) + head == 1_809_576
    assert round(total / 1e6, 1) == printed("DGCNN")


def reference(made: DGCNN, cloud: torch.Tensor, count: int) -> torch.Tensor:
    """One cloud, one point at a time: W [x_j - x_i, x_i] over the neighbours among points, or among the last features."""
    x, found = cloud, []
    for layer in made.layers:
        graph = x if made.config.dynamic else cloud
        rows = []
        for i in range(len(x)):
            near = closest(graph[i], graph, count)
            edges = torch.cat([x[near] - x[i], x[i].expand(count, -1)], dim=1) @ layer.edge.weight.t()
            edges = by_hand(layer.norm, edges)
            rows.append(torch.where(edges > 0, edges, 0.2 * edges).amax(dim=0))
        x = torch.stack(rows)
        found.append(x)
    x = by_hand(made.embed, torch.cat(found, dim=1))
    return by_hand(made.head, torch.cat([x.amax(dim=0), x.mean(dim=0)])[None])[0]


@pytest.mark.parametrize("dynamic", [True, False])
def test_the_network_equals_a_slow_reference(dynamic):
    made = settle(network(neighbours=5, widths=(8, 12), embed_dim=16, dynamic=dynamic))
    for cloud, found in zip(clouds(), made(clouds()), strict=True):
        torch.testing.assert_close(found, reference(made, cloud, 5), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"neighbours": 0}, "network.neighbours: must be at least 1, got 0"),
        ({"widths": []}, r"network.widths: must have at least one entry, got \[\]"),
    ],
)
def test_a_wrong_value_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        trial_from_dict({"dataset": "synthetic", "network": {"name": "dgcnn", **fields}})
