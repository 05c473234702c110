"""Part segmentation: its head written out, its numbers by hand, and a trial from its seed to its table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from pointsweep.config import registry
from pointsweep.config.parts import HeadConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import check_trial, trial_from_dict
from pointsweep.data.part_metrics import part_score
from pointsweep.models.layers import set_noise
from pointsweep.models.point_model import build, count_parameters, load_trained_state
from pointsweep.models.segmentation_head import SegmentationHead, levels
from pointsweep.ops.point_ops import interpolation
from pointsweep.reporting.build import optimism, value
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.training.loop import score_parts
from pointsweep.training.runner import load_dataset
from tests.training.test_trial import outcome, run

METHODS = [name for name in registry.names("methods") if "3d" in registry.config_class("methods", name).modalities]
WIDTHS = {"segmentation_widths": [32, 32, 24, 16]}


def config(method: str | dict = "head_only", **changes) -> TrialConfig:
    return trial_from_dict({
        "dataset": {"name": "synthetic_parts", "num_points": 48, "presample": 48, "train_per_category": 6, "test_per_category": 3},
        "tokenizer": {"name": "patch", "num_tokens": 8, "neighbours": 8},
        "backbone": {"name": "tiny", "modality": "3d"},
        "positions": {"injection": "each_block"},
        "method": method,
        "head": WIDTHS,
        "train": {"epochs": 3, "batch_size": 8, "warmup_epochs": 0, "lr": 5e-3},
    } | changes)  # fmt: skip


def clouds(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 40, 3, generator=torch.Generator().manual_seed(seed)) * 0.5


CATEGORY = torch.tensor([0, 1, 2, 3])


def test_blocks_4_8_and_12_of_twelve_and_the_same_fractions_of_others():
    assert levels(12) == [3, 7, 11]
    assert levels(15) == [4, 9, 14]  # the ends of Point-M2AE's scales
    assert [levels(count) for count in (1, 2, 3)] == [[0], [0, 1], [0, 1, 2]]


def test_interpolation_by_hand():
    """At distances 1, 2, 3 the weights are 1, 1/4, 1/9 over their sum; a fourth place is too far; at a place its own value is taken."""
    places = torch.tensor([[[1.0, 0, 0], [-2.0, 0, 0], [0, 3.0, 0], [0, 0, 9.0]]])
    weights = interpolation(torch.tensor([[[0.0, 0, 0], [0, 0, 9.0]]]), places)
    closeness = torch.tensor([1, 1 / 4, 1 / 9, 0])
    torch.testing.assert_close(weights[0, 0], closeness / closeness.sum())
    torch.testing.assert_close(weights[0, 1], torch.tensor([0.0, 0, 0, 1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(interpolation(places[:, :1], places[:, :2]).sum(dim=2), torch.ones(1, 1))


def norm(x: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
    """Batch normalisation in evaluation, over (C,)."""
    return (x - module.running_mean) / (module.running_var + module.eps).sqrt() * module.weight + module.bias


def settle(head: torch.nn.Module) -> torch.nn.Module:
    random = torch.Generator().manual_seed(3)
    for module in head.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(generator=random)
            module.running_var.uniform_(0.5, 2, generator=random)
    return head.eval()


def test_the_head_equals_the_programs_written_out_point_by_point():
    """As of Point-MAE's program: the cloud's features beside every point's, then three layers, one point at a time."""
    torch.manual_seed(0)
    head = settle(SegmentationHead(HeadConfig(segmentation_widths=(12, 10, 8, 6)), [5, 5], 3, 4, 7))
    points, centers, extra = torch.randn(2, 6, 3), torch.randn(2, 4, 3), torch.randn(2, 3)
    first, second = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    found = head(points, torch.tensor([1, 3]), [(first, centers), (second, centers)], [extra])
    assert found.shape == (2, 7, 6)
    for b, category in enumerate((1, 3)):
        tokens = torch.cat([first[b], second[b]], dim=1)  # (N, 10)
        label = F.leaky_relu(norm(head.label[0].weight[:, category], head.label[1]), 0.2)
        whole = torch.cat([tokens.amax(dim=0), tokens.mean(dim=0), label, extra[b]])
        for p, point in enumerate(points[b]):
            distance = (centers[b] - point).square().sum(dim=1)
            nearest = distance.argsort()[:3]
            weight = 1 / (distance[nearest] + 1e-8)
            x = torch.cat([point, (weight / weight.sum()) @ tokens[nearest]])
            for layer in (0, 3):
                x = torch.relu(norm(head.spread[layer].weight.squeeze(2) @ x + head.spread[layer].bias, head.spread[layer + 1]))
            x = head.mix.weight.squeeze(2) @ torch.cat([x, whole]) + head.mix.bias
            x = torch.relu(norm(x, head.layers[0]))
            x = torch.relu(norm(head.layers[3].weight.squeeze(2) @ x + head.layers[3].bias, head.layers[4]))
            x = head.layers[6].weight.squeeze(2) @ x + head.layers[6].bias
            torch.testing.assert_close(found[b, :, p], x, atol=1e-5, rtol=1e-5)


def test_levels_with_other_centres_and_widths_are_spread_from_their_own():
    torch.manual_seed(0)
    head = settle(SegmentationHead(HeadConfig(segmentation_widths=(12, 10, 8, 6)), [4, 6], 0, 4, 7))
    points = torch.randn(1, 5, 3)
    parts = [(torch.randn(1, 8, 4), torch.randn(1, 8, 3)), (torch.randn(1, 3, 6), torch.randn(1, 3, 3))]
    seen: list[torch.Tensor] = []
    head.spread.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    head(points, torch.tensor([0]), parts, [])
    at_points = [interpolation(points, centers) @ values for values, centers in parts]
    at_points[0] = interpolation(points, parts[0][1]) @ F.layer_norm(parts[0][0], (4,))
    torch.testing.assert_close(seen[0].transpose(1, 2), torch.cat([points, *at_points], dim=2))


def test_full_fine_tuning_of_point_mae_has_the_published_number_of_values():
    """27.06M in IDPT's and DAPT's tables of ShapeNetPart (arXiv 2304.07221, 2403.01439); 768 of ours are the class token's."""
    label, spread = 16 * 64 + 2 * 64, 1155 * 1536 + 3 * 1536 + 1536 * 1024 + 3 * 1024
    behind = 3392 * 512 + 3 * 512 + 512 * 256 + 3 * 256 + 256 * 50 + 50
    made = trial_from_dict({
        "dataset": "shapenetpart", "tokenizer": "patch", "backbone": {"name": "point_mae", "weights": "random"}, "method": "full",
    })  # fmt: skip
    with torch.device("meta"):
        counts = count_parameters(build(made, 50))
    assert counts.trainable - counts.trainable_without_head == label + spread + behind
    assert counts.total == 27_064_498
    assert round(counts.total / 1e6, 2) == 27.06


def ready(made: TrialConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build(made, 10)
    model.method.prepare(model, [clouds(8, number) for number in range(3)])
    set_noise(model, torch.Generator().manual_seed(0))
    return model


REAL = [(method, backbone) for method in METHODS for backbone in ("point_mae", "point_bert", "point_m2ae")]


@pytest.mark.parametrize(("method", "backbone"), [*((method, "tiny") for method in METHODS), *REAL])
def test_no_point_is_labelled_by_another_shape_of_the_batch(method, backbone):
    kind = {"name": "tiny", "modality": "3d"}
    if backbone != "tiny":
        small = {"scale_tokens": [6, 4], "scale_neighbours": [4, 4]} if backbone == "point_m2ae" else {}
        kind = {"name": backbone, "weights": "random", "num_blocks": 6 if small else 2, **small}
    try:
        model = ready(config(method, backbone=kind))
    except ValueError as error:
        pytest.skip(f"refused: {error}")
    points = clouds()
    with torch.no_grad():
        model.train()
        for seed in range(3):
            model(clouds(8, seed), CATEGORY.repeat(2))
        model.eval()
        before = model(points, CATEGORY)
        points[2] = 3 * torch.randn(40, 3)
        other = CATEGORY.clone()
        other[2] = 0
        after = model(points, other)
    assert before.shape == (4, 10, 40)
    torch.testing.assert_close(after[[0, 1, 3]], before[[0, 1, 3]], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after[2], before[2], atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_reaches_every_trained_weight(method):
    model = ready(config(method)).train()
    for _ in range(3):  # LoRA's A gets a gradient only once B has moved, PointGST's norms once two layers have
        F.cross_entropy(model(clouds(), CATEGORY), torch.arange(160).view(4, 40) % 10).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.sub_(0.1 * parameter.grad)
    still = {name for name, p in model.named_parameters() if p.requires_grad and not p.grad.any()}
    assert not {name for name in still if not name.endswith(("k.bias", "method.mix.bias"))}, still


def test_the_category_matters():
    model = ready(config()).eval()
    with torch.no_grad():
        first, second = (model(clouds(), torch.full((4,), category)) for category in (0, 1))
    assert not torch.allclose(first, second, atol=1e-3)


def test_scores_are_over_the_parts_of_the_category_in_file_order():
    """Two batches in another order; the best of all parts is another category's, so that of the category's own is taken."""
    parts = ((0, 1), (2, 3))
    logits = torch.tensor(
        [[[0.0, 0, 0, 2], [1, 1, 1, 1], [9, 9, 9, 9], [0, 0, 0, 0]], [[9.0] * 4, [0] * 4, [1, 1, 0, 0], [0, 0, 1, 1]]]
    )
    truth = torch.tensor([[1, 1, 0, 0], [2, 2, 3, 3]])
    batches = [(np.array([row]), logits[row : row + 1], truth[row : row + 1]) for row in (1, 0)]
    found = score_parts(batches, np.array([0, 1]), parts)
    # Shape 0: predicted 1 1 1 0. Part 0: 1 / 2; part 1: 2 / 3. Shape 1 is right.
    assert found.predictions.tolist() == pytest.approx([7 / 12, 1])
    assert found.predictions.dtype == np.float32
    assert found.accuracy == 7 / 8
    assert found.more == pytest.approx({"instance_miou": (7 / 12 + 1) / 2, "class_miou": (7 / 12 + 1) / 2})
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, truth)))
    assert set(found.metrics("val")) == {"val/loss", "val/accuracy", "val/instance_miou", "val/class_miou"}


@pytest.mark.parametrize("method", ["head_only", "point_peft", "appt"])
def test_a_resumed_trial_gives_the_same_bits_as_an_undisturbed_one(tmp_path, method):
    made = config(method)
    run(made, TrialFolder(tmp_path / "whole"))
    run(made, TrialFolder(tmp_path / "cut"), stop_after=2)
    assert TrialFolder(tmp_path / "cut").record() is None
    run(made, TrialFolder(tmp_path / "cut"))
    assert outcome(TrialFolder(tmp_path / "cut")) == outcome(TrialFolder(tmp_path / "whole"))


def test_the_records_numbers_are_those_of_the_weights_and_the_shapes(tmp_path):
    """From the stored weights, shape by shape and without our scoring."""
    dataset = config().to_dict()["dataset"] | {"val_fraction": 0.3}
    made, folder = (
        config(dataset=dataset, train={"epochs": 6, "batch_size": 8, "lr": 5e-3, "warmup_epochs": 0}),
        TrialFolder(tmp_path),
    )
    run(made, folder)
    record, data = folder.record(), load_dataset(made.dataset)
    assert record is not None
    assert record.marks == ("random frozen weights", "synthetic data")
    assert (record.dataset["num_classes"], record.dataset["num_test"]) == (10, 12)
    model = ready(made)
    load_trained_state(model, load_file(folder.path / "weights.safetensors"))
    predicted, truth = [], []
    model.eval()
    for row in range(12):
        points, category, parts = data.eval_batch(data.test, np.array([row]))
        with torch.no_grad():
            logits = model(points, category)[0]
        own = list(data.parts[int(category)])
        predicted.append(np.array(own)[logits[own].argmax(dim=0).numpy()])
        truth.append(parts[0].numpy())
    score = part_score(predicted, truth, data.test.labels.tolist(), data.parts)
    last = record.metrics["last"]
    assert last["test/instance_miou"] == pytest.approx(score.instance_miou)
    assert last["test/class_miou"] == pytest.approx(score.class_miou)
    assert last["test/accuracy"] == pytest.approx(np.mean(np.concatenate(predicted) == np.concatenate(truth)))
    assert folder.predictions()["last"] == pytest.approx(score.by_shape)
    epochs = [event["metrics"] for event in folder.epochs()]
    assert epochs[-1]["train/loss"] < 0.9 * epochs[0]["train/loss"]
    for protocol, split in (("best_test", "test"), ("best_val", "val")):
        values = [metrics[f"{split}/instance_miou"] for metrics in epochs]
        assert record.metrics[protocol]["epoch"] == 1 + values.index(max(values))
    added = optimism([record], "test/instance_miou")
    assert added == pytest.approx(value(record, "best_test", "test/instance_miou") - last["test/instance_miou"])
    assert added >= 0


def test_votes_are_over_augmented_copies_of_the_same_points(tmp_path):
    folder = TrialFolder(tmp_path)
    run(config(train={"epochs": 1, "batch_size": 8, "votes": 3}), folder)
    assert folder.record().metrics["last"]["test/instance_miou"] > 0


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"compat": "official", "method": "appt"}, "compat", "allowed on synthetic_parts: fixed"),
        ({"head": {"segmentation_widths": [0, 1, 1, 1]}}, "head.segmentation_widths[0]", "must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(change, path, message):
    found = check_trial(config().to_dict() | change)[1]
    assert [where for where, _ in found] == [path]
    assert message in found[0][1]


def test_networks_classify_whole_clouds():
    found = check_trial({"dataset": "synthetic_parts", "network": "pointnet"})[1]
    assert found == [("network", "pointnet classifies whole clouds; synthetic_parts needs a backbone and a method")]


SWEEP = """name: parts
base:
  dataset: {name: DATA, num_points: 48, presample: 48, train_limit: 16, test_limit: 8}
  tokenizer: {name: patch, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 3d}
  head: {segmentation_widths: [32, 32, 24, 16]}
  train: {epochs: 1, batch_size: 8, warmup_epochs: 0}
rows: {method: [head_only, lora]}
seeds: 1
metric: METRIC
"""


def command(store: Path, tmp_path: Path, data: str, metric: str) -> subprocess.CompletedProcess:
    path = tmp_path / "parts.yaml"
    path.write_text(SWEEP.replace("DATA", data).replace("METRIC", metric))
    line = [sys.executable, "-m", "pointsweep.run", str(path), "--inline", "--tracking-uri", "none", "--store", str(store)]
    return subprocess.run(line, capture_output=True, text=True)


def test_the_command_prints_the_table_of_a_mean_iou(store, tmp_path):
    ended = command(store, tmp_path, "synthetic_parts", "test/instance_miou")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    table = json.loads((store / "sweeps/parts/table.json").read_text())
    assert table["metric"] == "test/instance_miou"
    assert "test/instance_miou in %" in ended.stdout
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("head_only")]
    assert 0 < float(line.split()[1]) < 100
    again = command(store, tmp_path, "synthetic_parts", "test/class_miou")
    assert "2 finished, 0 to run" in again.stdout


def test_a_metric_that_the_data_set_lacks_is_refused(store, tmp_path):
    ended = command(store, tmp_path, "synthetic", "test/instance_miou")
    assert ended.returncode == 2
    assert "synthetic has no test/instance_miou; it has, of each split: accuracy" in ended.stdout + ended.stderr
