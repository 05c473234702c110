"""Synthetic shapes of parts: balanced, labelled as they are made, and the same everywhere."""

from __future__ import annotations

import numpy as np

from pointsweep.data.synthetic_parts import PARTS, SHAPES
from tests.data.made import config, dataset


def test_shapes_hold_all_parts_of_their_category_and_no_other():
    found = dataset("synthetic_parts", train_per_category=3, test_per_category=2)
    assert found.train.labels.tolist() == [0, 1, 2, 3] * 3
    assert (found.num_classes, len(SHAPES)) == (config("synthetic_parts").num_classes, config("synthetic_parts").num_categories)
    sizes = set()
    for row in range(12):
        points, parts, category = found.train.shape(row)
        assert set(parts.tolist()) == set(PARTS[category])
        assert np.linalg.norm(points, axis=1).max() <= 1 + 1e-5
        sizes.add(len(points))
    assert len(sizes) > 1 and min(sizes) >= 512


def test_parts_are_where_they_are_made():
    """A table stands upright: its top is above its legs; a mug's wall is thicker than its handle is."""
    found = dataset("synthetic_parts", noise=0.0, train_per_category=2, test_per_category=1)
    points, parts, _ = found.train.shape(0)
    assert points[parts == 0, 1].mean() > points[parts == 1, 1].mean() + 0.2
    points, parts, _ = found.train.shape(3)  # a lamp: foot, pole, shade
    heights = [points[parts == part, 1].mean() for part in PARTS[3]]
    assert heights == sorted(heights)


def test_another_data_seed_makes_other_shapes():
    fields = {"train_per_category": 2, "test_per_category": 1}
    first, again, other = (dataset("synthetic_parts", data_seed=seed, **fields).digest for seed in (0, 0, 1))
    assert first == again != other


def test_no_test_shape_is_a_training_shape():
    found = dataset("synthetic_parts", train_per_category=4, test_per_category=4)
    train = {found.train.shape(row)[0].tobytes() for row in range(16)}
    assert not train & {found.test.shape(row)[0].tobytes() for row in range(16)}
