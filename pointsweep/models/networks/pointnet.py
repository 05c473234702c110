"""PointNet: the same small network at every point, a maximum over the points, and two learned
transforms of the input and features.

Source: arXiv 1612.00593, section 4.2 and figure 2; the transform networks (T-Nets) in section C of
its supplement. The published training adds 0.001 |I - A A^T|^2 of the feature transform A to the
loss (eq. 2); the loss here is the cross-entropy alone, as for every other model of a table, so that
term is left out. Letters: B clouds, P points, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pointsweep.config.networks import PointNetConfig
from pointsweep.models.layers import Dropout, fully_connected, shared_mlp


class Transform(nn.Module):
    """x (B, P, C) -> x A, with a matrix A (C, C) per cloud that a small PointNet finds from x.
    Starts as the identity.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.points = shared_mlp((width, 64, 128, 1024), axes=1, bias=True)
        self.cloud = fully_connected((1024, 512, 256))
        self.matrix = nn.Linear(256, width * width)
        nn.init.zeros_(self.matrix.weight)

        with torch.no_grad():
            self.matrix.bias.copy_(torch.eye(width).flatten())

    def forward(self, x: Tensor) -> Tensor:
        features = self.cloud(self.points(x.transpose(1, 2)).amax(dim=2))  # (B, 256)
        return x @ self.matrix(features).reshape(len(x), x.shape[2], x.shape[2])


class PointNet(nn.Module):
    """points (B, P, 3) -> logits (B, classes). With 40 classes: 3,480,049 parameters."""

    def __init__(self, config: PointNetConfig, num_classes: int, compat: str) -> None:
        super().__init__()
        self.input_transform = Transform(3) if config.input_transform else nn.Identity()
        self.low = shared_mlp((3, 64, 64), axes=1, bias=True)
        self.feature_transform = (
            Transform(64) if config.feature_transform else nn.Identity()
        )
        self.high = shared_mlp((64, 64, 128, 1024), axes=1, bias=True)
        self.head = nn.Sequential(
            fully_connected((1024, 512, 256)),
            Dropout(config.dropout),
            nn.Linear(256, num_classes),
        )

    def forward(self, points: Tensor) -> Tensor:
        x = self.low(self.input_transform(points).transpose(1, 2))  # (B, 64, P)
        x = self.feature_transform(x.transpose(1, 2)).transpose(1, 2)
        logits: Tensor = self.head(self.high(x).amax(dim=2))
        return logits
