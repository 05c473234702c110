"""(IA)3, DoRA and SSF: their formulas in double precision, their starts, and the counts that their papers give."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pointsweep.config.backbones import TinyConfig
from pointsweep.config.methods import DoRAConfig, IA3Config, SSFConfig
from pointsweep.config.validation import check_trial, trial_from_dict
from pointsweep.models.backbones.tiny import Tiny
from pointsweep.models.methods.dora import DoRA
from pointsweep.models.methods.ia3 import IA3
from pointsweep.models.methods.ssf import SSF
from pointsweep.models.point_model import build, count_parameters
from tests.models.methods.test_simple_methods import SCAN

TOKENS = torch.randn(2, 6, 48, generator=torch.Generator().manual_seed(3)).double()


def tiny() -> Tiny:
    """Blocks with weights and biases that are not small, in double precision."""
    backbone = Tiny(TinyConfig(name="tiny"))
    backbone.load()
    with torch.no_grad():
        for number, parameter in enumerate(backbone.blocks.parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return backbone.requires_grad_(False).double()


def wrapped(method, seed: int = 0) -> Tiny:
    backbone = tiny()
    torch.manual_seed(seed)
    method.attach(backbone, 1, 6)
    return backbone.double()


def through(backbone: Tiny) -> torch.Tensor:
    tokens = TOKENS
    for block in backbone.blocks:
        tokens = block(tokens, lambda output, inputs: output)
    return tokens


def move(backbone: Tiny) -> None:
    """Draw everything that trains."""
    for number, (name, parameter) in enumerate(backbone.named_parameters()):
        if parameter.requires_grad and name != "cls_token":
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(100 + number))


def count(backbone: str, method: dict, classes: int = 15, **more) -> int:
    with torch.device("meta"):
        return count_parameters(
            build(trial_from_dict(SCAN | {"backbone": backbone, "method": method} | more), classes)
        ).trainable_without_head


# (IA)3


def test_ia3_starts_as_the_frozen_model():
    assert torch.equal(through(wrapped(IA3(IA3Config()))), through(tiny()))


def test_ia3_by_its_formula():
    """Section 3.3, for one block, head by head."""
    plain, made = tiny(), wrapped(IA3(IA3Config()))
    move(made)
    block, frozen = made.blocks[0], plain.blocks[0]
    l_k, l_v, l_ff = block.attn.k[1].scale, block.attn.v[1].scale, block.ffn[2][0].scale
    x = frozen.norm1(TOKENS)
    q, k, v = frozen.attn.q(x), l_k * frozen.attn.k(x), l_v * frozen.attn.v(x)
    heads = []
    for head in range(4):
        own = slice(12 * head, 12 * (head + 1))
        weights = torch.softmax(q[..., own] @ k[..., own].transpose(1, 2) / 12**0.5, dim=-1)
        heads.append(weights @ v[..., own])
    stream = TOKENS + frozen.attn.out(torch.cat(heads, dim=-1))
    hidden = l_ff * F.gelu(frozen.ffn[0](frozen.norm2(stream)))
    wanted = stream + frozen.ffn[2](hidden)
    torch.testing.assert_close(block(TOKENS, lambda output, inputs: output), wanted)


def test_ia3_counts_two_vectors_of_the_width_and_one_of_the_hidden_layer():
    before = count("clip_text", {"name": "head_only"})
    assert count("clip_text", {"name": "ia3"}) - before == 12 * (768 + 768 + 3072)
    assert count("clip_text", {"name": "ia3", "targets": ["ffn"]}) - before == 12 * 3072


# DoRA


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "out", "fc1", "fc2")])
def test_dora_starts_as_the_frozen_model(targets):
    assert torch.equal(through(wrapped(DoRA(DoRAConfig(targets=targets)))), through(tiny()))


@pytest.mark.parametrize("detach_norm", [True, False])
def test_dora_by_its_formula(detach_norm):
    """Equation 5, and the gradient of section 4.3: with the norm held constant, row by row."""
    made = wrapped(DoRA(DoRAConfig(rank=3, alpha=6.0, targets=("q",), detach_norm=detach_norm)))
    move(made)
    layer = made.blocks[0].attn.q
    down, up, magnitude = (tensor.detach().clone().requires_grad_() for tensor in (layer.down, layer.up, layer.magnitude))
    direction = layer.frozen.weight + 2.0 * up @ down
    norm = direction.square().sum(dim=1).sqrt()
    weight = magnitude[:, None] * direction / (norm.detach() if detach_norm else norm)[:, None]
    wanted = TOKENS @ weight.t() + layer.frozen.bias
    torch.testing.assert_close(layer(TOKENS), wanted)

    wanted.square().sum().backward()
    layer(TOKENS).square().sum().backward()
    for ours, theirs in ((layer.down, down), (layer.up, up), (layer.magnitude, magnitude)):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_dora_is_the_librarys():
    """The library peft's layer with the same values gives the same output."""
    from pointsweep.models.backbones.timm_import import declare_torchvision_operators

    declare_torchvision_operators()
    peft = pytest.importorskip("peft")
    ours, theirs = wrapped(DoRA(DoRAConfig(rank=4, alpha=8.0))), tiny()
    move(ours)
    peft.inject_adapter_in_model(peft.LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=["q", "v"]), theirs.blocks)
    theirs.double()
    for block, other in zip(ours.blocks, theirs.blocks, strict=True):
        for name in ("q", "v"):
            own, layer = getattr(block.attn, name), getattr(other.attn, name)
            layer.lora_A["default"].weight.data = own.down.data
            layer.lora_B["default"].weight.data = own.up.data
            layer.lora_magnitude_vector["default"].weight.data = own.magnitude.data
    torch.testing.assert_close(through(ours), through(theirs))


def test_dora_counts_loras_values_and_a_length_for_every_row():
    before = count("clip_text", {"name": "head_only"})
    assert count("clip_text", {"name": "dora"}) - before == 589_824 + 12 * 2 * 768


def test_what_dora_and_ia3_cannot_take_is_said():
    trial = SCAN | {"backbone": "tiny", "method": {"name": "dora", "targets": ["q", "q"]}}
    assert check_trial(trial)[1] == [("method.targets", "must name at least one projection, none twice")]
    trial = SCAN | {"backbone": "tiny", "method": {"name": "ia3", "targets": ["q"]}}
    assert "unknown value 'q'. Allowed: ffn, k, v" in check_trial(trial)[1][0][1]


# SSF


def test_ssf_by_its_formula():
    """Equation 2 behind every norm and linear layer of a block."""
    plain, made = tiny(), wrapped(SSF(SSFConfig()))
    move(made)
    block, frozen = made.blocks[0], plain.blocks[0]

    def after(layer, x):
        return layer[1].scale * x + layer[1].shift

    x = after(block.norm1, frozen.norm1(TOKENS))
    q, k, v = (after(getattr(block.attn, name), getattr(frozen.attn, name)(x)) for name in "qkv")
    heads = []
    for head in range(4):
        own = slice(12 * head, 12 * (head + 1))
        weights = torch.softmax(q[..., own] @ k[..., own].transpose(1, 2) / 12**0.5, dim=-1)
        heads.append(weights @ v[..., own])
    stream = TOKENS + after(block.attn.out, frozen.attn.out(torch.cat(heads, dim=-1)))
    hidden = F.gelu(after(block.ffn[0], frozen.ffn[0](after(block.norm2, frozen.norm2(stream)))))
    wanted = stream + after(block.ffn[2], frozen.ffn[2](hidden))
    torch.testing.assert_close(block(TOKENS, lambda output, inputs: output), wanted)


def test_ssf_scales_and_shifts_the_tokens_and_the_final_norm_too():
    method = SSF(SSFConfig())
    backbone = wrapped(method)
    method.double()
    tokens, seen = method.observe(TOKENS[..., :3], TOKENS)
    assert seen is None
    torch.testing.assert_close(tokens, TOKENS * method.tokens.scale + method.tokens.shift)
    assert not any(p.requires_grad for p in backbone.norm[0].parameters())
    torch.testing.assert_close(backbone.norm(TOKENS), backbone.norm[0](TOKENS) * backbone.norm[1].scale + backbone.norm[1].shift)


@pytest.mark.parametrize(("classes", "printed"), [(100, "0.28"), (1000, "0.97")])
def test_ssf_trains_what_the_paper_prints_for_a_linear_head(classes, printed):
    """Its tables 2 and 3, ViT-B/16: CIFAR-100 and ImageNet-1K."""
    frozen_norm = 2 * 768
    own = count("vit_in21k", {"name": "ssf"}) - (count("vit_in21k", {"name": "head_only"}) - frozen_norm)
    assert own == 205_824
    assert f"{(own + 768 * classes + classes) / 1e6:.2f}" == printed


def test_ssf_starts_about_one_and_zero():
    made = wrapped(SSF(SSFConfig()))
    shifts = [module for module in made.blocks.modules() if type(module).__name__ == "Shift"]
    scales = torch.cat([module.scale for module in shifts])
    offsets = torch.cat([module.shift for module in shifts])
    assert float((scales.detach() - 1).mean().abs()) < 0.002
    assert float(scales.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(offsets.detach().mean().abs()) < 0.002
    assert float(offsets.detach().std()) == pytest.approx(0.02, rel=0.1)
