"""What every registered method must hold in every modality. A new method is tested here the moment it is registered."""

from __future__ import annotations

import pytest
import torch

from pointsweep.config import registry
from pointsweep.config.backbones import LibraryBackboneConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.point_model import build, load_trained_state, trained_state
from pointsweep.testing.method_contract import Cases, model, points

STARTS_AS_NOTHING = {
    "lora": {}, "full": {}, "adapter": {"kind": "adaptformer"}, "head_only": {}, "dora": {}, "ia3": {}, "peft": {},
}  # fmt: skip
CHECKS = [(name, check) for name in registry.names("methods") for check in Cases(name).checks()]
NOTHINGS = [
    (name, check)
    for name in STARTS_AS_NOTHING
    for check in Cases(name, starts_as_nothing=True).checks()
    if check.endswith("starts_as_nothing")
]


@pytest.mark.parametrize(("method", "check"), CHECKS)
def test_a_method_holds_the_contract(method, check):
    """The checks are those that the author of a plug-in runs; each is described where it stands."""
    Cases(method).checks()[check]()


@pytest.mark.parametrize(("method", "check"), NOTHINGS)
def test_a_method_that_starts_as_nothing_equals_head_only(method, check):
    Cases(method, starts_as_nothing=True, fields=STARTS_AS_NOTHING[method]).checks()[check]()


REAL = [
    (method, backbone)
    for method in registry.names("methods")
    for backbone in registry.names("backbones")
    if backbone != "tiny"
    and not issubclass(registry.config_class("backbones", backbone), LibraryBackboneConfig)
    and registry.config_class("backbones", backbone).modality in registry.config_class("methods", method).modalities
]


@pytest.mark.parametrize(("method", "backbone"), REAL)
def test_no_prediction_depends_on_another_sample_in_the_real_backbones_either(method, backbone):
    """Their structure (post-norm, layer scale, tables), with random weights and one block."""
    config = trial_from_dict({
        "dataset": "synthetic",
        "tokenizer": {"name": "point_pn_light", "num_tokens": 6, "neighbours": 6},
        "backbone": {"name": backbone, "weights": "random", "num_blocks": 1},
        "method": method,
    })  # fmt: skip
    try:
        made = build(config, 5).eval()
    except ValueError as error:
        pytest.skip(f"refused: {error}")
    made.method.prepare(made, [points(8, number) for number in range(3)])
    clouds = points()
    with torch.no_grad():
        before = made(clouds)
        clouds[2] = 3 * torch.randn(40, 3)
        after = made(clouds)
    torch.testing.assert_close(after[[0, 1, 3]], before[[0, 1, 3]], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after[2], before[2], atol=1e-6)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="saved weights do not fit the model"):
        load_trained_state(model("prompt", "1d"), trained_state(model("head_only", "1d")))
