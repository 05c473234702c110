"""Point-PEFT: prompts filled from a memory bank of training clouds, adapters with local attention
among neighbours, trained biases.

Source: Point-PEFT (arXiv 2310.03059) and its program; spec 3, whose section numbers follow. The
defaults are those of Point-MAE on ScanObjectNN (3.4, first column); the other variants are
settings. In the prompted blocks of `compat: fixed` the groups are found among the prompts' learned
coordinates and the centres, so that every index meets its own feature; `official` finds them among
points sampled anew of [coordinates; cloud] and looks them up with a stride that is too short (T2),
which mixes the clouds of a batch. Letters: B clouds, P points, N tokens, C channels, S prompts, G
groups, K neighbours, H heads.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.config.methods import PointPEFTConfig
from pointsweep.models.backbones.base import Attention, Backbone, Block
from pointsweep.models.backbones.patch_embedding import Stem
from pointsweep.models.layers import (
    Bottleneck,
    Dropout,
    DropPath,
    insert_tokens,
    remove_tokens,
)
from pointsweep.models.methods.base import Method
from pointsweep.models.methods.point_peft_parts import (
    AroundPrompts,
    GatedPrompts,
    LocalStage,
    frozen_copy,
)
from pointsweep.ops.point_ops import farthest_points, gather, nearest
from pointsweep.ops.vmap import folded


@dataclass(frozen=True)
class BankOutput:
    """Output of the bank in one forward: what the bank gave for each cloud (B, S, C), and the
    clouds (B, P, 3).
    """

    knowledge: Tensor | None
    points: Tensor


@dataclass(frozen=True)
class Context:
    """Context of one forward and scale: the bank's output, and the groups of the local stage with
    and without prompts.
    """

    seen: BankOutput
    plain: Any
    prompted: Any


class PointPEFT(Method):
    """Point-MAE, 15 classes: 710,749 values with the head, as Point-PEFT counts. Raises ValueError
    for a backbone without a stem.
    """

    keeps_buffers = True  # the bank
    # a prompt's coordinates act where they are taken as a centre, and only the first one surely is
    parts_lack_gradient = ("coordinates",)
    bank: Tensor

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        config: PointPEFTConfig = self.config
        if not isinstance(backbone.stem, Stem):
            raise ValueError(
                f"method: point_peft needs a backbone that reads points; {backbone.config.name} has"
                " no stem"
            )

        self.prefix = prefix
        self.widths = backbone.widths
        self.starts = backbone.scale_starts
        self.depth = min(config.depth, len(backbone.blocks))
        # (C, n) columns of length 1
        self.register_buffer("bank", torch.empty(backbone.dim, 0), persistent=False)

        if config.bank:
            self.encoder = frozen_copy(backbone)

        self._make_prompts(backbone)
        if config.adapter:
            self.adapters = self._bottlenecks()
            self.closing = self._bottlenecks()
            if config.adapter_gate:
                self.gates = nn.Parameter(torch.zeros(len(self.widths)))

        if config.local:
            self._make_local(backbone.drop_path_rates)

        if config.bias_tuning:
            for name, parameter in backbone.blocks.named_parameters():
                if name.endswith(".bias"):
                    parameter.requires_grad_(True)

    def thaws(self, name: str) -> bool:
        is_bias = name.startswith("blocks.") and name.endswith(".bias")
        return is_bias and bool(self.config.bias_tuning)

    def _make_prompts(self, backbone: Backbone) -> None:
        config = self.config
        self.prompts = nn.ParameterList()
        for width in self.widths[: self.depth]:
            prompt = nn.Parameter(torch.empty(config.num_prompts, width))
            nn.init.trunc_normal_(prompt, std=0.02)
            self.prompts.append(prompt)

        self.dropout = Dropout(config.dropout)
        self.fillers = nn.ModuleDict()
        if config.bank:
            for index in range(self.starts[-1], self.depth):
                self.fillers[str(index)] = Bottleneck(
                    self.widths[index], config.bank_bottleneck, config.dropout
                )

        if config.prompt_kind == "gated":
            for block in list(backbone.blocks)[: self.depth]:
                assert isinstance(block, Block)
                assert isinstance(block.attn, Attention)
                block.attn = GatedPrompts(block.attn, self.prefix, config.num_prompts)

                if not self.program.norms_prompts:
                    block.norm1 = AroundPrompts(
                        block.norm1, self.prefix, config.num_prompts
                    )

    def _make_local(self, rates: list[float]) -> None:
        config = self.config
        with_mean = config.local_pool == "max_mean"
        self.local = nn.ModuleList()

        for start in self.starts:
            stage = LocalStage(self.widths[start], with_mean, config.center_scale)
            self.local.append(stage)

        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in self.widths)
        self.drop_paths = nn.ModuleList()
        for rate in rates:
            drop_path = DropPath(rate if self.program.drops_groups else 0.0)
            drop_path.lead = 2  # a draw for every cloud and group
            self.drop_paths.append(drop_path)

        if self.depth and config.prompt_kind == "concat":
            self.coordinates = nn.Parameter(torch.empty(config.num_prompts, 3))
            nn.init.trunc_normal_(self.coordinates, std=0.02)

    def _bottlenecks(self) -> nn.ModuleList:
        """Return a new adapter for every block."""
        bottlenecks = nn.ModuleList()
        for width in self.widths:
            bottlenecks.append(
                Bottleneck(width, self.config.adapter_bottleneck, self.config.dropout)
            )

        return bottlenecks

    def train(self, mode: bool = True) -> PointPEFT:
        super().train(mode)
        if "encoder" in self._modules:
            self.encoder.eval()

        return self

    @torch.no_grad()
    def prepare(self, model: nn.Module, batches: Iterable[Tensor]) -> None:
        """Fill the bank: one column of length 1 for every training cloud (3.2)."""
        if not self.config.bank:
            return

        rows = []  # (B, C) each
        for points in batches:
            rows.append(F.normalize(self._query(points), dim=1))

        self.bank = torch.cat(rows).t().contiguous()

    @torch.no_grad()
    def _query(self, points: Tensor) -> Tensor:
        """points (B, P, 3) -> the maximum over the frozen encoder's tokens, (B, C); in Point-M2AE
        mean + maximum.
        """
        encoder = self.encoder
        config = self.config
        skip = self.program.skips_near_origin
        num_groups = min(config.bank_groups, points.shape[1])
        group_size = min(config.bank_group_size, points.shape[1])
        centers = gather(points, farthest_points(points, num_groups, skip))
        near = nearest(centers, points, group_size)
        relative = gather(points, near) - centers.unsqueeze(2)
        tokens = encoder.stem.reduce(encoder.stem.patches[0](relative))

        for index, block in enumerate(encoder.blocks):
            if index in encoder.scale_starts:
                if index > 0:
                    tokens, centers = encoder.enter_scale(index, tokens, centers)

                encoding = encoder.positions_at(index, centers)
                bias = encoder.attention_bias(index, centers, None)

            tokens = block(tokens + encoding, lambda output, inputs: output, bias)

        tokens = encoder.norm(tokens)
        largest = tokens.amax(dim=1)
        if len(encoder.scale_starts) > 1:
            return largest + tokens.mean(dim=1)

        return largest

    def observe(self, points: Tensor, tokens: Tensor) -> tuple[Tensor, BankOutput]:
        if not self.config.bank or not len(self.fillers):
            return tokens, BankOutput(None, points)
        if not self.bank.shape[1]:
            raise RuntimeError(
                "point_peft: the memory bank is empty; prepare() fills it from the training clouds"
            )

        return tokens, BankOutput(self._retrieve(folded(self._query, points)), points)

    def _retrieve(self, query: Tensor) -> Tensor:
        """query (B, C) -> itself, the softmax mixture of its nearest columns, and these columns,
        (B, S, C) (3.2).
        """
        similarity = F.normalize(query, dim=1) @ self.bank  # (B, n)
        if self.config.exclude_self and self.training:
            similarity = similarity.masked_fill(similarity > 1 - 1e-6, -torch.inf)

        num_columns = min(self.config.num_prompts - 2, similarity.shape[1])
        top = similarity.topk(num_columns, dim=1)
        columns = self.bank.t()[top.indices]  # (B, K, C)
        mixed = (top.values.softmax(dim=1).unsqueeze(2) * columns).sum(dim=1)
        features = torch.cat([query.unsqueeze(1), mixed.unsqueeze(1), columns], dim=1)
        # a bank of fewer clouds than columns asked for
        lacking = self.config.num_prompts - features.shape[1]

        if not lacking:
            return features

        repeated = features[:, -1:].expand(-1, lacking, -1)
        return torch.cat([features, repeated], dim=1)

    def begin(
        self,
        index: int,
        tokens: Tensor,
        centers: Tensor,
        locations: Tensor | None,
        seen: BankOutput,
    ) -> tuple[Tensor, Context]:
        if not self.config.local:
            return tokens, Context(seen, None, None)

        scale, config = self.starts.index(index), self.config
        count = max(centers.shape[1] // 2, 1)
        if config.local_centers:
            count = config.local_centers[scale]

        local: Any = self.local[scale]
        skip = self.program.skips_near_origin
        near = config.local_neighbours
        plain = local.groups(centers, centers, count, near, skip)

        if not hasattr(self, "coordinates"):
            return tokens, Context(seen, plain, plain)

        own = self.coordinates.expand(len(centers), -1, -1)  # (B, S, 3)
        if self.compat == "official":
            cloud = torch.cat([own, seen.points], dim=1)
            sample = farthest_points(cloud.detach(), centers.shape[1], skip)
            centers = gather(cloud, sample)
            locations = centers
        else:
            locations = torch.cat([own, centers], dim=1)

        prompted = local.groups(locations, centers, count, near, skip)
        return tokens, Context(seen, plain, prompted)

    def before_block(self, index: int, tokens: Tensor, context: Context) -> Tensor:
        if index >= self.depth:
            return tokens

        prompt = self.dropout(self.prompts[index])
        prompt = prompt.expand(len(tokens), -1, -1)  # (B, S, C)
        if str(index) in self.fillers:
            assert context.seen.knowledge is not None
            known = context.seen.knowledge
            prompt = prompt + known + self.fillers[str(index)](known)

        return insert_tokens(tokens, prompt, at=self.prefix)

    def attention_bias(self, index: int, bias: Any) -> Any:
        """The program's mask of Point-M2AE begins at the first token, where the prompts are, so
        that every centre has the mask of another one (T31).
        """
        if bias is None or self.compat != "official" or index >= self.depth:
            return bias

        behind = self.config.num_prompts if self.config.prompt_kind == "concat" else 0
        return F.pad(bias, (0, behind, 0, behind))

    def after_ffn(
        self, index: int, output: Tensor, inputs: Tensor, context: Context
    ) -> Tensor:
        if not self.config.adapter:
            return output

        adapted: Tensor = self.adapters[index](output)
        if not self.config.adapter_gate:
            return output + self.config.adapter_scale * adapted

        gate = self.gates[index]
        if self.compat == "official":
            # The program's gate, which starts at 0, also switches the frozen branch off (T31).
            return gate * (output + adapted)

        return output + gate * adapted

    def after_block(self, index: int, tokens: Tensor, context: Context) -> Tensor:
        prompted = index < self.depth
        if prompted and self.config.prompt_kind == "gated":
            tokens = remove_tokens(tokens, self.config.num_prompts, at=self.prefix)
            prompted = False

        if self.config.local:
            groups = context.prompted if prompted else context.plain
            tokens = self._local(index, tokens, groups, prompted)

        if self.config.adapter:
            tokens = tokens + self.closing[index](tokens)

        if not prompted:
            return tokens

        return remove_tokens(tokens, self.config.num_prompts, at=self.prefix)

    def _local(self, index: int, tokens: Tensor, groups: Any, prompted: bool) -> Tensor:
        """Add what the groups say to the N point tokens (3.3)."""
        scale = bisect.bisect_right(self.starts, index) - 1
        values = tokens[:, self.prefix :]  # (B, [S +] N, C)
        short = prompted and self.compat == "official"
        local: Any = self.local[scale]
        stride = groups.back.shape[1] if short else None
        # (B, N, C)
        pooled = local(
            values, groups, self.norms[index], stride, self.drop_paths[index]
        )
        num_front = tokens.shape[1] - pooled.shape[1]
        front, points = tokens[:, :num_front], tokens[:, num_front:]
        points = points + self.config.propagation_scale * pooled

        return torch.cat([front, points], dim=1)
