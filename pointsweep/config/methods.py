"""Configurations of the methods. Their code is in pointsweep/models/methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, Strict
from pydantic_core import PydanticCustomError

from pointsweep.config.base import (
    Count,
    Counts,
    NamedConfig,
    Natural,
    NonNegative,
    Positive,
    Real,
    Share,
)
from pointsweep.config.peft_tuners import REFUSED, TUNERS

Counted = Mapping[str, Literal["blocks", "tokens", "points"]]


class MethodConfig(NamedConfig):
    """Base of the methods' configurations.

    `modalities` are those of the backbones the method can be put into.
    """

    modalities: ClassVar[tuple[str, ...]] = ("1d", "2d", "3d")
    compats: ClassVar[tuple[str, ...]] = ("fixed",)
    needs_blocks: ClassVar[bool] = (
        True  # false: it can be used with `backbone.num_blocks: 0`
    )
    # fields that count blocks, tokens or points: of which there must be so many
    counted: ClassVar[Counted] = {}
    # false: in a pack on a GPU its models do not run as one, they share the frozen weights alone
    joins: ClassVar[bool] = True
    # a package that its code needs and pointsweep brings as an extra of the same name
    package: ClassVar[str | None] = None


class AdapterConfig(MethodConfig):
    """Adapters: bottlenecks in or beside the feed-forward branch."""

    name: Literal["adapter"] = "adapter"
    kind: Literal["single", "houlsby", "adaptformer"] = "single"
    bottleneck: Count = 8
    scale: Real | None = None
    """Of the bottleneck; null: 1, for adaptformer 0.1."""
    dropout: Share = 0.1


class Any2PointConfig(MethodConfig):
    """Any2Point. Defaults: the program for CLIP's text tower on ScanObjectNN; spec 2.8 lists those
    of the others.
    """

    # 2: means over cells as products, a gradient of its own for the views; other last digits
    code_revision: ClassVar[int] = 2
    modalities: ClassVar[tuple[str, ...]] = ("1d", "2d")
    compats: ClassVar[tuple[str, ...]] = ("fixed", "official")

    name: Literal["any2point"] = "any2point"
    adapter: Literal["none", "mlp", "guided"] = "guided"
    """none: tokens, norm and head only; mlp: the bottleneck alone."""
    local_aggregation: bool = True
    """Attention among the tokens of a cell, in every view."""
    ensemble: Literal["mean", "maxmean", "adaptive"] = "adaptive"
    """Of the views; adaptive weighs them by the 3D branch."""
    local_space: Literal["source", "3d"] = "source"
    """Cells on the lines or planes, or voxels (Figure 6)."""
    bottleneck: Count = 16
    dropout: Share = 0.1
    attn_dim: Count = 12
    attn_heads: Count = 6
    scale_factor: Real = 0.3
    """Of the bottleneck."""
    coef_pro: Real = 0.3
    """Of the aggregated views."""
    cell_size: Positive | None = None
    """On the line or plane; null: the backbone's own."""
    voxel_size: Positive = 0.08
    cell_pooling: Literal["mean", "mean_max"] = "mean"
    bn_nonempty_only: bool = False
    """False: statistics count empty cells as zeros, as the program's do (T26)."""
    adapter_init: Literal["xavier", "trunc_normal", "zero_up"] = "xavier"
    """zero_up: the bottleneck starts as a no-op (T17)."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.attn_dim % self.attn_heads:
            yield (
                "attn_dim",
                f"must be a multiple of attn_heads ({self.attn_heads}), got {self.attn_dim}",
            )


class APPTConfig(MethodConfig):
    """APPT: prompts and a position feature made from the tokens."""

    compats: ClassVar[tuple[str, ...]] = ("fixed", "official")
    counted: ClassVar[Counted] = {"prompt_depth": "blocks"}

    name: Literal["appt"] = "appt"
    position_feature: bool = True
    """Each token's difference to their mean, mixed in by three scalars."""
    prompt_source: Literal["shared", "learnable", "none"] = "shared"
    """The tokenizer's vector, one of the method's own a block, or no prompt."""
    prompt_depth: Natural = 12
    """The first so many blocks get a prompt; at this default all where there are fewer."""
    accumulate: bool = True
    """Prompts stay behind their block; false: dropped after it."""
    prompt_update: Literal["static", "per_block"] = "static"
    """per_block: made anew of the block's output (the segmentation demo)."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.prompt_source != "shared" and self.prompt_update == "per_block":
            yield (
                "prompt_update",
                (
                    f"per_block makes shared prompts anew; with prompt_source {self.prompt_source}"
                    " allowed: static"
                ),
            )


class BitFitConfig(MethodConfig):
    """BitFit: the biases train."""

    name: Literal["bitfit"] = "bitfit"


class DAPTConfig(MethodConfig):
    """DAPT: dynamic adapters and internal prompts."""

    name: Literal["dapt"] = "dapt"
    bottleneck: Count = 64
    dropout: Share = 0.2
    dynamic_scale: bool = True
    prompts: bool = True
    shifts: bool = True
    """Scale and shift of every linear layer's and norm's output."""


class DoRAConfig(MethodConfig):
    """DoRA: low-rank updates of the direction of frozen projections, and a trained length of their
    rows.
    """

    name: Literal["dora"] = "dora"
    rank: Count = 16
    alpha: Real | None = None
    """null: the rank."""
    targets: Annotated[
        tuple[Literal["q", "k", "v", "out", "fc1", "fc2"], ...],
        Strict(False),
        Field(min_length=1),
    ] = ("q", "v")
    """The projections that get an update."""
    detach_norm: bool = True
    """No gradient flows through the norm of the updated rows (section 4.3); false: as equation 5
    says.
    """

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(set(self.targets)) < len(self.targets):
            yield "targets", "must name at least one projection, none twice"


class FullConfig(MethodConfig):
    """Full fine-tuning."""

    name: Literal["full"] = "full"


class HeadOnlyConfig(MethodConfig):
    """The head trains, with tokenizer and norm; nothing is put into the backbone."""

    needs_blocks: ClassVar[bool] = False

    name: Literal["head_only"] = "head_only"


class IA3Config(MethodConfig):
    """(IA)3: keys, values and hidden activations rescaled by trained vectors."""

    name: Literal["ia3"] = "ia3"
    targets: Annotated[
        tuple[Literal["k", "v", "ffn"], ...], Strict(False), Field(min_length=1)
    ] = (
        "k",
        "v",
        "ffn",
    )
    """What is rescaled: keys, values, the hidden layer of the feed-forward branch."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(set(self.targets)) < len(self.targets):
            yield "targets", "must name nothing twice"


class IDPTConfig(MethodConfig):
    """IDPT: an instance-aware prompt before the last block."""

    counted: ClassVar[Counted] = {"neighbours": "tokens"}

    name: Literal["idpt"] = "idpt"
    neighbours: Count = 20
    """Nearest in feature space; at this default all tokens where there are fewer."""
    num_layers: Count = 3


class LoRAConfig(MethodConfig):
    """LoRA: low-rank updates beside frozen projections."""

    name: Literal["lora"] = "lora"
    rank: Count = 16
    alpha: Real | None = None
    """null: the rank."""
    targets: Annotated[
        tuple[Literal["q", "k", "v", "out", "fc1", "fc2"], ...],
        Strict(False),
        Field(min_length=1),
    ] = ("q", "v")
    """The projections that get an update."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(set(self.targets)) < len(self.targets):
            yield "targets", "must name at least one projection, none twice"


def _tuner_that_runs(value: object) -> object:
    """Refuse a tuner of peft that cannot be used here, with the reason and those that can."""
    reason = REFUSED.get(value) if isinstance(value, str) else None
    if reason is None:
        return value

    text = "peft's {tuner} cannot be used here: {reason}. Allowed: {allowed}"
    raise PydanticCustomError(
        "conflict",
        "{text}",
        {"text": text.format(tuner=value, reason=reason, allowed=", ".join(TUNERS))},
    )


class PEFTConfig(MethodConfig):
    """Any tuner of the library peft that runs on our blocks: `pip install "pointsweep[peft]"`."""

    joins: ClassVar[bool] = False
    package: ClassVar[str | None] = "peft"

    name: Literal["peft"] = "peft"
    tuner: Annotated[
        Literal[
            "lora", "dora", "rslora", "pissa", "olora", "beft", "c3a", "delora",
            "fourierft", "glora", "gralora", "hira", "hra", "ia3", "ln_tuning", "loha", "lokr",
            "miss", "oft", "peanut", "psoft", "randlora", "road", "shira", "supertuning",
            "waveft",
        ],
        BeforeValidator(_tuner_that_runs),
    ] = "lora"  # fmt: skip
    r: Count | None = None
    """Its size: a rank, the width of a block or the number of values; null: the library's own."""
    alpha: Positive | None = None
    """Of tuners whose update is scaled by alpha over r; null: as the library's own defaults are to
    each other.
    """
    target: Annotated[
        tuple[Literal["q", "k", "v", "out", "fc1", "fc2", "norm1", "norm2"], ...], Strict(False),
        Field(min_length=1)
    ] | None = None  # fmt: skip
    """What it is put into; null: q and v, of ia3 k, v and fc2, of ln_tuning both norms."""

    def problems(self) -> Iterator[tuple[str, str]]:
        tuner = TUNERS[self.tuner]
        if self.r is not None and tuner.size is None:
            yield (
                "r",
                f"{self.tuner} has no size, so this would have no effect; leave it out",
            )

        if self.alpha is not None and tuner.alpha is None:
            with_alpha = [name for name in TUNERS if TUNERS[name].alpha is not None]
            text = (
                f"{self.tuner} has none, so this would have no effect; those that have one:"
                f" {', '.join(with_alpha)}"
            )

            yield "alpha", text

        target = self.target or ()
        wrong = [name for name in target if name not in tuner.allowed]
        if wrong:
            yield (
                "target",
                f"{self.tuner} goes into {', '.join(tuner.allowed)}, got {', '.join(wrong)}",
            )

        if len(set(target)) < len(target):
            yield "target", "must name nothing twice"


class PointGSTConfig(MethodConfig):
    """PointGST: adapters that tune tokens in the spectrum of graphs of their centres."""

    counted: ClassVar[Counted] = {"local_size": "tokens"}

    name: Literal["point_gst"] = "point_gst"
    bottleneck: Count = 36
    local_size: Count = 32
    """Tokens of a local graph, neighbours on a Z-order curve; at this default all where there are
    fewer."""
    scopes: Literal["both", "global", "local"] = "both"
    """Whose spectra: that of all tokens, those of the local graphs, or both."""
    transform: Literal["fourier", "program"] = "fourier"
    """The graph Fourier transform; program: its inverse first, as the released program has it."""


class PointPEFTConfig(MethodConfig):
    """Point-PEFT: prompts from a memory bank, and a geometry-aware adapter."""

    modalities: ClassVar[tuple[str, ...]] = ("3d",)
    compats: ClassVar[tuple[str, ...]] = ("fixed", "official")
    counted: ClassVar[Counted] = {
        "depth": "blocks",
        "bank_groups": "points",
        "bank_group_size": "points",
        "local_neighbours": "tokens",
    }

    name: Literal["point_peft"] = "point_peft"
    num_prompts: Count = 10
    depth: Natural = 6
    """The first so many blocks are prompted; at this default all where there are fewer."""
    prompt_kind: Literal["concat", "gated"] = "concat"
    """gated: a zero-gated cross-attention to them (the ModelNet variant)."""
    bank: bool = True
    """Prompts are filled from the memory bank, in the prompted blocks of the last scale."""
    bank_bottleneck: Count = 8
    bank_groups: Count = 64
    """Groups of the frozen encoder that reads a cloud for the bank."""
    bank_group_size: Count = 32
    """Points of such a group."""
    exclude_self: bool = False
    """False: in training a cloud's own column counts as the others (T27)."""
    adapter: bool = True
    adapter_bottleneck: Count = 16
    adapter_scale: Real = 0.7
    adapter_gate: bool = False
    """A learned scale instead, from 0 (the ModelNet and Point-M2AE variants)."""
    local: bool = True
    """The geometry-aware part: attention within groups, propagated back."""
    local_centers: Counts | None = None
    """Groups of each scale; null: half the tokens."""
    local_neighbours: Count = 16
    local_pool: Literal["max", "max_mean"] = "max"
    center_scale: Real = 0.3
    """The program's center_cof."""
    propagation_scale: Real = 0.3
    """The program's pro_cof."""
    bias_tuning: bool = True
    dropout: Share = 0.1

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.bank and self.num_prompts < 3:
            yield (
                "num_prompts",
                (
                    "must be at least 3 with a bank (query, mixture and a column), else 1, got"
                    f" {self.num_prompts}"
                ),
            )


class PPTConfig(MethodConfig):
    """PPT: further groups of points as prompts with positions of their own, and three shared
    bottlenecks.
    """

    modalities: ClassVar[tuple[str, ...]] = ("3d",)
    joins: ClassVar[bool] = (
        False  # the embedding that it trains makes tokens and prompts
    )
    counted: ClassVar[Counted] = {
        "num_prompts": "points",
        "prompt_neighbours": "points",
    }

    name: Literal["ppt"] = "ppt"
    num_prompts: Count = 128
    """Groups of points that become prompts; at this default all where there are fewer."""
    prompt_neighbours: Count = 32
    """Points of such a group."""
    bottleneck: Count = 256


class PromptConfig(MethodConfig):
    """Prompt tuning: learned tokens in front of the point tokens."""

    name: Literal["prompt"] = "prompt"
    num_prompts: Count = 10
    depth: Literal["deep", "shallow"] = "deep"
    """deep: new prompts for every block; shallow: before the first alone."""
    init_std: NonNegative = 0.02


class SSFConfig(MethodConfig):
    """SSF: every output of the frozen model scaled and shifted by trained vectors."""

    name: Literal["ssf"] = "ssf"
