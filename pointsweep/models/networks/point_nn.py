"""Point-NN: no parameters and no training; farthest points, neighbours, trigonometric features and
a vote of similar shapes.

Source: "Parameter is Not All You Need" (arXiv 2303.08134), section 3: raw embedding (eq. 1-3), four
stages of local geometry aggregation (eq. 4-7), memory bank and similarity vote (eq. 8-10).
Published: 81.8 on ModelNet40, 64.9 on ScanObjectNN PB_T50_RS.

`compat: official` scales neighbourhoods by the standard deviation of the whole batch, so a
prediction depends on the batch size and on the order of the files, and takes the vote's sharpness
that is best on the test set. `fixed` scales every cloud by itself and takes the sharpness that is
best for training clouds when each is left out of the bank. Its encoding interleaves sines and
cosines. The order matters here: features are multiplied by it, channel by channel. Letters: B
clouds, P points, G centres, K neighbours, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.config.networks import PointNNConfig
from pointsweep.ops.point_ops import farthest_points, gather, nearest, pos_e

Batches = Iterable[tuple[Tensor, Tensor]]
ROWS = 8  # centres whose neighbourhoods are held at once, so that they stay in a core's cache
JUDGES = 2000  # training clouds that choose the sharpness under `fixed`


class PointNN(nn.Module):
    """points (B, P, 3) -> votes (B, classes), once `fit` has filled the memory bank."""

    def __init__(self, config: PointNNConfig, num_classes: int, compat: str) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.official = compat == "official"
        width = config.embed_dim * 2**config.num_stages
        self.register_buffer("bank", torch.empty(0, width))  # (n, C), rows of length 1
        self.register_buffer("bank_labels", torch.empty(0, dtype=torch.long))  # (n,)
        self.register_buffer("gamma", torch.tensor(100.0))

    def fit(self, batches: Batches) -> None:
        """Fill the memory bank with the features and labels of the training clouds."""
        self.bank, self.bank_labels = self._encode_all(batches)

    def _encode_all(self, batches: Batches) -> tuple[Tensor, Tensor]:
        """Return the features (clouds, C) and labels (clouds,) of all batches."""
        features: list[Tensor] = []
        labels: list[Tensor] = []

        for points, batch_labels in batches:
            features.append(self.encode(points))
            labels.append(batch_labels)

        return torch.cat(features), torch.cat(labels)

    def tune(self, test: Callable[[], Batches]) -> dict[str, float]:
        """Choose the sharpness of the vote; return it as a metric. Only `official` looks at the
        test set.
        """
        if self.official:
            features, labels = self._encode_all(test())
            similarity = features @ self.bank.t()  # (clouds, bank)
            gammas = [2.0 * i for i in range(5000)]
        else:
            num_bank = len(self.bank)
            evenly = torch.linspace(0, num_bank - 1, min(JUDGES, num_bank))
            judges = evenly.round().long()
            labels = self.bank_labels[judges]
            similarity = self.bank[judges] @ self.bank.t()
            # a cloud must not vote for itself
            similarity[torch.arange(len(judges)), judges] = -torch.inf
            gammas = [10 ** (i / 10) for i in range(41)]

        # The published list is long: one buffer for all of it, and the classes of the bank
        # spread out once.
        exponents = similarity - 1
        classes = F.one_hot(self.bank_labels, self.num_classes).to(similarity.dtype)
        weights = torch.empty_like(exponents)
        num_correct = []

        for gamma in gammas:
            votes = torch.mul(exponents, gamma, out=weights).exp_() @ classes
            num_correct.append(int((votes.argmax(dim=1) == labels).sum()))

        best = num_correct.index(max(num_correct))
        self.gamma = torch.tensor(gammas[best])
        return {
            "vote/gamma": gammas[best],
            "vote/accuracy": num_correct[best] / len(labels),
        }

    def forward(self, points: Tensor) -> Tensor:
        return self.vote(self.encode(points) @ self.bank.t(), float(self.gamma))

    def vote(self, similarity: Tensor, gamma: float) -> Tensor:
        """similarity (B, n) to the bank -> votes (B, classes): exp(-gamma (1 - s)) summed over the
        clouds of a class (eq. 10).
        """
        weights = torch.exp(-gamma * (1 - similarity))
        return weights @ F.one_hot(self.bank_labels, self.num_classes).to(weights.dtype)

    @torch.no_grad()
    def encode(self, points: Tensor) -> Tensor:
        """points (B, P, 3) -> features (B, C) of length 1; C = embed_dim * 2^stages."""
        config, size = self.config, points.shape[1]
        skip = config.skip_near_origin

        if skip is None:
            skip = self.official

        # the centres of later stages are the first ones of it
        order = farthest_points(points, size >> 1, skip)
        # (B, P, C)
        x = pos_e(points, config.embed_dim, config.alpha, config.beta, interleaved=True)
        xyz = points
        own = gather(x, order)
        centers = gather(points, order)

        for stage in range(1, config.num_stages + 1):
            centers = centers[:, : size >> stage]
            near = nearest(centers, xyz, config.neighbours)  # (B, G, K)
            own = x = self._aggregate(x, xyz, own[:, : size >> stage], centers, near)
            xyz = centers

        return F.normalize(x.amax(dim=1) + x.mean(dim=1), dim=1)

    def _aggregate(
        self, x: Tensor, xyz: Tensor, own: Tensor, centers: Tensor, near: Tensor
    ) -> Tensor:
        """Features (B, G, 2C) of the centres from those of their neighbours (eq. 4-7)."""
        num_clouds = len(x)
        group_size = num_clouds if self.official else 1
        pooled = []

        for start in range(0, num_clouds, group_size):
            group = range(start, start + group_size)
            spread_x = self._spread(x, own, near, group)
            spread_p = self._spread(xyz, centers, near, group)

            for i in group:
                rows = zip(
                    own[i].split(ROWS),
                    centers[i].split(ROWS),
                    near[i].split(ROWS),
                    strict=True,
                )
                for c, p, n in rows:
                    neighbour = (x[i][n] - c.unsqueeze(1)) / spread_x
                    relative = (xyz[i][n] - p.unsqueeze(1)) / spread_p
                    pooled.append(self._pool(neighbour, c, relative))

        features = torch.cat(pooled).reshape(*own.shape[:2], -1)
        # The published pooling has a batch normalisation that was never trained: running mean 0,
        # variance 1.
        return F.gelu(features / (1 + 1e-5) ** 0.5)

    @staticmethod
    def _spread(
        values: Tensor, own: Tensor, near: Tensor, group: Iterable[int]
    ) -> float:
        """Standard deviation of (neighbour - centre) over all clouds of a group, plus 1e-5."""
        total = 0.0
        squares = 0.0
        count = 0

        for i in group:
            for c, n in zip(own[i].split(ROWS), near[i].split(ROWS), strict=True):
                away = values[i][n] - c.unsqueeze(1)  # (rows, K, C)
                total += float(away.sum(dtype=torch.float64))
                squares += float(away.flatten().dot(away.flatten()))
                count += away.numel()

        return ((squares - total * total / count) / (count - 1)) ** 0.5 + 1e-5

    def _pool(self, neighbour: Tensor, own: Tensor, relative: Tensor) -> Tensor:
        """neighbour (rows, K, C), own (rows, C), relative (rows, K, 3) -> max + mean over K of (x +
        E) E, (rows, 2C).
        """
        half = neighbour.shape[2]
        alpha, beta = self.config.alpha, self.config.beta
        e = pos_e(relative, 2 * half, alpha, beta, interleaved=True)  # (rows, K, 2C)
        center = own.unsqueeze(1).expand_as(neighbour)
        both = (torch.cat([neighbour, center], dim=2) + e).mul_(e)

        return both.amax(dim=1) + both.mean(dim=1)
