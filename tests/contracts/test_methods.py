"""What every registered method must hold in every modality. A new method is tested here the moment it is registered."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import functional as F

from pointsweep.config import registry
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.layers import set_noise
from pointsweep.models.point_model import build, load_trained_state, trained_state

CASES = [(name, modality) for name in registry.names("methods") for modality in registry.config_class("methods", name).modalities]
STARTS_AS_NOTHING = {
    "lora": {}, "full": {}, "adapter": {"kind": "adaptformer"}, "head_only": {}, "dora": {}, "ia3": {}, "peft": {},
}  # fmt: skip


def model(method: str, modality: str, seed: int = 0, **fields) -> torch.nn.Module:
    config = trial_from_dict({
        "dataset": "synthetic",
        "tokenizer": {"name": "patch" if modality == "3d" else "point_pn_light", "num_tokens": 6, "neighbours": 6},
        "backbone": {"name": "tiny", "modality": modality},
        "method": {"name": method, **fields},
        "seed": seed,
    })  # fmt: skip
    made = build(config, 5)
    made.method.prepare(made, [points(8, number) for number in range(3)])
    set_noise(made, torch.Generator().manual_seed(0))
    return made


def points(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 40, 3, generator=torch.Generator().manual_seed(seed)) * 0.5


def settle(made: torch.nn.Module) -> torch.nn.Module:
    """Batch norms with statistics of real batches, and weights that are not at a special start."""
    made.train()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        for seed in range(3):
            made(points(8, seed))
    return made.eval()


@pytest.mark.parametrize(("method", "modality"), CASES)
def test_no_prediction_depends_on_another_sample(method, modality):
    made, clouds = settle(model(method, modality)), points()
    before = made(clouds)
    clouds[2] = 3 * torch.randn(40, 3)
    after = made(clouds)
    others = [0, 1, 3]
    torch.testing.assert_close(after[others], before[others], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after[2], before[2], atol=1e-3)


REAL = [
    (method, backbone)
    for method in registry.names("methods")
    for backbone in registry.names("backbones")
    if backbone != "tiny"
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


# Weights whose gradient is zero by construction: what is added to every key adds the same to every logit of a softmax, and what is
# added to every channel, or in front of a batch normalisation, is taken out by it (APPT's published model trains one that is dead).
WITHOUT_GRADIENT = re.compile(
    r"(\.k\.bias|\.k\.1\.shift|^method\.mix\.bias|^method\.local\.\d+\.out\.bias|^norm\.bias|^norm\.1\.shift"
    r"|^tokenizer\.stages\..*\.layers\.[03]\.bias|\.first_conv\.[03]\.bias|\.second_conv\.0\.bias)$"
)


@pytest.mark.parametrize(("method", "modality"), CASES)
def test_a_step_reaches_every_trained_weight_and_no_frozen_one(method, modality):
    made = model(method, modality).double().train()
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    trained = {name for name, p in made.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.1)
    labels = torch.tensor([0, 1, 2, 3])
    for _ in range(3):  # LoRA's A gets a gradient only once B has moved, PointGST's norms once two layers have
        optimizer.zero_grad()
        F.cross_entropy(made(points().double()), labels).backward()
        optimizer.step()
    after = dict(made.named_parameters())
    assert all(after[name].grad is not None for name in trained), [n for n in trained if after[n].grad is None]
    largest = max(float(after[name].grad.abs().max()) for name in trained)
    # Zero but for rounding, which differs between processors: in double precision that is plain to see.
    flat = {name for name in trained if float(after[name].grad.abs().max()) <= 1e-12 * largest}
    assert not {name for name in flat if not WITHOUT_GRADIENT.search(name)}, flat
    assert not {name for name in trained - flat if torch.equal(after[name], before[name])}
    assert all(torch.equal(after[name], before[name]) for name in before if name not in trained)


@pytest.mark.parametrize(("method", "modality"), [case for case in CASES if case[0] in STARTS_AS_NOTHING])
def test_a_method_that_starts_as_nothing_equals_head_only(method, modality):
    plain, made = (
        model(name, modality, **fields).eval() for name, fields in (("head_only", {}), (method, STARTS_AS_NOTHING[method]))
    )
    state = {name: value for name, value in trained_state(made).items() if name in trained_state(plain)}
    load_trained_state(plain, state)
    torch.testing.assert_close(made(points()), plain(points()))


@pytest.mark.parametrize(("method", "modality"), CASES)
def test_the_same_seed_builds_the_same_model_and_another_seed_another(method, modality):
    first, again, other = (trained_state(model(method, modality, seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("method", "modality"), CASES)
def test_trained_state_carries_a_model_over(method, modality):
    made, copy = settle(model(method, modality)), model(method, modality, seed=5).eval()
    load_trained_state(copy, {name: value.clone() for name, value in trained_state(made).items()})
    assert torch.equal(made(points()), copy(points()))


@pytest.mark.parametrize(("method", "modality"), CASES)
def test_the_order_of_the_points_does_not_matter_behind_the_first(method, modality):
    made, clouds = settle(model(method, modality)), points()
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(39, generator=torch.Generator().manual_seed(2))])
    torch.testing.assert_close(made(clouds[:, order]), made(clouds), atol=1e-4, rtol=1e-4)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="saved weights do not fit the model"):
        load_trained_state(model("prompt", "1d"), trained_state(model("head_only", "1d")))
