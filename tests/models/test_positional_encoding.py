"""Positional encodings: tables looked up at places, averaged over views, and the alternatives of Any2Point's Table 4."""

from __future__ import annotations

import math

import pytest
import torch

from pointsweep.config.backbones import TinyConfig
from pointsweep.config.parts import PositionsConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.backbones.base import lookup_line, lookup_plane
from pointsweep.models.backbones.tiny import Tiny
from pointsweep.models.point_model import PointModel
from pointsweep.models.positional_encoding import Positions, sine_table


def backbone(modality: str) -> Tiny:
    made = Tiny(TinyConfig(name="tiny", modality=modality))
    made.load()
    return made


def positions(modality: str = "1d", **fields) -> Positions:
    torch.manual_seed(0)
    return Positions(PositionsConfig(**fields), backbone(modality), num_tokens=5, compat="fixed")


CENTERS = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1)) * 0.4


def test_a_language_models_512_places_are_found_in_bf16_too():
    """A place that is rounded to bf16 lies beyond the last row of the table."""
    made = trial_from_dict({
        "dataset": "synthetic", "tokenizer": {"name": "patch", "num_tokens": 4, "neighbours": 4},
        "backbone": {"name": "minilm", "weights": "random", "num_blocks": 1}, "method": "any2point",
    })  # fmt: skip
    model = PointModel(made, 3).eval()
    points = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(points)
    assert (logits - model(points)).abs().max() < 0.05 * logits.abs().max()  # 8 bits, through 7 products and norms


def test_a_line_table_is_interpolated_linearly():
    table = torch.tensor([[0.0], [10.0], [30.0]])
    assert lookup_line(table, torch.tensor([0.0, 0.25, 1.0, 1.5, 2.0])).flatten().tolist() == pytest.approx([0, 2.5, 10, 20, 30])


def test_a_plane_table_is_interpolated_bilinearly():
    table = torch.tensor([[[0.0], [1.0]], [[10.0], [11.0]]])  # rows, columns
    places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])  # (column, row)
    assert lookup_plane(table, places).flatten().tolist() == pytest.approx([0, 1, 10, 5.5], abs=1e-5)


@pytest.mark.parametrize("modality", ["1d", "2d"])
def test_virtual_encodings_are_the_mean_over_views(modality: str):
    six = positions(modality)
    places = six.project(CENTERS)
    assert places is not None
    one_by_one = [six(CENTERS, places[:, view : view + 1]) for view in range(6)]
    torch.testing.assert_close(six(CENTERS, places), torch.stack(one_by_one).mean(dim=0))


@torch.no_grad()
def test_scrambled_encodings_are_those_of_the_program_and_may_be_chosen_alone():
    """T41: (C, N) a view is reshaped to (N, C), so token n has channels of all tokens."""
    ordered, scrambled = positions("2d"), positions("2d", scrambled=True)
    places = ordered.project(CENTERS)
    by_view = torch.stack([ordered(CENTERS, places[:, view : view + 1]) for view in range(6)], dim=1)  # (B, M, N, C)
    expected = torch.stack([torch.stack([view.t().reshape(5, -1) for view in cloud]).mean(dim=0) for cloud in by_view])
    torch.testing.assert_close(scrambled(CENTERS, places), expected)
    assert (expected - ordered(CENTERS, places)).abs().max() > 1e-3
    for chosen, same in ((None, scrambled), (False, ordered)):
        official = Positions(PositionsConfig(scrambled=chosen), backbone("2d"), num_tokens=5, compat="official")
        torch.testing.assert_close(official(CENTERS, places), same(CENTERS, places))


def test_the_two_ends_of_the_line_meet_different_ends_of_the_table():
    """Spec 2.3 under `fixed`: u = 0 stands at 0, u = 1 at (77 - 0.5) * 76 / 77 of 76."""
    line = positions(num_views=1)
    centers = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
    places = line.project(centers)
    assert places is not None
    assert sorted(places.flatten().tolist()) == [0, 76.5]
    table, low = line.encode.__self__.table, int(places[0, 0].argmin())
    found = line(centers, places)[0]
    torch.testing.assert_close(found[low], table[0])
    share = 76.5 * 76 / 77 - 75
    torch.testing.assert_close(found[1 - low], (1 - share) * table[75] + share * table[76], atol=1e-4, rtol=1e-4)


def test_the_published_interpolation_gives_nothing_at_whole_numbers():
    """T8: there the places before and behind are one, and both weights are zero."""
    made = Positions(PositionsConfig(), backbone("1d"), num_tokens=5, compat="official")
    table = made.encode.__self__.table
    found = made._official_line(0, torch.tensor([[[76.0, 2.25, 0.0]]]))  # the extremes are those of the table
    expected = torch.stack([torch.zeros_like(table[0]), 0.75 * table[2] + 0.25 * table[3], torch.zeros_like(table[0])])
    torch.testing.assert_close(found[0, 0], expected)


def test_a_3d_backbone_encodes_the_centres_themselves():
    made = positions("3d")
    assert made.project(CENTERS) is None
    torch.testing.assert_close(made(CENTERS, None), made.encode.__self__.stem.places[0](CENTERS))


def test_the_alternatives():
    assert positions(kind="none")(CENTERS, None) is None
    learned = positions(kind="learnable")
    assert [tuple(p.shape) for p in learned.parameters()] == [(1, 5, 48)]
    sines = positions(kind="sinusoidal")(CENTERS, None)
    assert sines is not None
    assert float(sines[0, 3, 0]) == pytest.approx(math.sin(3))
    assert float(sines[1, 3, 1]) == pytest.approx(math.cos(3))
    assert float(sine_table(5, 48)[2, 4]) == pytest.approx(math.sin(2 / 10000 ** (4 / 48)), abs=1e-6)


@pytest.mark.parametrize(
    ("injection", "start", "blocks"), [("once", True, False), ("each_block", False, True), ("twice_then_each", True, True)]
)
def test_where_encodings_are_added(injection: str, start: bool, blocks: bool):
    made = positions(injection=injection)
    assert (made.at_start, made.at_every_block) == (start, blocks)


def test_uniform_views_are_refused_on_a_plane():
    assert positions(view_set="uniform", num_views=9).views.shape == (9, 3)
    with pytest.raises(ValueError, match=r"positions.view_set: uniform views exist on lines"):
        positions("2d", view_set="uniform")
