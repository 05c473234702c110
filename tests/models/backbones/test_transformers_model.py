"""Any transformer of the library transformers: over many small architectures, each compared with the library itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from pointsweep.config import registry
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.backbones.base import Backbone
from pointsweep.models.backbones.library_backbone import NO_POSITIONS
from pointsweep.models.layers import set_noise
from pointsweep.models.point_model import build
from tests.models.backbones.architectures import ARCHITECTURES, BY_NAME, Architecture

each = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)


def config_of(architecture: Architecture, **fields):
    return registry.config_class("backbones", "transformers").model_validate({**architecture.config, **fields})


def make(architecture: Architecture, **fields) -> Backbone:
    made = registry.load("backbones", "transformers")(config_of(architecture, **fields))
    made.load()
    return made.eval()


def library_run(module: torch.nn.Module, stack: str, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into the library's first layer in its own forward, and what comes out of the last."""
    layers, seen = module.get_submodule(stack), []

    def note(layer, args, kwargs, output):
        seen.append((args[0] if args else kwargs["hidden_states"], output[0] if isinstance(output, tuple) else output))

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        module(**{name: value.double() if value.is_floating_point() else value for name, value in inputs.items()})
    for handle in handles:
        handle.remove()
    return seen[0][0], seen[-1][1]


def own_places(backbone: Backbone, count: int) -> torch.Tensor:
    """The places of the library's own tokens: 0, 1, 2 ... on a line, the centres of patches on a plane."""
    if backbone.plane.height == 1:
        return torch.arange(count, dtype=torch.float64)
    rows, columns = backbone.anatomy.grid
    x = torch.arange(columns, dtype=torch.float64) * (backbone.plane.width - 1) / max(columns - 1, 1)
    y = torch.arange(rows, dtype=torch.float64) * (backbone.plane.height - 1) / max(rows - 1, 1)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


@each
def test_blocks_and_positions_equal_the_librarys_own_forward(architecture):
    """In double precision; the library computes parts of some models in single precision."""
    kind = registry.load("backbones", "transformers")
    config = config_of(architecture)
    torch.manual_seed(3)
    theirs = kind.drawn(config).double().eval()
    for parameter in theirs.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    ours = kind(config, copy.deepcopy(theirs)).double().eval()
    found = ours.anatomy
    model = kind.empty(config)
    hidden, expected = library_run(theirs, found.stack, model.inputs())
    places = own_places(ours, hidden.shape[1] - found.num_front)
    if not ours.has_table and not ours.attention_positions:
        assert architecture.positions == ""
        assert ours.marks() == (NO_POSITIONS,)
        if found.call.positions == "unplaced" or architecture.name == "beit":
            return  # the library's own forward has positions that ours cannot have
    bias = ours.attention_bias(0, hidden, places[None, None])
    tokens = hidden
    with torch.no_grad():
        for block in ours.blocks:
            tokens = block(tokens, lambda branch, inputs: branch, bias)
    torch.testing.assert_close(tokens, expected, atol=1e-6, rtol=1e-6)
    assert bool((expected - hidden).abs().max() > 0.01)
    if ours.has_table:
        before = table_input(theirs, found, model.inputs())
        without = copy.deepcopy(theirs)
        tensors = dict(without.named_parameters()) | dict(without.named_buffers())
        for name in (found.table.name, *(name for name, _ in found.table.added)):
            tensors[name].data.zero_()
        moved = (before - table_input(without, found, model.inputs()))[:, found.num_front :]
        torch.testing.assert_close(ours.positions(places).reshape(moved.shape), moved, atol=1e-6, rtol=1e-6)


def table_input(module: torch.nn.Module, found, inputs: dict) -> torch.Tensor:
    """What positions are added to, with them: the first layer's input, or that of the norm in front of it."""
    if not found.start_norm:
        return library_run(module, found.stack, inputs)[0]
    seen = []
    handle = module.get_submodule(found.start_norm).register_forward_pre_hook(lambda norm, args: seen.append(args[0]))
    library_run(module, found.stack, inputs)
    handle.remove()
    return seen[0]


@each
def test_what_is_found_is_what_is_known_of_the_architecture(architecture):
    made = make(architecture)
    assert made.modality == architecture.modality
    assert made.anatomy.own_causal == architecture.causal
    assert made.blocks[0].post_norm == architecture.post_norm
    assert (made.dim, len(made.blocks), made.shape.num_heads) == (32, 2, 4)
    words = [*(["table"] if made.has_table else []), *([made.attention_positions] if made.attention_positions else [])]
    assert " and ".join(words) == architecture.positions
    said = made.describe()
    assert f"width 32, 2 of 2 {'post' if architecture.post_norm else 'pre'}-norm blocks" in said
    assert ("causal" in said) == architecture.causal
    assert (NO_POSITIONS in said) == (architecture.positions == "")


def run_blocks(made: Backbone, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    bias = made.attention_bias(0, torch.zeros(len(tokens), places.shape[1], 3), places.unsqueeze(1))
    encodings = made.positions(places)
    tokens = made.start(tokens if encodings is None else tokens + encodings)
    for block in made.blocks:
        tokens = block(tokens, lambda branch, inputs: branch, bias)
    return tokens


def some_places(made: Backbone, seed: int = 0) -> torch.Tensor:
    size = (2, 7) if made.plane.height == 1 else (2, 7, 2)
    numbers = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return numbers * (torch.tensor([made.plane.width, made.plane.height])[: len(size) - 1] - 1.0).squeeze()


@each
@torch.no_grad()
def test_the_first_token_sees_the_last_unless_the_model_is_causal(architecture):
    made = make(architecture)
    tokens = torch.randn(2, 7, 32)
    other = tokens.clone()
    other[:, -1] = torch.randn(2, 32)
    places = some_places(made)
    moved = (run_blocks(made, other, places) - run_blocks(made, tokens, places)).abs().amax(dim=(0, 2))
    assert (moved[0] > 1e-6) != architecture.causal
    assert moved[-1] > 1e-6
    assert made.blind_class_token == architecture.causal


@each
@torch.no_grad()
def test_places_act_or_the_mark_says_that_they_do_not(architecture):
    made = make(architecture, weights="random")
    tokens = torch.randn(2, 7, 32)
    first, second = (run_blocks(made, tokens, some_places(made, seed)) for seed in (0, 1))
    assert (made.marks() == ()) != torch.equal(first, second)


@pytest.mark.parametrize(("name", "causal"), [("llama", False), ("clip_text_model", False), ("gpt2", False), ("bloom", False), ("falcon", False), ("mpt", False), ("bert", True), ("t5", True), ("modernbert", True)])  # fmt: skip
@torch.no_grad()
def test_causality_can_be_chosen_against_the_models_own(name, causal):
    made = make(BY_NAME[name], causal=causal)
    tokens = torch.randn(1, 7, 32)
    for at, by in ((0, 6), (2, 3)):
        other = tokens.clone()
        other[:, by] = torch.randn(32)
        places = some_places(made)[:1]
        moved = (run_blocks(made, other, places) - run_blocks(made, tokens, places)).abs().amax(dim=(0, 2))
        assert (moved[at] > 1e-6) != causal
    assert "its own program" in made.describe()


def test_a_model_that_looks_back_by_itself_is_not_made_to_look_ahead():
    with pytest.raises(ValueError, match="gpt_neo: causal: false is not possible"):
        make(BY_NAME["gpt_neo"], causal=False)


# Methods


def model(architecture: Architecture, method: dict, **fields) -> torch.nn.Module:
    config = trial_from_dict({
        "dataset": "synthetic",
        "tokenizer": {"name": "point_pn_light", "num_tokens": 6, "neighbours": 6},
        "backbone": {**architecture.config, **fields},
        "positions": {"num_views": 2},
        "method": method,
    })  # fmt: skip
    made = build(config, 5)
    set_noise(made, torch.Generator().manual_seed(0))
    return made


def points(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 40, 3, generator=torch.Generator().manual_seed(seed)) * 0.5


METHODS = [
    {"name": "lora", "rank": 2, "targets": ["q", "k", "v", "out", "fc1", "fc2"]},
    {"name": "adapter", "kind": "houlsby"},
    {"name": "dapt", "bottleneck": 4, "dynamic_scale": False},
    {"name": "any2point", "bottleneck": 4, "attn_dim": 8, "attn_heads": 2},
    {"name": "bitfit"},
    {"name": "prompt", "num_prompts": 2},
    {"name": "full"},
]


@pytest.mark.parametrize(("architecture", "number"), [(a, n % len(METHODS)) for i, a in enumerate(ARCHITECTURES) for n in (i, i + 3)])
def test_two_steps_move_every_trained_weight_and_no_frozen_one(architecture, number):
    method = METHODS[number]
    if method["name"] == "bitfit" and not [
        name for name, _ in make(architecture).blocks.named_parameters() if name.endswith(".bias")
    ]:
        with pytest.raises(ValueError, match="bitfit trains the biases of a backbone, and transformers has none"):
            model(architecture, method)
        return
    made = model(architecture, method).double().train()
    before = {name: tensor.detach().clone() for name, tensor in made.state_dict().items()}
    trained = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(made(points().double()), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    parameters = dict(made.named_parameters())
    assert all(parameters[name].grad is not None for name in trained), [n for n in trained if parameters[n].grad is None]
    largest = max(float(parameters[name].grad.abs().max()) for name in trained)
    flat = {name for name in trained if float(parameters[name].grad.abs().max()) <= 1e-12 * largest}
    keys = tuple(made.backbone.flat_parameters("backbone."))
    assert all(name in keys or "norm" in name.lower() or name.startswith("tokenizer.") for name in flat), flat - set(keys)
    assert not {name for name in trained - flat if torch.equal(parameters[name], before[name])}
    after = made.state_dict()
    statistics = {name for name in before if "running_" in name or name.endswith("num_batches_tracked")}
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - trained - statistics)


@pytest.mark.parametrize("architecture", ARCHITECTURES[::3], ids=lambda architecture: architecture.name)
@torch.no_grad()
def test_no_prediction_depends_on_another_sample_and_evaluation_repeats(architecture):
    made = model(architecture, METHODS[3]).train()
    made(points(8))
    made.eval()
    clouds = points()
    before = made(clouds)
    assert torch.equal(made(clouds), before)
    clouds[2] = 3 * torch.randn(40, 3)
    after = made(clouds)
    torch.testing.assert_close(after[[0, 1, 3]], before[[0, 1, 3]], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after[2], before[2], atol=1e-6)
