"""Any2Point's tokenizer: counts, shapes, and a slow reference of a stage."""

from __future__ import annotations

import pytest
import torch

from pointsweep.geometry import farthest_points, gather
from pointsweep.tokenizers import PointPNLight, PointPNLightConfig, normalise


def tokenizer(dim: int = 48, **fields) -> PointPNLight:
    torch.manual_seed(0)
    return PointPNLight(
        PointPNLightConfig(name="point_pn_light", **({"neighbours": 6, "num_tokens": 4} | fields)), dim, "fixed"
    ).eval()


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_counts_at_width_768():
    with torch.device("meta"):
        model = tokenizer(768)
    assert parameters(model) == 276_672
    assert [parameters(part) for part in (model.embed, *model.stages)] == [480, 75_456, 149_184, 51_552]


@pytest.mark.parametrize("dim", [48, 64, 384])
def test_tokens_stand_at_the_first_farthest_points(dim: int):
    points = torch.randn(2, 40, 3)
    tokens, centers = tokenizer(dim)(points)
    assert tokens.shape == (2, 4, dim)
    torch.testing.assert_close(centers, gather(points, farthest_points(points, 4)))


def test_tokens_do_not_depend_on_the_order_of_the_other_points():
    points = torch.randn(2, 40, 3)
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(39)])
    torch.testing.assert_close(tokenizer()(points)[0], tokenizer()(points[:, order])[0], atol=1e-5, rtol=1e-5)


def test_normalisations_by_hand():
    relative = torch.tensor([[[[1.0, -2.0, 0.5], [-4.0, 1.0, 0.25]]]])  # (1, 1, 2, 3)
    expected = torch.tensor([[[[0.25, -1.0, 1.0], [-1.0, 0.5, 0.5]]]])
    torch.testing.assert_close(normalise(relative, "scan"), expected, atol=1e-5, rtol=1e-5)
    spread = torch.tensor([1.0, -2.0, 0.5, -4.0, 1.0, 0.25]).std()
    torch.testing.assert_close(normalise(relative, "mn40"), relative / (spread + 1e-5))


@pytest.mark.parametrize("kind", ["scan", "mn40"])
def test_each_cloud_is_normalised_by_itself(kind: str):
    points = torch.randn(3, 40, 3)
    model = tokenizer(normalisation=kind)
    alone = model(points[:1])[0]
    torch.testing.assert_close(model(torch.cat([points[:1], 9 * points[1:]]))[0][:1], alone, atol=1e-5, rtol=1e-5)


def test_a_flat_neighbourhood_gives_numbers():
    flat = torch.randn(1, 40, 3) * torch.tensor([1.0, 0.0, 1.0])
    assert tokenizer()(flat)[0].isfinite().all()


def test_more_neighbours_than_points_are_refused():
    with pytest.raises(ValueError, match="lower the number of neighbours"):
        tokenizer(neighbours=50)(torch.randn(1, 40, 3))
