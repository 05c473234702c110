"""Counts and formulas of the baselines (spec 5)."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pointsweep.config.backbones import TinyConfig
from pointsweep.config.methods import AdapterConfig, LoRAConfig, PromptConfig
from pointsweep.config.validation import check_trial, trial_from_dict
from pointsweep.models.backbones.tiny import Tiny
from pointsweep.models.layers import insert_tokens, remove_tokens
from pointsweep.models.methods.adapter import Adapter
from pointsweep.models.methods.lora import LoRA, LowRank
from pointsweep.models.methods.prompt import Prompt
from pointsweep.models.point_model import build, count_parameters

SCAN = {"dataset": "scanobjectnn", "tokenizer": "point_pn_light"}


@pytest.mark.parametrize(
    ("method", "backbone", "published"),
    [
        ("head_only", "clip_text", 279_744),
        ("prompt", "clip_text", 371_904),
        ({"name": "prompt", "depth": "shallow"}, "clip_text", 287_424),
        ("adapter", "clip_text", 436_512),
        ({"name": "adapter", "kind": "houlsby", "bottleneck": 4}, "clip_text", 445_728),
        ("lora", "clip_text", 869_568),
        ({"name": "lora", "rank": 8, "targets": ["q", "k", "v", "out"]}, "dinov2", 869_568),
        ("full", "clip_text", 279_744 + 85_054_464),
        ("full", "dinov2", 279_744 + 85_072_896),
    ],
)
def test_published_counts_without_the_head(method, backbone, published):
    with torch.device("meta"):
        model = build(trial_from_dict(SCAN | {"backbone": backbone, "method": method}), 15)
    assert count_parameters(model).trainable_without_head == published


def tiny() -> Tiny:
    torch.manual_seed(0)
    backbone = Tiny(TinyConfig(name="tiny"))
    backbone.load()
    return backbone.requires_grad_(False)


TOKENS = torch.randn(2, 6, 48, generator=torch.Generator().manual_seed(3))


def test_tokens_are_inserted_and_removed_behind_the_class_token():
    new = torch.arange(2.0)[:, None].expand(2, 48)
    longer = insert_tokens(TOKENS, new, at=1)
    assert torch.equal(longer[:, 0], TOKENS[:, 0])
    assert torch.equal(longer[0, 1:3], new)
    assert torch.equal(remove_tokens(longer, 2, at=1), TOKENS)


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_prompts_live_for_one_block_or_for_all(depth):
    method = Prompt(PromptConfig(name="prompt", num_prompts=3, depth=depth))
    method.attach(tiny(), 1, 6)
    first = method.before_block(0, TOKENS, None)
    assert torch.equal(first[0, 1:4], method.prompts[0])
    after_first = method.after_block(0, first, None)
    assert after_first.shape[1] == (6 if depth == "deep" else 9)
    last = method.after_block(1, method.before_block(1, after_first, None), None)
    assert torch.equal(last, TOKENS)


def test_low_rank_update_by_its_formula():
    layer = LowRank(torch.nn.Linear(5, 4), rank=2, alpha=6.0)
    torch.nn.init.normal_(layer.up)
    x = torch.randn(3, 5)
    weight = layer.frozen.weight + 3.0 * layer.up @ layer.down
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.frozen.bias))


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "out"), ("fc1", "fc2")])
def test_lora_wraps_what_it_names_and_starts_as_a_no_op(targets):
    plain, wrapped = tiny(), tiny()
    method = LoRA(LoRAConfig(name="lora", rank=2, targets=targets))
    method.attach(wrapped, 1, 6)
    found = {name.split(".")[-2] for name, p in wrapped.named_parameters() if p.requires_grad}
    assert found == {{"fc1": "0", "fc2": "2"}.get(target, target) for target in targets}
    for a, b in zip(plain.blocks, wrapped.blocks, strict=True):
        assert torch.equal(a(TOKENS, lambda f, y: f), b(TOKENS, lambda f, y: f))


def test_adapters_by_their_formulas():
    def bottleneck(module, x):
        down, up = module[0], module[3]
        hidden = F.linear(x, down.weight, down.bias)
        return F.linear(hidden * torch.sigmoid(1.702 * hidden), up.weight, up.bias)

    single = Adapter(AdapterConfig(name="adapter", bottleneck=3))
    single.attach(tiny(), 1, 6)
    torch.testing.assert_close(single.eval().after_ffn(0, TOKENS, TOKENS, None), TOKENS + bottleneck(single.own[0], TOKENS))

    plain, wrapped = tiny(), tiny()
    houlsby = Adapter(AdapterConfig(name="adapter", kind="houlsby", bottleneck=3))
    houlsby.attach(wrapped, 1, 6)
    attention = plain.blocks[0].attn(TOKENS)
    torch.testing.assert_close(
        wrapped.eval().blocks[0].attn(TOKENS), attention + bottleneck(wrapped.blocks[0].attn.adapter, attention)
    )


def test_adaptformer_is_parallel_scaled_and_starts_as_a_no_op():
    plain, wrapped = tiny(), tiny()
    method = Adapter(AdapterConfig(name="adapter", kind="adaptformer", bottleneck=3))
    method.attach(wrapped, 1, 6)
    assert torch.equal(wrapped.blocks[0].ffn(TOKENS), plain.blocks[0].ffn(TOKENS))
    adapter = method.eval().own[0]
    torch.nn.init.normal_(adapter[3].weight)
    output = plain.blocks[0].ffn(TOKENS)
    torch.testing.assert_close(method.after_ffn(0, output, TOKENS, None), output + 0.1 * adapter(TOKENS))


def test_an_unknown_lora_target_is_named():
    trial = SCAN | {"backbone": "tiny", "method": {"name": "lora", "targets": ["q", "w"]}}
    assert check_trial(trial)[1] == [("method.targets[1]", "unknown value 'w'. Allowed: fc1, fc2, k, out, q, v")]
