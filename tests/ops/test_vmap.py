"""Members that run as one: each gives what it gives alone, whatever torch's layers are called with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.ops import linear as products
from pointsweep.ops.linear import linear
from pointsweep.ops.vmap import Part, current, folded, for_each, is_eager_on_cpu, run, uniform


class Applied(nn.Module):
    """A function of an input and of one trained tensor."""

    def __init__(self, function, shape) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


LAYERS = {  # a layer or function, and the shape of its input
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (5, 7, 6)),
    "convolution of width 1": (lambda: nn.Conv1d(6, 4, 1), (5, 6, 8)),
    "convolution of width 1 in two dimensions": (lambda: nn.Conv2d(6, 4, 1, bias=False), (5, 6, 8, 3)),
    "convolution of width 3": (lambda: nn.Conv1d(6, 4, 3, padding=1), (5, 6, 8)),
    "convolution with a stride": (lambda: nn.Conv2d(6, 4, 1, stride=2), (5, 6, 8, 4)),
    "convolution with padding": (lambda: nn.Conv1d(6, 4, 1, padding=1, bias=False), (5, 6, 8)),
    "convolution in groups": (lambda: nn.Conv1d(6, 4, 1, groups=2), (5, 6, 8)),
    "convolution by keywords": (lambda: Applied(lambda x, w: F.conv1d(x, w, stride=2), (4, 6, 1)), (5, 6, 8)),
    "batch norm": (lambda: nn.BatchNorm1d(6), (5, 6)),
    "batch norm in two dimensions": (lambda: nn.BatchNorm2d(6), (5, 6, 8, 3)),
    "layer norm": (lambda: nn.LayerNorm(6), (5, 7, 6)),
    "layer norm without bias": (lambda: nn.LayerNorm(6, bias=False), (5, 7, 6)),
    "layer norm over two axes": (lambda: nn.LayerNorm((7, 6)), (5, 7, 6)),
    "cosine": (lambda: Applied(lambda x, w: F.cosine_similarity(x, w, dim=1), (5, 6)), (5, 6)),
    "cosine along the last axis": (lambda: Applied(lambda x, w: F.cosine_similarity(x, w, dim=-1), (5, 7, 6)), (5, 7, 6)),
    "cosine along the default axis": (lambda: Applied(lambda x, w: F.cosine_similarity(x, w), (5, 7, 6)), (5, 7, 6)),
    "cosine with an eps": (lambda: Applied(lambda x, w: F.cosine_similarity(x, w, dim=1, eps=9.0), (5, 6)), (5, 6)),
}


def members(make) -> list[nn.Module]:
    """Three layers of one kind with tensors of their own."""
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        made.append(make())
        for parameter in made[-1].parameters():
            nn.init.normal_(parameter)

    return made


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_of_several_members_is_each_ones_own(kind):
    make, shape = LAYERS[kind]
    inputs = [torch.randn(shape) for _ in range(3)]
    alone, joined = members(make), members(make)
    expected = [layer(x) for layer, x in zip(alone, inputs, strict=True)]
    found = run([Part(layer) for layer in joined], [(x,) for x in inputs])
    torch.testing.assert_close(found, expected)
    torch.autograd.backward([output.square().sum() for output in expected])
    torch.autograd.backward([output.square().sum() for output in found])
    for one, other in zip(alone, joined, strict=True):
        for plain, own in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(own.grad, plain.grad)
        for plain, own in zip(one.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(own, plain)


def test_what_is_of_each_row_is_made_outside_of_rows_of_all_members():
    """Of what they share too, and where a member has no such tensor."""
    shared = torch.randn(5, 1)
    seen = []

    def work(rows: Tensor, more: Tensor | None, missing: Tensor | None) -> Tensor:
        seen.append((tuple(rows.shape), current(), missing))
        return rows.cumsum(dim=1) + more

    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return folded(work, x, shared, None)

    modules, inputs = [Rows() for _ in range(3)], [torch.randn(5, 4) for _ in range(3)]
    found = run([Part(module) for module in modules], [(x,) for x in inputs])
    assert seen == [((15, 4), None, None)]
    for x, output in zip(inputs, found, strict=True):
        torch.testing.assert_close(output, x.cumsum(dim=1) + shared)


class Pair(NamedTuple):
    first: Tensor
    rest: list[Tensor | None]


@dataclass(frozen=True)
class Named:
    by_name: dict[str, Tensor | int]
    pair: Pair


def test_containers_of_every_kind_are_each_members_own():
    """A context or a cached value may be a dictionary or a named tuple."""

    class Model(nn.Module):
        def forward(self, given: Named) -> dict[str, Any]:
            made = for_each(current(), lambda: [{"scale": torch.tensor(float(number))} for number in range(3)])
            total = given.by_name["x"] + given.pair.first + given.pair.rest[0]
            assert (given.by_name["number"], given.pair.rest[1]) == (7, None)
            return {"total": total * made["scale"], "pair": Pair(total, [])}

    def given(seed: int) -> Named:
        x, first, rest = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        return Named({"x": x, "number": 7}, Pair(first, [rest, None]))

    modules = [Model() for _ in range(3)]
    found = run([Part(module) for module in modules], [(given(seed),) for seed in range(3)])
    for seed, output in enumerate(found):
        own = given(seed)
        total = own.by_name["x"] + own.pair.first + own.pair.rest[0]
        torch.testing.assert_close(output["total"], total * seed)
        torch.testing.assert_close(output["pair"].first, total)


def test_noise_without_members_is_torchs_own():
    drawn = uniform((3, 2), torch.Generator().manual_seed(5), torch.device("cpu"))
    assert torch.equal(drawn, torch.rand(3, 2, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [(torch.float32, "cpu", True), (torch.float64, "cpu", True), (torch.bfloat16, "cpu", False), (torch.float32, "meta", False)],
)
def test_operators_in_place_are_for_plain_tensors_on_a_cpu(dtype, device, expected):
    x = torch.zeros(2, dtype=dtype, device=device)
    assert is_eager_on_cpu(x) is expected
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_eager_on_cpu(x)


def test_operators_in_place_leave_torchs_transforms_to_torch(monkeypatch):
    """Gradients per weight, and an ensemble of weights, as torch.func's users take them."""
    monkeypatch.setattr(products, "ONEDNN", True)
    monkeypatch.setattr(products, "SMALLEST", 1)
    x, weights = torch.randn(7, 6), torch.randn(3, 4, 6)
    of_weight = torch.func.grad(lambda weight: linear(x, weight).square().sum())(weights[0])
    torch.testing.assert_close(of_weight, 2 * (x @ weights[0].T).T @ x)
    ensemble = torch.func.vmap(lambda weight: linear(x, weight))(weights)
    torch.testing.assert_close(ensemble, torch.einsum("nc,kdc->knd", x, weights))
