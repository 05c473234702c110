"""Contract of any model of this package, whatever it is made of. Each check raises AssertionError.

The contracts of methods and networks build their models and call these. Letters: B clouds, P
points.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pointsweep.models.point_model import load_trained_state, trained_state

CLASSES = 5


def random_clouds(count: int, num_points: int, seed: int = 0) -> Tensor:
    """Return clouds (B, P, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(count, num_points, 3, generator=generator)


def settled(model: nn.Module, num_points: int) -> nn.Module:
    """Give batch norms statistics of real batches, and weights values that are not a special
    start.
    """
    model.train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(1)
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))

        for seed in range(3):
            model(random_clouds(8, num_points, seed))

    return model.eval()


@torch.no_grad()
def own_cloud_alone(model: nn.Module, clouds: Tensor) -> None:
    """Check that a prediction depends on its own cloud, and on no other of the batch; `clouds` (4,
    P, 3) stay as they are.
    """
    generator = torch.Generator().manual_seed(3)
    changed = clouds.clone()
    changed[2] = 3 * torch.randn(clouds.shape[1], 3, generator=generator)
    before, after = model(clouds), model(changed)
    others = [0, 1, 3]
    torch.testing.assert_close(after[others], before[others], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after[2], before[2], atol=1e-3), (
        "its own cloud does not move a prediction"
    )


@torch.no_grad()
def carried_over(model: nn.Module, copy: nn.Module, clouds: Tensor) -> None:
    """Check that what training changes is all that a checkpoint needs: a model of another seed with
    it gives the same.
    """
    state = {name: value.clone() for name, value in trained_state(model).items()}
    load_trained_state(copy, state)
    assert torch.equal(model(clouds), copy(clouds)), (
        "something that changes the output is in no parameter"
    )


@torch.no_grad()
def order_of_points(model: nn.Module, clouds: Tensor) -> None:
    """Check that the order of a cloud's points does not matter behind the first, where sampling
    begins.
    """
    generator = torch.Generator().manual_seed(2)
    rest = 1 + torch.randperm(clouds.shape[1] - 1, generator=generator)
    order = torch.cat([torch.zeros(1, dtype=torch.long), rest])
    torch.testing.assert_close(
        model(clouds[:, order]), model(clouds), atol=1e-4, rtol=1e-4
    )


def one_model_a_seed(
    first: Mapping[str, Tensor],
    again: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
) -> None:
    """Check the starts of three models, of which the first two have one seed and the third another
    one.
    """
    assert all(torch.equal(first[name], again[name]) for name in first), (
        "one seed gives two models"
    )
    assert any(not torch.equal(first[name], other[name]) for name in first), (
        "two seeds give one model"
    )
