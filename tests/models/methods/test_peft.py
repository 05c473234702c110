"""Every tuner of the library peft that can be asked for: it runs, trains what the library says, and can be carried over."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pointsweep.cli.run import main
from pointsweep.config.methods import PEFTConfig
from pointsweep.config.peft_tuners import REFUSED, TUNERS
from pointsweep.config.validation import check_trial, trial_from_dict
from pointsweep.models.backbones.timm_import import declare_torchvision_operators
from pointsweep.models.point_model import build, count_parameters, load_trained_state, trained_state
from tests.training.test_pack import assert_same, config, run

# Where a block of ours holds what a target names.
PLACES = {
    "q": "attn.q",
    "k": "attn.k",
    "v": "attn.v",
    "out": "attn.out",
    "fc1": "ffn.0",
    "fc2": "ffn.2",
    "norm1": "norm1",
    "norm2": "norm2",
}

declare_torchvision_operators()
peft = pytest.importorskip("peft")

# Widths of 48 and 96 allow smaller sizes than the library's defaults.
SIZES = {"c3a": 16, "oft": 8, "road": 16, "fourierft": 50, "waveft": 50, "miss": 8}
# These do not start as the frozen model: c3a and fourierft draw their update.
DRAWS_ITS_UPDATE = ("c3a", "fourierft")


def trial(tuner: str, seed: int = 0, **fields) -> dict:
    sizes = {"r": SIZES.get(tuner, 4)} if TUNERS[tuner].size is not None else {}
    return {
        "dataset": "synthetic",
        "tokenizer": {"name": "point_pn_light", "num_tokens": 6, "neighbours": 6},
        "backbone": "tiny",
        "method": {"name": "peft", "tuner": tuner} | sizes | fields,
        "seed": seed,
    }


def model(tuner: str, seed: int = 0, **fields) -> torch.nn.Module:
    return build(trial_from_dict(trial(tuner, seed, **fields)), 5)


def points(seed: int = 0) -> torch.Tensor:
    return 0.5 * torch.randn(4, 40, 3, generator=torch.Generator().manual_seed(seed))


def head_only() -> torch.nn.Module:
    return build(trial_from_dict(trial("lora") | {"method": "head_only"}), 5)


def own(made: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What the tuner trains."""
    return {name: p for name, p in made.backbone.blocks.named_parameters() if p.requires_grad}


def step(made: torch.nn.Module, seed: int) -> None:
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.1)
    F.cross_entropy(made(points(seed).to(made.norm.weight.dtype)), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def test_every_tuner_of_the_library_is_offered_or_refused_with_a_reason():
    kinds = {tuner.kind for tuner in TUNERS.values()} | {name.upper() for name in REFUSED}
    assert {kind.value for kind in peft.PeftType} == kinds
    offered = PEFTConfig.model_json_schema()["properties"]["tuner"]["enum"]
    assert set(offered) == set(TUNERS)


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_step_moves_what_the_tuner_trains_and_nothing_that_is_frozen(tuner):
    made = model(tuner).double().train()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):  # the small backbone's are zero, and a scale of nothing has no gradient
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    for seed in range(2):  # half of a low-rank product moves once the other half has
        step(made, seed)
    trained = {f"backbone.blocks.{name}" for name in own(made)}
    assert trained
    assert {name for name in trained if torch.equal(dict(made.named_parameters())[name], before[name])} == set()
    frozen = {name for name, p in made.named_parameters() if not p.requires_grad}
    assert all(torch.equal(dict(made.named_parameters())[name], before[name]) for name in frozen)


@pytest.mark.parametrize("tuner", TUNERS)
def test_it_trains_as_many_values_as_the_library_counts(tuner):
    plain = head_only().backbone
    for path, layer in plain.blocks.named_modules():
        if isinstance(layer, nn.Linear):  # glora takes torch's own type alone
            plain.blocks.set_submodule(path, nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None))
    settings = dict(TUNERS[tuner].settings)
    if TUNERS[tuner].size is not None:
        settings[TUNERS[tuner].size] = SIZES.get(tuner, 4)
    targets = [PLACES[name] for name in TUNERS[tuner].targets]
    if tuner == "ia3":
        settings["feedforward_modules"] = ["ffn.2"]
    kinds = peft.PEFT_TYPE_TO_CONFIG_MAPPING
    wrapped = peft.get_peft_model(plain.blocks, kinds[peft.PeftType(TUNERS[tuner].kind)](target_modules=targets, **settings))
    theirs, _ = wrapped.get_nb_trainable_parameters()
    made = model(tuner)
    assert sum(p.numel() for p in own(made).values()) == theirs
    difference = count_parameters(made).trainable_without_head - count_parameters(head_only()).trainable_without_head
    assert difference == theirs
    with torch.device("meta"):
        assert count_parameters(model(tuner)).trainable_without_head == count_parameters(made).trainable_without_head


@pytest.mark.parametrize("tuner", TUNERS)
def test_its_start_is_that_of_the_seed_and_mostly_the_frozen_model(tuner):
    first, again = model(tuner), model(tuner)
    assert all(torch.equal(value, trained_state(again)[name]) for name, value in trained_state(first).items())
    plain, made = head_only().eval(), first.eval()
    load_trained_state(plain, {name: trained_state(made)[name] for name in trained_state(plain)})
    with torch.no_grad():
        difference = float((made(points()) - plain(points())).abs().max())
    if tuner in DRAWS_ITS_UPDATE:
        assert difference > 0
    else:
        assert difference < 1e-5


@pytest.mark.parametrize("tuner", TUNERS)
def test_what_trained_carries_it_over_bit_for_bit(tuner):
    made, copied = model(tuner), model(tuner, seed=5).eval()
    for seed in range(2):
        step(made, seed)
    state = {name: value.clone() for name, value in trained_state(made).items()}
    load_trained_state(copied, state)
    with torch.no_grad():
        assert torch.equal(made.eval()(points()), copied(points()))
    # It is a small part of the model: nothing frozen is saved.
    frozen = {name for name, p in made.named_parameters() if not p.requires_grad}
    assert not frozen & state.keys()


def test_what_stands_behind_the_tuners_by_their_formulas():
    x = torch.randn(3, 6, 48, generator=torch.Generator().manual_seed(2))
    for tuner, scale in (("lora", 1.0), ("rslora", 4 / 4**0.5)):
        made = model(tuner)
        layer = made.backbone.blocks[0].attn.q
        torch.nn.init.normal_(layer.lora_B["default"].weight)
        update = scale * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        weight = layer.base_layer.weight + update
        torch.testing.assert_close(layer(x), F.linear(x, weight, layer.base_layer.bias), atol=1e-5, rtol=1e-5)
    made = model("ia3")
    block = made.backbone.blocks[0]
    torch.nn.init.normal_(block.ffn[2].ia3_l["default"])
    hidden = block.ffn[1](block.ffn[0](x)) * block.ffn[2].ia3_l["default"].flatten()
    torch.testing.assert_close(block.ffn(x), F.linear(hidden, block.ffn[2].base_layer.weight, block.ffn[2].base_layer.bias))


def test_alpha_and_targets_reach_the_library():
    made = model("lora", alpha=12.0, target=["k", "fc1"])
    layers = {name.partition(".lora_A")[0] for name in own(made) if "lora_A" in name}
    assert layers == {f"{index}.{place}" for index in (0, 1) for place in ("attn.k", "ffn.0")}
    assert made.backbone.blocks[0].attn.k.scaling["default"] == 3.0


def test_a_tuner_that_rewrites_the_frozen_matrix_leaves_the_packs_alone():
    made, plain = model("pissa"), head_only()
    attention, whole = made.backbone.blocks[0].attn, plain.backbone.blocks[0].attn
    assert not torch.equal(attention.q.base_layer.weight, whole.q.weight)
    update = attention.q.lora_B["default"].weight @ attention.q.lora_A["default"].weight
    torch.testing.assert_close(attention.q.base_layer.weight + update, whole.q.weight)


@pytest.mark.parametrize(
    ("fields", "path", "text"),
    [
        ({"tuner": "adalora"}, "method.tuner", "peft's adalora cannot be used here: it moves rank"),
        ({"tuner": "vera"}, "method.tuner", "its layers share tensors"),
        ({"tuner": "dorra"}, "method.tuner", "unknown value 'dorra'. Did you mean 'dora'?"),
        ({"tuner": "ia3", "r": 4}, "method.r", "ia3 has no size"),
        ({"tuner": "hra", "alpha": 4.0}, "method.alpha", "those that have one: lora, dora"),
        ({"tuner": "ln_tuning", "target": ["q"]}, "method.target", "ln_tuning goes into norm1, norm2, got q"),
        ({"tuner": "lora", "target": ["q", "q"]}, "method.target", "must name nothing twice"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields, path, text):
    problems = dict(check_trial(trial("lora") | {"method": {"name": "peft"} | fields})[1])
    assert text in problems[path]


def test_a_size_that_does_not_fit_the_layer_is_said_in_one_line():
    with pytest.raises(ValueError, match="method: peft's c3a cannot be put into q, v of tiny: .*factor of the input size"):
        model("c3a", r=7)


SWEEP = """
name: tuners
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 40, test_limit: 20}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: tiny
  train: {epochs: 1, batch_size: 16, warmup_epochs: 0}
rows:
  - {label: dora, method: {name: peft, tuner: dora, r: 8, target: [q, v]}}
  - {label: head only, method: head_only}
seeds: 1
"""


def run_sweep(tmp_path, *arguments: str) -> int:
    (tmp_path / "tuners.yaml").write_text(SWEEP)
    common = ["--inline", "--tracking-uri", "none", "--store", str(tmp_path / "store")]
    return main([str(tmp_path / "tuners.yaml"), *common, *arguments])


def test_a_sweep_names_a_tuner_and_trains_it(tmp_path, capsys):
    assert run_sweep(tmp_path) == 0
    assert "dora" in capsys.readouterr().out
    records = [json.loads(path.read_text()) for path in (tmp_path / "store" / "trials").glob("*/record.json")]
    counts = {record["config"]["method"]["name"]: record["parameters"]["trainable_without_head"] for record in records}
    # Two blocks, q and v of 48 x 48: two factors of rank 8 and a magnitude for every row.
    assert counts["peft"] - counts["head_only"] == 2 * 2 * (2 * 8 * 48 + 48)
    assert all(record["origin"]["version.peft"] == peft.__version__ for record in records)


def test_without_the_library_the_plan_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # as python marks a module that cannot be imported
    assert run_sweep(tmp_path, "--plan") == 2
    said = capsys.readouterr().err
    assert 'method peft needs the package peft, which is not installed: pip install "pointsweep[peft]"' in said
    assert "does not run" not in said


@pytest.mark.parametrize("tuner", ["dora", "pissa", "ia3"])
def test_packs_give_what_each_trial_gives_alone(tmp_path, tuner):
    """Two seeds over one frozen backbone; a tuner that rewrites its matrices does not touch the other's."""
    method = {"name": "peft", "tuner": tuner}
    configs = [config(method), config(method, seed=1), config("head_only", seed=2)]
    alone, packed = run(configs, tmp_path / "a", False), run(configs, tmp_path / "b", True)
    for first, second in zip(alone, packed, strict=True):
        assert_same(first, second)
