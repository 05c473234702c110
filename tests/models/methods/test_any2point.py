"""Any2Point's own numbers: published counts, and the adapter against a reference written token by token and cell by cell."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pointsweep.config.backbones import TinyConfig
from pointsweep.config.methods import Any2PointConfig
from pointsweep.config.validation import component_problems, trial_from_dict
from pointsweep.models.backbones.tiny import Tiny
from pointsweep.models.methods.any2point import Any2Point, CellNorm, source_cells
from pointsweep.models.point_model import build, count_parameters
from pointsweep.ops.cells import cells_of
from pointsweep.ops.point_ops import voxel_ids

SCAN = {"dataset": "scanobjectnn", "tokenizer": "point_pn_light"}


def counts(backbone: str = "clip_text", num_classes: int = 15, positions: dict | None = None, head: dict | None = None, **method):
    trial = SCAN | {"backbone": backbone, "method": {"name": "any2point", **method}, "positions": positions, "head": head}
    with torch.device("meta"):
        return count_parameters(build(trial_from_dict(trial), num_classes))


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({}, 948_312),
        ({"backbone": "dinov2", "bottleneck": 8}, 800_760),
        ({"bottleneck": 12}, 874_536),
        ({"adapter": "none"}, 279_744),
        ({"ensemble": "mean"}, 929_880),
        ({"backbone": "dinov2", "bottleneck": 8, "ensemble": "mean"}, 782_328),
        ({"positions": {"kind": "learnable"}}, 948_312 + 98_304),
        ({"positions": {"kind": "sinusoidal"}}, 948_312),
    ],
)
def test_published_counts_without_the_head(options, published):
    assert counts(**options).trainable_without_head == published


@pytest.mark.parametrize(("views", "published"), [(1, 512_580), (2, 570_216), (4, 685_488), (8, 916_032)])
def test_counts_grow_by_57636_a_view(views, published):
    assert counts("dinov2", bottleneck=8, positions={"num_views": views}).trainable_without_head == published


def test_count_of_the_mlp_variant_by_its_formula():
    assert counts(adapter="mlp").trainable_without_head == 279_744 + 12 * (2 * 768 * 16 + 16 + 768)


@pytest.mark.parametrize(("backbone", "bottleneck", "total"), [("clip_text", 16, 86_473_344), ("dinov2", 8, 86_344_224)])
def test_published_totals_with_the_40_class_head(backbone, bottleneck, total):
    found = counts(backbone, num_classes=40, head={"bias": True}, bottleneck=bottleneck)
    assert found.total == total
    assert found.trainable - found.trainable_without_head == 470_568


def test_the_15_class_head_has_463631_values():
    found = counts()
    assert found.trainable - found.trainable_without_head == 463_631


def make(modality: str = "1d", num_views: int = 2, **fields) -> tuple[Any2Point, Tiny]:
    torch.manual_seed(0)
    backbone = Tiny(TinyConfig(name="tiny", modality=modality))
    backbone.load()
    method = Any2Point(Any2PointConfig(name="any2point", bottleneck=4, attn_dim=12, voxel_size=0.3, **fields))
    method.attach(backbone, 1, num_views)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.3)
    for module in method.modules():
        if isinstance(module, CellNorm):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return method.eval(), backbone


def reference(method: Any2Point, index: int, tokens: torch.Tensor, centers: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Spec 2.5 for one cloud, with loops: tokens (1 + N, C), centers (N, 3), ids (M, N) -> tokens after the block."""
    config, t, views = method.config, tokens[1:], len(ids)
    dim, attention = t.shape[1], method.attention
    spread = []
    for j in range(views):
        cut = slice(j * dim, (j + 1) * dim)
        x = F.layer_norm(t, (dim,), attention.norm_weight[cut], attention.norm_bias[cut])
        qkv = x @ attention.qkv_weight[j] + attention.qkv_bias[j * 36 : (j + 1) * 36]
        q, k, v = qkv[:, :12], qkv[:, 12:24], qkv[:, 24:]
        mixed = torch.zeros_like(q)
        for i in range(len(t)):
            for head in range(6):
                h = slice(2 * head, 2 * head + 2)
                near = [n for n in range(len(t)) if ids[j, n] == ids[j, i]]
                weights = torch.stack([(q[i, h] * k[n, h]).sum() * 12**-0.5 for n in near]).softmax(dim=0)
                mixed[i, h] = sum(w * v[n, h] for w, n in zip(weights, near, strict=True))
        y = t + mixed @ attention.out_weight[j] + attention.out_bias[cut]
        norm = method.cell_norms[index]
        view = torch.zeros_like(t)
        for i in range(len(t)):
            members = y[ids[j] == ids[j, i]]
            pooled = members.mean(dim=0) + (members.amax(dim=0) if config.cell_pooling == "mean_max" else 0)
            scaled = (pooled - norm.running_mean[cut]) / (norm.running_var[cut] + norm.eps).sqrt()
            view[i] = F.gelu(scaled * norm.weight[cut] + norm.bias[cut])
        spread.append(view)
    views_f = torch.stack(spread)  # (M, N, C)
    if config.ensemble == "mean":
        out = views_f.mean(dim=0)
    elif config.ensemble == "maxmean":
        out = views_f.amax(dim=0) + views_f.mean(dim=0)
    else:
        guide = torch.zeros_like(t)
        voxels, norm = voxel_ids(centers[None], config.voxel_size)[0], method.voxel_norms[index]
        for i in range(len(t)):
            members = t[voxels == voxels[i]]
            pooled = members.amax(dim=0) + members.mean(dim=0)
            guide[i] = F.gelu((pooled - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias)
        weights = (F.cosine_similarity(views_f, guide[None], dim=2) + 1) / 2
        out = ((weights / weights.sum(dim=0))[..., None] * views_f).sum(dim=0)
    return torch.cat([tokens[:1], t + config.coef_pro * out])


@pytest.mark.parametrize("fields", [{}, {"ensemble": "mean"}, {"ensemble": "maxmean"}, {"cell_pooling": "mean_max"}])
@pytest.mark.parametrize("modality", ["1d", "2d"])
def test_the_guided_adapter_equals_a_slow_reference(modality, fields):
    method, backbone = make(modality, **fields)
    tokens, centers = torch.randn(2, 7, 48), torch.randn(2, 6, 3) * 0.3
    assert backbone.plane is not None
    places = torch.rand(2, 2, 6) * 8 if modality == "1d" else torch.rand(2, 2, 6, 2) * 200
    ids, _ = source_cells(places, backbone.plane, None)
    assert any(len(set(row.tolist())) < 6 for cloud in ids for row in cloud), "no two tokens share a cell: the test shows nothing"
    _, context = method.begin(0, tokens, centers, places, None)
    found = method.after_block(1, tokens, context)
    for b in range(2):
        torch.testing.assert_close(found[b], reference(method, 1, tokens[b], centers[b], ids[b]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fields", [{}, {"bn_nonempty_only": True}, {"local_space": "3d"}, {"local_aggregation": False}])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_views_in_place_equal_the_plain_layers(training, fields, monkeypatch):
    """One operator with its own gradient against torch's: outputs, every gradient and running statistics, in single precision."""

    def run(in_place: bool) -> dict[str, torch.Tensor]:
        method, _ = make(**fields)
        method.train(training)
        works = method._works_in_place
        monkeypatch.setattr(method, "_works_in_place", lambda *given: works(*given) and in_place)
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randn(3, 7, 48, generator=generator).requires_grad_(training)
        centers, places = torch.randn(3, 6, 3, generator=generator) * 0.3, torch.rand(3, 2, 6, generator=generator) * 8
        with torch.set_grad_enabled(training):
            _, context = method.begin(0, tokens, centers, places, None)
            assert works(tokens, method.cell_norms[1])
            found = method.after_block(1, tokens, context)
        values = {"output": found.detach()} | {name: buffer for name, buffer in method.named_buffers() if "num_batches" not in name}
        if training:
            found.square().sum().backward()
            values |= {name: parameter.grad for name, parameter in method.named_parameters() if parameter.grad is not None}
            values["tokens"] = tokens.grad
        return values

    own, plain = run(in_place=True), run(in_place=False)
    assert own.keys() == plain.keys()
    buffers = {"output", *(name for name, _ in make(**fields)[0].named_buffers())}
    largest = max((value.abs().max().item() for name, value in plain.items() if name not in buffers), default=0.0)
    for name, value in plain.items():
        # A gradient may be a difference of what cancels, so it is measured by the largest of all.
        length = value.abs().max().item() if name in buffers else largest
        torch.testing.assert_close(own[name], value, atol=2e-6 * length, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_a_norm_with_a_hook_is_called(hook):
    method, _ = make()
    norm, tokens = method.train().cell_norms[1], torch.randn(3, 7, 48)
    assert method._works_in_place(tokens, norm)
    getattr(norm, hook)(lambda *_: None)
    assert not method._works_in_place(tokens, norm)


def test_the_bottleneck_is_added_to_the_feed_forward_branch():
    method, _ = make(scale_factor=0.3)
    f = torch.randn(2, 7, 48)
    down, up = method.bottlenecks[0][0], method.bottlenecks[0][3]
    hidden = F.linear(f, down.weight, down.bias)
    expected = f + 0.3 * F.linear(hidden * torch.sigmoid(1.702 * hidden), up.weight, up.bias)
    torch.testing.assert_close(method.after_ffn(0, f, f, None), expected)


def test_zero_up_starts_the_bottleneck_as_a_no_op():
    backbone = Tiny(TinyConfig(name="tiny"))
    method = Any2Point(Any2PointConfig(name="any2point", adapter="mlp", adapter_init="zero_up"))
    method.attach(backbone, 1, 6)
    f = torch.randn(2, 7, 48)
    assert torch.equal(method.after_ffn(0, f, f, None), f)


@pytest.mark.parametrize("count_empty", [True, False])
def test_cell_statistics_equal_batch_norm_over_all_cells(count_empty):
    """A tensor with every cell of the batch, empty ones as zeros, through torch's own BatchNorm1d."""
    torch.manual_seed(0)
    batch, views, tokens, dim, number = 3, 2, 6, 5, 4
    ids, y = torch.randint(0, 3, (batch, views, tokens)), torch.randn(batch, views, tokens, dim)
    cells = cells_of(ids, number if count_empty else None)
    if not count_empty:
        ids[:] = torch.arange(tokens) % 3  # as many occupied cells in each view
        cells = cells_of(ids, None)
    norm = CellNorm(views, dim).train()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    found = norm(cells.mean(y), cells)
    for j in range(views):
        own = nn.BatchNorm1d(dim)
        cut = slice(j * dim, (j + 1) * dim)
        own.weight.data, own.bias.data = norm.weight.data[cut].clone(), norm.bias.data[cut].clone()
        used = range(number) if count_empty else range(3)
        pooled = [
            y[b, j][ids[b, j] == c].mean(dim=0) if (ids[b, j] == c).any() else torch.zeros(dim) for b in range(batch) for c in used
        ]
        expected = own(torch.stack(pooled)).reshape(batch, len(used), dim)
        for b in range(batch):
            for i in range(tokens):
                torch.testing.assert_close(found[b, j, i], expected[b, ids[b, j, i]], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(norm.running_mean[cut], own.running_mean)
        torch.testing.assert_close(norm.running_var[cut], own.running_var, atol=1e-6, rtol=1e-5)


def test_local_attention_and_norms_are_shared_by_all_blocks():
    method, _ = make()
    names = [name for name, _ in method.named_parameters()]
    assert sum(name.startswith("attention.") for name in names) == 6
    assert sum(name.startswith("cell_norms.") for name in names) == 2 * 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bottleneck": 0}, "method.bottleneck: must be at least 1"),
        ({"attn_dim": 13}, "method.attn_dim: must be a multiple of attn_heads"),
        ({"voxel_size": 0.0}, "method.voxel_size: must be positive"),
    ],
)
def test_senseless_values_are_refused(fields, message):
    problems = component_problems("method", {"name": "any2point", **fields})
    assert any(message in ": ".join(problem) for problem in problems)
