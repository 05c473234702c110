"""What members run as one is what each runs alone: logits, gradients, statistics, noise; for every kind of arm."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch
from torch import nn

from pointsweep.config.validation import trial_from_dict
from pointsweep.models.layers import Bottleneck, Dropout, set_noise
from pointsweep.ops import vmap as joint
from pointsweep.training.fusion.coroutines import backward, run_together
from pointsweep.training.fusion.pack import SharedBackbone
from tests.training.test_pack import config

PARTS = {"name": "synthetic_parts", "num_points": 64, "presample": 64}
ROOMS = {"name": "synthetic_rooms", "num_points": 64, "presample": 64}
PN = {"name": "point_pn", "num_tokens": 4, "neighbours": 4, "embed_dim": 6}
MN40 = {"name": "point_pn_light", "num_tokens": 6, "neighbours": 6, "normalisation": "mn40"}
GATED = {"name": "point_peft", "prompt_kind": "gated", "adapter_gate": True, "local_pool": "max_mean"}
ARMS = [  # method, modality, other sections
    ({"name": "any2point", "ensemble": "maxmean", "cell_pooling": "mean_max", "bn_nonempty_only": True}, "2d", {}),
    ({"name": "any2point", "local_space": "3d", "ensemble": "mean"}, "1d", {"positions": {"injection": "each_block"}}),
    ({"name": "any2point", "adapter": "mlp"}, "1d", {"positions": {"kind": "learnable"}, "head": {"kind": "one_layer"}}),
    ("any2point", "1d", {"compat": "official", "tokenizer": MN40}),
    ({"name": "adapter", "kind": "houlsby"}, "1d", {"positions": {"kind": "sinusoidal"}}),
    ({"name": "adapter", "kind": "adaptformer"}, "3d", {"backbone": {"attention_dropout": 0.1, "drop_path": 0.2}}),
    ({"name": "lora", "targets": ["q", "k", "v", "out", "fc1", "fc2"]}, "2d", {"positions": {"injection": "twice_then_each"}}),
    ({"name": "prompt", "depth": "shallow"}, "1d", {"positions": {"kind": "none"}}),
    ("appt", "2d", {"tokenizer": PN, "compat": "official", "head": {"pool": "mean_plus_max"}}),
    ({"name": "appt", "prompt_update": "per_block", "accumulate": False}, "1d", {"tokenizer": PN, "dataset": PARTS}),
    ({"name": "appt", "prompt_source": "learnable", "position_feature": False}, "3d", {}),
    ({"name": "dapt", "dynamic_scale": False, "prompts": False}, "3d", {"dataset": PARTS}),
    ("idpt", "3d", {"dataset": PARTS}),
    (GATED, "3d", {}),
    ("point_peft", "3d", {"compat": "official"}),
    ("point_peft", "3d", {"dataset": PARTS}),
    ("lora", "3d", {"dataset": ROOMS}),
    ({"name": "point_peft", "exclude_self": True, "bank": False}, "3d", {}),
]  # fmt: skip


def arm(method, modality, sections, seed):
    whole = config(method, modality, seed).to_dict()
    for name, section in sections.items():
        inside = isinstance(section, dict) and "name" not in section
        whole[name] = {**(whole[name] or {}), **section} if inside else section
    if "head" not in sections:
        whole["head"] = {"segmentation_widths": [16, 16, 12, 8]}
    return trial_from_dict(whole)


def step(shared, trial):
    """The model of a trial after one training forward and backward pass and one evaluation; its logits."""
    draws = torch.Generator().manual_seed(50 + trial.seed)
    torch.manual_seed(trial.seed)
    model = shared.build(trial, 5).train()
    points = torch.rand(4, 64, 3, generator=draws, dtype=torch.get_default_dtype())
    model.method.prepare(model, [points, points + 0.1])
    set_noise(model, torch.Generator().manual_seed(100 + trial.seed))
    inputs = [points, torch.arange(4) % 2] if trial.dataset.num_categories else [points]
    logits = model(*inputs)
    backward(logits.square().mean())
    with torch.no_grad():
        return model, [logits.detach(), model.eval()(*inputs)]


def assert_one_is_alone(configs):
    shared = SharedBackbone(configs[0].backbone, torch.device("cpu"))
    alone = [step(shared, one) for one in configs]
    for (a, logits), (b, others) in zip(
        alone, run_together([functools.partial(step, shared, one) for one in configs], 1), strict=True
    ):
        torch.testing.assert_close(others, logits, rtol=1e-9, atol=1e-9)
        for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None:
                torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
        for (name, p), q in zip(a.named_buffers(), b.buffers(), strict=True):
            torch.testing.assert_close(q, p, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.filterwarnings("error:There is a performance drop")  # what vmap would do in a loop
@pytest.mark.parametrize(("method", "modality", "sections"), ARMS)
def test_arms_run_as_one_are_what_they_are_alone(double, joined, method, modality, sections):
    assert_one_is_alone([arm(method, modality, sections, seed) for seed in range(3)])
    # Point-PEFT's program trains the statistics of its embedding: there every member computes alone.
    alone = method == "point_peft" and sections.get("compat") == "official"
    assert joined == ([] if alone else [3, 3] * 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("backbone", [
    "clip_text", "roberta", "bert", "t5", "minilm", "dinov2", "deit", "clip_vision", "vit_mnist", "imagebind_audio", "ssast", "kwt1",
    "point_mae", "point_bert", "point_m2ae",
])  # fmt: skip
def test_on_every_backbone_too(double, joined, backbone):
    """Of structure alone: biases in the attention (T5, Point-M2AE), norms behind the branches (BERT), scales (Point-M2AE)."""
    scales = backbone == "point_m2ae"
    sections = {
        "backbone": {"name": backbone, "weights": "random", "num_blocks": 7 if scales else 2}
        | ({"scale_tokens": [4, 2], "scale_neighbours": [3, 2]} if scales else {}),
        "tokenizer": {"name": "patch" if backbone.startswith("point") else "point_pn_light", "num_tokens": 8, "neighbours": 6},
    }
    assert_one_is_alone([arm("adapter", "1d", sections, seed) for seed in range(2)])
    assert joined == [2, 2] * 2


def test_a_heavy_tokenizer_is_each_members_own(double, joined, monkeypatch):
    """Where its kernels are larger than their launches, or its stages are computed again; what is behind it is joined."""
    monkeypatch.setattr("pointsweep.training.fusion.pack.LIGHT", 4 * 6 * 6 * 48 - 1)
    assert_one_is_alone([config("adapter", seed=seed) for seed in range(2)])
    assert joined == [2] * 2


def test_members_of_two_structures_run_in_two_groups(double, joined):
    """Their tokenizers are alike, and so are their frozen blocks."""
    assert_one_is_alone([config(method, seed=seed) for seed in range(2) for method in ("adapter", "lora")])
    assert joined == [4, 2, 2] * 2


def test_a_members_model_is_let_go_of_at_once(double, joined):
    """Its memory on a GPU must not wait for the garbage collector."""
    configs = [config("adapter", seed=seed) for seed in range(2)]
    shared = SharedBackbone(configs[0].backbone, torch.device("cpu"))
    gc.collect()
    gc.disable()
    try:
        made = run_together([functools.partial(step, shared, one) for one in configs], 1)
        left = weakref.ref(made.pop(0)[0])
        assert left() is None
    finally:
        gc.enable()
    assert joined == [2, 2] * 2


def bottlenecks():
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        made.append(nn.Sequential(Bottleneck(6, 4, 0.5), nn.BatchNorm1d(6)))
        set_noise(made[-1], torch.Generator().manual_seed(seed))
    return made


def test_parameters_statistics_and_gradients_are_rows_of_one_memory():
    """Nothing is copied from a member to the stack or back, whoever of them runs together."""
    modules, inputs = bottlenecks(), [torch.randn(5, 6) for _ in range(3)]
    expected = [module(x) for module, x in zip(bottlenecks(), inputs, strict=True)]
    parts = [joint.Part(module) for module in modules]
    before = [id(p) for module in modules for p in module.parameters()]
    for group in ([0, 1, 2], [2, 0], [0, 1, 2]):
        found = joint.run([parts[i] for i in group], [(inputs[i],) for i in group])
        if group == [0, 1, 2] and expected:
            torch.testing.assert_close(found, expected)
            expected = []
    torch.autograd.backward([one.square().sum() for one in found])
    assert [id(p) for module in modules for p in module.parameters()] == before
    for name in ("weight", "running_mean", "num_batches_tracked"):
        first, second = (getattr(module[1], name) for module in modules[:2])
        assert second.data_ptr() - first.data_ptr() == first.nbytes
    gradients = [module[0][0].weight.grad for module in modules]
    assert gradients[1].data_ptr() - gradients[0].data_ptr() == gradients[0].nbytes
    assert [int(module[1].num_batches_tracked) for module in modules] == [3, 2, 3]


def test_what_one_member_has_wrong_leaves_the_others_alone():
    """Of what is not a number nothing comes to another row."""
    modules, inputs = bottlenecks(), [torch.randn(5, 6) for _ in range(3)]
    with torch.no_grad():
        modules[1][0][0].weight.fill_(float("nan"))
    found = joint.run([joint.Part(module) for module in modules], [(x,) for x in inputs])
    torch.autograd.backward([one.sum() for one in found])
    assert [bool(one.isfinite().all()) for one in found] == [True, False, True]
    assert [bool(module[0][3].weight.grad.isfinite().all()) for module in modules] == [True, False, True]


def test_noise_comes_from_each_members_own_generator():
    made = []
    for seed in range(2):
        made.append(Dropout(0.5))
        set_noise(made[-1], torch.Generator().manual_seed(seed))
    found = joint.run([joint.Part(module) for module in made], [(torch.ones(4, 4),)] * 2)
    for seed, one in enumerate(found):
        drawn = torch.rand(4, 4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(one, (drawn >= 0.5) * 2.0)
