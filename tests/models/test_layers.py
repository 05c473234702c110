"""The shared pieces against their formulas."""

from __future__ import annotations

import pytest
import torch

from pointsweep.models.layers import PairLinear, drawn, init_matrix
from pointsweep.ops.point_ops import gather


@pytest.mark.parametrize("relative", [False, True])
def test_a_pair_layer_equals_the_product_with_the_concatenation(relative):
    torch.manual_seed(0)
    made, x, own = PairLinear(3, 4, relative), torch.randn(2, 7, 3), torch.randn(2, 5, 3)
    near = torch.randint(7, (2, 5, 6))
    neighbour, center = gather(x, near), own.unsqueeze(2).expand(-1, -1, 6, -1)
    pairs = torch.cat([neighbour - center if relative else neighbour, center], dim=3)  # (B, G, K, 2C)
    torch.testing.assert_close(made(x, own, near), (pairs @ made.weight.t()).permute(0, 3, 1, 2))


@pytest.mark.parametrize("shape", [(3,), (1, 1, 48), (4, 10, 33)])
def test_drawn_numbers_are_those_of_randn_times_their_deviation(shape):
    torch.manual_seed(3)
    expected = torch.randn(shape) * 0.02
    torch.manual_seed(3)
    assert torch.equal(drawn(0.02, *shape), expected)


def test_matrices_start_as_the_programs_start_them():
    """Deviations by their formulas: 0.02, and sqrt(2 / (inputs + outputs)) of a uniform draw between its bounds."""
    torch.manual_seed(0)
    weight = torch.empty(300, 200)
    init_matrix(weight, "trunc_normal")
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert weight.abs().max() > 0.06  # a normal draw: three deviations and more
    for kind in ("xavier", "zero_up"):
        init_matrix(weight, kind)
        assert weight.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.02)
        assert weight.abs().max() <= (6 / 500) ** 0.5
