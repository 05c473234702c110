"""What every registered backbone must hold."""

from __future__ import annotations

import pytest
import torch

from pointsweep.config import registry
from pointsweep.config.backbones import LibraryBackboneConfig
from pointsweep.models.backbones.base import Backbone, Block

# Models by name have no shape of their own: tests/models/backbones/test_transformers_model.py and test_timm_model.py.
NAMES = [
    name for name in registry.names("backbones") if not issubclass(registry.config_class("backbones", name), LibraryBackboneConfig)
]


def make(name: str, **fields) -> Backbone:
    config = registry.config_class("backbones", name)(name=name, weights="random", num_blocks=2, **fields)
    backbone = registry.load("backbones", name)(config)
    backbone.load()
    return backbone.eval()


def places(backbone: Backbone) -> torch.Tensor:
    if backbone.plane is None:
        return torch.randn(2, 5, 3)
    if backbone.plane.height == 1:
        return torch.rand(2, 5) * (backbone.plane.width - 1)
    return torch.rand(2, 5, 2) * torch.tensor([backbone.plane.width - 1.0, backbone.plane.height - 1.0])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_shapes_and_positions(name):
    backbone = make(name)
    encodings = backbone.positions(places(backbone))
    if encodings is None:  # positions in the attention alone
        on_views = places(backbone).unsqueeze(1)
        encodings = backbone.attention_bias(0, torch.randn(2, 5, 3), on_views)
        assert encodings.shape == (2, backbone.shape.num_heads, 5, 5)
    else:
        assert encodings.shape == (2, 5, backbone.widths[0])
    assert encodings.isfinite().all()
    assert encodings.std() > 0
    for index, (block, width) in enumerate(zip(backbone.blocks, backbone.widths, strict=True)):
        if index in backbone.scale_starts:
            tokens = torch.randn(2, 6, width)
            tokens = backbone.start(tokens) if index == 0 else tokens
        tokens = block(tokens, lambda f, y: f)
    assert tokens.shape == (2, 6, backbone.dim)


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_are_the_same_for_one_seed_and_others_for_another(name):
    first, again, other = make(name).state_dict(), make(name).state_dict(), make(name, weights_seed=1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_after_ffn_gets_the_branch_before_the_residual_sum(name):
    block = make(name).blocks[0]
    assert isinstance(block, Block)
    tokens = torch.randn(2, 6, block.norm1.normalized_shape[0])
    seen = []
    whole = block(tokens, lambda f, y: seen.append(f) or f)
    without = block(tokens, lambda f, y: torch.zeros_like(f))
    if block.post_norm:
        torch.testing.assert_close(block.norm2(block.norm1(tokens + block.attn(tokens)) + seen[0]), whole)
    else:
        torch.testing.assert_close(without + seen[0], whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_explicit_attention_in_training_equals_the_fused_one(name):
    """With dropout on the attention (spec 2.8) another code path runs: at rate 0 + it must give the same."""
    attention = make(name).blocks[0].attn
    x = torch.randn(2, 6, attention.q.in_features)
    fused = attention(x)
    attention.train()
    attention.dropout.p = 1e-12
    torch.testing.assert_close(attention(x), fused, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_drop_path_grows_over_the_blocks(name):
    config = registry.config_class("backbones", name)(name=name, weights="random", drop_path=0.1)
    with torch.device("meta"):
        blocks = registry.load("backbones", name)(config).blocks
    rates = [block.drop_path.p for block in blocks]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.1)
    assert rates == sorted(rates)
