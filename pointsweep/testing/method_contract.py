"""Contract of every method in every modality that it names. Each check raises AssertionError.

Letters: B clouds, P points.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.config import registry
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.layers import set_noise
from pointsweep.models.point_model import build, load_trained_state, trained_state
from pointsweep.testing.model_checks import (
    CLASSES,
    carried_over,
    one_model_a_seed,
    order_of_points,
    own_cloud_alone,
    random_clouds,
    settled,
)
from pointsweep.testing.pytest_cases import Check

POINTS = 40
# Weights whose gradient is zero by construction: what is added to every key adds the same to every
# logit of a softmax, and what is added to every channel, or in front of a batch normalisation, is
# taken out by it (APPT's published model trains one that is dead).
WITHOUT_GRADIENT = (
    r"(\.k\.bias|\.k\.1\.shift|^method\.mix\.bias|^method\.local\.\d+\.out\.bias|^norm\.bias|^norm\.1\.shift"
    r"|^tokenizer\.stages\..*\.layers\.[03]\.bias|\.first_conv\.[03]\.bias|\.second_conv\.0\.bias)$"
)


@dataclass(frozen=True)
class Cases:
    """A method with some settings; see `contract_of_method`."""

    method: str
    starts_as_nothing: bool = False
    without_gradient: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    def checks(self) -> dict[str, Check]:
        """Return every check in every modality, by a name."""
        trains = functools.partial(
            every_weight_trains, without_gradient=self.without_gradient
        )
        contract: dict[str, Callable[..., None]] = {
            "independent_of_others": independent_of_others,
            "every_weight_trains": trains,
            "same_seed_same_model": same_seed_same_model,
            "state_carries_over": state_carries_over,
            "order_does_not_matter": order_does_not_matter,
        }

        if self.starts_as_nothing:
            contract["starts_as_nothing"] = starts_as_nothing

        config = registry.config_class("methods", self.method)
        checks: dict[str, Check] = {}
        for modality in config.modalities:
            for name, check in contract.items():
                checks[f"{modality} {name}"] = functools.partial(
                    check, self.method, modality, **self.fields
                )

        return checks


def model(method: str, modality: str, seed: int = 0, **fields: Any) -> nn.Module:
    """Return a small model with the method in it."""
    config = trial_from_dict({
        "dataset": "synthetic",
        "tokenizer": {"name": "patch" if modality == "3d" else "point_pn_light", "num_tokens": 6,
        "neighbours": 6},
        "backbone": {"name": "tiny", "modality": modality},
        "method": {"name": method, **fields},
        "seed": seed,
    })  # fmt: skip

    built: Any = build(config, CLASSES)
    built.method.prepare(built, [points(8, number) for number in range(3)])
    set_noise(built, torch.Generator().manual_seed(0))
    module: nn.Module = built

    return module


def points(count: int = 4, seed: int = 0) -> Tensor:
    """Return clouds (B, P, 3)."""
    return random_clouds(count, POINTS, seed)


def independent_of_others(method: str, modality: str, **fields: Any) -> None:
    """No prediction depends on another cloud of the batch."""
    own_cloud_alone(settled(model(method, modality, **fields), POINTS), points())


def every_weight_trains(
    method: str, modality: str, without_gradient: str = "", **fields: Any
) -> None:
    """A step reaches every trained weight and no frozen one."""
    trial_model = model(method, modality, **fields).double().train()
    before = {}
    trained = {}

    for name, parameter in trial_model.named_parameters():
        before[name] = parameter.detach().clone()
        if parameter.requires_grad:
            trained[name] = parameter

    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    labels = torch.tensor([0, 1, 2, 3])

    for _ in range(3):
        # LoRA's A gets a gradient only once B has moved, PointGST's norms once two layers have
        optimizer.zero_grad()
        F.cross_entropy(trial_model(points().double()), labels).backward()
        optimizer.step()

    after = dict(trial_model.named_parameters())
    gradients: dict[str, float] = {}
    for name in sorted(trained):
        gradient = after[name].grad
        assert gradient is not None, f"no gradient reaches {name}"
        gradients[name] = float(gradient.abs().max())

    # Zero but for rounding, which differs between processors: in double precision that is plain to
    # see.
    threshold = 1e-12 * max(gradients.values(), default=0.0)
    flat = {name for name, size in gradients.items() if size <= threshold}
    pattern = WITHOUT_GRADIENT

    if without_gradient:
        pattern = f"{WITHOUT_GRADIENT}|{without_gradient}"

    dead = sorted(name for name in flat if not re.search(pattern, name))
    assert not dead, f"the gradient of {dead} is zero"

    changed = {name for name in before if not torch.equal(after[name], before[name])}
    unmoved = sorted(trained.keys() - flat - changed)
    assert not unmoved, f"a step does not move {unmoved}"
    moved = sorted(changed - trained.keys())
    assert not moved, f"a step moves the frozen {moved}"


def same_seed_same_model(method: str, modality: str, **fields: Any) -> None:
    """The same seed builds the same model, and another seed another one."""
    first = trained_state(model(method, modality, seed=0, **fields))
    again = trained_state(model(method, modality, seed=0, **fields))
    other = trained_state(model(method, modality, seed=1, **fields))
    one_model_a_seed(first, again, other)


def state_carries_over(method: str, modality: str, **fields: Any) -> None:
    """Check that what training changes is all that a checkpoint needs: a model of another seed with
    it gives the same.
    """
    made = settled(model(method, modality, **fields), POINTS)
    copy = model(method, modality, seed=5, **fields).eval()
    carried_over(made, copy, points())


def order_does_not_matter(method: str, modality: str, **fields: Any) -> None:
    """The order of a cloud's points does not matter behind the first, where sampling begins."""
    order_of_points(settled(model(method, modality, **fields), POINTS), points())


@torch.no_grad()
def starts_as_nothing(method: str, modality: str, **fields: Any) -> None:
    """A new model gives what `head_only` gives with the same tokenizer and head."""
    plain = model("head_only", modality).eval()
    trial_model = model(method, modality, **fields).eval()
    names = trained_state(plain).keys()
    shared = {}

    for name, value in trained_state(trial_model).items():
        if name in names:
            shared[name] = value

    load_trained_state(plain, shared)

    torch.testing.assert_close(trial_model(points()), plain(points()))
