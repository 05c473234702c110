"""`compat: official` sees the other clouds of a batch exactly where the published programs do (spec 0, T1-T5); `fixed` never does."""

from __future__ import annotations

import pytest
import torch

from pointsweep.config import registry
from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.point_model import build
from pointsweep.testing.method_contract import POINTS, points
from pointsweep.testing.model_checks import settled

LIGHT = {"name": "point_pn_light", "num_tokens": 6, "neighbours": 6}
CASES = [  # what is built, and whether its official form leaks
    ("any2point", {"backbone": {"name": "clip_text"}, "tokenizer": LIGHT}, True),
    ("any2point", {"backbone": {"name": "clip_text"}, "tokenizer": LIGHT | {"normalisation": "mn40"}}, True),
    ("any2point", {"backbone": {"name": "dinov2"}, "tokenizer": LIGHT | {"normalisation": "mn40"}}, True),
    ("any2point", {"backbone": {"name": "imagebind_audio"}, "tokenizer": LIGHT | {"normalisation": "mn40"}}, True),
    ("any2point", {"backbone": {"name": "dinov2"}, "tokenizer": LIGHT}, False),
    ("point_peft", {"backbone": {"name": "point_mae"}, "tokenizer": {"name": "patch", "num_tokens": 6, "neighbours": 6}}, True),
    ("appt", {"backbone": {"name": "vit_in21k"}, "tokenizer": LIGHT, "head": {"pool": "mean_plus_max"}}, True),
]  # fmt: skip


def moved(config: TrialConfig) -> float:
    """By how much the other clouds' logits move, of what the replaced cloud's own do."""
    torch.manual_seed(0)
    made = build(config, 5)
    made.method.prepare(made, [points(8, number) for number in range(3)])
    made, clouds = settled(made, POINTS), points()
    with torch.no_grad():
        before = made(clouds)
        clouds[0] = 3 * torch.randn(40, 3, generator=torch.Generator().manual_seed(7))
        change = (made(clouds) - before).abs().amax(dim=1)
    return float(change[1:].max() / change[0])


def trial(method: str, parts: dict, compat: str) -> TrialConfig:
    backbone = parts["backbone"] | {"weights": "random", "num_blocks": 1}
    return trial_from_dict({"dataset": "synthetic", "method": method, "compat": compat} | parts | {"backbone": backbone})


@pytest.mark.parametrize(("method", "parts", "leaks"), CASES)
def test_official_leaks_where_the_published_program_does(method, parts, leaks):
    assert moved(trial(method, parts, "fixed")) < 1e-5
    found = moved(trial(method, parts, "official"))
    assert found > 1e-4 if leaks else found < 1e-5


def test_every_method_with_an_official_form_is_tested_here():
    forms = {name for name in registry.names("methods") if "official" in registry.config_class("methods", name).compats}
    assert forms == {method for method, _, _ in CASES}
