"""Point-M2AE: three scales, each of fewer and wider tokens.

Source: Point-M2AE (arXiv 2205.14401), weights of its authors (the encoder under `h_encoder.`;
I2P-MAE, arXiv 2212.06785, has the same encoder) or the hub's
`torch-pointcloud/point-m2ae-base.pretrain.renrui-zhang`. Widths 96, 192, 384, five pre-norm blocks
each, 6 heads, no q/k/v bias; attention only among centres nearer than the scale's radius; no class
token (spec 1.4, 7). Letters: B clouds, N tokens, K neighbours, C channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pointsweep.config.backbones import BackboneConfig, PointM2AEConfig
from pointsweep.models.backbones.base import Backbone, Block, Shape
from pointsweep.models.backbones.checkpoints import (
    TIMM_BLOCKS,
    Names,
    hub_file,
    split_qkv,
    with_new_norm,
)
from pointsweep.models.backbones.patch_embedding import (
    PatchEmbedding,
    Stem,
    body_of,
    place_mlp,
)
from pointsweep.ops.point_ops import farthest_points, gather, nearest

WIDTHS, DEPTH, RADII, FAR = (96, 192, 384), 5, (0.32, 0.64, 1.28), -1e5
NAMES = Names(
    direct={},
    prefix="blocks.",
    blocks=TIMM_BLOCKS,
    dropped=("encoder_norms.", "mask_token"),
)


class PointM2AE(Backbone):
    """`dim` is the last scale's; `widths` those of all blocks. The checkpoint's norms of the scales
    belong to its decoder.
    """

    prefix = 0

    def __init__(self, config: PointM2AEConfig) -> None:
        most_blocks = DEPTH * len(WIDTHS)
        depth = most_blocks if config.num_blocks is None else config.num_blocks
        if depth > most_blocks:
            raise ValueError(
                f"backbone.num_blocks: {config.name} has {most_blocks} blocks, got {depth}"
            )

        num_scales = (max(depth, 1) - 1) // DEPTH + 1  # that `num_blocks` leaves
        widths = WIDTHS[:num_scales]
        shapes = []

        for width in widths:
            shape = Shape(
                width,
                num_blocks=depth,
                num_heads=6,
                mlp=4 * width,
                qkv_bias=False,
                eps=1e-5,
            )
            shapes.append(shape)

        super().__init__(config, shapes[-1])
        self.scale_tokens = config.scale_tokens
        self.scale_neighbours = config.scale_neighbours
        self.widths = [widths[i // DEPTH] for i in range(max(depth, 1))]
        self.scale_starts = list(range(0, depth, DEPTH))
        self.blocks = nn.ModuleList()

        for i, rate in enumerate(self.drop_path_rates):
            self.blocks.append(
                Block(shapes[i // DEPTH], config.attention_dropout, rate)
            )

        merging = []
        for finer, coarser in itertools.pairwise(widths):
            merging.append(PatchEmbedding((finer, finer, finer), (coarser, coarser)))

        embedding = PatchEmbedding((3, 128, 256), (512, WIDTHS[0]))
        self.stem = Stem(
            [embedding, *merging], [place_mlp(width, width) for width in widths]
        )

    def positions(self, locations: Tensor) -> Tensor:
        return self.positions_at(0, locations)

    def positions_at(self, index: int, locations: Tensor) -> Tensor:
        encodings: Tensor = self.stem.places[index // DEPTH](locations)
        return encodings

    def attention_bias(
        self, index: int, centers: Tensor, locations: Tensor | None
    ) -> Tensor:
        away = (centers.unsqueeze(1) - centers.unsqueeze(2)).norm(dim=-1)  # (B, N, N)
        return torch.where(away >= RADII[index // DEPTH], FAR, 0.0).unsqueeze(1)

    def enter_scale(
        self, index: int, tokens: Tensor, centers: Tensor
    ) -> tuple[Tensor, Tensor]:
        scale = index // DEPTH
        # (B, N, 3)
        chosen = gather(centers, farthest_points(centers, self.scale_tokens[scale - 1]))
        near = nearest(chosen, centers, self.scale_neighbours[scale - 1])  # (B, N, K)
        return self.stem.patches[scale](gather(tokens, near)), chosen

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        return hub_file(
            config, "torch-pointcloud/point-m2ae-base.pretrain.renrui-zhang", fetch
        )

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        body = {}
        for name, tensor in body_of(state, ("h_encoder.",)).items():
            body[_flat_name(name)] = tensor

        tensors = NAMES.apply(split_qkv(body), len(self.blocks))
        unused_scales = range(len(self.scale_starts), len(WIDTHS))
        unused = tuple(f"stem.patches.{scale}." for scale in unused_scales)
        unused += tuple(f"stem.places.{scale}." for scale in unused_scales)

        for name in list(tensors):
            if name.startswith(unused):
                del tensors[name]

        return with_new_norm(tensors, self.dim)


def _flat_name(name: str) -> str:
    """`encoder_blocks.1.blocks.2.` is block 7; the embeddings of the scales lie in the stem."""
    kind, _, suffix = name.partition(".")
    scale, _, leaf = suffix.partition(".")

    if kind == "encoder_blocks":
        number, _, leaf = leaf.removeprefix("blocks.").partition(".")
        return f"blocks.{DEPTH * int(scale) + int(number)}.{leaf}"

    return {
        "token_embed": f"stem.patches.{suffix}",
        "encoder_pos_embeds": f"stem.places.{suffix}",
    }.get(kind, name)
