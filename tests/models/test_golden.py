"""`compat: official` against outputs of the released programs: the same weights, the same clouds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pointsweep.config.datasets import ScanObjectNNConfig
from pointsweep.data.augment import normalise
from tests.support.golden_programs import (
    any2point_state,
    appt_state,
    difference,
    generator,
    model,
    outputs,
    scanobjectnn_clouds,
    thinned,
    weights,
)

OFFICIAL: dict[str, Any] = {"dataset": "scanobjectnn", "compat": "official"}
CLIP = OFFICIAL | {
    "tokenizer": {"name": "point_pn_light", "neighbours": 81},
    "backbone": {"name": "clip_text", "weights": "random", "num_blocks": 1},
    "method": {"name": "any2point", "bottleneck": 16, "coef_pro": 0.3, "voxel_size": 0.08},
}
DINO = OFFICIAL | {
    "tokenizer": {"name": "point_pn_light", "neighbours": 64},
    "backbone": {"name": "dinov2", "weights": "random", "num_blocks": 1},
    "method": {"name": "any2point", "bottleneck": 8, "coef_pro": 0.7, "voxel_size": 0.16},
}
APPT = OFFICIAL | {
    "dataset": {"name": "scanobjectnn", "unit_sphere": True},
    "tokenizer": "point_pn",
    "backbone": {"name": "vit_in21k", "weights": "random", "num_blocks": 1},
    "positions": {"kind": "learnable", "init_std": 0.0},
    "method": "appt",
    "head": {"pool": "mean_plus_max", "hidden": 512, "last_hidden": 256, "bias": True},
}


@torch.no_grad()
def seen(trial: dict[str, Any], state: dict[str, Tensor], points: Tensor) -> dict[str, Tensor]:
    """Return what the model of a trial gives for points on its way, under the names of the programs' outputs."""
    built, found = model(trial, state), {}
    built.tokenizer.register_forward_hook(lambda module, inputs, output: found.update(tokens=output[0], centers=output[1]))
    block = built.backbone.blocks[0]
    block.register_forward_pre_hook(lambda module, inputs: found.update(in0=inputs[0]))
    if trial is APPT:
        block.register_forward_hook(lambda module, inputs, output: found.update(block0=output))
    else:
        built.norm.register_forward_pre_hook(lambda module, inputs: found.update(block0=inputs[0]))
        built.method.bottlenecks[0].register_forward_hook(lambda module, inputs, output: found.update(adapter0=output))
    found["logits"] = built(points)
    return found


def agrees(program: str, found: dict[str, Tensor]) -> None:
    stored = outputs(program)
    assert {"tokens", "block0", "logits"} <= set(stored)
    for name, wanted in stored.items():
        whole = name in ("centers", "logits")
        assert difference(found[name] if whole else thinned(found[name]), wanted) <= 1e-5, name


def table(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator("table")) * 0.2


def test_any2point_with_clip_equals_the_released_program():
    state = any2point_state(weights("clip_scan"), table(77, 768))
    points = scanobjectnn_clouds()
    agrees("clip_scan", seen(CLIP, state, points - points.mean(dim=1, keepdim=True)))


def test_any2point_with_dinov2_equals_the_released_program():
    state = any2point_state(weights("dino_scan"), table(1, 1370, 768)[0, 1:].reshape(37, 37, 768))
    points = scanobjectnn_clouds()
    agrees("dino_scan", seen(DINO, state, points - points.mean(dim=1, keepdim=True)))


def test_appt_equals_the_released_program():
    """The data set makes the heights: a trial with `compat: official` asks it to."""
    config = ScanObjectNNConfig(name="scanobjectnn", unit_sphere=True, heights=True)
    points = normalise(scanobjectnn_clouds(), config)
    agrees("appt", seen(APPT, appt_state(weights("appt")), points))


@pytest.mark.parametrize("trial", [CLIP, DINO, APPT], ids=["clip", "dino", "appt"])
def test_the_fixed_form_is_another_program(trial):
    program = {"clip_text": "clip_scan", "dinov2": "dino_scan", "vit_in21k": "appt"}[trial["backbone"]["name"]]
    if program == "appt":
        state = appt_state(weights(program))
    elif program == "clip_scan":
        state = any2point_state(weights(program), table(77, 768))
    else:
        state = any2point_state(weights(program), table(1, 1370, 768)[0, 1:].reshape(37, 37, 768))
    points = normalise(scanobjectnn_clouds(), ScanObjectNNConfig(name="scanobjectnn"))
    with torch.no_grad():
        found = model(trial | {"compat": "fixed"}, state)(points)
    assert difference(found, outputs(program)["logits"]) > 1e-3
