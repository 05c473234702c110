"""Text, vision and audio stacks equal their library's own forward, from files in that library's or the original layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pointsweep.models.backbones.t5 import bucket
from tests.models.backbones.helpers import block_outputs, check, library_outputs, ours, save, save_as_on_the_hub

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 2, "intermediate_size": 3072}


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Biases, norms and tables that are not at their start, so that a swapped pair of names shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize(("name", "reserved"), [("bert", 0), ("roberta", 2)])
@torch.no_grad()
def test_bert_and_roberta(name, reserved, tmp_path):
    torch.manual_seed(0)
    kind = {"bert": "Bert", "roberta": "Roberta"}[name]
    eps = {"bert": 1e-12, "roberta": 1e-5}[name]
    config = getattr(transformers, f"{kind}Config")(
        **SMALL, vocab_size=30, max_position_embeddings=512 + reserved, layer_norm_eps=eps, pad_token_id=1
    )
    library = shaken(getattr(transformers, f"{kind}Model")(config))
    backbone = ours(name, save_as_on_the_hub(library, tmp_path), num_blocks=2)
    words = torch.tensor([[5, 7, 9, 11]])
    expected = library(input_ids=words, output_hidden_states=True).hidden_states
    tokens = library.embeddings.word_embeddings(words) + backbone.positions(torch.arange(4.0))
    start = backbone.start(tokens)
    torch.testing.assert_close(start, expected[0], atol=1e-5, rtol=1e-5)
    check(block_outputs(backbone, start), list(expected[1:]))


@torch.no_grad()
def test_t5_with_its_relative_positions(tmp_path):
    torch.manual_seed(0)
    config = transformers.T5Config(d_model=768, d_ff=3072, d_kv=64, num_heads=12, num_layers=2, vocab_size=30)
    library = shaken(transformers.T5EncoderModel(config))
    backbone = ours("t5", save_as_on_the_hub(library, tmp_path), num_blocks=2)
    words = torch.randint(0, 30, (2, 200), generator=torch.Generator().manual_seed(1))
    expected = library(input_ids=words, output_hidden_states=True).hidden_states
    # One virtual line on which the tokens stand one place apart is a sentence.
    bias = backbone.attention_bias(0, torch.zeros(2, 200, 3), torch.arange(200.0).expand(2, 1, 200))
    tokens, outputs = library.shared(words), []
    for block in backbone.blocks:
        tokens = block(tokens, lambda f, y: f, bias)
        outputs.append(tokens)
    torch.testing.assert_close(outputs[0], expected[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(backbone.norm(outputs[1]), expected[2], atol=1e-4, rtol=1e-4)


def test_t5_buckets_are_those_of_the_library():
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-600, 600)
    expected = T5Attention._relative_position_bucket(distance, bidirectional=True, num_buckets=32, max_distance=128)
    assert torch.equal(bucket(distance.float()), expected)


@pytest.mark.parametrize("name", ["deit", "vit_in21k"])
@torch.no_grad()
def test_vit_b(name, tmp_path):
    torch.manual_seed(0)
    kind = {"deit": "ViT", "vit_in21k": "ViT"}[name]
    config = getattr(transformers, f"{kind}Config")(**SMALL, image_size=224, patch_size=16, layer_norm_eps=1e-6)
    library = shaken(getattr(transformers, f"{kind}Model")(config, add_pooling_layer=False))
    backbone = ours(name, save_as_on_the_hub(library, tmp_path), num_blocks=2)
    tokens = torch.randn(2, 9, 768)
    expected = library_outputs(library, tokens)
    check(block_outputs(backbone, tokens), expected)
    torch.testing.assert_close(backbone.norm(tokens), library.layernorm(tokens))
    assert torch.equal(backbone.cls_token, library.embeddings.cls_token)
    table = library.embeddings.position_embeddings[0, 1:].reshape(14, 14, 768)
    corners = torch.tensor([[0.0, 0.0], [223.0, 0.0], [0.0, 223.0]])
    torch.testing.assert_close(
        backbone.positions(corners), torch.stack([table[0, 0], table[0, 13], table[13, 0]]), atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_clip_vision(tmp_path):
    torch.manual_seed(0)
    library = shaken(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SMALL, image_size=224, patch_size=16)))
    text = {"text_model.final_layer_norm.weight": torch.zeros(512), "logit_scale": torch.zeros(())}
    backbone = ours("clip_vision", save(library, tmp_path / "clip.safetensors", "vision_model.", text), num_blocks=2)
    tokens = torch.randn(2, 9, 768)
    body = getattr(library, "vision_model", library)
    start = backbone.start(tokens)
    torch.testing.assert_close(start, body.pre_layrnorm(tokens), atol=1e-5, rtol=1e-5)
    check(block_outputs(backbone, start), library_outputs(library, start, attention_mask=None))
    torch.testing.assert_close(backbone.norm(tokens), body.post_layernorm(tokens))


@pytest.mark.parametrize("layout", ["transformers", "original"])
@torch.no_grad()
def test_ssast(layout, tmp_path):
    torch.manual_seed(0)
    config = transformers.ASTConfig(
        **SMALL, max_length=1024, num_mel_bins=128, frequency_stride=16, time_stride=16, layer_norm_eps=1e-6
    )
    library = shaken(transformers.ASTModel(config))
    path = save_as_on_the_hub(library, tmp_path)
    if layout == "original":
        path = tmp_path / "original.safetensors"
        save_file(as_original_ssast(load_file(tmp_path / "model.safetensors")), path)
    backbone = ours("ssast", path, num_blocks=2)
    tokens = torch.randn(2, 9, 768)
    check(block_outputs(backbone, tokens), library_outputs(library, tokens))
    table = library.embeddings.position_embeddings[0, 2:].reshape(8, 64, 768)
    corners = torch.tensor([[0.0, 0.0], [1023.0, 0.0], [0.0, 127.0]])
    torch.testing.assert_close(
        backbone.positions(corners), torch.stack([table[0, 0], table[0, 63], table[7, 0]]), atol=1e-4, rtol=1e-4
    )


def as_original_ssast(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights under timm's names, with what else the original file holds."""
    words = {
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "embeddings.": "", "encoder.layer.": "blocks.",
        "position_embeddings": "pos_embed", "distillation_token": "dist_token", "layernorm.": "norm.",
    }  # fmt: skip
    made = {"module.mask_embed": torch.zeros(3), "module.cpredlayer.0.weight": torch.zeros(3)}
    for name, tensor in state.items():
        if ".attention.attention." in name:
            continue
        for old, new in words.items():
            name = name.replace(old, new)
        made[f"module.v.{name}"] = tensor
    for i in range(2):
        for leaf in ("weight", "bias"):
            stem = f"encoder.layer.{i}.attention.attention"
            made[f"module.v.blocks.{i}.attn.qkv.{leaf}"] = torch.cat([state[f"{stem}.{k}.{leaf}"] for k in ("query", "key", "value")])
    return made


class ImageBindBlock(torch.nn.Module):
    """The original block, written with torch's own attention: names and order of ImageBind's file."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(768, 12, bias=True, add_bias_kv=True, batch_first=True)
        self.norm_1, self.norm_2 = torch.nn.LayerNorm(768, eps=1e-6), torch.nn.LayerNorm(768, eps=1e-6)
        self.mlp = torch.nn.ModuleDict({"fc1": torch.nn.Linear(768, 3072), "fc2": torch.nn.Linear(3072, 768)})

    def forward(self, x):
        y = self.norm_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp["fc2"](torch.nn.functional.gelu(self.mlp["fc1"](self.norm_2(x))))


@pytest.mark.parametrize("bias_kv", [True, False])
@torch.no_grad()
def test_imagebind_audio(bias_kv, tmp_path):
    torch.manual_seed(0)
    blocks = [shaken(ImageBindBlock()) for _ in range(2)]
    state = {f"modality_trunks.audio.blocks.{i}.{n}": t for i, block in enumerate(blocks) for n, t in block.state_dict().items()}
    table = torch.randn(1, 229, 768)
    state |= {
        "modality_preprocessors.audio.pos_embedding_helper.pos_embed": table,
        "modality_preprocessors.audio.cls_token": torch.randn(1, 1, 768),
        "modality_preprocessors.audio.rgbt_stem.proj.weight": torch.zeros(768, 1, 16, 16),
        "modality_heads.audio.0.weight": torch.ones(768),
        "modality_heads.audio.0.bias": torch.zeros(768),
        "modality_heads.audio.2.weight": torch.zeros(1024, 768),
        "modality_trunks.vision.blocks.0.norm_1.weight": torch.zeros(1280),
    }
    path = tmp_path / "imagebind.pth"
    torch.save({name: tensor.clone() for name, tensor in state.items()}, path)
    backbone = ours("imagebind_audio", path, num_blocks=2, bias_kv=bias_kv)
    tokens = torch.randn(2, 9, 768)
    if not bias_kv:  # without the extra key and value: the same attention without them
        for block in blocks:
            block.attn.bias_k = block.attn.bias_v = None
    expected = [blocks[0](tokens), blocks[1](blocks[0](tokens))]
    check(block_outputs(backbone, tokens), expected)
    grid = table[0, 1:].reshape(12, 19, 768)
    corners = torch.tensor([[0.0, 0.0], [191.0, 0.0], [0.0, 303.0]])  # (frequency, time) pixels
    torch.testing.assert_close(backbone.positions(corners), torch.stack([grid[0, 0], grid[11, 0], grid[0, 18]]), atol=1e-4, rtol=1e-4)
    backbone.use_compat("official")
    scrambled = table[0, 1:].reshape(19, 12, 768)
    torch.testing.assert_close(backbone.positions(corners[1:2])[0], scrambled[0, 11], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_kwt1_gives_the_recorded_logits(data_root):
    folder = data_root / "weights" / "kwt1"
    recorded = json.loads((folder / "check.json").read_text())
    state, backbone = load_file(folder / "model.safetensors"), ours("kwt1")
    i = np.arange(98 * 40, dtype=np.float64)
    x = torch.from_numpy((3 * np.sin(0.37 * i) + np.cos(0.011 * i)).astype(np.float32)).reshape(1, 98, 40)
    tokens = x @ state["patch_embed.weight"].t() + state["patch_embed.bias"]
    tokens = torch.cat([backbone.cls_token, tokens], dim=1) + state["pos_embed"]
    logits = block_outputs(backbone, tokens)[-1][0, 0] @ state["head.weight"].t() + state["head.bias"]
    assert logits.tolist() == pytest.approx(recorded["logits"], abs=2e-3)
    torch.testing.assert_close(backbone.positions(torch.arange(98.0)), state["pos_embed"][0, 1:])
