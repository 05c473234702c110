"""The 3D backbones: original-layout checkpoints load with no key left over, counts of the papers, a slow reference of their forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pointsweep.config.validation import trial_from_dict
from pointsweep.models.backbones.base import Backbone
from pointsweep.models.backbones.patch_embedding import PatchEmbedding
from pointsweep.models.point_model import build, count_parameters
from pointsweep.ops.point_ops import farthest_points
from tests.models.backbones.helpers import ours

PLAIN = {"point_mae": ("MAE_encoder.", 384), "point_bert": ("transformer_q.", 256)}


def random(shape: tuple[int, ...]) -> torch.Tensor:
    return 0.1 * torch.randn(shape)


def norm_layer(name: str, width: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": 1 + random((width,)), f"{name}.bias": random((width,))}


def linear(name: str, inputs: int, outputs: int, *kernel: int, bias: bool = True) -> dict[str, torch.Tensor]:
    made = {f"{name}.weight": random((outputs, inputs, *kernel))}
    return made | ({f"{name}.bias": random((outputs,))} if bias else {})


def embedding(name: str, sizes: tuple[int, int, int, int, int]) -> dict[str, torch.Tensor]:
    first_in, first_mid, first_out, mid, out = sizes
    state = linear(f"{name}.first_conv.0", first_in, first_mid, 1) | linear(f"{name}.first_conv.3", first_mid, first_out, 1)
    state |= linear(f"{name}.second_conv.0", 2 * first_out, mid, 1) | linear(f"{name}.second_conv.3", mid, out, 1)
    for conv, width in (("first_conv", first_mid), ("second_conv", mid)):
        state |= norm_layer(f"{name}.{conv}.1", width)
        state |= {f"{name}.{conv}.1.running_mean": random((width,)), f"{name}.{conv}.1.running_var": 1 + random((width,)).abs()}
        state |= {f"{name}.{conv}.1.num_batches_tracked": torch.tensor(7)}
    return state


def block(name: str, width: int) -> dict[str, torch.Tensor]:
    state = norm_layer(f"{name}.norm1", width) | norm_layer(f"{name}.norm2", width)
    state |= linear(f"{name}.attn.qkv", width, 3 * width, bias=False) | linear(f"{name}.attn.proj", width, width)
    return state | linear(f"{name}.mlp.fc1", width, 4 * width) | linear(f"{name}.mlp.fc2", 4 * width, width)


def plain_checkpoint(name: str) -> dict[str, torch.Tensor]:
    """As the authors' training programs write it: `module.`, the encoder's prefix, and what is left of the pretraining."""
    prefix, width = PLAIN[name]
    state = embedding("encoder", (3, 128, 256, 512, width)) | linear("pos_embed.0", 3, 128) | linear("pos_embed.2", 128, 384)
    for i in range(12):
        state |= block(f"blocks.blocks.{i}", 384)
    state |= norm_layer("norm", 384)
    if name == "point_bert":
        state |= linear("reduce_dim", 256, 384) | {"cls_token": random((1, 1, 384)), "cls_pos": random((1, 1, 384))}
        state |= linear("cls_head.0", 384, 512)
    rest = {"module.MAE_decoder.blocks.0.norm1.weight": torch.zeros(384), "module.mask_token": torch.zeros(1, 1, 384)}
    return {f"module.{prefix}{key}": tensor for key, tensor in state.items()} | rest


def m2ae_checkpoint() -> dict[str, torch.Tensor]:
    widths, state = (96, 192, 384), {}
    for scale, width in enumerate(widths):
        before = widths[scale - 1]
        sizes = (3, 128, 256, 512, 96) if scale == 0 else (before, before, before, width, width)
        state |= embedding(f"token_embed.{scale}", sizes)
        state |= linear(f"encoder_pos_embeds.{scale}.0", 3, width) | linear(f"encoder_pos_embeds.{scale}.2", width, width)
        for i in range(5):
            state |= block(f"encoder_blocks.{scale}.blocks.{i}", width)
        state |= norm_layer(f"encoder_norms.{scale}", width)
    return {f"module.h_encoder.{key}": tensor for key, tensor in state.items()} | {"module.h_decoder.0.x": torch.zeros(2)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    torch.manual_seed(0)
    folder, made = tmp_path_factory.mktemp("checkpoints"), {}
    for name in (*PLAIN, "point_m2ae"):
        state = m2ae_checkpoint() if name == "point_m2ae" else plain_checkpoint(name)
        torch.save({"base_model": state, "epoch": 300}, folder / f"{name}.pth")
        made[name] = (folder / f"{name}.pth", {key.removeprefix("module."): value for key, value in state.items()})
    return made


@pytest.mark.parametrize("name", [*PLAIN, "point_m2ae"])
def test_an_original_checkpoint_loads_with_no_key_left_over(name, checkpoints):
    """Strict loading would list any; every value of the encoder is in the backbone, or is a norm or head known to be left out."""
    path, state = checkpoints[name]
    backbone = ours(name, path)
    inside = {value.double().sum().item() for value in backbone.state_dict().values()}
    qkv = {part.double().sum().item() for key, value in state.items() if ".qkv." in key for part in value.chunk(3)}
    assert qkv <= inside
    encoder = PLAIN[name][0] if name in PLAIN else "h_encoder."
    left_out = ("encoder_norms.", "cls_head.", "qkv.")
    rest = {k for k, v in state.items() if k.startswith(encoder) and v.double().sum().item() not in inside}
    assert {key for key in rest if not any(part in key for part in left_out)} == set()


@torch.no_grad()
def test_an_embedded_group_is_the_published_small_pointnet(checkpoints):
    path, state = checkpoints["point_mae"]
    backbone = ours("point_mae", path)
    group = torch.randn(1, 1, 32, 3)

    def conv(name, x):
        weight = state[f"MAE_encoder.encoder.{name}.weight"]
        return torch.einsum("oi,ki->ko", weight[:, :, 0], x) + state[f"MAE_encoder.encoder.{name}.bias"]

    def norm(name, x):
        at = f"MAE_encoder.encoder.{name}"
        scaled = (x - state[f"{at}.running_mean"]) / (state[f"{at}.running_var"] + 1e-5).sqrt()
        return scaled * state[f"{at}.weight"] + state[f"{at}.bias"]

    x = conv("first_conv.3", norm("first_conv.1", conv("first_conv.0", group[0, 0])).relu())
    x = torch.cat([x.amax(dim=0).expand_as(x), x], dim=1)
    x = conv("second_conv.3", norm("second_conv.1", conv("second_conv.0", x)).relu())
    torch.testing.assert_close(backbone.stem.patches[0](group)[0, 0], x.amax(dim=0), atol=1e-4, rtol=1e-4)


def config(name: str, **fields) -> object:
    parts = {"head": {"bias": True, "order": "cls_max"}, "positions": {"injection": "each_block"}, "dataset": "synthetic"}
    return trial_from_dict(
        {**parts, "tokenizer": "patch", "backbone": {"name": name, "weights": "random"}, "method": "full", **fields}
    )


def test_full_fine_tuning_has_the_published_counts():
    with torch.device("meta"):
        mae = count_parameters(build(config("point_mae"), 15))
        bert = count_parameters(build(config("point_bert", head={"kind": "one_layer", "bias": True, "order": "cls_max"}), 40))
        m2ae = count_parameters(build(config("point_m2ae"), 15))
    assert mae.trainable == 22_093_327
    assert round(bert.trainable / 1e6, 1) == 22.1
    assert round(m2ae.trainable / 1e6, 1) == 12.9


@torch.no_grad()
def test_point_maes_forward_written_out(checkpoints):
    """Positions in front of every block, class token and its position, final norm, (class, maximum)."""
    torch.manual_seed(0)
    path, _ = checkpoints["point_mae"]
    made = build(
        config("point_mae", backbone={"name": "point_mae", "weights": str(path)}, tokenizer={"name": "patch", "num_tokens": 8}), 5
    )
    made.eval()
    points = torch.randn(2, 64, 3)
    captured = []
    made.head.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
    made(points)
    backbone: Backbone = made.backbone
    index = farthest_points(points, 8)
    centers = points.gather(1, index.unsqueeze(-1).expand(-1, -1, 3))
    near = torch.cdist(centers, points).topk(32, largest=False).indices
    groups = points.unsqueeze(1).expand(-1, 8, -1, -1).gather(2, near.unsqueeze(-1).expand(-1, -1, -1, 3)) - centers.unsqueeze(2)
    x = torch.cat([made.cls_token.expand(2, -1, -1), backbone.stem.patches[0](groups)], dim=1)
    places = torch.cat([made.cls_position.expand(2, -1, -1), backbone.stem.places[0](centers)], dim=1)
    for one in backbone.blocks:
        x = x + places
        y = one.norm1(x)
        heads = [layer(y).unflatten(2, (6, 64)).transpose(1, 2) for layer in (one.attn.q, one.attn.k, one.attn.v)]
        weights = (heads[0] @ heads[1].transpose(2, 3) / 8).softmax(dim=-1)
        x = x + one.attn.out((weights @ heads[2]).transpose(1, 2).flatten(2))
        x = x + one.ffn(one.norm2(x))
    torch.testing.assert_close(
        captured[0], nn.functional.layer_norm(x, (384,), made.norm.weight, made.norm.bias, 1e-5), atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_m2ae_goes_through_its_scales():
    fields = {"scale_tokens": [8, 4], "scale_neighbours": [4, 4], "weights": "random", "name": "point_m2ae"}
    made = build(config("point_m2ae", backbone=fields, tokenizer={"name": "patch", "num_tokens": 16, "neighbours": 8}), 5).eval()
    shapes = []
    for one in made.backbone.blocks:
        one.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    assert made(torch.randn(2, 64, 3)).shape == (2, 5)
    assert shapes == [(16, 96)] * 5 + [(8, 192)] * 5 + [(4, 384)] * 5


@torch.no_grad()
def test_m2ae_attends_only_within_its_radius():
    backbone = ours("point_m2ae", "random")
    centers = torch.tensor([[[0.0, 0.0, 0.0], [0.3, 0.0, 0.0], [0.7, 0.0, 0.0], [2.0, 0.0, 0.0]]])
    seen = [(backbone.attention_bias(index, centers, None)[0, 0, 0] == 0).tolist() for index in backbone.scale_starts]
    assert seen == [[True, True, False, False], [True, True, False, False], [True, True, True, False]]


def test_a_frozen_stem_keeps_the_statistics_of_its_checkpoint():
    def made(method: str):
        torch.manual_seed(0)
        model = build(config("point_mae", method=method, tokenizer={"name": "patch", "num_tokens": 4, "neighbours": 4}), 5).train()
        norm = model.backbone.stem.patches[0].first_conv[1]
        before = norm.running_mean.clone()
        with torch.no_grad():
            model(torch.randn(4, 32, 3))
        return not torch.equal(norm.running_mean, before)

    assert made("full")
    assert not made("head_only")


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_embedding_by_rows_is_the_published_one(training):
    """Convolutions over concat(maximum, point), as in Point-BERT's program: outputs, statistics and all gradients, in double precision."""
    torch.manual_seed(0)
    own = PatchEmbedding((3, 6, 5), (8, 7)).double()
    plain = PatchEmbedding((3, 6, 5), (8, 7)).double()
    for embedding in (own, plain):
        for norm in (embedding.first_conv[1], embedding.second_conv[1]):
            nn.init.normal_(norm.weight)
    plain.load_state_dict(own.state_dict())

    def published(groups: torch.Tensor) -> torch.Tensor:
        points = plain.first_conv(groups.flatten(0, 1).transpose(1, 2))
        largest = points.max(dim=2, keepdim=True).values
        tokens = plain.second_conv(torch.cat([largest.expand_as(points), points], dim=1))
        return tokens.max(dim=2).values.unflatten(0, groups.shape[:2])

    values = []
    for embedding, work in ((own, own), (plain, published)):
        embedding.train(training)
        groups = torch.randn(2, 4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = work(groups)
        given = [groups, *embedding.parameters()]
        gradients = torch.autograd.grad(output.square().sum(), given)
        values.append([output, *gradients, *(buffer for buffer in embedding.buffers() if buffer.is_floating_point())])
    for found, expected in zip(*values, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
