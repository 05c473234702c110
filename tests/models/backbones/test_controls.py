"""Controls for pretrained weights: what is drawn, from which seed, and what stays."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from pointsweep.config import registry
from pointsweep.config.schema import TrialConfig, with_seed, without_seed
from pointsweep.config.validation import check_trial, trial_from_dict
from pointsweep.models.backbones.base import Backbone
from pointsweep.models.backbones.initialisation import shuffled
from pointsweep.models.point_model import PointModel
from pointsweep.planning.audit import Arm, audit
from pointsweep.results.records import Record
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore
from pointsweep.tracking.target import TrialTags
from pointsweep.training.fusion.pack import packs_of
from pointsweep.training.runner import Job, Task, run_pack


def backbone(name: str, weights: str, **fields) -> Backbone:
    config = registry.config_class("backbones", name)(name=name, weights=weights, **fields)
    made: Backbone = registry.load("backbones", name)(config)
    made.load()
    return made


def trial(weights: str = "random", method: str = "head_only", seed: int = 0, name: str = "vit_mnist", **fields):
    return trial_from_dict(plain(weights, method, seed, name, **fields))


def plain(weights: str, method: str, seed: int, name: str, **fields) -> dict:
    return {
        "dataset": {"name": "synthetic", "num_points": 64, "presample": 64, "train_limit": 40, "test_limit": 20},
        "tokenizer": {"name": "point_pn_light", "num_tokens": 6, "neighbours": 6},
        "backbone": {"name": name, "weights": weights, **fields},
        "method": method,
        "train": {"epochs": 1, "batch_size": 8, "warmup_epochs": 0, "lr": 2e-3},
        "seed": seed,
    }


def records(configs: list[TrialConfig], path, packed: bool) -> list[Record]:
    store = FileStore(path)
    tasks = [Task(config, TrialTags("s", "r", "c", config.seed)) for config in configs]
    for group in [tasks] if packed else [[task] for task in tasks]:
        run_pack(group, Job(store.url), lambda result: None)
    return [TrialFolder(store.path(f"trials/{config.key()}")).record() for config in configs]


def test_shuffling_keeps_the_values_of_every_tensor_and_moves_them():
    generator = torch.Generator().manual_seed(7)
    state = {"a": torch.randn(40, 30, generator=generator), "b": torch.randn(50, generator=generator)}
    first, again, other = shuffled(state, 0), shuffled(state, 0), shuffled(state, 1)
    for name, tensor in state.items():
        assert torch.equal(first[name].flatten().sort().values, tensor.flatten().sort().values)
        assert first[name].shape == tensor.shape
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
        # Of a random permutation of n values one stays in its place on average.
        assert int((first[name] == tensor).sum()) < 10


def test_a_shuffled_checkpoint_has_its_own_scales(data_root):
    own, control = backbone("vit_mnist", "pretrained"), backbone("vit_mnist", "shuffled", weights_seed=3)
    drawn = control.state_dict()
    for name, tensor in own.state_dict().items():
        assert torch.equal(drawn[name].flatten().sort().values, tensor.flatten().sort().values), name
    assert "shuffled, seed 3, model.safetensors, sha256 " in control.load()


def deviations(module: torch.nn.Module, names: dict[str, str]) -> dict[str, float]:
    """The root mean square of tensors of one kind over the blocks, by our name of the kind."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, tensor in module.state_dict().items():
        for end, kind in names.items():
            if name.endswith(end):
                found.setdefault(kind, []).append(tensor.flatten())
    return {kind: float(torch.cat(tensors).square().mean().sqrt()) for kind, tensors in found.items()}


OURS = {f"blocks.0.{kind}.weight": kind for kind in ("attn.q", "attn.k", "attn.v", "attn.out", "ffn.0", "ffn.2")}


def ours(name: str) -> dict[str, float]:
    return deviations(backbone(name, "reinitialised", num_blocks=1), OURS)


def test_bert_starts_as_in_transformers():
    library = BertModel(BertConfig(num_hidden_layers=1, vocab_size=10), add_pooling_layer=False)
    theirs = deviations(library, {
        "attention.self.query.weight": "attn.q", "attention.self.key.weight": "attn.k", "attention.self.value.weight": "attn.v",
        "attention.output.dense.weight": "attn.out", "intermediate.dense.weight": "ffn.0", "layer.0.output.dense.weight": "ffn.2",
    })  # fmt: skip
    assert ours("bert") == pytest.approx(theirs, rel=0.01)
    bert = backbone("bert", "reinitialised", num_blocks=1)
    assert float(bert.table.std()) == pytest.approx(0.02, rel=0.01)
    assert torch.equal(bert.blocks[0].norm1.weight, torch.ones(768))
    assert not bert.blocks[0].attn.q.bias.any()


def test_clip_starts_as_in_transformers():
    library = CLIPTextModel(CLIPTextConfig(
        num_hidden_layers=12, vocab_size=10, hidden_size=768, intermediate_size=3072, num_attention_heads=12,
    ))  # fmt: skip
    theirs = deviations(library, {
        "layers.0.self_attn.q_proj.weight": "attn.q", "layers.0.self_attn.k_proj.weight": "attn.k",
        "layers.0.self_attn.v_proj.weight": "attn.v", "layers.0.self_attn.out_proj.weight": "attn.out",
        "layers.0.mlp.fc1.weight": "ffn.0", "layers.0.mlp.fc2.weight": "ffn.2",
    })  # fmt: skip
    assert ours("clip_text") == pytest.approx(theirs, rel=0.01)


def test_t5_starts_as_in_transformers():
    library = T5EncoderModel(T5Config(num_layers=1, vocab_size=10, d_model=768, d_kv=64, d_ff=3072, num_heads=12))
    theirs = deviations(library, {
        "SelfAttention.q.weight": "attn.q", "SelfAttention.k.weight": "attn.k", "SelfAttention.v.weight": "attn.v",
        "SelfAttention.o.weight": "attn.out", "DenseReluDense.wi.weight": "ffn.0", "DenseReluDense.wo.weight": "ffn.2",
    })  # fmt: skip
    assert ours("t5") == pytest.approx(theirs, rel=0.01)


def test_the_small_vision_transformer_starts_as_torch_starts_its_layers():
    """Its program sets nothing: uniform to 1 / sqrt(inputs), deviation 1 / sqrt(3 inputs)."""
    made = backbone("vit_mnist", "reinitialised")
    q, second = made.blocks[0].attn.q.weight, made.blocks[0].ffn[2].weight
    assert float(q.detach().abs().max()) <= 64**-0.5
    assert float(q.std()) == pytest.approx((3 * 64) ** -0.5, rel=0.02)
    assert float(second.std()) == pytest.approx((3 * 128) ** -0.5, rel=0.02)


def test_the_keyword_transformer_starts_truncated_at_two_deviations():
    """A normal of 0.02 cut at two deviations has 0.8796 of its deviation left."""
    made = backbone("kwt1", "reinitialised")
    weights = torch.cat([block.ffn[0].weight.flatten() for block in made.blocks])
    assert float(weights.detach().abs().max()) <= 0.04
    assert float(weights.std()) == pytest.approx(0.8796 * 0.02, rel=0.01)


@pytest.mark.parametrize("name", [name for name in registry.names("backbones") if name not in ("tiny", "transformers", "timm")])
def test_every_backbone_can_be_reinitialised(name):
    first, other = (backbone(name, "reinitialised", num_blocks=1, weights_seed=seed).state_dict() for seed in (0, 1))
    again = backbone(name, "reinitialised", num_blocks=1).state_dict()
    assert all(torch.equal(first[key], again[key]) and first[key].isfinite().all() for key in first)
    matrices = [key for key, tensor in first.items() if tensor.dim() > 1]
    assert all(first[key].any() and not torch.equal(first[key], other[key]) for key in matrices)


def test_a_tensor_is_drawn_alike_however_many_blocks_are_taken():
    one, two = (backbone("kwt1", "reinitialised", num_blocks=count) for count in (1, 2))
    assert torch.equal(one.blocks[0].attn.q.weight, two.blocks[0].attn.q.weight)


def test_an_open_seed_is_that_of_the_trial_and_changes_no_other_key():
    open_seed, fixed = trial(weights_seed=None), trial()
    assert [with_seed(open_seed, seed).backbone.weights_seed for seed in (0, 1, 2)] == [0, 1, 2]
    assert with_seed(open_seed, 0).key() == fixed.key()
    assert with_seed(trial("pretrained", weights_seed=None), 5).key() == with_seed(trial("pretrained"), 5).key()
    arms = {without_seed(with_seed(open_seed, seed)).key() for seed in (0, 1, 2)}
    assert len(arms) == 1


def test_members_with_other_draws_share_no_pack():
    config = trial(weights_seed=None)
    drawn = [with_seed(config, seed) for seed in (0, 1, 2)]
    fixed = [with_seed(trial(), seed) for seed in (0, 1, 2)]
    assert [len(pack) for pack in packs_of(drawn, 8)] == [1, 1, 1]
    assert [len(pack) for pack in packs_of(fixed, 8)] == [3]


@pytest.mark.parametrize("weights", ["shuffled", "reinitialised"])
def test_a_draw_is_the_same_alone_and_in_a_pack(tmp_path, data_root, weights):
    configs = [trial(weights, seed=seed, weights_seed=4) for seed in (0, 1)]
    alone, packed = records(configs, tmp_path / "a", False), records(configs, tmp_path / "b", True)
    for first, second in zip(alone, packed, strict=True):
        assert first.weights_origin == second.weights_origin
        assert first.metrics["last"]["test/loss"] == pytest.approx(second.metrics["last"]["test/loss"], rel=1e-5)
        assert first.marks == (f"{weights} frozen weights", "synthetic data")


def test_a_model_without_blocks_is_tokens_positions_norm_and_head():
    config = trial("random", num_blocks=0)
    torch.manual_seed(0)
    model = PointModel(config, 5).eval()
    points = torch.randn(2, 64, 3)
    with torch.no_grad():
        tokens, centers = model.tokenizer(points)
        encodings = model.positions(centers, model.positions.project(centers))
        places = torch.cat([model.cls_position.expand(2, -1, -1), encodings], dim=1)
        stream = torch.cat([model.cls_token.expand(2, -1, -1), tokens], dim=1) + places
        expected = model.head(model.norm(stream), [])
        torch.testing.assert_close(model(points), expected)
    assert not list(model.backbone.blocks.parameters())


@pytest.mark.parametrize("injection", ["once", "each_block"])
def test_without_blocks_positions_are_added_once(injection):
    data = plain("random", "head_only", 0, "vit_mnist", num_blocks=0) | {"positions": {"injection": injection}}
    torch.manual_seed(0)
    model = PointModel(trial_from_dict(data), 5).eval()
    points = torch.randn(2, 64, 3)
    once = PointModel(trial("random", num_blocks=0), 5).eval()
    once.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(points), once(points))


@pytest.mark.parametrize("name", ["bert", "t5", "clip_vision", "point_mae", "point_m2ae"])
def test_backbones_of_every_kind_run_without_blocks(name):
    data = plain("random", "head_only", 0, name, num_blocks=0)
    if name.startswith("point"):
        data["tokenizer"] = {"name": "patch", "num_tokens": 8, "neighbours": 6}
    findings = audit([Arm(trial_from_dict(data), ("cell",))], {})
    assert [finding.text for finding in findings if finding.refuses] == []


def test_a_method_that_works_in_blocks_is_refused_without_them():
    _, problems = check_trial(plain("random", "lora", 0, "vit_mnist", num_blocks=0))
    assert problems == [("method", "lora works in the blocks, backbone.num_blocks: 0 leaves none; allowed: head_only")]


def test_records_say_which_control_they_are(tmp_path):
    near = "frozen blocks close to an identity (a change of less than 5 % a block)"
    configs = [trial("random"), trial("reinitialised"), trial("random", num_blocks=0), trial("random", "full")]
    expected = [
        ("random frozen weights", near, "synthetic data"),
        ("reinitialised frozen weights", "synthetic data"),
        ("random frozen weights", "no transformer blocks", "synthetic data"),
        ("random frozen weights", "synthetic data"),
    ]
    assert [record.marks for record in records(configs, tmp_path, False)] == expected
    packed = records([trial("random"), trial("random", seed=1)], tmp_path / "packed", True)
    assert [record.marks for record in packed] == [expected[0]] * 2


def test_the_change_of_a_stack_is_that_of_its_branches(tmp_path):
    """Branches that add nothing change nothing; one that takes the whole token away and adds another changes it by about 140 %."""
    made = backbone("vit_mnist", "random", num_blocks=1)
    block = made.blocks[0]
    torch.nn.init.zeros_(block.attn.out.weight)
    torch.nn.init.zeros_(block.ffn[2].weight)
    assert made.change_per_block() == 0.0
    torch.nn.init.normal_(block.attn.out.weight, std=1e6)
    # Two independent standardised vectors: sqrt(1 + 1).
    assert made.change_per_block() == pytest.approx(2**0.5, abs=0.1)


def test_the_audit_names_a_frozen_stack_that_is_close_to_an_identity():
    arms = [Arm(trial(weights), (weights,)) for weights in ("random", "reinitialised")]
    said = [finding for finding in audit(arms, {}) if "identity" in finding.text]
    assert [finding.refuses for finding in said] == [False]
    assert said[0].text.startswith("random: each frozen block of vit_mnist (weights: random) changes the tokens by 2.8%: close to")


def test_full_fine_tuning_and_stand_ins_are_not_called_an_identity():
    arms = [Arm(trial("random", "full"), ("full",)), Arm(trial("random", name="tiny"), ("tiny",))]
    assert not [finding for finding in audit(arms, {}) if "identity" in finding.text]


def test_a_misspelt_control_has_its_nearest_name(tmp_path):
    with pytest.raises(ValueError, match=r"no file shufled for vit_mnist; did you mean shuffled\? allowed: pretrained, random, shuf"):
        backbone("vit_mnist", "shufled")


def test_an_open_seed_cannot_be_loaded():
    with pytest.raises(ValueError, match=r"backbone.weights_seed: null is the trial's seed"):
        backbone("vit_mnist", "random", weights_seed=None)


def test_all_draws_of_a_checkpoint_read_it_once(data_root):
    from pointsweep.data.inputs import _path, weight_section

    configs = [trial("shuffled", weights_seed=seed).backbone for seed in (0, 1)]
    assert len({_path(weight_section(config)) for config in [*configs, trial("pretrained").backbone]}) == 1
    assert configs[0].replace(weights_seed=1) == configs[1]
