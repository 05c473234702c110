"""The probe's look at a batch: clouds that see each other are found in every direction, however little they see."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pointsweep.planning.audit import LEAK
from pointsweep.planning.probe import _clouds, _examine_batch


class Model(nn.Module):
    """Clouds (B, P, 3) -> logits (B, 3), through a rule that mixes the features of a batch."""

    def __init__(self, mix) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.mix = nn.Linear(3, 16), nn.Linear(16, 3), mix

    def forward(self, points):
        return self.last(self.mix(torch.tanh(self.first(points)).amax(dim=1)))


def look(mix):
    return _examine_batch(Model(mix).eval(), [_clouds(3, 64)])


def weighted(other):
    """A share of what a rule makes of the batch, added to each cloud's own."""
    return lambda x: x + 0.01 * other(x)


LEAKS = {
    "mean": lambda x: x.mean(dim=0, keepdim=True).expand_as(x),
    "standard deviation": lambda x: x.std() * torch.ones_like(x),
    "the cloud before": lambda x: x.roll(1, dims=0),
    "the cloud behind": lambda x: x.roll(-1, dims=0),
    "the first": lambda x: x[:1].expand_as(x),
    "the last": lambda x: x[-1:].expand_as(x),
    "the cloud before, not around": lambda x: torch.cat([torch.zeros_like(x[:1]), x[:-1]]),
    "the cloud behind, not around": lambda x: torch.cat([x[1:], torch.zeros_like(x[:1])]),
}


def test_clouds_by_themselves_leak_nothing():
    _, leak, ignored = look(lambda x: x)
    assert leak < LEAK
    assert ignored == ()


@pytest.mark.parametrize("rule", LEAKS)
def test_a_cloud_that_sees_another_is_found_whichever_it_is(rule):
    assert look(weighted(LEAKS[rule]))[1] > LEAK


def test_a_cloud_whose_place_matters_is_found():
    assert look(lambda x: x + 0.5 * torch.arange(len(x)).unsqueeze(1))[1] > LEAK


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_cloud_that_has_no_say_in_its_own_logits_is_named(number):
    def mix(x):
        kept = torch.ones(len(x), 1)
        kept[number] = 0.0
        return x * kept

    assert number in look(mix)[2]


def test_the_amount_is_how_far_the_others_move_a_cloud_of_how_far_it_moves_itself():
    """Half of the first cloud's features are added to the second one's; logits are linear in features."""
    before, leak, _ = look(lambda x: x + 0.5 * torch.cat([torch.zeros_like(x[:1]), x[:1], torch.zeros_like(x[:1])]))
    plain = Model(lambda x: x).eval()
    with torch.no_grad():
        first, second, _ = plain(_clouds(3, 64)) - plain.last.bias
        new_first, new_second, _ = plain(2.0 * _clouds(3, 64, seed=2)) - plain.last.bias
    assert torch.allclose(before[1], second + 0.5 * first + plain.last.bias, atol=1e-6)
    by_the_first = (0.5 * (new_first - first)).abs().max()
    by_itself = (new_second - second).abs().max()
    assert leak == pytest.approx(float(by_the_first / by_itself), rel=1e-4)
