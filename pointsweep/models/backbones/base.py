"""Frozen transformers under one contract: blocks that let a method work on the feed-forward branch,
and source positions.

Every backbone is this one stack of blocks; its file maps a checkpoint's names to the stack's and
says what its positions are. So a method that wraps a projection (LoRA), a drop path or a faster
attention is written once, for every modality.

Letters: B clouds, N tokens, C channels, H heads, M views, L blocks.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.config.backbones import WEIGHT_KINDS, BackboneConfig
from pointsweep.config.official import Program
from pointsweep.errors import MissingWeightsError
from pointsweep.models.backbones.checkpoint_files import candidates, read_checkpoint
from pointsweep.models.backbones.checkpoints import (
    check_values,
    init_random,
    local_file,
    misfits,
)
from pointsweep.models.backbones.initialisation import (
    Start,
    probe_tokens,
    reinitialise,
    shuffled,
    standardised,
)
from pointsweep.models.layers import Dropout, DropPath, Linear, QuickGELU
from pointsweep.ops.vmap import folded
from pointsweep.utils.digests import file_sha256

log = logging.getLogger("pointsweep.backbones")

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
}


@dataclass(frozen=True)
class Shape:
    """Sizes that tell one plain transformer from another."""

    dim: int
    num_blocks: int
    num_heads: int
    mlp: int  # width of the feed-forward branch
    head_dim: int | None = None  # null = dim / num_heads
    post_norm: bool = False
    layer_scale: bool = False
    qkv_bias: bool = True
    eps: float = 1e-6
    activation: str = "gelu"
    class_token: bool = False  # the checkpoint has a class token
    norm: str = "layer"  # or "rms" (T5)
    bias: bool = True  # of the output projection and the feed-forward branch
    scaled: bool = (
        True  # attention logits divided by the root of the head's width; not so in T5
    )
    extra_key: bool = False  # one learned key and value more (ImageBind)


@dataclass(frozen=True)
class Plane:
    """Plane that a projection lands on: a line of `width` places (height 1) or a plane in pixels,
    with the default cell size.
    """

    width: int
    height: int
    cell: float


def make_norm(shape: Shape) -> nn.Module:
    """Layer norm, or T5's without mean and shift."""
    if shape.norm == "rms":
        return nn.RMSNorm(shape.dim, eps=shape.eps)

    return nn.LayerNorm(shape.dim, eps=shape.eps)


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of each cloud (batch first); q, k and v are
    separate projections.

    `across_batch` reproduces the published program for CLIP (T1): every token attends to those of
    its index in the other clouds.
    """

    across_batch = False

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.head_dim = shape.head_dim or shape.dim // shape.num_heads
        inner = self.num_heads * self.head_dim
        self.q = Linear(shape.dim, inner, bias=shape.qkv_bias)
        self.k = Linear(shape.dim, inner, bias=shape.qkv_bias)
        self.v = Linear(shape.dim, inner, bias=shape.qkv_bias)
        self.out = Linear(inner, shape.dim, bias=shape.bias)
        self.scale = self.head_dim**-0.5 if shape.scaled else 1.0
        self.extra: nn.Parameter | None = None

        if shape.extra_key:
            self.extra = nn.Parameter(torch.zeros(2, 1, 1, inner))  # key and value

        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (B, T, C); `bias` (B, H or 1, N, N) is added to the logits among the last N tokens,
        those of the points.
        """
        if self.across_batch:
            x = x.transpose(0, 1)

        q = self.q(x)
        k = self.k(x)
        v = self.v(x)

        if self.extra is not None:
            extra_key, extra_value = self.extra  # (1, 1, C) each
            k = torch.cat([k, extra_key.expand(len(x), 1, -1)], dim=1)
            v = torch.cat([v, extra_value.expand(len(x), 1, -1)], dim=1)

        # (B, H, T, C / H)
        mixed = self._attend(self._heads(q), self._heads(k), self._heads(v), bias)
        output = self.out(mixed.transpose(1, 2).flatten(2))  # (B, T, C)
        if self.across_batch:
            return output.transpose(0, 1)

        return output

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            front, back = q.shape[2] - bias.shape[2], k.shape[2] - q.shape[2]
            bias = F.pad(bias, (front, back, front, 0))

        drops = self.training and self.dropout.p > 0
        # On a CPU torch's fused attention in bf16 takes three times as long as the products do.
        if drops or (q.dtype == torch.bfloat16 and q.device.type == "cpu"):
            logits = q @ k.transpose(-2, -1) * self.scale
            weights: Tensor = self.dropout(
                (logits if bias is None else logits + bias).softmax(dim=-1)
            )
            return weights @ v

        return folded(
            partial(F.scaled_dot_product_attention, scale=self.scale), q, k, v, bias
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (arXiv 2103.17239)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class TransformerBlock(nn.Module):
    """A transformer block, with what methods need to find in it.

    A method puts its own module in the place of one of the block's by `setattr(owner, name,
    module)`.
    """

    post_norm: bool
    drop_path: DropPath

    def projections(self, role: str) -> list[tuple[nn.Module, str]]:
        """Return where the linear layers of a role (q, k, v, out, fc1, fc2) are, as (owner, name);
        a gated branch has two of fc1.

        Raises ValueError where the block has none.
        """
        raise NotImplementedError

    def norms(self) -> list[tuple[nn.Module, str]]:
        """Return where the norms over the tokens' width are, as (owner, name)."""
        raise NotImplementedError

    def attention(self) -> tuple[nn.Module, str]:
        """Return where the module is whose output is the attention branch, before the residual sum,
        as (owner, name).
        """
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        after_ffn: Callable[[Tensor, Tensor], Tensor],
        bias: Any = None,
        after_attention: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C). `after_ffn` gets the feed-forward branch and what went into it;
        see `Backbone.attention_bias`.
        """
        raise NotImplementedError


class Block(TransformerBlock):
    """One block of ours. `after_ffn` gets the feed-forward branch (B, N, C) before the residual
    sum, and what went into it.

    Pre-norm: h = x + Attn(LN1(x)), then h + after_ffn(FFN(LN2(h))).
    Post-norm (BERT): h = LN1(x + Attn(x)), then LN2(h + after_ffn(FFN(h))).
    `after_attention` gets h, where a method asks for it, and gives what the block goes on with.
    """

    drops_attention = True  # drop path acts on the attention branch too

    def __init__(
        self, shape: Shape, attention_dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        self.post_norm = shape.post_norm
        self.norm1 = make_norm(shape)
        self.attn: nn.Module = Attention(shape, attention_dropout)
        self.scale1: nn.Module = (
            LayerScale(shape.dim) if shape.layer_scale else nn.Identity()
        )
        self.norm2 = make_norm(shape)
        self.ffn: nn.Module = nn.Sequential(
            Linear(shape.dim, shape.mlp, bias=shape.bias),
            ACTIVATIONS[shape.activation](),
            Linear(shape.mlp, shape.dim, bias=shape.bias),
        )

        self.scale2: nn.Module = (
            LayerScale(shape.dim) if shape.layer_scale else nn.Identity()
        )
        self.drop_path = DropPath(drop_path)

    def projections(self, role: str) -> list[tuple[nn.Module, str]]:
        in_branch = {"fc1": "0", "fc2": "2"}
        if role in in_branch:
            return [(self.ffn, in_branch[role])]

        return [(self.attn, role)]

    def norms(self) -> list[tuple[nn.Module, str]]:
        return [(self, "norm1"), (self, "norm2")]

    def attention(self) -> tuple[nn.Module, str]:
        return self, "attn"

    def forward(
        self,
        x: Tensor,
        after_ffn: Callable[[Tensor, Tensor], Tensor],
        bias: Any = None,
        after_attention: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        if self.post_norm:
            x = self.norm1(x + self.drop_path(self.scale1(self.attn(x, bias))))
            if after_attention is not None:
                x = after_attention(x)

            return self.norm2(
                x + after_ffn(self.drop_path(self.scale2(self.ffn(x))), x)
            )

        attended = self.scale1(self.attn(self.norm1(x), bias))
        x = x + (self.drop_path(attended) if self.drops_attention else attended)
        if after_attention is not None:
            x = after_attention(x)

        y = self.norm2(x)
        return x + after_ffn(self.drop_path(self.scale2(self.ffn(y))), y)


class Backbone(nn.Module):
    """A frozen pretrained transformer.

    A subclass fixes `shape` and `plane`, keeps its position table as a buffer `table`, and says
    where its checkpoint lies (`locate`) and how its names map to this stack's (`convert`).

    `norm` (the checkpoint's final norm, else a new one) and `cls_token` (1, 1, C; None where the
    checkpoint has none) are taken over and trained by the model (spec 2.1).
    """

    # None: a 3d backbone, whose positions are those of the centres themselves
    plane: Plane | None = None
    prefix = 1  # tokens before the point tokens: the class token; 0 in Point-M2AE
    # how its own program draws its weights before training (initialisation.py)
    scheme = "truncated"
    # tokens look at those in front of them alone: the class token, which is the first, sees no
    # point
    blind_class_token = False

    def __init__(
        self,
        config: BackboneConfig,
        shape: Shape,
        make_block: Callable[[int, float], TransformerBlock] | None = None,
    ) -> None:
        """`make_block` makes a block of its index and drop path rate; by default one of ours of the
        shape.
        """
        super().__init__()
        self.config = config
        self.shape = shape
        self.dim = shape.dim
        self.compat = "fixed"
        depth = shape.num_blocks if config.num_blocks is None else config.num_blocks

        if depth > shape.num_blocks:
            raise ValueError(
                f"backbone.num_blocks: {config.name} has {shape.num_blocks} blocks, got {depth}"
            )

        self.drop_path_rates = [
            config.drop_path * i / max(depth - 1, 1) for i in range(depth)
        ]
        self.blocks = nn.ModuleList()
        for index, rate in enumerate(self.drop_path_rates):
            if make_block is not None:
                self.blocks.append(make_block(index, rate))
            else:
                self.blocks.append(Block(shape, config.attention_dropout, rate))

        # of each block's tokens; without blocks, of those that the norm gets
        self.widths = [shape.dim] * max(depth, 1)
        # the blocks at which tokens are made anew of fewer, wider ones; the first always
        self.scale_starts = [0]
        self.norm = make_norm(shape)
        self.cls_token = (
            nn.Parameter(torch.zeros(1, 1, shape.dim)) if shape.class_token else None
        )
        # (1, 1, C), where the checkpoint has one that is used
        self.cls_position: nn.Parameter | None = None
        # of a 3d backbone a `Stem`: what makes its tokens and positions of points
        self.stem: Any = None

    def positions_at(self, index: int, locations: Tensor) -> Tensor | None:
        """`positions` for the scale that begins at block `index`."""
        return self.positions(locations)

    def use_compat(self, compat: str) -> None:
        """`official`: behave like the published program where it is known to differ (spec 8)."""
        self.compat = compat

    def follow(self, program: Program) -> None:
        """Do what a released program does that no setting says: the norms' eps, and which branches
        drop path acts on.
        """
        for block in self.blocks:
            assert isinstance(block, Block)
            block.drops_attention = program.drops_attention
            if program.block_eps is not None:
                for norm in (block.norm1, block.norm2):
                    assert isinstance(norm, (nn.LayerNorm, nn.RMSNorm))
                    norm.eps = program.block_eps

        if program.final_eps is not None:
            assert isinstance(self.norm, (nn.LayerNorm, nn.RMSNorm))
            self.norm.eps = program.final_eps

        if self.stem is not None:
            for patch in self.stem.patches:
                patch.keep_statistics(not program.trains_frozen_norms)

    @abstractmethod
    def positions(self, locations: Tensor) -> Tensor | None:
        """Source encodings (..., N, C) at places (..., N) of a line, (..., N, 2) of a plane, or
        centres (..., N, 3).

        None where the source has none but in its attention (T5).
        """

    def attention_bias(
        self, index: int, centers: Tensor, locations: Tensor | None
    ) -> Any:
        """Return what block `index` and those of its scale add to the attention logits, (B, H or 1,
        N, N); None for nothing.

        A block of a library may take positions of another form.
        """
        return None

    def marks(self) -> tuple[str, ...]:
        """Return what a table must say of the backbone beside a number."""
        return ()

    def describe(self) -> str:
        """Return what the plan says of a backbone that is found and not written down; empty for one
        that is.
        """
        return ""

    def enter_scale(
        self, index: int, tokens: Tensor, centers: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens and centres of the scale that begins at block `index` > 0, of those of the scale
        before.
        """
        raise NotImplementedError

    def start(self, tokens: Tensor) -> Tensor:
        """Return what the checkpoint does to (B, N, C) tokens with their positions before the first
        block; nothing by default.
        """
        return tokens

    @classmethod
    def locate(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        """The checkpoint file, without reading it: `weights:` if it is a path, else the backbone's
        own. Raises MissingWeightsError.
        """
        if config.weights not in WEIGHT_KINDS:
            return local_file(config)

        return cls.locate_pretrained(config, fetch)

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        """Return where the published checkpoint lies on this machine; `fetch`: got from its hub
        first, if that can be reached.
        """
        raise MissingWeightsError(
            f"{config.name} has no published weights: set backbone.weights to random or to a file's"
            " path"
        )

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The checkpoint's tensors under the names of this module's state dict; what is not used
        (say, a head) left out.
        """
        return dict(state)

    def load(self) -> str:
        """Fill the weights as `config.weights` says; return their origin for the record. Raises
        ValueError on any mismatch.
        """
        if self.config.weights == "random":
            init_random(self, self.own_seed())
            return f"random, seed {self.own_seed()}"

        if self.config.weights == "reinitialised":
            start = Start(
                self.scheme, self.shape.dim, self.shape.num_blocks, self.shape.num_heads
            )
            reinitialise(self, start, self.own_seed())
            return f"reinitialised, seed {self.own_seed()}"

        state, origin = self._read()
        if self.config.weights == "shuffled":
            state = shuffled(state, self.own_seed())
            origin = f"shuffled, seed {self.own_seed()}, {origin}"

        own_state = self.state_dict()
        for name, tensor in own_state.items():
            own_state[name] = state[name].to(tensor.dtype)

        self.load_state_dict(own_state)
        return origin

    def own_seed(self) -> int:
        """The seed of drawn weights. Raises ValueError where it is still open."""
        if self.config.weights_seed is None:
            raise ValueError(
                "backbone.weights_seed: null is the trial's seed; config.with_seed fills it in"
            )

        return self.config.weights_seed

    @torch.no_grad()
    def change_per_block(self) -> float | None:
        """Return how far a block moves the token stream, relative to it, in the mean over the
        blocks; None without blocks.

        Streams are compared as the next norm sees them: every token with mean 0 and deviation 1.
        The tokens are probes from N(0, 1), and new ones of the scale's width where a scale begins.
        """
        if len(self.blocks) == 0:
            return None

        was_training = self.training
        self.eval()
        changes: list[float] = []
        tokens = torch.empty(0)

        for index, block in enumerate(self.blocks):
            if index in self.scale_starts:
                tokens = probe_tokens(self.widths[index])  # (B, N, C)
                tokens = self.start(tokens) if index == 0 else tokens

            before = standardised(tokens)
            tokens = block(tokens, _unchanged)
            changes.append(
                float((standardised(tokens) - before).norm() / before.norm())
            )

        self.train(was_training)
        return sum(changes) / len(changes)

    def flat_parameters(self, prefix: str = "") -> list[str]:
        """Return names of parameters in a library's layers whose gradient is zero by
        construction.
        """
        return []

    @classmethod
    def check(cls, config: BackboneConfig) -> None:
        """Read the checkpoint and compare names and shapes, before anything is launched. Raises
        ValueError, MissingWeightsError.
        """
        make: Callable[[BackboneConfig], Backbone] = cls  # type: ignore[assignment]  # a subclass knows its shape
        with torch.device("meta"):
            backbone = make(config)

        backbone._read()

    def _read(self) -> tuple[dict[str, Tensor], str]:
        """The checkpoint's tensors under this module's names, and their origin. Raises ValueError,
        naming the file.
        """
        path = self.locate(self.config)
        digest = file_sha256(path)

        if self.config.sha256 is not None and digest != self.config.sha256:
            raise ValueError(
                f"backbone.sha256: {path} has {digest}, expected {self.config.sha256}"
            )

        loaded = read_checkpoint(path)
        fitting: list[tuple[str, dict[str, Tensor], dict[str, Tensor]]] = []
        nearest: list[str] = []  # the misfits of what fits best
        fewest = 0

        for place, tensors, raw in candidates(loaded):
            state, wrong = self._converted(tensors)
            # What cannot even be converted is nearer than what has none of the names.
            count = len(wrong) if state else len(self.state_dict()) // 2
            if not wrong:
                fitting.append((place, state, raw))
            elif not nearest or count < fewest:
                nearest, fewest = wrong, count

        if not fitting and not nearest:
            raise ValueError(f"{path}: holds no tensors")
        if not fitting:
            raise ValueError(f"{path} does not fit: {listed(nearest)}")

        place, state, raw = fitting[0]
        check_values(self, state, raw, str(path))
        origin = f"{path.name}, sha256 {digest}"
        others = []

        for other_place, other_state, _ in fitting[1:]:
            if not _same_tensors(other_state, state):
                others.append(other_place)

        if others:
            log.warning(
                "%s: the weights in %s are taken; those in %s would fit as well",
                path,
                place,
                " and in ".join(others),
            )
            origin += f", of it {place}"

        return state, origin

    def _converted(
        self, raw: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Return a checkpoint's tensors under this module's names, and what does not fit."""
        try:
            state = self.convert(raw)
        except KeyError as error:
            return {}, [f"it has no tensor {error}"]
        except (ValueError, RuntimeError, IndexError) as error:
            # a tensor of another shape, which cannot be split
            return {}, [str(error)]

        return state, misfits(self, state)


def _unchanged(branch: Tensor, inputs: Tensor) -> Tensor:
    return branch


def listed(wrong: Sequence[str]) -> str:
    """Return misfits as one text: all of a few, the first of many."""
    more = f"; and {len(wrong) - 20} more" if len(wrong) > 20 else ""
    count = f"{len(wrong)} tensors: " if len(wrong) > 1 else ""
    return count + "; ".join(wrong[:20]) + more


def _same_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def lookup_line(table: Tensor, locations: Tensor) -> Tensor:
    """Linear interpolation in a table (length, C) at places (..., N) in [0, length - 1] -> (..., N,
    C).
    """
    left = locations.floor().clamp(0, len(table) - 1)
    right = (left + 1).clamp(max=len(table) - 1)
    weight = (locations - left).unsqueeze(-1)

    return torch.lerp(table[left.long()], table[right.long()], weight)


def lookup_plane(table: Tensor, locations: Tensor) -> Tensor:
    """Bilinear interpolation in a grid (rows, columns, C) at places (..., N, 2) = (column, row) in
    grid units -> (..., N, C).

    Zero outside the grid, like grid_sample with align_corners and zero padding.
    """
    rows, columns, channels = table.shape
    scale = locations.new_tensor([max(columns - 1, 1), max(rows - 1, 1)])
    grid = (2 * locations / scale - 1).reshape(1, 1, -1, 2)
    image = table.permute(2, 0, 1).unsqueeze(0)  # (1, C, rows, columns)
    sampled = F.grid_sample(
        image, grid, mode="bilinear", padding_mode="zeros", align_corners=True
    )

    return sampled.reshape(channels, -1).t().reshape(*locations.shape[:-1], channels)


def grid_positions(table: Tensor, locations: Tensor, plane: Plane) -> Tensor:
    """Encodings (..., N, C) at pixels (..., N, 2) of a plane whose corners are those of the grid
    `table` (rows, columns, C).
    """
    rows, columns = table.shape[:2]
    scale = locations.new_tensor(
        [(columns - 1) / (plane.width - 1), (rows - 1) / (plane.height - 1)]
    )

    return lookup_plane(table, locations * scale)
