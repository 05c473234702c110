"""Checkpoints of many programs: read to the same weights, or refused by file, tensor and cause, and never run."""

from __future__ import annotations

import argparse
import collections
import datetime
import logging
import os
import pathlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from pointsweep.config import registry
from pointsweep.config.validation import trial_from_dict
from pointsweep.errors import ConfigError
from tests.models.backbones.helpers import block_outputs, check, layers_of, library_outputs, ours
from tests.models.backbones.test_3d import plain_checkpoint


def vit_state(seed: int = 0, num_blocks: int = 6) -> dict[str, torch.Tensor]:
    """The tensors of `vit_mnist` under timm's names: width 64, 4 heads of 64, MLP of 128, 7 x 7 positions."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 64),
        "pos_embed": (1, 50, 64),
        "head.weight": (10, 64),
        "head.bias": (10,),
    }
    shapes |= {"norm.weight": (64,), "norm.bias": (64,)}
    for i in range(num_blocks):
        block = f"blocks.{i}"
        shapes |= {f"{block}.norm{n}.{leaf}": (64,) for n in (1, 2) for leaf in ("weight", "bias")}
        shapes |= {f"{block}.attn.qkv.weight": (768, 64), f"{block}.attn.proj.weight": (64, 256), f"{block}.attn.proj.bias": (64,)}
        shapes |= {f"{block}.mlp.fc1.weight": (128, 64), f"{block}.mlp.fc1.bias": (128,)}
        shapes |= {f"{block}.mlp.fc2.weight": (64, 128), f"{block}.mlp.fc2.bias": (64,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


STATE, OTHER = vit_state(), vit_state(1)


def holds(backbone, state) -> bool:
    """Whether a `vit_mnist` has these tensors, by names written out."""
    own = backbone.state_dict()
    pairs = {"table": state["pos_embed"][0, 1:].reshape(7, 7, 64), "cls_token": state["cls_token"], "norm.bias": state["norm.bias"]}
    for i in range(6):
        q, k, v = state[f"blocks.{i}.attn.qkv.weight"].split(256)
        pairs |= {f"blocks.{i}.attn.q.weight": q, f"blocks.{i}.attn.k.weight": k, f"blocks.{i}.attn.v.weight": v}
        pairs |= {f"blocks.{i}.attn.out.weight": state[f"blocks.{i}.attn.proj.weight"]}
        pairs |= {f"blocks.{i}.ffn.2.bias": state[f"blocks.{i}.mlp.fc2.bias"]}
    return all(torch.equal(own[name], tensor.float()) for name, tensor in pairs.items())


def below(prefix: str, state=STATE) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(tmp_path: Path, content, name: str = "weights.pth", **more) -> Path:
    torch.save(content, tmp_path / name, **more)
    return tmp_path / name


def refusal(path: Path, backbone: str = "vit_mnist", **fields) -> str:
    with pytest.raises(ValueError) as error:
        ours(backbone, path, **fields)
    assert str(path) in str(error.value)
    assert "\x1b" not in str(error.value)
    return str(error.value)


PLACES = [
    "model_state_dict", "model_ema", "ema", "teacher", "student", "state_dict", "model", "base_model", "net", "network", "module",
    "state_dict_ema", "backbone", "weights", "anything",
]  # fmt: skip
PREFIXES = [
    "", "module.", "_orig_mod.", "model.", "module.model.", "module._orig_mod.", "_orig_mod.module.", "net.", "backbone.", "teacher.",
    "model.backbone.", "module.student.", "encoder.",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_weights_are_found_wherever_a_program_puts_them(tmp_path, place):
    content = {place: below("module."), "epoch": 300, "lr": 0.1, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
    assert holds(ours("vit_mnist", saved(tmp_path, content)), STATE)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("inside", [True, False])
def test_prefixes_of_wrappers_are_taken_off(tmp_path, prefix, inside):
    content = {"state_dict": below(prefix)} if inside else below(prefix)
    assert holds(ours("vit_mnist", saved(tmp_path, content)), STATE)


def test_a_lightning_checkpoint_is_read(tmp_path):
    state = below("model.") | {"criterion.weight": torch.ones(10), "metric.total": torch.tensor(3)}
    hyper = {"lr": 0.1, "path": pathlib.PurePosixPath("a")}
    content = {"state_dict": state, "pytorch-lightning_version": "2.1", "hyper_parameters": hyper, "callbacks": {}, "loops": {}}
    assert holds(ours("vit_mnist", saved(tmp_path, content)), STATE)


def test_an_older_file_of_torch_is_read(tmp_path):
    content = {"model": STATE, "best": np.float64(0.9)}
    assert holds(ours("vit_mnist", saved(tmp_path, content, _use_new_zipfile_serialization=False)), STATE)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.bin", "weights"])
def test_a_file_of_torch_may_have_any_ending(tmp_path, name):
    assert holds(ours("vit_mnist", saved(tmp_path, STATE, name)), STATE)


BESIDE = {
    "float64": np.float64(0.87),
    "float32": np.float32(0.87),
    "int64": np.int64(3),
    "bool": np.bool_(True),
    "text": np.str_("best"),
    "array": np.arange(6.0).reshape(2, 3),
    "array of objects": np.array(["a", None], dtype=object),
    "random state": np.random.RandomState(0).get_state(),
    "dtype": np.dtype("f4"),
    "settings": argparse.Namespace(lr=0.1, path=Path("x"), decay=np.float64(0.1)),
    "simple settings": types.SimpleNamespace(a=1),
    "path": Path("/some/where"),
    "time": datetime.datetime(2022, 1, 1),
    "counts": collections.Counter("abc"),
    "ordered": collections.OrderedDict(a=np.float64(1)),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_scores_and_settings_beside_the_weights_do_no_harm(tmp_path, kind):
    content = {"base_model": STATE, "epoch": 300, "metrics": {"acc": BESIDE[kind]}, "best_metrics": BESIDE[kind]}
    assert holds(ours("vit_mnist", saved(tmp_path, content)), STATE)


@pytest.mark.parametrize(("module", "name"), [("easydict", "EasyDict"), ("yacs.config", "CfgNode")])
def test_settings_that_are_dicts_do_no_harm(tmp_path, monkeypatch, module, name):
    """Classes of these names need not be installed where the file is read."""
    for part in (module.partition(".")[0], module):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    made = sys.modules[module]
    kind = type(name, (dict,), {"__module__": module})
    setattr(made, name, kind)
    settings = kind(lr=0.1, inner=kind(a=1))
    settings.also_an_attribute = 3
    path = saved(tmp_path, {"model": STATE, "config": settings})
    monkeypatch.delitem(sys.modules, module)
    assert holds(ours("vit_mnist", path), STATE)


@pytest.mark.parametrize("name", ["point_mae", "point_bert"])
def test_the_authors_point_transformers_with_their_scores_are_read(tmp_path, name):
    """As Point-BERT's and Point-MAE's programs save them: numpy's numbers in `metrics` and `best_metrics`."""
    torch.manual_seed(0)
    state = plain_checkpoint(name)
    scores = {"acc": np.float64(0.87)}
    content = {"base_model": state, "optimizer": {}, "epoch": 300, "metrics": scores, "best_metrics": scores}
    backbone = ours(name, saved(tmp_path, content))
    prefix = {"point_mae": "module.MAE_encoder.", "point_bert": "module.transformer_q."}[name]
    assert torch.equal(backbone.state_dict()["blocks.3.ffn.0.weight"], state[f"{prefix}blocks.blocks.3.mlp.fc1.weight"])


class Bomb:
    """Touches a file when a pickle of it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


class Settings:
    """A class that the reader cannot know."""


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_by_its_name_and_not_run(tmp_path, zipped):
    content = {"model": STATE, "args": Bomb(tmp_path / "boom")}
    message = refusal(saved(tmp_path, content, _use_new_zipfile_serialization=zipped))
    assert "an object of the kind posix.mkdir" in message
    assert not (tmp_path / "boom").exists()


def test_an_unknown_class_is_refused_by_its_name(tmp_path):
    assert f"an object of the kind {__name__}.Settings" in refusal(saved(tmp_path, {"model": STATE, "args": Settings()}))
    assert "an object of the kind torch.nn" in refusal(saved(tmp_path, {"model": torch.nn.Bilinear(2, 2, 2)}))


def test_a_torchscript_archive_is_refused_by_its_name_with_what_to_do(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-L-14.pt")
    message = refusal(tmp_path / "ViT-L-14.pt", "clip_text")
    assert "is a TorchScript archive" in message
    assert "torch.jit.load('ViT-L-14.pt', map_location='cpu').state_dict()" in message


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"nonsense " * 20, "damaged, truncated, or not a"),
        (os.urandom(500), "damaged, truncated, or not a"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_files_that_are_no_weights_are_refused_by_their_kind(tmp_path, name, raw, message):
    (tmp_path / name).write_bytes(raw)
    assert message in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("left", [0.1, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, name, left):
    path = tmp_path / name
    save_file(STATE, path) if name.endswith("safetensors") else torch.save({"model": STATE}, path)
    os.truncate(path, int(left * path.stat().st_size))
    assert "damaged, truncated, or not a" in refusal(path)


def test_a_file_without_tensors_is_refused(tmp_path):
    assert "holds no tensors" in refusal(saved(tmp_path, {"epoch": 3}))
    assert "expected a dict of tensors, got list" in refusal(saved(tmp_path, [torch.zeros(3)]))


def changed(**tensors) -> dict[str, torch.Tensor]:
    return STATE | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


FC1 = STATE["blocks.2.mlp.fc1.weight"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("wrapped", [True, False])
def test_values_that_are_not_finite_are_refused_by_tensor_and_count(tmp_path, value, wrapped):
    state = {name: tensor.clone() for name, tensor in STATE.items()}
    state["blocks.2.mlp.fc1.weight"][0, :3] = value
    state["blocks.4.mlp.fc1.bias"][7] = value
    name = "module.blocks.2.mlp.fc1.weight" if wrapped else "blocks.2.mlp.fc1.weight"
    path = saved(tmp_path, {"model": below("module.", state)} if wrapped else state)
    assert f"{path}: {name}: 3 of 8192 values are not finite as float32 (2 such tensors)" in refusal(path)


def test_what_overflows_float32_is_refused(tmp_path):
    path = saved(tmp_path, changed(blocks__2__mlp__fc1__weight=FC1.double() * 1e300))
    assert "blocks.2.mlp.fc1.weight: 8192 of 8192 values are not finite as float32 (1 such tensors)" in refusal(path)


def test_values_of_what_is_not_used_do_not_matter(tmp_path):
    assert holds(ours("vit_mnist", saved(tmp_path, changed(head__bias=torch.full((10,), torch.nan)))), STATE)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_quantised_weights_are_refused_by_tensor_and_type(tmp_path, dtype):
    message = refusal(saved(tmp_path, changed(blocks__2__mlp__fc1__weight=FC1.to(dtype))))
    name = str(dtype).removeprefix("torch.")
    assert f"blocks.2.mlp.fc1.weight is of type {name}, expected float16, bfloat16, float32, float64" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_read(tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in STATE.items()}
    assert holds(ours("vit_mnist", saved(tmp_path, state)), state)


def test_sparse_weights_are_refused(tmp_path):
    assert "layout torch.sparse_coo" in refusal(saved(tmp_path, changed(blocks__2__mlp__fc1__weight=FC1.to_sparse())))


def test_too_few_blocks_are_counted(tmp_path):
    path = saved(tmp_path, vit_state(num_blocks=4))
    message = refusal(path)
    assert message == f"{path} does not fit: the file holds 4 blocks, 6 are needed (num_blocks: 4 takes those)"
    assert len(ours("vit_mnist", path, num_blocks=4).blocks) == 4


def test_misspelt_names_are_shown_with_the_nearest(tmp_path):
    state = dict(STATE)
    state["blocks.2.mlp.fc1.wieght"] = state.pop("blocks.2.mlp.fc1.weight")
    state["norm.weight"] = torch.zeros(65)
    message = refusal(saved(tmp_path, state))
    assert "does not fit: 3 tensors: missing blocks.2.ffn.0.weight (nearest: blocks.2.ffn.0.wieght)" in message
    assert "norm.weight is (65,), expected (64,)" in message


def test_what_fits_best_is_reported_whatever_lies_beside_it(tmp_path):
    state = below("module.")
    del state["module.blocks.5.mlp.fc2.bias"]
    path = saved(tmp_path, {"teacher": {"x": torch.zeros(3)}, "zzz": state, "model": {"y": torch.ones(2)}})
    assert refusal(path) == f"{path} does not fit: missing blocks.5.ffn.2.bias"


def test_of_two_sets_that_fit_the_one_taken_is_said(tmp_path, caplog):
    path = saved(tmp_path, {"model_ema": below("module.", OTHER), "model": STATE, "epoch": 3})
    config = registry.config_class("backbones", "vit_mnist")(name="vit_mnist", weights=str(path))
    backbone = registry.load("backbones", "vit_mnist")(config)
    with caplog.at_level(logging.WARNING):
        origin = backbone.load()
    assert holds(backbone, STATE)
    assert origin.endswith(", of it 'model'")
    assert f"{path}: the weights in 'model' are taken; those in 'model_ema', the names below" not in caplog.text
    assert f"{path}: the weights in 'model' are taken; those in 'model_ema' would fit as well" in caplog.text


def test_of_teacher_and_student_the_teacher_is_taken_and_said(tmp_path, caplog):
    path = saved(tmp_path, below("student.", OTHER) | below("teacher."))
    with caplog.at_level(logging.WARNING):
        assert holds(ours("vit_mnist", path), STATE)
    assert "the weights in the names below 'teacher.' are taken; those in the names below 'student.' would fit" in caplog.text


def test_one_set_under_two_names_needs_no_word(tmp_path, caplog):
    path = saved(tmp_path, {"model": STATE, "state_dict": STATE})
    with caplog.at_level(logging.WARNING):
        assert holds(ours("vit_mnist", path), STATE)
    assert not caplog.text


def openai(library: dict[str, torch.Tensor], tower: str, rest: dict[str, str]) -> dict[str, torch.Tensor]:
    """transformers' names of a CLIP tower -> OpenAI's, by the table in transformers' own conversion script."""
    made = {new: library[old] for old, new in rest.items()}
    inner = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for i in range(2):
        old, new = f"encoder.layers.{i}", f"{tower}transformer.resblocks.{i}"
        for leaf in ("weight", "bias"):
            made |= {f"{new}.{there}.{leaf}": library[f"{old}.{here}.{leaf}"] for here, there in inner.items()}
            parts = [library[f"{old}.self_attn.{letter}_proj.{leaf}"] for letter in "qkv"]
            made[f"{new}.attn.in_proj_{leaf}"] = torch.cat(parts)
    return made


def tower_of(model: torch.nn.Module, inner: str) -> dict[str, torch.Tensor]:
    return getattr(model, inner, model).state_dict()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The library's two towers with two blocks each, and one file of both under OpenAI's names, in half precision as theirs."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
    }
    text = CLIPTextModel(CLIPTextConfig(vocab_size=10, **sizes)).eval()
    vision = CLIPVisionModel(CLIPVisionConfig(image_size=224, patch_size=16, **sizes)).eval()
    for parameter in (*text.parameters(), *vision.parameters()):
        parameter.data = parameter.data.half().float()
    text_names = {
        "embeddings.position_embedding.weight": "positional_embedding", "embeddings.token_embedding.weight": "token_embedding.weight",
        "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
    }  # fmt: skip
    vision_names = {
        "embeddings.position_embedding.weight": "visual.positional_embedding", "embeddings.class_embedding": "visual.class_embedding",
        "embeddings.patch_embedding.weight": "visual.conv1.weight", "pre_layrnorm.weight": "visual.ln_pre.weight",
        "pre_layrnorm.bias": "visual.ln_pre.bias", "post_layernorm.weight": "visual.ln_post.weight",
        "post_layernorm.bias": "visual.ln_post.bias",
    }  # fmt: skip
    state = openai(tower_of(text, "text_model"), "", text_names)
    state |= openai(tower_of(vision, "vision_model"), "visual.", vision_names)
    state |= {"visual.proj": torch.zeros(768, 512), "text_projection": torch.zeros(768, 768), "logit_scale": torch.tensor(1.0)}
    state = {name: tensor.half() for name, tensor in state.items()}
    sizes_too = {"input_resolution": torch.tensor(224), "context_length": torch.tensor(77), "vocab_size": torch.tensor(10)}
    path = saved(tmp_path_factory.mktemp("clip"), state | sizes_too, "ViT-state.pt")
    return text, vision, path


@torch.no_grad()
def test_openais_text_tower_equals_the_librarys(clip):
    text, _, path = clip
    backbone = ours("clip_text", path, num_blocks=2)
    tokens = torch.randn(2, 5, 768)
    check(block_outputs(backbone, tokens), library_outputs(text, tokens, attention_mask=None))
    library = tower_of(text, "text_model")
    assert torch.equal(backbone.table, library["embeddings.position_embedding.weight"])
    assert torch.equal(backbone.norm.bias, library["final_layer_norm.bias"])


@torch.no_grad()
def test_openais_image_tower_equals_the_librarys(clip):
    _, vision, path = clip
    backbone = ours("clip_vision", path, num_blocks=2)
    tokens = torch.randn(2, 5, 768)
    check(block_outputs(backbone, tokens), library_outputs(vision, tokens, attention_mask=None))
    library = tower_of(vision, "vision_model")
    assert torch.equal(backbone.table.flatten(0, 1), library["embeddings.position_embedding.weight"][1:])
    assert torch.equal(backbone.cls_token.flatten(), library["embeddings.class_embedding"])
    assert torch.equal(backbone.pre_norm.weight, library["pre_layrnorm.weight"])
    assert len(layers_of(vision)) == 2


def test_a_clip_file_with_more_words_is_refused_by_its_positions(tmp_path, clip):
    state = torch.load(clip[2], weights_only=True)
    path = saved(tmp_path, state | {"positional_embedding": torch.zeros(248, 768)})
    assert "its position table has shape (248, 768), 77 positions are expected" in refusal(path, "clip_text", num_blocks=2)


@pytest.mark.parametrize("side", [16, 24])
def test_positions_of_another_size_are_refused_in_words(tmp_path, side):
    path = saved(tmp_path, STATE | {"pos_embed": torch.zeros(1, 1 + side * side, 64)})
    assert f"has {side} x {side} positions, expected 7 x 7 positions" in refusal(path)


@pytest.mark.parametrize("name", [name for name in registry.names("backbones") if name not in ("transformers", "timm")])
def test_more_blocks_than_there_are_are_refused_by_the_checked_config(name):
    kind = registry.config_class("backbones", name)
    modality = {"modality": "1d"} if name == "tiny" else {}
    with torch.device("meta"):
        whole = registry.load("backbones", name)(kind(name=name, weights="random", **modality))
    assert len(whole.blocks) == kind.max_blocks
    too_many = {"name": name, "weights": "random", "num_blocks": kind.max_blocks + 1, **modality}
    parts = {"backbone": too_many, "dataset": "synthetic", "method": "head_only", "tokenizer": "point_pn_light"}
    with pytest.raises(ConfigError, match=f"num_blocks: {name} has {kind.max_blocks} blocks, got {kind.max_blocks + 1}"):
        trial_from_dict(parts)
    with pytest.raises(ValueError, match=f"{name} has {kind.max_blocks} blocks, got {kind.max_blocks + 1}"), torch.device("meta"):
        registry.load("backbones", name)(kind(**too_many))


def test_a_folder_of_weights_is_answered_with_the_files_in_it(tmp_path):
    saved(tmp_path, STATE)
    assert "is a folder, a file is expected for vit_mnist; it holds weights.pth: name one of them" in refusal(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "is a folder, a file is expected for vit_mnist" in refusal(tmp_path / "empty")


def test_a_link_to_weights_is_read(tmp_path):
    (tmp_path / "link.pth").symlink_to(saved(tmp_path, STATE))
    assert holds(ours("vit_mnist", tmp_path / "link.pth"), STATE)
