"""What `compat: official` chooses by itself, by method, backbone and data set; a file's own settings stand above it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pointsweep.config import official
from pointsweep.config.base import canonical_json
from pointsweep.config.datasets import SyntheticConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import check_trial, trial_from_dict
from pointsweep.data.augment import augment, normalise
from pointsweep.models.backbones.patch_embedding import PatchEmbedding
from pointsweep.models.layers import DropPath
from pointsweep.models.methods.point_peft_parts import AroundPrompts
from pointsweep.models.point_model import PointModel
from pointsweep.models.tokenizers import normalise as normalise_groups
from pointsweep.ops.point_ops import with_height


def trial(method: str, backbone: str, dataset: str | dict, compat: str = "official", **parts) -> TrialConfig:
    tokenizer = {"any2point": "point_pn_light", "appt": "point_pn", "point_peft": "patch"}[method]
    data = {"method": method, "backbone": backbone, "dataset": dataset, "tokenizer": tokenizer, "compat": compat}
    return trial_from_dict(data | parts)


@pytest.mark.parametrize(
    ("backbone", "dataset", "injection"),
    [
        ("clip_text", "scanobjectnn", "twice_then_each"),
        ("clip_text", "modelnet40", "once"),
        ("dinov2", "scanobjectnn", "each_block"),
        ("dinov2", "modelnet40", "each_block"),
        ("imagebind_audio", "scanobjectnn", "once"),
        ("imagebind_audio", "modelnet40", "once"),
    ],
)
def test_encodings_are_added_where_the_program_adds_them(backbone, dataset, injection):
    chosen = trial("any2point", backbone, dataset)
    assert chosen.positions is not None
    assert chosen.positions.injection == injection
    assert trial("any2point", backbone, dataset, "fixed").positions.injection == "once"
    own = trial("any2point", backbone, dataset, positions={"injection": "once", "num_views": 3})
    assert (own.positions.injection, own.positions.num_views) == ("once", 3)


@pytest.mark.parametrize(
    ("method", "backbone", "dataset", "blocks", "final"),
    [
        ("any2point", "clip_text", "scanobjectnn", 1e-5, 1e-6),
        ("any2point", "dinov2", "scanobjectnn", 1e-6, 1e-6),
        ("any2point", "imagebind_audio", "scanobjectnn", 1e-6, 1e-6),
        ("any2point", "clip_text", "modelnet40", 1e-5, 1e-5),
        ("any2point", "dinov2", "modelnet40", 1e-5, 1e-5),
        ("appt", "vit_in21k", "scanobjectnn", 1e-5, 1e-5),
        ("point_peft", "point_mae", "scanobjectnn", 1e-5, 1e-5),
    ],
)
def test_layer_norms_have_the_eps_of_the_program(method, backbone, dataset, blocks, final):
    with torch.device("meta"):
        built = PointModel(trial(method, backbone, dataset), 15)
    norms = [m for m in built.backbone.blocks[0].modules() if isinstance(m, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {blocks}
    assert built.norm.eps == final


def test_drop_path_is_that_of_the_program():
    with torch.device("meta"):
        flat = PointModel(trial("any2point", "dinov2", "modelnet40"), 40)
        whole = PointModel(trial("any2point", "dinov2", "modelnet40", "fixed"), 40)
        groups = PointModel(trial("point_peft", "point_mae", "scanobjectnn"), 15)
    assert [module.lead for module in flat.method.drop_paths][:2] == [3, 3]
    assert [module.lead for module in whole.method.drop_paths][:2] == [1, 1]
    assert (flat.method.drop_paths[-1].p, whole.method.drop_paths[-1].p) == (0.1, 0.0)
    assert groups.method.drop_paths[-1].p == groups.backbone.blocks[-1].drop_path.p == 0.1
    assert groups.method.drop_paths[-1].lead == 2
    assert not groups.backbone.blocks[-1].drops_attention
    assert flat.backbone.blocks[-1].drops_attention


def test_drop_path_draws_for_as_many_axes_as_it_is_told():
    layer = DropPath(0.5)
    layer.generator = torch.Generator().manual_seed(0)
    ones = torch.ones(4, 3, 5, 2)
    for lead in (1, 2, 3):
        layer.lead = lead
        out = layer(ones).reshape(4 * 3 ** (lead > 1) * 5 ** (lead > 2), -1)
        assert all(len(set(row.tolist())) == 1 for row in out)
        assert {float(value) for value in out.flatten()} == {0.0, 2.0}


def test_scan_neighbourhoods_are_divided_by_their_extent_alone():
    relative = torch.randn(2, 3, 5, 3)
    relative[0, 0, :, 1] = 0.0
    found = normalise_groups(relative, "exact_scan")
    extent = relative.abs().amax(dim=2, keepdim=True)
    torch.testing.assert_close(found[1], (relative / extent)[1], rtol=0, atol=0)
    assert torch.equal(found[0, 0, :, 1], torch.zeros(5))
    assert (normalise_groups(relative, "scan") - found).abs().max() > 0


def test_a_frozen_embedding_takes_batch_statistics_in_training_only_in_the_published_form():
    embedding = PatchEmbedding((3, 8, 8), (8, 8)).requires_grad_(False)
    embedding.train()
    assert not embedding.training
    embedding.keep_statistics(False)
    embedding.train()
    before = embedding.first_conv[1].running_mean.clone()
    embedding(torch.randn(2, 4, 6, 3) + 1)
    assert embedding.training
    assert not torch.equal(before, embedding.first_conv[1].running_mean)


def test_prompts_are_not_normed_in_front_of_the_frozen_keys():
    norm = nn.LayerNorm(6)
    x = torch.randn(2, 1 + 3 + 4, 6)
    found = AroundPrompts(norm, 1, 3)(x)
    assert torch.equal(found[:, 1:4], x[:, 1:4])
    torch.testing.assert_close(torch.cat([found[:, :1], found[:, 4:]], dim=1), norm(torch.cat([x[:, :1], x[:, 4:]], dim=1)))
    gated = {"name": "point_peft", "prompt_kind": "gated", "depth": 12}
    data = {"method": gated, "backbone": "point_mae", "dataset": "modelnet40", "tokenizer": "patch"}
    for compat in ("official", "fixed"):
        with torch.device("meta"):
            built = PointModel(trial_from_dict(data | {"compat": compat}), 40)
        assert isinstance(built.backbone.blocks[0].norm1, AroundPrompts) == (compat == "official")


def test_heights_are_those_before_centring_and_scaling():
    points = torch.randn(3, 20, 3) * 4
    config = SyntheticConfig(name="synthetic", unit_sphere=True, heights=True)
    found = normalise(points, config)
    assert torch.equal(found[..., 3], with_height(points)[..., 3])
    torch.testing.assert_close(found[..., :3].norm(dim=2).amax(dim=1), torch.ones(3))


def test_heights_are_scaled_as_the_cloud_is_but_not_turned_or_moved():
    points = torch.randn(3, 20, 3)
    fields = {"scale": (2.0, 2.0), "rotate": "all", "translate": 0.3, "unit_sphere": True}
    config = SyntheticConfig(name="synthetic", heights=True, **fields)
    found = augment(points, config, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found[..., 3], 2 * with_height(points)[..., 3])
    again = augment(found, config, torch.Generator().manual_seed(1))
    torch.testing.assert_close(again[..., 3], 2 * found[..., 3])
    plain = augment(points, SyntheticConfig(name="synthetic", **fields), torch.Generator().manual_seed(0))
    assert torch.equal(found[..., :3], plain)


def test_appts_program_asks_its_data_set_for_heights():
    assert trial("appt", "vit_in21k", "scanobjectnn").dataset.heights
    assert not trial("appt", "vit_in21k", "scanobjectnn", "fixed").dataset.heights


def test_data_sets_skip_points_where_the_programs_operator_does_and_share_a_turn_where_they_do():
    def chosen(method, backbone, dataset, compat="official"):
        found = trial(method, backbone, dataset, compat).dataset
        return found.skip_near_origin, found.rotate_together

    assert chosen("any2point", "dinov2", "modelnet40") == (True, False)
    assert chosen("any2point", "dinov2", "scanobjectnn") == (False, False)
    assert chosen("point_peft", "point_mae", "scanobjectnn") == (True, True)
    assert chosen("point_peft", "point_mae", "modelnet40") == (True, False)
    assert chosen("appt", "vit_in21k", "scanobjectnn") == (False, False)
    assert chosen("point_peft", "point_mae", "scanobjectnn", "fixed") == (False, False)
    still = trial("point_peft", "point_mae", {"name": "scanobjectnn", "rotate": "none"})
    assert not still.dataset.rotate_together


@pytest.mark.parametrize(("compat", "own", "skips"), [("official", None, True), ("official", False, False), ("fixed", True, True)])
def test_a_tokenizers_own_choice_of_skipping_stands_above_the_programs(compat, own, skips):
    tokenizer = {"name": "point_pn_light", "skip_near_origin": own}
    chosen = trial("any2point", "dinov2", "modelnet40", compat, tokenizer=tokenizer)
    assert official.program(chosen).skips_near_origin == skips
    with torch.device("meta"):
        assert PointModel(chosen, 40).tokenizer.skips_near_origin == skips


def test_a_turn_cannot_be_shared_where_there_is_none():
    data = {
        "dataset": {"name": "modelnet40", "rotate_together": True},
        "tokenizer": "patch",
        "backbone": "point_mae",
        "method": "full",
    }
    assert [path for path, _ in check_trial(data)[1]] == ["dataset.rotate_together"]


@pytest.mark.parametrize("backbone", ["clip_text", "point_mae"])
def test_only_planes_have_encodings_that_can_be_scrambled(backbone):
    data = {"dataset": "modelnet40", "tokenizer": "patch", "backbone": backbone, "method": "full", "positions": {"scrambled": True}}
    assert [path for path, _ in check_trial(data)[1]] == ["positions.scrambled"]


def test_heights_are_refused_where_nobody_takes_them():
    data = {"dataset": {"name": "synthetic", "heights": True}, "tokenizer": "patch", "backbone": "tiny", "method": "lora"}
    assert [path for path, _ in check_trial(data)[1]] == ["dataset.heights"]


def test_published_forms_have_keys_of_their_own_revision_and_fixed_ones_keep_theirs():
    assert '"program":3' in canonical_json(trial("any2point", "dinov2", "scanobjectnn"))
    assert '"program"' not in canonical_json(trial("any2point", "dinov2", "scanobjectnn", "fixed"))
