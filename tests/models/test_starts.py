"""Arms of one seed share their start wherever they have the same tensors; another seed has another."""

from __future__ import annotations

import pytest
import torch

from pointsweep.config.validation import trial_from_dict
from pointsweep.models.point_model import PointModel

BACKBONE = {"name": "tiny", "weights": "random", "num_blocks": 2}
METHODS = [
    {"name": "head_only"},
    {"name": "any2point"},
    {"name": "lora"},
    {"name": "prompt"},
    {"name": "adapter"},
    {"name": "idpt"},
    {"name": "dapt"},
    {"name": "appt"},
]
COMMON = ("tokenizer.", "head.", "cls_token", "cls_position", "positions.")


def start(seed: int = 0, method: dict | None = None, **more) -> dict[str, torch.Tensor]:
    dataset = {"name": "synthetic", "num_points": 128}
    config = {
        "dataset": dataset,
        "tokenizer": "point_pn_light",
        "backbone": BACKBONE,
        "method": method or METHODS[0],
        "seed": seed,
        **more,
    }
    model = PointModel(trial_from_dict(config), 5)
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters() if name.startswith(COMMON)}


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
    """Names of tensors of one shape that are not equal, bit for bit."""
    both = first.keys() & second.keys()
    return {name for name in both if first[name].shape == second[name].shape and not torch.equal(first[name], second[name])}


@pytest.mark.parametrize("init", ["xavier", "trunc_normal"])
@pytest.mark.parametrize("method", METHODS[1:], ids=lambda method: method["name"])
def test_arms_of_one_seed_start_alike_whatever_their_method(method, init):
    alone, other = (start(method=which, train={"init": init}) for which in (METHODS[0], method))
    assert not differing(alone, other)
    equal = {name for name in alone.keys() & other.keys() if alone[name].shape == other[name].shape}
    # Where a method pools more, the head's first layer is wider; all behind it is the same.
    assert {"head.layers.4.weight", "head.layers.8.weight", "cls_token"} <= equal
    assert any(name.startswith("tokenizer.") for name in equal)


def test_the_number_of_blocks_changes_no_other_start():
    assert not differing(start(), start(backbone={**BACKBONE, "num_blocks": 0}))


def test_what_was_drawn_before_changes_no_start():
    first = start()
    torch.rand(17)
    assert not differing(first, start())


def test_another_seed_is_another_start():
    first, second = start(0), start(1)
    drawn = {name for name, tensor in first.items() if tensor.dim() > 1 and name not in ("cls_token", "cls_position")}
    assert drawn <= differing(first, second)
