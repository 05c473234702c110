"""Any transformer of the library transformers: over many small architectures, each compared with the library itself."""

from __future__ import annotations

import copy

import pytest
import torch

from pointsweep.config import registry
from pointsweep.models.backbones.base import Backbone
from pointsweep.models.backbones.library_backbone import NO_POSITIONS
from tests.models.backbones.architectures import ARCHITECTURES, BY_NAME, Architecture
from tests.models.backbones.library_runs import (
    METHODS,
    in_double,
    library_run,
    own_places,
    points,
    run_blocks,
    same_blocks,
    some_places,
    two_steps,
    with_method,
)

each = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)


def config_of(architecture: Architecture, **fields):
    return registry.config_class("backbones", "transformers").model_validate({**architecture.config, **fields})


def make(architecture: Architecture, **fields) -> Backbone:
    made = registry.load("backbones", "transformers")(config_of(architecture, **fields))
    made.load()
    return made.eval()


@each
def test_blocks_and_positions_equal_the_librarys_own_forward(architecture):
    """In double precision; the library computes parts of some models in single precision."""
    kind = registry.load("backbones", "transformers")
    config = config_of(architecture)
    theirs, ours = in_double(kind, config)
    found = ours.anatomy
    model = kind.empty(config)
    hidden, expected = library_run(theirs, found.stack, model.inputs())
    places = own_places(ours, hidden.shape[1] - found.num_front)
    if not ours.has_table and not ours.attention_positions:
        assert architecture.positions == ""
        assert ours.marks() == (NO_POSITIONS,)
        if found.call.positions == "unplaced" or architecture.name == "beit":
            return  # the library's own forward has positions that ours cannot have
    same_blocks(ours, hidden, expected, places)
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


def model(architecture: Architecture, method: dict) -> torch.nn.Module:
    return with_method(architecture.config, method)


@pytest.mark.parametrize(("architecture", "number"), [(a, n % len(METHODS)) for i, a in enumerate(ARCHITECTURES) for n in (i, i + 3)])
def test_two_steps_move_every_trained_weight_and_no_frozen_one(architecture, number):
    method = METHODS[number]
    if method["name"] == "bitfit" and not [
        name for name, _ in make(architecture).blocks.named_parameters() if name.endswith(".bias")
    ]:
        with pytest.raises(ValueError, match="bitfit trains the biases of a backbone, and transformers has none"):
            model(architecture, method)
        return
    two_steps(model(architecture, method))


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
