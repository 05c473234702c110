"""PPT: the count that papers print, and a forward pass written out block by block."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pointsweep.cli.run import main
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.point_model import build, count_parameters
from tests.models.methods.test_published_counts import MAE
from tests.training.test_pack import assert_same, config, run


def test_the_count_is_the_one_that_papers_print():
    """1.04M: three bottlenecks, the MLP of positions, the embedding's first layers, the head over three features, the class token."""
    with torch.device("meta"):
        counts = count_parameters(build(trial_from_dict(MAE | {"method": "ppt"}), 15))
    bottlenecks = 3 * ((384 * 256 + 256) + (256 * 384 + 384))
    positions = (3 * 128 + 128) + (128 * 384 + 384)
    first_layers = (3 * 128 + 128) + 2 * 128 + (128 * 256 + 256)
    head = (3 * 384 * 256 + 256) + (256 * 256 + 256) + 2 * 2 * 256 + (256 * 15 + 15)
    assert counts.trainable == bottlenecks + positions + first_layers + head + 2 * 384 == 1_042_191


def test_a_forward_pass_by_hand():
    """As the program computes it: prompts behind the class token, all encodings before every block."""
    trial = {
        "dataset": "synthetic",
        "tokenizer": {"name": "patch", "num_tokens": 6, "neighbours": 6},
        "backbone": {"name": "tiny", "modality": "3d"},
        "positions": {"injection": "each_block"},
        "method": {"name": "ppt", "num_prompts": 5, "prompt_neighbours": 4, "bottleneck": 7},
    }
    made = build(trial_from_dict(trial), 5).double().eval()
    clouds = (torch.rand(2, 40, 3, generator=torch.Generator().manual_seed(0)) - 0.5).double()
    method, stem = made.method, made.backbone.stem

    def groups(count: int, near: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Farthest points from the first on, and the nearest points around each, relative to it."""
        centers, members = [], []
        for cloud in clouds:
            chosen = [0]
            while len(chosen) < count:
                away = torch.cdist(cloud, cloud[chosen]).min(dim=1).values
                chosen.append(int(away.argmax()))
            order = torch.cdist(cloud[chosen], cloud).argsort(dim=1)[:, :near]
            centers.append(cloud[chosen])
            members.append(cloud[order] - cloud[chosen][:, None])
        return torch.stack(centers), torch.stack(members)

    def bottleneck(layers: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        hidden = F.gelu(F.linear(x, layers[0].weight, layers[0].bias))
        return F.linear(hidden, layers[2].weight, layers[2].bias)

    (centers, points), (own_centers, own) = groups(6, 6), groups(5, 4)
    first = made.cls_token.expand(2, -1, -1)
    x = torch.cat([first, stem.patches[0](own), stem.patches[0](points)], dim=1)
    encoding = torch.cat([made.cls_position.expand(2, -1, -1), stem.places[0](own_centers), stem.places[0](centers)], dim=1)
    for block in made.backbone.blocks:
        x = x + encoding
        prompts = x[:, 1:6] + bottleneck(method.on_prompts, x[:, 1:6])
        tokens = x[:, 6:] + bottleneck(method.on_points, x[:, 6:])
        x = torch.cat([x[:, :1], prompts, tokens], dim=1)
        x = x + block.attn(block.norm1(x))
        x = x + block.ffn(block.norm2(x)) + bottleneck(method.beside, x)
    x = made.norm(x)
    features = [x[:, 6:].mean(dim=1), x[:, 1:6].mean(dim=1), x[:, 0]]  # the head's order: max_cls
    torch.testing.assert_close(made(clouds), made.head.layers(torch.cat(features, dim=1)))


def test_scales_are_refused():
    trial = MAE | {"backbone": "point_m2ae", "tokenizer": {"name": "patch", "num_tokens": 512}, "method": "ppt"}
    with torch.device("meta"), pytest.raises(ValueError, match="ppt's prompts walk through all blocks beside a class token"):
        build(trial_from_dict(trial), 15)


def test_members_of_a_pack_train_encodings_of_their_own(tmp_path):
    method = {"name": "ppt", "num_prompts": 5, "prompt_neighbours": 4, "bottleneck": 7}
    configs = [config(method, "3d"), config(method, "3d", seed=1), config("head_only", "3d", seed=2)]
    for alone, packed in zip(run(configs, tmp_path / "a", False), run(configs, tmp_path / "b", True), strict=True):
        assert_same(alone, packed)


SWEEP = """
name: newer
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 24, test_limit: 12}
  tokenizer: {name: patch, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 3d}
  positions: {injection: each_block}
  train: {epochs: 1, batch_size: 8, warmup_epochs: 0}
rows: {method: [ppt, point_gst, ssf, dora, ia3]}
seeds: 1
"""


def test_the_newer_methods_pass_the_audit_of_a_plan(tmp_path, capsys):
    """Which looks at frozen statistics, thawed tensors, starts and steps of every arm."""
    (tmp_path / "newer.yaml").write_text(SWEEP)
    arguments = ["--plan", "--inline", "--tracking-uri", "none", "--store", str(tmp_path / "store")]
    assert main([str(tmp_path / "newer.yaml"), *arguments]) == 0, capsys.readouterr().err
