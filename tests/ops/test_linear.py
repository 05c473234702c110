"""Products by oneDNN: against double precision, torch's linear layer and its gradients, where the processor would take MKL's too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.models.layers import Linear
from pointsweep.ops import linear as products
from pointsweep.ops.linear import linear, product, transposed_product


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch):
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "ONEDNN", True)
    torch.manual_seed(0)


def near(found: Tensor, exact: Tensor) -> None:
    """Within rounding of the largest value."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-6 * exact.abs().max().item())


def test_products_are_those_of_double_precision():
    rows, weight, bias, others = torch.randn(300, 40), torch.randn(24, 40), torch.randn(24), torch.randn(300, 7)
    expected = torch.einsum("nc,dc->nd", rows.double(), weight.double())
    near(product(rows, weight.t()), expected)
    near(product(rows, weight.t(), bias), expected + bias)
    near(transposed_product(rows, others), torch.einsum("nc,nd->cd", rows.double(), others.double()))


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_torch_in_double_precision(bias):
    x, weight, towards = torch.randn(5, 33, 96), torch.randn(128, 96), torch.randn(5, 33, 128)
    shift = torch.randn(128) if bias else None

    def values(of, dtype: torch.dtype) -> list[Tensor]:
        given = [tensor.to(dtype).requires_grad_() for tensor in (x, weight, shift) if tensor is not None]
        output = of(*given)
        return [output.detach(), *torch.autograd.grad(output, given, towards.to(dtype))]

    for found, exact in zip(values(linear, torch.float32), values(F.linear, torch.float64), strict=True):
        near(found, exact)


def test_a_vector_has_gradients_too():
    x, weight = torch.randn(1024, requires_grad=True), torch.randn(1024, 1024, requires_grad=True)
    towards = torch.randn(1024)
    of_x, of_weight = torch.autograd.grad(linear(x, weight), (x, weight), towards)
    near(of_x, (towards.double() @ weight.double()).detach())
    near(of_weight, torch.outer(towards.double(), x.double()).detach())


def test_a_gradient_can_be_differentiated_again():
    x, weight = torch.randn(64, 96, requires_grad=True), torch.randn(256, 96, requires_grad=True)

    def second(of) -> tuple[Tensor, ...]:
        (of_x,) = torch.autograd.grad(of(x, weight).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(of_x.square().sum(), (x, weight))

    for found, plain in zip(second(linear), second(F.linear), strict=True):
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-5 * plain.abs().max().item())


@pytest.mark.parametrize("case", ["few multiplications", "double precision", "autocast", "meta"])
def test_all_else_is_torchs_own(case, monkeypatch):
    """What oneDNN does not take reaches `F.linear`, bit for bit."""
    monkeypatch.setattr(products, "_by_onednn", lambda *_: pytest.fail("oneDNN was asked"))
    rows = 4 if case == "few multiplications" else 400
    dtype = torch.float64 if case == "double precision" else torch.float32
    device = "meta" if case == "meta" else "cpu"
    x, weight = torch.randn(rows, 64, dtype=dtype, device=device), torch.randn(64, 64, dtype=dtype, device=device)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        found, expected = linear(x, weight), F.linear(x, weight)
    assert found.shape == expected.shape
    assert case == "meta" or torch.equal(found, expected)


@pytest.mark.parametrize("which", ["x", "weight"])
def test_what_has_gaps_is_copied_first(which, monkeypatch):
    """oneDNN takes seconds for a view of some columns, where a copy and the product take milliseconds."""
    handed = []
    call = torch.ops.mkldnn._linear_pointwise

    def noted(x: Tensor, weight: Tensor, *more) -> Tensor:
        handed.extend([x, weight])
        return call(x, weight, *more)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", noted)
    wide = {"x": torch.randn(512, 200), "weight": torch.randn(64, 200)}
    parts = {name: tensor[:, 100:] if name == which else tensor[:, 100:].clone() for name, tensor in wide.items()}
    found = linear(parts["x"], parts["weight"])
    assert all(tensor.is_contiguous() for tensor in handed)
    near(found, parts["x"].double() @ parts["weight"].double().t())


def test_a_layer_takes_over_the_tensors_of_torchs_own():
    for bias in (True, False):
        plain = nn.Linear(64, 256, bias=bias)
        layer = Linear.of(plain)
        assert layer.weight is plain.weight
        assert layer.bias is plain.bias
        x = torch.randn(128, 64)
        torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=2e-6 * plain(x).abs().max().item())


def test_two_runs_give_the_same_bits():
    x, weight = torch.randn(128, 96), torch.randn(256, 96)
    assert torch.equal(linear(x, weight), linear(x, weight))
