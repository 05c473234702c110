"""Any plain transformer of timm: small ones, each compared with the library itself."""

from __future__ import annotations

import pytest
import torch

from pointsweep.config import registry
from pointsweep.models.backbones.library_backbone import NO_POSITIONS
from tests.models.backbones.library_runs import (
    METHODS,
    in_double,
    library_run,
    own_places,
    run_blocks,
    same_blocks,
    some_places,
    two_steps,
    with_method,
)

SIZES = ["depth=2", "embed_dim=32", "num_heads=4"]
TABLE, GRID, BOTH, NONE = "table", "rotary on a grid", "table and rotary on a grid", ""
MODELS = {  # name -> side of an image, positions that are placed
    "vit_tiny_patch16_224": (64, TABLE),
    "vit_base_patch16_224_miil": (64, TABLE),
    "vit_small_patch14_dinov2": (56, TABLE),
    "vit_small_patch14_reg4_dinov2": (56, TABLE),
    "vit_small_patch16_dinov3": (64, GRID),
    "vit_base_patch16_rope_reg1_gap_256": (64, GRID),
    "vit_base_patch16_clip_224": (64, TABLE),
    "vit_base_patch16_siglip_224": (64, TABLE),
    "vit_pe_core_tiny_patch16_384": (64, BOTH),
    "vit_wee_patch16_reg1_gap_256": (64, TABLE),
    "deit_tiny_patch16_224": (64, TABLE),
    "deit_tiny_distilled_patch16_224": (64, TABLE),
    "deit3_small_patch16_224": (64, TABLE),
    "eva02_tiny_patch14_224": (56, BOTH),
    "beit_base_patch16_224": (64, NONE),
    "cait_xxs24_224": (64, TABLE),
    "flexivit_small": (64, TABLE),
    "aimv2_large_patch14_224": (56, TABLE),
}
each = pytest.mark.parametrize("name", MODELS)


def section(name: str, **fields) -> dict:
    return {"name": "timm", "model": name, "sizes": SIZES, "image_size": MODELS[name][0], "weights": "reinitialised", **fields}


def config_of(name: str, **fields):
    return registry.config_class("backbones", "timm").model_validate(section(name, **fields))


def make(name: str, **fields):
    made = registry.load("backbones", "timm")(config_of(name, **fields))
    made.load()
    for parameter in made.blocks.parameters():  # timm starts layer scales at 1e-5
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return made.eval()


@each
def test_blocks_and_positions_equal_the_librarys_own_forward(name):
    kind, config = registry.load("backbones", "timm"), config_of(name)
    theirs, ours = in_double(kind, config)
    found = ours.anatomy
    hidden, expected = library_run(theirs, found.stack, kind.empty(config).inputs())
    places = own_places(ours, hidden.shape[1] - found.num_front)
    if MODELS[name][1] == NONE:
        assert ours.marks() == (NO_POSITIONS,)
        return  # the library's own forward has biases that are tied to its grid
    same_blocks(ours, hidden, expected, places)
    if ours.has_table:
        table = dict(theirs.named_parameters())[found.table.name].detach().reshape(-1, ours.dim)
        torch.testing.assert_close(ours.positions(places), table[-len(places) :])


@each
@torch.no_grad()
def test_what_is_found_is_what_is_known_of_the_architecture(name):
    made = make(name)
    words = [*(["table"] if made.has_table else []), *([made.attention_positions] if made.attention_positions else [])]
    assert " and ".join(words) == MODELS[name][1]
    assert (made.modality, made.dim, len(made.blocks), made.shape.num_heads) == ("2d", 32, 2, 4)
    assert not made.blocks[0].post_norm
    tokens = torch.randn(2, 7, 32)
    other = tokens.clone()
    other[:, -1] = torch.randn(2, 32)
    places = some_places(made)
    assert not torch.allclose(run_blocks(made, other, places)[:, 0], run_blocks(made, tokens, places)[:, 0], atol=1e-6)
    moved = not torch.equal(run_blocks(made, tokens, places), run_blocks(made, tokens, some_places(made, 1)))
    assert moved == (made.marks() == ())


@pytest.mark.parametrize(("name", "number"), [(name, i % len(METHODS)) for i, name in enumerate(MODELS)])
def test_two_steps_move_every_trained_weight_and_no_frozen_one(name, number):
    two_steps(with_method(section(name), METHODS[number]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swin_tiny_patch4_window7_224", r"its layers take tensors \(1, 56, 56, 96\), not tokens \(B, N, C\)"),
        ("convnext_atto", "it is no plain transformer"),
        ("xcit_nano_12_p16_224", "cannot be run with another number of tokens"),
        ("vit_small_patch14_dinov22", "timm has no model 'vit_small_patch14_dinov22'.* Did you mean vit_small_patch14_dinov2"),
        ("vit_small_patch14_dinov2.lvd142n", "with other weights: vit_small_patch14_dinov2.lvd142m"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_and_with_the_reason(name, message):
    config = registry.config_class("backbones", "timm")(name="timm", model=name, weights="random")
    with pytest.raises(ValueError, match=message):
        registry.load("backbones", "timm")(config)
