"""Points -> tokens and their centres.

Sources: the "3D mini-network" of Any2Point (arXiv 2404.07989, spec 1.2), a lightened Point-PN
(arXiv 2303.08134); the full-width Point-PN of APPT (spec 1.3); the groups of Point-BERT's family
(arXiv 2111.14819, spec 1.4). Letters: B clouds, P points, N tokens, G centres, C channels, K
neighbours, D width of a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pointsweep.config.tokenizers import (
    PatchConfig,
    PointPNLightConfig,
    PointPNTokenizerConfig,
)
from pointsweep.models.activation_checkpointing import run_stage
from pointsweep.models.backbones.base import Backbone
from pointsweep.models.backbones.patch_embedding import PatchEmbedding, Stem
from pointsweep.models.batch_cache import cached, is_cacheable
from pointsweep.models.layers import Residual, has_hooks
from pointsweep.ops import residual_stage
from pointsweep.ops.point_ops import (
    farthest_points,
    gather,
    nearest,
    pos_e,
    with_height,
)
from pointsweep.ops.vmap import is_eager_on_cpu


class PointPNLight(nn.Module):
    """points (B, P, 3) -> tokens (B, N, dim), centers (B, N, 3). At width 768: 276,672 parameters.

    Stages of dim/4, dim/2 and dim channels. PosE and the three doublings need a width divisible by
    24; where `dim` is not, the stages take the next width that is, and one trained linear layer
    leads to `dim`.
    """

    uses_stem = False
    skips_near_origin = False  # set by the model: see config/official.py
    recomputed = False  # see activation_checkpointing.py

    def __init__(
        self, config: PointPNLightConfig, backbone: Backbone, compat: str
    ) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = config.num_tokens
        self.official = compat == "official"
        dim = backbone.widths[0]
        width = -(-dim // 24) * 24
        self.embed = nn.Sequential(
            nn.Conv1d(3, width // 8, 1, bias=False),
            nn.BatchNorm1d(width // 8),
            nn.ReLU(),
        )

        plan = (
            (width // 4, width // 8, 2),
            (width // 2, width // 4, 1),
            (width, config.last_width, 1),
        )

        self.stages = nn.ModuleList()

        for wide, middle, repeats in plan:
            blocks = [Residual(wide, middle) for _ in range(repeats)]
            self.stages.append(Stage(*blocks))

        self.out = nn.Identity() if width == dim else nn.Linear(width, dim)

    def geometry(self, points: Tensor) -> Tensor:
        """The centres (B, N, 3), and on the way all neighbourhoods, for the cache of batches."""
        _, around = self._around(points)
        last_centers, _, _ = around[-1]
        return last_centers

    def _around(self, points: Tensor) -> tuple[Tensor, list[Around]]:
        counts = [self.num_tokens << shift for shift in (2, 1, 0)]
        return neighbourhoods(
            points, counts, self.config.neighbours, self.skips_near_origin
        )

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        features = self.embed(points.transpose(1, 2)).transpose(1, 2)  # (B, P, D / 2)
        index, around = self._around(points)
        own, centers = gather(features, index), points

        for stage, (centers, near, relative) in zip(self.stages, around, strict=True):
            of_centers = own[:, : centers.shape[1]]
            own = features = self._stage(stage, features, of_centers, near, relative)

        return self.out(features), centers

    def _stage(
        self,
        stage: nn.Module,
        features: Tensor,
        own: Tensor,
        near: Tensor,
        relative: Tensor,
    ) -> Tensor:
        """features (B, P, C), own (B, G, C), near (B, G, K), relative (B, G, K, 3) -> (B, G,
        2C).
        """
        width = 2 * features.shape[2]
        scan = self.config.normalisation == "scan"
        kind = "exact_scan" if scan and self.official else self.config.normalisation

        if isinstance(stage, Stage) and stage.works_by_rows(features):
            encoder = self._encoder(relative, width, kind)
            return run_stage(
                stage,
                stage.rows,
                features,
                own,
                near,
                encoder,
                recomputed=self.recomputed,
            )

        neighbour = gather(features, near)
        center = own.unsqueeze(2).expand_as(neighbour)
        wide = torch.cat([neighbour, center], dim=3)  # (B, G, K, D)
        wide = wide + encoded(relative, width, kind, self.official)
        wide = wide.permute(0, 3, 1, 2)  # (B, D, G, K)
        wide = run_stage(stage, stage, wide, recomputed=self.recomputed)

        return wide.amax(dim=3).transpose(1, 2)

    def _encoder(
        self, relative: Tensor, width: int, kind: str
    ) -> residual_stage.Encoder:
        """PosE of some centres of a cloud, in rows: taken from that of all where this is small
        enough to be kept for others, else made when it is asked for.
        """
        if is_cacheable(relative, relative.numel() // 3 * width):
            of_all = encoded(relative, width, kind, self.official).flatten(0, 1)
            return lambda first, last: of_all[first:last].flatten(0, 1)

        scaled = normalise(relative, kind, self.official).flatten(0, 1)
        return lambda first, last: pos_e(scaled[first:last], width).flatten(0, 1)


class Stage(nn.Sequential):
    """Residual blocks over (B, D, G, K).

    On a CPU they run together with what stands before and behind them (ops/residual_stage.py),
    unless someone has changed how a part of them works. The numbers are the same but for rounding.
    """

    compiled = False  # by torch (compilation.py)

    def works_by_rows(self, features: Tensor) -> bool:
        """Return whether `rows` can stand for the plain layers."""
        if self.compiled or has_hooks(self) or not is_eager_on_cpu(features):
            return False

        norms: list[nn.BatchNorm2d] = []
        for block in self:
            if not _is_plain(block):
                return False

            norms += [n for n in block.modules() if isinstance(n, nn.BatchNorm2d)]

        modes = {norm.training for norm in norms}
        if modes == {False}:
            if not torch.is_grad_enabled():
                return True

            inputs = [features, *self.parameters()]
            return not any(tensor.requires_grad for tensor in inputs)

        return modes == {True} and all(norm.momentum is not None for norm in norms)

    def rows(
        self,
        features: Tensor,
        own: Tensor,
        near: Tensor,
        encode: residual_stage.Encoder,
    ) -> Tensor:
        """features (B, P, C), own (B, G, C), near (B, G, K) -> (B, G, 2C), the maximum included."""
        pairs = residual_stage.Pairs(features, own, near, encode)
        blocks: list[residual_stage.Block] = []
        norms: list[nn.BatchNorm2d] = []

        for block in self:
            if isinstance(block, Residual):
                blocks.append(_block_of(block.layers))
                norms += [n for n in block.layers if isinstance(n, nn.BatchNorm2d)]

        if not norms[0].training:
            running = [_running(norm) for norm in norms]
            return residual_stage.evaluation(pairs, blocks, running)

        features, statistics = residual_stage.training(pairs, blocks)
        for norm, (mean, var) in zip(norms, statistics, strict=True):
            _update_running(norm, mean, var, near.numel())

        return features


def _is_plain(block: nn.Module) -> bool:
    """Return whether a block is a `Residual` as it is made: no layer of another kind, no hook."""
    if type(block) is not Residual or any(map(has_hooks, block.modules())):
        return False

    kinds = tuple(type(layer) for layer in block.layers)
    if kinds != (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.BatchNorm2d):
        return False

    return all(block.layers[index].bias is not None for index in (0, 3))


def _running(norm: nn.BatchNorm2d) -> residual_stage.Statistics:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


@torch.no_grad()
def _update_running(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, rows: int) -> None:
    """Update a norm's running statistics with those of a batch of so many rows."""
    running_mean, running_var = _running(norm)
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    running_mean.mul_(1 - norm.momentum).add_(mean, alpha=norm.momentum)
    unbiased = var * (rows / max(rows - 1, 1))
    running_var.mul_(1 - norm.momentum).add_(unbiased, alpha=norm.momentum)


def _block_of(layers: nn.Sequential) -> residual_stage.Block:
    parts: list[Any] = list(layers)
    first, norm1, _, second, norm2 = parts
    return residual_stage.Block(
        (norm1.eps, norm2.eps),
        first.weight.flatten(1), first.bias, norm1.weight, norm1.bias,
        second.weight.flatten(1), second.bias, norm2.weight, norm2.bias,
    )  # fmt: skip


class PointPN(nn.Module):
    """points (B, P, 3 or 4) -> tokens (B, N, dim), centers (B, N, 3). Four channels, width 96:
    3,369,792 parameters.

    Four stages of 2, 4, 8 and 8 times `embed_dim` channels. The heights are the fourth channel of
    the points, where the data set gives one (`dataset.heights`, as the program does), else those of
    the cloud as it comes, normalised. Where the last stage is not `dim` wide, one trained linear
    layer leads there.
    """

    uses_stem = False
    skips_near_origin = False  # set by the model: see config/official.py
    recomputed = False  # see activation_checkpointing.py

    def __init__(
        self, config: PointPNTokenizerConfig, backbone: Backbone, compat: str
    ) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = config.num_tokens
        self.official = compat == "official"
        width, dim = config.embed_dim, backbone.widths[0]
        self.embed = _layer(4 if config.height else 3, width)
        plan = (
            (2 * width, 2 * width, 2),
            (4 * width, 4 * width, 1),
            (8 * width, 8 * width, 1),
            (16 * width, 8 * width, 1),
        )

        # All of `widen` before all stages: the random start is drawn in this order.
        self.widen = nn.ModuleList(_layer(pair, wide) for pair, wide, _ in plan)
        self.stages = nn.ModuleList()

        for _, wide, repeats in plan:
            blocks = [Residual(wide, wide // 2) for _ in range(repeats)]
            self.stages.append(nn.Sequential(*blocks))

        self.out = nn.Identity() if 8 * width == dim else nn.Linear(8 * width, dim)

    def geometry(self, points: Tensor) -> Tensor:
        """The centres (B, N, 3), and on the way all neighbourhoods, for the cache of batches."""
        _, around = self._around(points[:, :, :3])
        last_centers, _, _ = around[-1]
        return last_centers

    def _around(self, points: Tensor) -> tuple[Tensor, list[Around]]:
        counts = [self.num_tokens << shift for shift in (3, 2, 1, 0)]
        return neighbourhoods(
            points, counts, self.config.neighbours, self.skips_near_origin
        )

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        inputs, points = points, points[:, :, :3]
        if inputs.shape[2] == 3 and self.config.height:
            inputs = with_height(points)

        features = self.embed(inputs.transpose(1, 2)).transpose(1, 2)  # (B, P, D)
        index, around = self._around(points)
        own, centers = gather(features, index), points

        for widen, stage, (centers, near, relative) in zip(
            self.widen, self.stages, around, strict=True
        ):
            neighbour = gather(features, near)
            center = own[:, : centers.shape[1]].unsqueeze(2).expand_as(neighbour)
            pair = torch.cat([neighbour, center], dim=3)  # (B, G, K, 2C)
            rows = pair.flatten(1, 2).transpose(1, 2)  # (B, 2C, GK)
            wide = widen(rows).transpose(1, 2).unflatten(1, near.shape[1:])
            kind = self.config.normalisation
            encoding = encoded(relative, wide.shape[3], kind, self.official)
            # (B, G, K, D) -> (B, D, G, K)
            wide = ((wide + encoding) * encoding).permute(0, 3, 1, 2)
            out = run_stage(stage, stage, wide, recomputed=self.recomputed)
            own = features = (out.amax(dim=3) + out.mean(dim=3)).transpose(1, 2)

        return self.out(features), centers


def _layer(dim_in: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(dim_in, dim_out, 1, bias=False), nn.BatchNorm1d(dim_out), nn.ReLU()
    )


class Patch(nn.Module):
    """points (B, P, 3) -> tokens (B, N, C), centers (B, N, 3): groups of neighbours, each embedded
    by a small PointNet.

    A 3d backbone's own pretrained embedding is taken, and stays frozen with it; in front of any
    other one it is new and trains.
    """

    skips_near_origin = False

    def __init__(self, config: PatchConfig, backbone: Backbone, compat: str) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = config.num_tokens
        stem = backbone.stem
        self.uses_stem = isinstance(stem, Stem)

        if self.uses_stem:
            self.embed = stem.patches[0]
            self.reduce = stem.reduce
        else:
            self.embed = PatchEmbedding((3, 128, 256), (512, backbone.dim))
            self.reduce = nn.Identity()

    def geometry(self, points: Tensor) -> Tensor:
        """The centres (B, N, 3), and on the way all neighbourhoods, for the cache of batches."""
        centers, _, _ = self._around(points)
        return centers

    def _around(self, points: Tensor) -> Around:
        _, around = neighbourhoods(
            points, [self.num_tokens], self.config.neighbours, self.skips_near_origin
        )
        return around[0]

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        centers, _, relative = self._around(points)
        return self.reduce(self.embed(relative)), centers


# centres (B, G, 3), their neighbours (B, G, K), relative coordinates (B, G, K, 3)
Around = tuple[Tensor, Tensor, Tensor]


def neighbourhoods(
    points: Tensor,
    counts: Sequence[int],
    neighbours: int,
    skip_near_origin: bool = False,
) -> tuple[Tensor, list[Around]]:
    """Indices (B, G) of the first stage's centres among points (B, P, 3), and every stage's
    neighbourhoods.

    A stage's neighbours are among the centres of the stage before it. `skip_near_origin`: see
    `farthest_points`.
    """

    def make(points: Tensor) -> tuple[Tensor, list[Around]]:
        # Farthest point sampling is nested: the centres of the later stages are the first ones of
        # this sample.
        index = farthest_points(points, counts[0], skip_near_origin)
        sample = gather(points, index)
        candidates = points
        around: list[Around] = []

        for count in counts:
            centers = sample[:, :count]
            near = nearest(centers, candidates, neighbours)
            relative = gather(candidates, near) - centers.unsqueeze(2)
            around.append((centers, near, relative))
            candidates = centers

        return index, around

    name = ("neighbourhoods", tuple(counts), neighbours, skip_near_origin)
    return cached([points], name, make)


def encoded(relative: Tensor, width: int, kind: str, official: bool) -> Tensor:
    """PosE (B, G, K, width) of relative coordinates (B, G, K, 3) at a common scale."""

    def make(relative: Tensor) -> Tensor:
        return pos_e(normalise(relative, kind, official), width)

    return cached([relative], ("encoded", width, kind, official), make, as_one=True)


def normalise(relative: Tensor, kind: str, official: bool = False) -> Tensor:
    """Neighbourhood coordinates (B, G, K, 3) at a common scale, every sample by itself (spec 1.1).

    `official` takes one standard deviation over the whole batch for `mn40` (T4): what a cloud gives
    then depends on the others.
    """
    largest = relative.abs().amax(dim=2, keepdim=True)
    if kind == "scan":
        return relative / (largest + 1e-6)
    if kind == "exact_scan":
        # As Any2Point's program (T42), but for a group that is flat on an axis, of which that makes
        # NaN.
        return relative / torch.where(largest > 0, largest, torch.ones_like(largest))
    if official:
        return relative / (relative.std() + 1e-5)

    return relative / (relative.flatten(1).std(dim=1)[:, None, None, None] + 1e-5)
