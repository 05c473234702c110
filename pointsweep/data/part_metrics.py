"""Part segmentation's numbers: the IoU of a shape, and its mean over shapes (instance mIoU) and
over categories (class mIoU).

Source: ShapeNetPart's evaluation as of PointNet (arXiv 1612.00593). Letters: P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PartScore:
    """Scores of part segmentation, fractions in [0, 1]. `by_category` holds the mean over a
    category's shapes, for the categories that have any.
    """

    instance_miou: float
    class_miou: float
    by_category: dict[int, float]
    by_shape: tuple[float, ...]


def shape_iou(predicted: np.ndarray, truth: np.ndarray, parts: Sequence[int]) -> float:
    """The mean IoU over the parts of the shape's category; predicted, truth (P,) hold part numbers.

    A part that is in neither counts 1. A point predicted as a part of another category is wrong,
    like any other wrong point. Raises ValueError if the two differ in size, are empty, or the truth
    holds a part of another category.
    """
    if predicted.shape != truth.shape or truth.ndim != 1 or not len(truth):
        raise ValueError(
            f"predicted and true parts must be (P,) alike and not empty, got {predicted.shape} and"
            f" {truth.shape}"
        )

    if not np.isin(truth, parts).all():
        strange = sorted(set(truth.tolist()) - set(parts))
        raise ValueError(
            f"the shape holds part {strange[0]}, its category has {list(parts)}"
        )

    ious = []
    for part in parts:
        is_predicted, is_true = predicted == part, truth == part
        union = int((is_predicted | is_true).sum())
        intersection = int((is_predicted & is_true).sum())
        ious.append(intersection / union if union else 1.0)

    return sum(ious) / len(ious)


def part_score(
    predicted: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    category: Sequence[int],
    parts: Sequence[Sequence[int]],
) -> PartScore:
    """One predicted and one true (P,) and a category per shape; `parts` lists the parts of every
    category. Raises ValueError.
    """
    if not len(predicted) == len(truth) == len(category) or not len(truth):
        raise ValueError(
            f"{len(predicted)} predictions, {len(truth)} shapes, {len(category)} categories: must"
            " be as many, at least 1"
        )

    by_shape = []
    for shape_predicted, shape_truth, number in zip(
        predicted, truth, category, strict=True
    ):
        by_shape.append(shape_iou(shape_predicted, shape_truth, parts[number]))

    ious = np.asarray(by_shape)
    categories = np.asarray(category)
    by_category = {}

    for number in np.unique(categories):
        by_category[int(number)] = float(np.mean(ious[categories == number]))

    return PartScore(
        instance_miou=float(np.mean(by_shape)),
        class_miou=float(np.mean(list(by_category.values()))),
        by_category=by_category,
        by_shape=tuple(by_shape),
    )
