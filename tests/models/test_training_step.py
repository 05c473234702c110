"""`compat: official` against renderings of the released programs in float64: evaluation, and one training step without dropout.

tests/support/program_renderings.py has the renderings, written from the specification alone. Full widths, few tokens and blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pointsweep.config.validation import trial_from_dict
from pointsweep.data.augment import normalise
from pointsweep.models.layers import Dropout, DropPath
from pointsweep.models.point_model import PointModel
from pointsweep.training.loop import accumulate
from tests.support import program_renderings as programs
from tests.support.golden_programs import weight
from tests.support.program_renderings import Rendering

BATCH, POINTS, CLASSES = 6, 96, 5
LABELS = torch.tensor([0, 3, 1, 4, 2, 1])
MODELNET = {"name": "modelnet40"}
SCAN = {"name": "scanobjectnn"}


@dataclass(frozen=True)
class Arm:
    """A trial, its program's forward, and the program's label smoothing."""

    trial: dict[str, Any]
    forward: Callable[[Rendering, Tensor], Tensor]
    smoothing: float = 0.0


def any2point(backbone: str, dataset: dict[str, Any], program: dict[str, Any]) -> Arm:
    """An arm of Any2Point; what `compat: official` chooses by itself is left out of the trial."""
    modelnet = dataset is MODELNET
    flat = backbone != "clip_text"
    common = {
        "counts": [32, 16, 8], "neighbours": 8, "normalisation": "mn40" if modelnet else "scan", "skip": modelnet,
        "clip": not flat, "blocks": 2, "mean_max": False, "max_first": not modelnet, "plane": None, "line": (-1, 0, 1),
        "eps": 1e-5 if modelnet or not flat else 1e-6, "final_eps": 1e-5 if modelnet else 1e-6,
    }  # fmt: skip
    p = common | program
    trial = {
        "dataset": dataset, "compat": "official",
        "tokenizer": {"name": "point_pn_light", "num_tokens": 8, "neighbours": 8, "normalisation": p["normalisation"]},
        "backbone": {"name": backbone, "weights": "random", "num_blocks": 2},
        "positions": {"translation": p["translation"]} if flat else {"line": list(p["line"])},
        "method": {
            "name": "any2point", "bottleneck": p["bottleneck"], "scale_factor": p["scale"], "coef_pro": p["coef"],
            "voxel_size": p["voxel"], "cell_pooling": "mean_max" if p["mean_max"] else "mean",
        },
        "head": {"order": "max_cls" if p["max_first"] else "cls_max", "bias": modelnet},
    }  # fmt: skip
    return Arm(trial, lambda r, points: programs.any2point(r, points, p))


VISION, AUDIO = (518, 518, 26), (192, 304, 16)
PEFT = {
    "tokens": 16, "size": 6, "blocks": 7, "depth": 6, "prompts": 10, "local_centers": 8, "local_size": 8, "bank_groups": 8, "bank_size": 8,
}  # fmt: skip
ARMS = {
    "clip on scanobjectnn": any2point(
        "clip_text", SCAN, {"bottleneck": 16, "scale": 0.3, "coef": 0.3, "voxel": 0.08, "injection": "twice"}
    ),
    "dinov2 on scanobjectnn": any2point(
        "dinov2",
        SCAN,
        {"bottleneck": 8, "scale": 0.3, "coef": 0.7, "voxel": 0.16, "injection": "each_block", "plane": VISION, "translation": -1.8},
    ),
    "imagebind on scanobjectnn": any2point(
        "imagebind_audio",
        SCAN,
        {"bottleneck": 12, "scale": 0.3, "coef": 0.5, "voxel": 0.16, "injection": "once", "plane": AUDIO, "translation": -1.4},
    ),
    "clip on modelnet40": any2point(
        "clip_text",
        MODELNET,
        {"bottleneck": 16, "scale": 0.3, "coef": 0.5, "voxel": 0.16, "injection": "once", "line": (1, -1, 0)},
    ),
    "dinov2 on modelnet40": any2point(
        "dinov2",
        MODELNET,
        {"bottleneck": 8, "scale": 1.0, "coef": 0.1, "voxel": 0.16, "injection": "each_block", "plane": VISION, "translation": -1.4}
        | {"mean_max": True},
    ),
    "imagebind on modelnet40": any2point(
        "imagebind_audio",
        MODELNET,
        {"bottleneck": 8, "scale": 1.0, "coef": 0.1, "voxel": 0.16, "injection": "once", "plane": AUDIO, "translation": -1.4}
        | {"mean_max": True},
    ),
    "appt": Arm(
        {
            "dataset": {"name": "scanobjectnn", "unit_sphere": True}, "compat": "official",
            "tokenizer": {"name": "point_pn", "num_tokens": 8, "neighbours": 8},
            "backbone": {"name": "vit_in21k", "weights": "random", "num_blocks": 2},
            "positions": {"kind": "learnable", "init_std": 0.0}, "method": "appt",
            "head": {"pool": "mean_plus_max", "hidden": 512, "last_hidden": 256, "bias": True},
            "train": {"label_smoothing": 0.2 * CLASSES / (CLASSES - 1)},
        },
        lambda r, points: programs.appt(r, points, [64, 32, 16, 8], 8, 2),
        smoothing=0.2,
    ),
    "point_peft": Arm(
        {
            "dataset": SCAN, "compat": "official",
            "tokenizer": {"name": "patch", "num_tokens": PEFT["tokens"], "neighbours": PEFT["size"]},
            "backbone": {"name": "point_mae", "weights": "random", "num_blocks": PEFT["blocks"]},
            "method": {
                "name": "point_peft", "local_neighbours": PEFT["local_size"], "bank_groups": PEFT["bank_groups"],
                "bank_group_size": PEFT["bank_size"],
            },
            "head": {"order": "cls_max", "bias": True},
        },
        lambda r, points: programs.point_peft(r, points, bank_clouds().double(), PEFT),
    ),
}  # fmt: skip


def clouds(count: int, seed: int) -> Tensor:
    """Clouds (count, POINTS, 3) in the unit ball; every second has points so near the origin that the programs' operator skips them."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, POINTS, 3, generator=generator)
    points = points / points.norm(dim=2, keepdim=True) * torch.rand(count, POINTS, 1, generator=generator) ** 0.5
    points[::2, 7:12] *= 0.02
    return points


def bank_clouds() -> Tensor:
    return clouds(12, seed=5)


def built(arm: Arm) -> tuple[PointModel, Tensor]:
    """The arm's model with weights drawn by their names, without dropout, and a batch of what its data set gives it."""
    config = trial_from_dict(arm.trial)
    torch.manual_seed(0)
    model = PointModel(config, CLASSES)
    state = {name: weight(name, list(value.shape)) for name, value in model.state_dict().items() if value.is_floating_point()}
    if "backbone.table" in state:
        state["backbone.table"] = 0.2 * torch.randn(state["backbone.table"].shape)
    model.load_state_dict(state, strict=False)
    for module in model.modules():
        if isinstance(module, (Dropout, DropPath)):
            module.p = 0.0
    points = normalise(clouds(BATCH, seed=3), config.dataset)
    model.method.prepare(model, [bank_clouds()])
    return model, points


def rendering(model: PointModel, training: bool) -> Rendering:
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return Rendering(model.state_dict(), trained, training)


def gradients(arm: Arm, model: PointModel, points: Tensor) -> tuple[float, dict[str, Tensor]]:
    """The loss of one step of the training loop, and the gradient of everything that trains."""
    model.train()
    loss, _ = accumulate(model, [points], LABELS, trial_from_dict(arm.trial).train, parts=1)
    return float(loss), {name: own.grad for name, own in model.named_parameters() if own.requires_grad and own.grad is not None}


def apart(found: Tensor, wanted: Tensor, floor: float = 0.0) -> float:
    """The largest difference, relative to the largest value."""
    return float((found.detach().double() - wanted).abs().max() / wanted.abs().max().clamp(min=floor))


@pytest.mark.parametrize("name", ARMS)
def test_the_official_form_equals_its_rendering_in_evaluation(name):
    arm = ARMS[name]
    model, points = built(arm)
    with torch.no_grad():
        wanted = arm.forward(rendering(model, training=False), points.double())
        assert apart(model.eval()(points), wanted) <= 1e-5
        if arm.trial["compat"] == "official":
            fixed, _ = built(Arm(arm.trial | {"compat": "fixed"}, arm.forward))
            assert apart(fixed.eval()(points), wanted) > 1e-3, "the test cannot tell the two forms apart"


@pytest.mark.parametrize("name", ARMS)
def test_one_training_step_equals_its_rendering(name):
    """Loss, batch statistics and the head's gradients in float32, and all gradients in float64.

    In float32 a ReLU or a maximum over neighbours whose arguments are equal to seven digits may take the other side, which moves
    the gradients in front of it by percents in either implementation.
    """
    arm = ARMS[name]
    model, points = built(arm)
    r = rendering(model, training=True)
    wanted = programs.smoothed_loss(arm.forward(r, points.double()), LABELS, arm.smoothing)
    wanted.backward()
    theirs = {name: value.grad for name, value in r.w.items() if value.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    precise = copy.deepcopy(model).double()
    precise.positions.views = precise.positions.views.double()
    precise.method.prepare(precise, [bank_clouds().double()])

    loss, ours = gradients(arm, model, points)
    assert abs(loss - float(wanted.detach())) <= 1e-5 * float(wanted.detach())
    assert set(ours) == set(theirs)
    for parameter in (name for name in ours if name.startswith("head.")):
        assert apart(ours[parameter], theirs[parameter], 1e-3 * largest) <= 1e-3, parameter
    state = model.state_dict()
    assert r.moved
    for statistic, value in r.moved.items():
        assert apart(state[statistic], value) <= 1e-5, statistic
    for statistic in (name for name in r.w if "running" in name and name.startswith("method.encoder.")):
        assert torch.equal(state[statistic].double(), r.w[statistic]), statistic

    _, ours = gradients(arm, precise, points.double())
    for parameter, gradient in ours.items():
        assert apart(gradient, theirs[parameter], 1e-6 * largest) <= 1e-5, parameter
