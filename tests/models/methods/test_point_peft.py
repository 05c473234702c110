"""Point-PEFT's own numbers: retrieval, the local stage written out, gates that start shut, and the frozen encoder of the bank."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pointsweep.config.backbones import TinyConfig
from pointsweep.config.methods import PointPEFTConfig
from pointsweep.config.validation import component_problems, trial_from_dict
from pointsweep.models.backbones.tiny import Tiny
from pointsweep.models.layers import DropPath
from pointsweep.models.methods.point_peft import PointPEFT
from pointsweep.models.methods.point_peft_parts import GatedPrompts, LocalStage
from pointsweep.models.point_model import build


def attached(**fields) -> tuple[PointPEFT, Tiny]:
    torch.manual_seed(0)
    backbone = Tiny(TinyConfig(name="tiny", modality="3d"))
    backbone.load()
    backbone.requires_grad_(False)
    method = PointPEFT(PointPEFTConfig(name="point_peft", **({"num_prompts": 5} | fields)))
    method.attach(backbone, 1, 6)
    return method, backbone


@torch.no_grad()
def test_knowledge_is_query_mixture_and_nearest_columns():
    method, _ = attached()
    bank = F.normalize(torch.randn(7, 48), dim=1)
    method.bank = bank.t()
    query = 3 * torch.randn(2, 48)
    found = method._retrieve(query)
    for i in range(2):
        similarity = bank @ query[i] / query[i].norm()
        order = similarity.argsort(descending=True)[:3]
        weights = similarity[order].exp() / similarity[order].exp().sum()
        expected = torch.stack([query[i], weights @ bank[order], *bank[order]])
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_bank_holds_one_unit_column_a_training_cloud():
    method, _ = attached()
    clouds = torch.randn(5, 40, 3)
    method.prepare(nn.Module(), [clouds[:3], clouds[3:]])
    assert method.bank.shape == (48, 5)
    torch.testing.assert_close(method.bank.norm(dim=0), torch.ones(5))
    # A cloud's own column is the nearest: similarity 1.
    similarity = F.normalize(method._query(clouds), dim=1) @ method.bank
    assert similarity.argmax(dim=1).tolist() == [0, 1, 2, 3, 4]


def test_an_empty_bank_is_an_error_not_a_silent_zero():
    method, _ = attached()
    with pytest.raises(RuntimeError, match="memory bank is empty"):
        method.observe(torch.randn(2, 40, 3), torch.randn(2, 4, 48))


@torch.no_grad()
def test_the_local_stage_token_by_token():
    torch.manual_seed(0)
    stage, norm = LocalStage(12, mean_too=True, center_scale=0.3), nn.BatchNorm1d(12).eval()
    values, places = torch.randn(1, 6, 12), torch.randn(1, 6, 3)
    groups = stage.groups(places, places, 2, 3)
    found = stage(values, groups, norm, None, DropPath(0.0))[0]
    pooled, at = [], []
    for center in groups.centers[0]:
        at.append(places[0, center])
        members = (places[0] - places[0, center]).norm(dim=1).argsort()[:3]
        x = values[0, members]
        q, k, v = stage.qkv(stage.norm(x)).split(18, dim=1)
        mixed = torch.empty(3, 18)
        for h in range(6):
            s = slice(3 * h, 3 * h + 3)
            mixed[:, s] = (q[:, s] @ k[:, s].t() / 18**0.5).softmax(dim=1) @ v[:, s]
        x = x + stage.out(mixed)
        one = F.gelu((x.amax(dim=0) + x.mean(dim=0)) / (1 + 1e-5) ** 0.5)
        pooled.append(one + 0.3 * values[0, center])
    for token in range(6):
        weights = torch.stack([1 / ((places[0, token] - p).square().sum() + 1e-8) for p in at])
        weights = weights / weights.sum()
        torch.testing.assert_close(found[token], weights[0] * pooled[0] + weights[1] * pooled[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_gated_prompts_change_nothing_while_the_gate_is_shut():
    _, backbone = attached(bank=False)
    attention = backbone.blocks[0].attn
    gated = GatedPrompts(attention, prefix=1, num_prompts=2)
    tokens, prompts = torch.randn(2, 6, 48), torch.randn(2, 2, 48)
    joined = torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)
    found = gated(joined)
    torch.testing.assert_close(torch.cat([found[:, :1], found[:, 3:]], dim=1), attention(tokens))
    assert not found[:, 1:3].any()
    gated.gate.fill_(1.0)
    assert not torch.allclose(gated(joined)[:, 3:], attention(tokens)[:, 1:], atol=1e-4)


def test_the_banks_encoder_keeps_the_loaded_biases_and_shares_the_rest():
    method, backbone = attached()
    own, copied = dict(backbone.blocks[0].named_parameters()), dict(method.encoder.blocks[0].named_parameters())
    for name, parameter in own.items():
        assert (copied[name] is parameter) != name.endswith(".bias"), name
    with torch.no_grad():
        own["norm1.bias"].add_(1.0)
    assert not copied["norm1.bias"].any()


def test_the_number_of_prompts_holds_query_mixture_and_a_column():
    assert component_problems("method", {"name": "point_peft", "num_prompts": 2}) == [
        (
            "method.num_prompts",
            "must be at least 3 with a bank (query, mixture and a column), else 1, got 2",
        )
    ]


@torch.no_grad()
@pytest.mark.parametrize("compat", ["fixed", "official"])
def test_under_official_the_mask_of_point_m2ae_begins_at_the_prompts(compat):
    # T31: the program puts the mask of its 16 centres over the first 16 of 16 + 5 tokens, of which 5 are prompts.
    trial = {
        "dataset": {"name": "synthetic", "num_points": 64},
        "tokenizer": {"name": "patch", "num_tokens": 16, "neighbours": 8},
        "backbone": {"name": "point_m2ae", "weights": "random", "scale_tokens": [8, 4], "scale_neighbours": [4, 4]},
        "method": {"name": "point_peft", "num_prompts": 5},
        "compat": compat,
    }
    made = build(trial_from_dict(trial), 5).eval()
    made.method.prepare(made, [torch.randn(4, 64, 3)])
    seen = {}

    def keep(attention, inputs, output):
        x, bias = inputs
        mask = torch.zeros(len(x), x.shape[1], x.shape[1])
        mask[:, -bias.shape[2] :, -bias.shape[3] :] = bias[:, 0]  # among the last tokens
        seen["far"] = mask < 0

    made.backbone.blocks[0].attn.register_forward_hook(keep)
    points = torch.randn(2, 64, 3)
    _, centers = made.tokenizer(points)
    made(points)
    far = torch.zeros(2, 21, 21, dtype=torch.bool)
    first = 0 if compat == "official" else 5
    far[:, first : first + 16, first : first + 16] = (centers[:, :, None] - centers[:, None]).norm(dim=-1) >= 0.32
    assert torch.equal(seen["far"], far)
    assert far.any() and not far.all()
