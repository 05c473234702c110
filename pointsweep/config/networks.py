"""Configurations of networks that are trained from scratch. Their code is in
pointsweep/models/networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pointsweep.config.base import (
    IN_64_BITS,
    Added,
    Count,
    Counts,
    NamedConfig,
    Natural,
    Naturals,
    Positive,
    Real,
    Share,
    TwoCounts,
    TwoPositives,
)

Neighbours = Annotated[int, Field(ge=2), IN_64_BITS]
MultipleOfSix = Annotated[int, Field(ge=6, multiple_of=6), IN_64_BITS]


class NetworkConfig(NamedConfig):
    """Base of the configurations of whole networks.

    A network takes the place of tokenizer, backbone, method and head.
    """

    trainable: ClassVar[bool] = True
    compats: ClassVar[tuple[str, ...]] = ("fixed",)
    # True: the network is made with the number of channels behind the coordinates, as a fourth
    # argument, where the data set has some (dataset.features).
    takes_features: ClassVar[bool] = False


class DGCNNConfig(NetworkConfig):
    """DGCNN: edge convolutions over neighbours in feature space."""

    name: Literal["dgcnn"] = "dgcnn"
    neighbours: Count = 20
    widths: Counts = (64, 64, 128, 256)
    embed_dim: Count = 1024
    dynamic: bool = True
    """False: the neighbours among the points stay those of every layer, as in the paper's ablation.
    """
    dropout: Share = 0.5


class PointNNConfig(NetworkConfig):
    """Point-NN: nothing trains; a memory of encoded training clouds."""

    trainable: ClassVar[bool] = False
    compats: ClassVar[tuple[str, ...]] = ("fixed", "official")
    code_revision: ClassVar[int] = (
        2  # 2: sines and cosines interleaved, as in the released program
    )

    name: Literal["point_nn"] = "point_nn"
    num_stages: Count = 4
    embed_dim: MultipleOfSix = 72
    neighbours: Neighbours = 90
    alpha: Real = 1000.0
    beta: Real = 100.0
    skip_near_origin: Added[bool | None] = None
    """Farthest points are never within 0.0316 of the origin, as in the program; null: under
    `compat: official`.
    """


class PointPNConfig(NetworkConfig):
    """Point-PN: Point-NN's encoder with trained layers between."""

    name: Literal["point_pn"] = "point_pn"
    embed_dim: MultipleOfSix = 36
    expansions: Counts = (2, 2, 2, 1)
    """Of the width, by every stage."""
    blocks: Naturals = (2, 1, 1, 1)
    """Residual bottlenecks of every stage."""
    neighbours: Neighbours = 40
    normalisation: Literal["scan", "mn40"] = "scan"
    """Of neighbourhoods: ScanObjectNN's or ModelNet40's program (spec 1.1)."""
    heights: bool = True
    alpha: Positive = 1000.0
    beta: Real = 100.0
    dropout: Share = 0.5

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(self.blocks) != len(self.expansions):
            count = len(self.expansions)
            yield (
                "blocks",
                f"must be {count} numbers of at least 0, one a stage, got {list(self.blocks)}",
            )


class PointMLPConfig(NetworkConfig):
    """PointMLP: residual MLPs over normalised neighbourhoods."""

    name: Literal["pointmlp"] = "pointmlp"
    embed_dim: Count = 64
    """Doubled by every stage."""
    num_stages: Count = 4
    neighbours: Neighbours = 24
    pre_blocks: Natural = 2
    """At every neighbour."""
    pos_blocks: Natural = 2
    """At every centre."""
    affine: Literal["anchor", "center", "none"] = "anchor"
    """Neighbours relative to their centre, or to their own mean."""
    dropout: Share = 0.5


class PointNetConfig(NetworkConfig):
    """PointNet: an MLP of every point, and the maximum over all."""

    name: Literal["pointnet"] = "pointnet"
    input_transform: bool = True
    """3 x 3, of the points."""
    feature_transform: bool = True
    """64 x 64, of their features."""
    dropout: Share = 0.3
    """In front of the last layer (keep ratio 0.7)."""


class PointNet2Config(NetworkConfig):
    """PointNet++: PointNet within balls around farthest points."""

    takes_features: ClassVar[bool] = True

    name: Literal["pointnet2"] = "pointnet2"
    strides: TwoCounts = (2, 4)
    """Points per centre, of the cloud and then of the first stage's centres."""
    radii: TwoPositives = (0.2, 0.4)
    neighbours: Count = 32
    """Of the first stage; the second has twice as many."""
    dropout: Share = 0.5


class PointNeXtConfig(NetworkConfig):
    """PointNeXt: PointNet++ with inverted residual blocks and modern training."""

    takes_features: ClassVar[bool] = True

    name: Literal["pointnext"] = "pointnext"
    width: Count = 32
    """Of the stem; doubled by every stage."""
    num_stages: Count = 4
    neighbours: Count = 32
    radius: Positive = 0.15
    """Of the first stage."""
    radius_scaling: Positive = 1.5
    """From a stage to the next."""
    normalised_offsets: bool = True
    """Neighbours' places in units of the radius."""
    residual: bool = True
    heights: bool = True
    dropout: Share = 0.5
