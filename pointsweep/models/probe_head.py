"""Probes of frozen features: a linear SVM and a k-NN of scikit-learn in the place of a trained
head.

Source: the ModelNet40 protocol of Point-BERT's family (arXiv 2111.14819, 2203.06604) and of earlier
self-supervised learning on point clouds: features of every training cloud from the frozen encoder,
and a LinearSVC on them, once; test clouds are classified by it. k-NN: the classes of the nearest
training clouds vote. Nothing is drawn: every seed gives the same number. Letters: B clouds, N
tokens, C channels, n training clouds, F features of a cloud.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointsweep.config.parts import HeadConfig

UNSEEN = -1e4  # score of a class that no training cloud has


class ProbeHead(nn.Module):
    """Probe: tokens (B, prefix + N, C) -> scores (B, classes) of a classifier that `fit` has
    fitted.

    Features as the other heads have them: the class token and the maximum, the mean and the maximum
    (without class token), or the sum of the last two (`head.pool: mean_plus_max`). A class token
    counts where the checkpoint has one.
    """

    def __init__(self, config: HeadConfig, prefix: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.prefix = prefix
        self.num_classes = num_classes
        self.pool = config.pool or ("class_max" if prefix else "mean_max")

        if self.pool == "class_max" and not prefix:
            raise ValueError(
                "head.pool: this checkpoint has no class token to probe; allowed: mean_max,"
                " mean_plus_max"
            )

        self.classifier: Any = None  # scikit-learn's, once it is fitted

    def features(self, tokens: Tensor) -> Tensor:
        """tokens (B, prefix + N, C) -> (B, F)."""
        if self.pool == "class_max":
            return torch.cat(
                [tokens[:, 0], tokens[:, self.prefix :].amax(dim=1)], dim=1
            )

        mean, largest = tokens.mean(dim=1), tokens.amax(dim=1)
        if self.pool == "mean_plus_max":
            return mean + largest

        return torch.cat([mean, largest], dim=1)

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """features (n, F), labels (n,). Raises ValueError where a k-NN has fewer clouds than
        neighbours, and for one class alone.
        """
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.svm import LinearSVC

        count = len(features)

        if self.config.kind == "svm":
            if len(labels.unique()) < 2:
                raise ValueError(
                    "head.kind: svm needs training clouds of two classes or more"
                )

            self.classifier = LinearSVC(C=self.config.svm_c, random_state=0)
        else:
            if self.config.neighbours > count:
                raise ValueError(
                    f"head.neighbours: must be at most the number of training clouds ({count}), got"
                    f" {self.config.neighbours}"
                )

            self.classifier = KNeighborsClassifier(n_neighbors=self.config.neighbours)

        self.classifier.fit(_array(features), labels.cpu().numpy())

    def forward(self, tokens: Tensor, extra: list[Tensor]) -> Tensor:
        """tokens (B, prefix + N, C) -> scores (B, classes): distances from the planes, or shares of
        the votes.
        """
        features = self.features(tokens)
        scores = np.full((len(features), self.num_classes), UNSEEN)
        scores[:, self.classifier.classes_] = self._scores(_array(features))

        return torch.from_numpy(scores).to(features)

    def _scores(self, features: np.ndarray) -> np.ndarray:
        """features (B, F) -> scores (B, classes that were seen)."""
        if self.config.kind == "knn":
            shares: np.ndarray = self.classifier.predict_proba(features)
            return shares

        distances: np.ndarray = self.classifier.decision_function(features)
        if distances.ndim == 1:  # of two classes there is one plane
            return np.stack([-distances, distances], axis=1)

        return distances


def _array(features: Tensor) -> np.ndarray:
    array: np.ndarray = features.detach().cpu().double().numpy()
    return array
