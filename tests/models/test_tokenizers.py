"""Any2Point's tokenizer: counts, shapes, and a slow reference of a stage."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pointsweep.config.tokenizers import PatchConfig, PointPNLightConfig, PointPNTokenizerConfig
from pointsweep.models.tokenizers import Patch, PointPN, PointPNLight, normalise
from pointsweep.ops.point_ops import farthest_points, gather


def tokenizer(dim: int = 48, **fields) -> PointPNLight:
    torch.manual_seed(0)
    config = PointPNLightConfig(name="point_pn_light", **({"neighbours": 6, "num_tokens": 4} | fields))
    return PointPNLight(config, in_front_of(dim), "fixed").eval()


def in_front_of(dim: int):
    """All that a tokenizer looks at of a backbone without a stem."""
    return SimpleNamespace(dim=dim, widths=[dim], token_width=dim, stem=None)


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


def test_point_pn_of_appt_has_the_published_counts():
    with torch.device("meta"):
        four = PointPN(PointPNTokenizerConfig(name="point_pn"), in_front_of(768), "fixed")
        three = PointPN(PointPNTokenizerConfig(name="point_pn", height=False), in_front_of(768), "fixed")
    assert parameters(four) == 3_369_792
    assert parameters(four) - parameters(three) == 96


def test_point_pn_measures_heights_from_the_lowest_point():
    """Lifting a cloud changes x, y, z but not its fourth channel: only the first layer may tell the difference."""
    torch.manual_seed(0)
    made = PointPN(PointPNTokenizerConfig(name="point_pn", neighbours=4, num_tokens=2, embed_dim=6), in_front_of(48), "fixed").eval()
    with torch.no_grad():
        made.embed[0].weight[:, :3] = 0
        points, lift = torch.randn(2, 30, 3), torch.tensor([0.0, 5.0, 0.0])
        torch.testing.assert_close(made(points + lift)[0], made(points)[0], atol=1e-4, rtol=1e-4)


def test_patches_of_a_new_embedding_are_groups_about_the_farthest_points():
    torch.manual_seed(0)
    made = Patch(PatchConfig(name="patch", num_tokens=5, neighbours=7), in_front_of(48), "fixed").eval()
    points = torch.randn(2, 30, 3)
    tokens, centers = made(points)
    torch.testing.assert_close(centers, gather(points, farthest_points(points, 5)))
    near = (points[0] - centers[0, 3]).norm(dim=1).argsort()[:7]
    torch.testing.assert_close(made.embed((points[0, near] - centers[0, 3])[None, None])[0, 0], tokens[0, 3], atol=1e-5, rtol=1e-5)


def test_official_scale_of_neighbourhoods_is_that_of_the_batch():
    relative = torch.randn(3, 4, 5, 3)
    expected = relative / (relative.std() + 1e-5)
    torch.testing.assert_close(normalise(relative, "mn40", official=True), expected)
