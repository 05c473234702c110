"""Probes: what a sweep prints is what scikit-learn gives on features that are worked out beside the program."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

from pointsweep.cli.run import main
from pointsweep.config.validation import check_trial, trial_from_dict
from pointsweep.models.point_model import build, count_parameters
from pointsweep.models.probe_head import UNSEEN, ProbeHead
from pointsweep.training.runner import load_dataset

BASE = """
name: probes
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 60, test_limit: 30}
  tokenizer: {name: patch, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 3d}
  positions: {injection: each_block}
  method: head_only
rows:
  - {label: svm, head.kind: svm}
  - {label: k-NN, head.kind: knn, head.neighbours: 5}
  - {label: svm of the sum, head: {kind: svm, pool: mean_plus_max, svm_c: 0.1}}
seeds: 1
"""


def trial(**head) -> dict:
    return {
        "dataset": {"name": "synthetic", "num_points": 64, "presample": 64, "train_limit": 60, "test_limit": 30},
        "tokenizer": {"name": "patch", "num_tokens": 8, "neighbours": 8},
        "backbone": {"name": "tiny", "modality": "3d"},
        "positions": {"injection": "each_block"},
        "method": "head_only",
        "head": head,
    }


def frozen_features(clouds: torch.Tensor, pool: str) -> np.ndarray:
    """Tokens of the small frozen transformer, block by block, and their mean and maximum."""
    made = build(trial_from_dict(trial()), 5).eval()
    stem = made.backbone.stem
    with torch.no_grad():
        tokens, centers = made.tokenizer(clouds)
        encoding = stem.places[0](centers)
        for block in made.backbone.blocks:
            tokens = tokens + encoding
            tokens = tokens + block.attn(block.norm1(tokens))
            tokens = tokens + block.ffn(block.norm2(tokens))
        tokens = made.norm(tokens)
    mean, largest = tokens.mean(dim=1), tokens.max(dim=1).values
    found = mean + largest if pool == "mean_plus_max" else torch.cat([mean, largest], dim=1)
    return found.double().numpy()


def test_a_sweep_prints_what_scikit_learn_gives(tmp_path, capsys):
    (tmp_path / "probes.yaml").write_text(BASE)
    store = tmp_path / "store"
    assert main([str(tmp_path / "probes.yaml"), "--inline", "--tracking-uri", "none", "--store", str(store)]) == 0
    printed = capsys.readouterr().out
    dataset = load_dataset(trial_from_dict(trial()).dataset)
    splits = []
    for split in (dataset.train, dataset.test):
        clouds, labels = dataset.eval_batch(split, np.arange(len(split.labels)))
        splits.append((clouds, labels.numpy()))
    (train, classes), (test, wanted) = splits
    records = [json.loads(path.read_text()) for path in (store / "trials").glob("*/record.json")]
    assert len(records) == 3
    for record in records:
        head = record["config"]["head"]
        pool = head["pool"] or "mean_max"
        svm = head["kind"] == "svm"
        classifier = LinearSVC(C=head["svm_c"], random_state=0) if svm else KNeighborsClassifier(n_neighbors=5)
        classifier.fit(frozen_features(train, pool), classes)
        accuracy = (classifier.predict(frozen_features(test, pool)) == wanted).mean()
        assert record["metrics"]["last"]["test/accuracy"] == pytest.approx(accuracy)
        assert record["parameters"]["trainable"] == 0
        assert f"{100 * accuracy:.1f}" in printed


@pytest.mark.parametrize("kind", ["svm", "knn"])
def test_nothing_trains_and_nothing_is_drawn(kind):
    first, second = (build(trial_from_dict(trial(kind=kind) | {"seed": seed}), 5) for seed in (0, 1))
    assert count_parameters(first).trainable == 0
    clouds = torch.rand(30, 64, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for made in (first, second):
            made.fit([(clouds[:16], torch.arange(16) % 5), (clouds[16:], torch.arange(14) % 5)])
        assert torch.equal(first(clouds), second(clouds))
        # In parts or in one: a prediction is that of its cloud.
        torch.testing.assert_close(first(clouds[3:5]), first(clouds)[3:5])


def test_two_classes_and_classes_without_training_clouds():
    features, labels = torch.randn(20, 4, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2 * 3
    head = ProbeHead(trial_from_dict(trial(kind="svm")).head, 0, 5)
    head.fit(head.features(features), labels)
    scores = head(features, [])
    oracle = LinearSVC(random_state=0).fit(head.features(features).double().numpy(), labels.numpy())
    np.testing.assert_array_equal(scores.argmax(dim=1).numpy(), oracle.predict(head.features(features).double().numpy()))
    assert (scores[:, [1, 2, 4]] == UNSEEN).all()


def test_fewer_clouds_than_neighbours_and_one_class_are_refused():
    features = torch.randn(6, 8)
    with pytest.raises(ValueError, match=r"head.neighbours: must be at most the number of training clouds \(6\), got 20"):
        ProbeHead(trial_from_dict(trial(kind="knn")).head, 0, 5).fit(features, torch.arange(6) % 5)
    with pytest.raises(ValueError, match="svm needs training clouds of two classes or more"):
        ProbeHead(trial_from_dict(trial(kind="svm")).head, 0, 5).fit(features, torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize(
    ("changes", "path", "text"),
    [
        ({"method": "lora"}, "method", "lora trains, and head.kind: svm trains nothing; allowed: head_only"),
        ({"tokenizer": "point_pn_light"}, "head.kind", "the tokenizer point_pn_light starts new before tiny"),
        ({"positions": {"kind": "learnable"}}, "positions.kind", "learnable needs training"),
        ({"head": {"kind": "knn", "svm_c": 0.5}}, "head.svm_c", "has an effect with kind: svm alone, got kind: knn"),
        ({"head": {"neighbours": 5}}, "head.neighbours", "has an effect with kind: knn alone, got kind: two_layers"),
    ],
)
def test_what_a_probe_cannot_be_taken_of_is_refused(changes, path, text):
    problems = dict(check_trial(trial(kind="svm") | changes)[1])
    assert text in problems[path]


def test_a_class_token_that_starts_new_is_left_out():
    made = build(trial_from_dict(trial(kind="svm")), 5)
    clouds = torch.rand(2, 64, 3)
    assert made._encode(clouds)[0].shape == (2, 8, 48)
    assert not hasattr(made, "cls_token")
