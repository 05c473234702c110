"""The accuracy of the class that is recognised worst."""

import numpy as np

from pointsweep.results.metrics import computed_metric


def lowest_recall(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return the lowest accuracy over the classes; predicted and true classes are (N,) whole
    numbers.
    """
    accuracies = [
        (predicted[labels == label] == label).mean() for label in np.unique(labels)
    ]
    return float(min(accuracies))


worst_class = computed_metric(
    "worst_class", "accuracy of the class that is recognised worst", lowest_recall
)
