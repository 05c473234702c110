"""The metrics of semantic segmentation, from a confusion matrix over all points of a split.

Source: S3DIS's evaluation as of PointNet (Qi et al. 2017, arXiv 1612.00593): the intersection and
the union of a class are counted over all test points, not for each block or room, and the mean is
over the classes. A class that no point is of and none is predicted as has no IoU and is left out,
as in scikit-learn's jaccard_score. Letters: K classes.
"""

from __future__ import annotations

import numpy as np

CONFUSION_METRICS = ("test/miou", "test/mean_class_accuracy", "test/accuracy")
# label of a point that is not counted: the default of torch's cross entropy
IGNORED = -100


def confusion(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the confusion matrix (K, K) of points (P,): rows are true, columns predicted
    classes.

    Points whose true class is IGNORED are left out.
    """
    counted = truth != IGNORED
    pairs = num_classes * truth[counted].astype(np.int64) + predicted[counted]
    counts = np.bincount(pairs, minlength=num_classes**2)

    return counts.reshape(num_classes, num_classes).astype(np.int32)


def confusion_scores(counts: np.ndarray) -> dict[str, float]:
    """Return mIoU, mean class accuracy and accuracy of a confusion matrix (K, K), fractions.

    Raises ValueError if it counts no point.
    """
    counts = counts.astype(np.int64)
    total = int(counts.sum())

    if total == 0:
        raise ValueError("the confusion matrix counts no point")

    right = np.diagonal(counts)
    true = counts.sum(axis=1)
    union = true + counts.sum(axis=0) - right
    ious = right[union > 0] / union[union > 0]
    accuracies = right[true > 0] / true[true > 0]

    return {
        "miou": float(np.mean(ious)),
        "mean_class_accuracy": float(np.mean(accuracies)),
        "accuracy": int(right.sum()) / total,
    }
