"""Contract of every network that is trained from scratch. Each check raises AssertionError.

Letters: B clouds, P points.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.config import registry
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.layers import set_noise
from pointsweep.models.point_model import build, count_parameters, trained_state
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

POINTS = 128  # of a cloud, as in the smoke profile
# where a network has such a field
SMALL = {"neighbours": 8, "embed_dim": 12, "width": 8}


def checks(name: str, fields: Mapping[str, Any]) -> dict[str, Check]:
    """Return every check by a name."""
    contract = (
        independent_of_others,
        alone_as_in_a_batch,
        every_weight_trains,
        same_seed_same_network,
        state_carries_over,
        order_does_not_matter,
        dropout_draws_from_the_trials_noise,
        counted_on_the_meta_device,
    )

    cases: dict[str, Check] = {}

    for check in contract:
        cases[check.__name__] = functools.partial(check, name, **fields)

    return cases


def network(name: str, seed: int = 0, **fields: Any) -> nn.Module:
    """Return a small network."""
    known = registry.config_class("networks", name).model_fields
    small = {field: value for field, value in SMALL.items() if field in known}
    config = trial_from_dict(
        {"dataset": "synthetic", "network": {"name": name, **small, **fields}}
    )
    torch.manual_seed(seed)
    built = build(config, CLASSES)
    set_noise(built, torch.Generator().manual_seed(0))

    return built


def points(count: int = 4, seed: int = 0) -> Tensor:
    """Return clouds (B, P, 3)."""
    return random_clouds(count, POINTS, seed)


def independent_of_others(name: str, **fields: Any) -> None:
    """No prediction depends on another cloud of the batch."""
    own_cloud_alone(settled(network(name, **fields), POINTS), points())


@torch.no_grad()
def alone_as_in_a_batch(name: str, **fields: Any) -> None:
    """A cloud alone gets the logits that it gets in a batch."""
    model, clouds = settled(network(name, **fields), POINTS), points()
    torch.testing.assert_close(
        model(clouds[1:2]), model(clouds)[1:2], atol=1e-4, rtol=1e-4
    )


def _biases_in_front_of_a_norm(model: nn.Module) -> set[str]:
    """Batch normalisation takes such a bias away again: its gradient is zero by construction."""
    biases = set()
    for prefix, module in model.named_modules():
        if not isinstance(module, nn.Sequential):
            continue

        for (name, _), (_, after) in pairwise(module.named_children()):
            if isinstance(after, nn.modules.batchnorm._BatchNorm):
                biases.add(f"{prefix}.{name}.bias")

    return biases


def every_weight_trains(name: str, **fields: Any) -> None:
    """A step reaches every weight."""
    model = network(name, **fields).train()
    before = {}

    for key, parameter in model.named_parameters():
        before[key] = parameter.detach().clone()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    for _ in range(2):
        # the layers of PointNet's transforms get a gradient only once their last layer has moved
        optimizer.zero_grad()
        F.cross_entropy(model(points()), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()

    unreached = []
    unmoved = set()
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad or parameter.grad is None:
            unreached.append(key)

        if torch.equal(parameter, before[key]):
            unmoved.add(key)

    assert not unreached, f"no gradient reaches {sorted(unreached)}"
    unmoved -= _biases_in_front_of_a_norm(model)
    assert not unmoved, f"a step does not move {sorted(unmoved)}"


def same_seed_same_network(name: str, **fields: Any) -> None:
    """The same seed builds the same network, and another seed another one."""
    first = trained_state(network(name, seed=0, **fields))
    again = trained_state(network(name, seed=0, **fields))
    other = trained_state(network(name, seed=1, **fields))
    one_model_a_seed(first, again, other)


def state_carries_over(name: str, **fields: Any) -> None:
    """Check that what training changes is all that a checkpoint needs."""
    carried_over(
        settled(network(name, **fields), POINTS),
        network(name, seed=5, **fields).eval(),
        points(),
    )


def order_does_not_matter(name: str, **fields: Any) -> None:
    """The order of a cloud's points does not matter behind the first, where sampling begins."""
    order_of_points(settled(network(name, **fields), POINTS), points())


def dropout_draws_from_the_trials_noise(name: str, **fields: Any) -> None:
    """Dropout is that of models.layers: `nn.Dropout` draws from the global generator, and a resumed
    trial would get other numbers.
    """
    model = network(name, **fields).train()
    for module in model.modules():
        assert type(module).__module__ != "torch.nn.modules.dropout"


def counted_on_the_meta_device(name: str, **fields: Any) -> None:
    """A network at its defaults can be built on the meta device, and has a head."""
    config = trial_from_dict(
        {"dataset": "synthetic", "network": {"name": name, **fields}}
    )
    with torch.device("meta"):
        model = build(config, 40)

    for parameter in model.parameters():
        assert parameter.is_meta, "a parameter is made on another device"

    counts = count_parameters(model)
    assert 0 < counts.trainable_without_head < counts.trainable == counts.total, (
        "no parameter is called head.*"
    )
