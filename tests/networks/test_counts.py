"""The parameter counts that Any2Point's Table 1 prints for the networks, and where each comes from."""

from __future__ import annotations

import pytest
import torch

from pointsweep.checks import trial_from_dict
from pointsweep.model import build, count_parameters

TABLE_1 = {"pointnet": 3.5, "pointnet2": 1.5, "dgcnn": 1.8, "pointmlp": 12.6, "point_pn": 0.8, "pointnext": 1.4}


def counts(name: str, num_classes: int):
    with torch.device("meta"):
        return count_parameters(build(trial_from_dict({"dataset": "modelnet40", "network": name}), num_classes))


@pytest.mark.parametrize("name", sorted(TABLE_1))
def test_counts_print_as_in_table_1(name):
    """With the head for ScanObjectNN's 15 or ModelNet40's 40 classes; PointMLP's published 12.6M leave its head out."""
    found = counts(name, 15 if name == "pointnext" else 40)
    count = found.trainable_without_head if name == "pointmlp" else found.trainable
    assert round(count / 1e6, 1) == TABLE_1[name], count


def test_the_stages_of_point_pn():
    assert counts("point_pn", 40).trainable_without_head == 477_432


def test_pointnext_s():
    assert counts("pointnext", 15).trainable == 1_367_087


def test_pointmlp_by_its_formula():
    """Nine C x C matrices a stage (one widens, two in each of four blocks), their norms, a scale and a shift; 64 inputs."""
    widths = (128, 256, 512, 1024)
    assert counts("pointmlp", 40).trainable_without_head == 3 * 64 + 2 * 64 + sum(
        9 * c * c + 9 * 2 * c + 2 * (c // 2) for c in widths
    )


def test_dgcnn_by_its_formula():
    edges = sum(2 * a * b + 2 * b for a, b in ((3, 64), (64, 64), (64, 128), (128, 256)))
    assert counts("dgcnn", 40).trainable_without_head == edges + 512 * 1024 + 2 * 1024
