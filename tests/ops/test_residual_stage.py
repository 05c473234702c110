"""A stage by rows against the plain layers: outputs, gradients and statistics, in single and double precision."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pointsweep.config.tokenizers import PointPNLightConfig
from pointsweep.models.layers import Residual
from pointsweep.models.tokenizers import PointPNLight, Stage
from pointsweep.ops import linear, residual_stage
from pointsweep.ops.point_ops import gather
from pointsweep.training.data_parallel import synchronise

# B, P, G, K, C, middle widths
SHAPES = {
    "one block": (2, 24, 8, 5, 6, (4,)),
    "two blocks": (3, 17, 7, 4, 12, (12, 12)),
    "three blocks": (2, 9, 5, 3, 6, (6, 2, 4)),
    "one centre": (2, 5, 1, 5, 3, (3, 3)),
    "one neighbour": (4, 8, 8, 1, 6, (6,)),
    "one cloud": (1, 11, 3, 7, 9, (5,)),
}


def inputs(shape, dtype=torch.float64, seed=0) -> tuple[Tensor, Tensor, Tensor, Tensor, Stage]:
    """Features and own, not contiguous; near; encodings (B, G, K, 2C); a stage whose norms have been moved."""
    clouds, points, centres, neighbours, half, middles = shape
    torch.manual_seed(seed)
    features = torch.randn(clouds, half, points, dtype=dtype).transpose(1, 2).requires_grad_()
    own = torch.randn(clouds, centres + 2, half, dtype=dtype)[:, :centres].detach().requires_grad_()
    near = torch.stack([torch.randperm(points)[:neighbours] for _ in range(clouds * centres)])
    encoding = torch.randn(clouds, centres, neighbours, 2 * half, dtype=dtype)
    stage = Stage(*(Residual(2 * half, middle) for middle in middles)).to(dtype)
    for norm in norms_of(stage):
        nn.init.normal_(norm.weight, 1, 0.5)
        nn.init.normal_(norm.bias, 0, 0.5)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return features, own, near.view(clouds, centres, neighbours), encoding, stage


def norms_of(stage: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]


def plain(features: Tensor, own: Tensor, near: Tensor, encoding: Tensor, stage: Stage) -> Tensor:
    neighbour = gather(features, near)
    wide = torch.cat([neighbour, own.unsqueeze(2).expand_as(neighbour)], dim=3) + encoding
    return stage(wide.permute(0, 3, 1, 2)).amax(dim=3).transpose(1, 2)


def by_rows(features: Tensor, own: Tensor, near: Tensor, encoding: Tensor, stage: Stage) -> Tensor:
    return stage.rows(features, own, near, lambda first, last: encoding.flatten(0, 1)[first:last].flatten(0, 1))


def looked_at(work, features, own, near, encoding, stage) -> dict[str, Tensor]:
    """All that a step sees of a stage: its output, every gradient, and the running statistics behind it."""
    stage = copy.deepcopy(stage)
    found = work(features, own, near, encoding, stage)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    trained = {"features": features, "own": own, **dict(stage.named_parameters())}
    gradients = torch.autograd.grad(found, list(trained.values()), weights.to(found.dtype))
    return {"output": found.detach(), **dict(zip(trained, gradients, strict=True)), **dict(stage.named_buffers())}


@pytest.fixture(params=[1, 1 << 9, 1 << 20])
def slices(request, monkeypatch):
    """One centre a slice, some, and all of a cloud."""
    monkeypatch.setattr(residual_stage, "SLICE_BYTES", request.param)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_a_training_step_is_the_plain_one(shape):
    given = inputs(shape)
    expected, found = looked_at(plain, *given), looked_at(by_rows, *given)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("by_onednn", [True, False])
@pytest.mark.parametrize("shape", [(4, 64, 32, 20, 24, (24, 24)), (4, 64, 32, 20, 48, (16,))])
def test_single_precision_is_as_near_to_double_as_the_plain_form(monkeypatch, shape, by_onednn):
    """The plain form's own error is the measure; where it is tiny, a millionth of the tensor's size."""
    if by_onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(linear, "ONEDNN", by_onednn)
    *tensors, stage = inputs(shape)
    exact = looked_at(plain, *tensors, stage)
    single = [tensor.detach().float().requires_grad_() if tensor.requires_grad else tensor for tensor in tensors[:3]]
    single += [tensors[3].float(), copy.deepcopy(stage).float()]
    theirs, ours = looked_at(plain, *single), looked_at(by_rows, *single)
    for name, value in exact.items():
        if name.endswith(("layers.0.bias", "layers.3.bias")):  # zero: rounding alone in the plain form
            assert float(ours[name].abs().max()) == 0.0
            continue
        size = value.double().norm() + 1e-30
        limit = 2 * (theirs[name].double() - value).norm() / size + 1e-6
        assert (ours[name].double() - value).norm() / size <= limit, name


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_evaluation_is_the_plain_one(shape, dtype, tolerance):
    given = inputs(shape, dtype)
    stage = given[-1].eval()
    with torch.no_grad():
        assert stage.works_by_rows(given[0])
        torch.testing.assert_close(by_rows(*given), plain(*given), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["one block", "two blocks", "three blocks", "one cloud"])
def test_gradients_are_those_of_finite_differences(name):
    features, own, near, encoding, stage = inputs(SHAPES[name])
    names = [name for name, _ in stage.named_parameters()]

    def work(features: Tensor, own: Tensor, *parameters: Tensor) -> Tensor:
        made = copy.deepcopy(stage)
        for name, parameter in zip(names, parameters, strict=True):
            owner, _, last = name.rpartition(".")
            delattr(made.get_submodule(owner), last)
            setattr(made.get_submodule(owner), last, parameter)
        return by_rows(features, own, near, encoding, made)

    torch.autograd.gradcheck(work, (features, own, *stage.parameters()))


@pytest.mark.parametrize("neighbours", [1, 2, 3, 8, 16, 17])
def test_the_largest_of_a_few_neighbours_is_the_first_of_equal_ones(neighbours):
    rows = torch.randint(0, 5, (40, neighbours, 12), generator=torch.Generator().manual_seed(0)).float() - 2
    found, place = torch.empty(40, 12), torch.empty(40, 12, dtype=torch.long)
    residual_stage._largest(rows, found, place)
    assert np.array_equal(found.numpy(), rows.numpy().max(axis=1))
    assert np.array_equal(place.numpy(), rows.numpy().argmax(axis=1))  # NumPy's: the first


def test_two_runs_give_the_same_bits():
    given = inputs((4, 64, 32, 20, 24, (24, 24)), torch.float32)
    first, second = looked_at(by_rows, *given), looked_at(by_rows, *given)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_memory_is_used_again_and_never_by_two_at_once(monkeypatch):
    memory = residual_stage.Memory()
    monkeypatch.setattr(residual_stage, "_memory", memory)
    like = torch.zeros(1)
    first, second = residual_stage._room(like, 6, 4), residual_stage._room(like, 6, 4)
    first.fill_(1)
    second.fill_(2)
    assert first.eq(1).all()
    place, view = first.data_ptr(), first[2:]
    del first
    assert residual_stage._room(like, 6, 4).data_ptr() != place  # a view of it still lives
    assert view.eq(1).all()
    memory.let_go()
    del view
    assert residual_stage._room(like, 5, 4).data_ptr() == place
    assert residual_stage._room(like.double(), 5, 4).data_ptr() != place  # of another type
    del second
    memory.let_go()
    assert memory.free == []


def test_memory_that_fits_nobody_is_let_go_before_more_is_taken():
    memory = residual_stage.Memory()
    for size in (100, 110, 120):
        memory.give(np.empty(size, np.float32))
    assert memory.take(105, np.float32).size == 110
    assert memory.take(150, np.float32).size == 150  # in the place of both that are left
    assert memory.free == []


def test_a_graph_that_is_kept_has_its_gradients_after_other_steps():
    """No step writes into memory that another one's backward pass still reads; and a backward pass can be run twice."""
    given, other = inputs(SHAPES["two blocks"]), inputs(SHAPES["two blocks"], seed=1)
    features, *_, stage = given
    expected = torch.autograd.grad(by_rows(*given).sum(), [features, *stage.parameters()])
    found = by_rows(*given).sum()
    by_rows(*other).sum().backward()
    for last in (False, True):
        gradients = torch.autograd.grad(found, [features, *stage.parameters()], retain_graph=not last)
        by_rows(*other).sum().backward()
        assert all(torch.equal(one, same) for one, same in zip(gradients, expected, strict=True))


def tokenizer(**fields) -> PointPNLight:
    torch.manual_seed(0)
    config = PointPNLightConfig(**({"neighbours": 6, "num_tokens": 8} | fields))
    return PointPNLight(config, SimpleNamespace(dim=48, widths=[48], token_width=48, stem=None), "fixed").double()


@pytest.mark.parametrize("normalisation", ["scan", "mn40"])
@pytest.mark.parametrize("kept", [True, False])
def test_the_tokenizer_is_the_plain_one(monkeypatch, normalisation, kept):
    """With encodings that are kept for others, and with those that are too large for it."""
    monkeypatch.setattr("pointsweep.models.tokenizers.is_cacheable", lambda *_: kept)
    points = torch.randn(3, 50, 3, dtype=torch.float64)
    sides = []
    for alone in (False, True):
        model = tokenizer(normalisation=normalisation)
        for stage in model.stages:
            stage.compiled = alone  # which means the plain layers
        tokens, _ = model.train()(points)
        tokens.square().sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        with torch.no_grad():
            sides.append((tokens.detach(), gradients, dict(model.named_buffers()), model.eval()(points)[0]))
    torch.testing.assert_close(sides[0], sides[1], rtol=1e-8, atol=1e-9)


def test_the_plain_layers_are_taken_where_someone_has_changed_them():
    features, *_, stage = inputs(SHAPES["two blocks"])
    assert stage.works_by_rows(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert not stage.works_by_rows(features)
    assert not stage.works_by_rows(features.to("meta"))
    assert not stage.works_by_rows(features.bfloat16())
    assert not copy.deepcopy(stage).eval().works_by_rows(features)  # gradients through running statistics
    mixed = copy.deepcopy(stage)
    norms_of(mixed)[0].eval()
    assert not mixed.works_by_rows(features)
    for hook in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        for name in ("", "0", "0.layers", "0.layers.0"):
            hooked = copy.deepcopy(stage)
            getattr(hooked.get_submodule(name), hook)(lambda *_: None)
            assert not hooked.works_by_rows(features), (hook, name)
    changed = copy.deepcopy(stage)
    changed[1].layers[2] = nn.GELU()
    assert not changed.works_by_rows(features)
    weighed = copy.deepcopy(stage)
    nn.utils.parametrizations.weight_norm(weighed[0].layers[3])
    assert not weighed.works_by_rows(features)
    assert not Stage(*copy.deepcopy(stage), nn.Dropout(0.5)).works_by_rows(features)
    assert not Stage(Residual(12, 4, bias=False)).works_by_rows(features)
    synchronise(stage)
    assert not stage.works_by_rows(features)
