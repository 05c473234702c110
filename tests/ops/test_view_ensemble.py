"""Any2Point's views as one operator: against the plain layers, against finite differences, and between runs."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pointsweep.models.methods.any2point import CellNorm
from pointsweep.ops.cells import Cells, cells_of
from pointsweep.ops.view_ensemble import Norm, evaluation, training

B, M, N, E, C = 3, 4, 7, 5, 6
NAMES = ("tokens", "mixed", "last", "guide", "weight", "bias")


def inputs(mixed: int = E, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "tokens": (B, N, C),
        "mixed": (B, M, N, mixed),
        "last": (M, mixed, C),
        "guide": (B, N, C),
        "weight": (M, C),
        "bias": (M, C),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    }


def cells(count: int | None = 5) -> Cells:
    """Shares in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return cells_of(torch.randint(0, 5, (B, M, N), generator=torch.Generator().manual_seed(1)), count)
    finally:
        torch.set_default_dtype(before)


def fast(parts: dict[str, torch.Tensor], grid: Cells) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    norm = Norm(parts["weight"], parts["bias"], 1e-5)
    return training(parts["tokens"], grid.mean(parts["mixed"]), parts["last"], parts["guide"], norm, grid)


def slow(parts: dict[str, torch.Tensor], grid: Cells) -> torch.Tensor:
    """Cell by cell: torch's own batch norm over a tensor of all cells, its GELU and its cosine."""
    views = []
    y = parts["tokens"].unsqueeze(1) + parts["mixed"] @ parts["last"]
    number = int(grid.count) // B
    for j in range(M):
        rows, at = [], {}
        for b in range(B):
            for cell in sorted(set(grid.first[b, j].tolist())):
                at[b, cell] = len(rows)
                rows.append(y[b, j][grid.first[b, j] == cell].mean(dim=0))
        rows += [torch.zeros(C, dtype=y.dtype)] * (number * B - len(rows))
        normed = F.batch_norm(torch.stack(rows), None, None, parts["weight"][j], parts["bias"][j], training=True)
        views.append(
            torch.stack([torch.stack([F.gelu(normed[at[b, int(grid.first[b, j, i])]]) for i in range(N)]) for b in range(B)])
        )
    weights = torch.stack([(F.cosine_similarity(view, parts["guide"], dim=2) + 1) / 2 for view in views])
    weights = weights / weights.sum(dim=0)
    return sum(w.unsqueeze(2) * view for w, view in zip(weights, views, strict=True))


@pytest.mark.parametrize("mixed", [E, 0], ids=["attention", "no attention"])
def test_outputs_and_gradients_equal_layers_written_cell_by_cell(mixed):
    parts, grid = inputs(mixed), cells()
    towards = torch.randn(B, N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found, *_ = fast(parts, grid)
    expected = slow(parts, grid)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    used = list(parts.values()) if mixed else [parts[name] for name in NAMES if name not in ("mixed", "last")]
    for own, plain in zip(torch.autograd.grad(found, used, towards), torch.autograd.grad(expected, used, towards), strict=True):
        torch.testing.assert_close(own, plain, atol=1e-11, rtol=1e-8)


def test_gradients_are_those_of_finite_differences():
    grid = cells()
    assert torch.autograd.gradcheck(lambda *tensors: fast(dict(zip(NAMES, tensors, strict=True)), grid)[0], tuple(inputs().values()))


def test_single_precision_is_as_near_to_double_as_the_plain_layers_are():
    grid = cells()
    exact = slow(inputs(), grid)
    single = inputs(dtype=torch.float32)
    own = (fast(single, grid)[0] - exact).abs().max()
    plain = (slow(single, grid) - exact).abs().max()
    assert own < 2 * plain + 1e-6


def test_statistics_are_those_of_the_cells_and_evaluation_uses_those_it_is_given():
    parts, grid = inputs(), cells()
    found, mean, variance = fast(parts, grid)
    norm = CellNorm(M, C).double()
    norm(grid.mean(parts["tokens"].unsqueeze(1)) + grid.mean(parts["mixed"]) @ parts["last"], grid)
    torch.testing.assert_close(norm.by_view(norm.running_mean), 0.1 * mean)
    count = grid.count.item()
    torch.testing.assert_close(norm.by_view(norm.running_var), 0.9 + 0.1 * variance * count / (count - 1))
    settings = Norm(parts["weight"], parts["bias"], 1e-5)
    again = evaluation(parts["tokens"], grid.mean(parts["mixed"]), parts["last"], parts["guide"], settings, grid, mean, variance)
    torch.testing.assert_close(again, found.detach())


def test_a_view_and_a_guide_of_zeros_have_finite_gradients():
    parts = {name: torch.zeros_like(tensor, requires_grad=True) for name, tensor in inputs().items()}
    found, *_ = fast(parts, cells())
    found.sum().backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in parts.values())


@pytest.mark.parametrize("tiny", ["views", "guide"])
def test_a_vector_shorter_than_the_limit_pulls_by_its_product_alone(tiny):
    """Its length counts as 1e-8, a constant: written out with `clamp`, which has that gradient."""
    parts, grid = inputs(), cells()
    with torch.no_grad():
        for name in ("weight", "bias") if tiny == "views" else ("guide",):
            parts[name].mul_(1e-10)
    towards = torch.randn(B, N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def plain() -> torch.Tensor:
        pooled = grid.average @ parts["tokens"].unsqueeze(1) + grid.average @ parts["mixed"] @ parts["last"]
        share = grid.share.unsqueeze(3)
        mean = (pooled * share).sum(dim=(0, 2)) / grid.count
        empty = grid.count - grid.share.sum(dim=(0, 2)).unsqueeze(1)
        spread = ((pooled - mean.unsqueeze(1)) ** 2 * share).sum(dim=(0, 2)) + empty * mean**2
        normed = (pooled - mean.unsqueeze(1)) / (spread / grid.count + 1e-5).sqrt().unsqueeze(1)
        views = F.gelu(normed * parts["weight"].unsqueeze(1) + parts["bias"].unsqueeze(1))
        lengths = views.norm(dim=3).clamp(min=1e-8) * parts["guide"].norm(dim=2).clamp(min=1e-8).unsqueeze(1)
        weights = ((views * parts["guide"].unsqueeze(1)).sum(dim=3) / lengths + 1) / 2
        weights = weights / weights.sum(dim=1, keepdim=True)
        return (weights.unsqueeze(3) * views).sum(dim=1)

    found, expected = fast(parts, grid)[0], plain()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-20)
    gradients = [torch.autograd.grad(output, list(parts.values()), towards) for output in (found, expected)]
    for own, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(own, exact, rtol=1e-7, atol=1e-9 * exact.abs().max().item())


def test_every_run_gives_the_same_bits():
    def once() -> list[torch.Tensor]:
        parts = inputs(dtype=torch.float32)
        found, *_ = fast(parts, cells())
        return [found, *torch.autograd.grad(found.square().sum(), list(parts.values()))]

    assert all(torch.equal(first, second) for first, second in zip(once(), once(), strict=True))
