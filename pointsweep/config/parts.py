"""Configurations of the parts of a trial that are not chosen by name: positions, head, training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from pointsweep.config.base import (
    EXACT,
    IN_64_BITS,
    Added,
    Config,
    Count,
    Natural,
    NonNegative,
    Positive,
    Real,
    Share,
    Whole,
)
from pointsweep.utils.provenance import bf16_unit, cpu_flags


class PositionsConfig(Config):
    """Positional encoding of the tokens (Any2Point, spec 2.1-2.4 and the `pe` row of 2.10).

    `virtual`: the source encodings at the places where the centres fall on `num_views` virtual
    lines (1d) or planes (2d), averaged over the views; on a 3d backbone its own encoding of the
    centres. The projection also says which tokens share a cell in Any2Point's adapter, whatever
    `kind` is.
    """

    kind: Literal["virtual", "none", "sinusoidal", "learnable"] = "virtual"
    """The encoding: the backbone's own at projected places (virtual), or another."""
    num_views: Annotated[int, Field(ge=1, le=10)] = 6
    """Virtual lines (1d) or planes (2d)."""
    view_set: Literal["pointclip", "uniform"] = "pointclip"
    """Whose angles the views have."""
    injection: Literal["once", "each_block", "twice_then_each"] = "once"
    """Where the encoding is added."""
    line: Annotated[tuple[Real, Real, Real], Strict(False)] = (-1.0, 0.0, 1.0)
    """Direction of the 1d projection (`pos_cor`)."""
    translation: Real = -1.8
    """Of the 2d projection along the line of sight (`trans`)."""
    scrambled: Added[bool | None] = None
    """True: a view's encodings on a plane reshaped where they should be transposed (T41); null: as
    compat has it, true under official.
    """
    init_std: Added[NonNegative] = 0.02
    """Of the learnable table and of the class token's position."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if not any(self.line):
            yield "line", "must not be the zero vector"


# Heads that nothing is trained for: a classifier of scikit-learn is fitted to the frozen features.
PROBES = ("svm", "knn")


class HeadConfig(Config):
    """The classifier over concat(class token, max over the other tokens) (spec 2.6).

    The defaults are those of ScanObjectNN's program. On a data set of parts the head is that of
    `models/segmentation_head.py`, which takes `dropout` and `segmentation_widths` alone.
    """

    order: Literal["max_cls", "cls_max"] = "max_cls"
    bias: bool = False
    """Of the first two linear layers; true in the ModelNet program."""
    hidden: Count = 256
    dropout: Share = 0.5
    pool: Added[Literal["class_max", "mean_max", "mean_plus_max"] | None] = None
    """null: class_max where there is a class token, else mean_max; mean_plus_max: their sum, one
    token wide.
    """
    kind: Added[Literal["two_layers", "one_layer", "svm", "knn"]] = "two_layers"
    """Hidden layers; one_layer: Point-BERT's, without batch norm; svm and knn: probes of the frozen
    features, without training.
    """
    last_hidden: Added[Count | None] = None
    """Of the second hidden layer; null: hidden."""
    input_dropout: Added[Share] = 0.0
    segmentation_widths: Added[
        Annotated[tuple[Count, Count, Count, Count], Strict(False)]
    ] = (
        1536,
        1024,
        512,
        256,
    )
    """Two layers to spread features, two behind."""
    svm_c: Added[Positive] = 1.0
    """Of the linear SVM: how much a wrong training cloud weighs."""
    neighbours: Added[Count] = 20
    """Of the k-NN: training clouds that vote."""

    def problems(self) -> Iterator[tuple[str, str]]:
        for name, kind in (("svm_c", "svm"), ("neighbours", "knn")):
            if (
                self.kind != kind
                and getattr(self, name) != type(self).model_fields[name].default
            ):
                yield (
                    name,
                    f"has an effect with kind: {kind} alone, got kind: {self.kind}; leave it out",
                )


PAPER_WARMUP = 10  # the default of `warmup_epochs`
PAPER_EPOCHS = 100  # from so many epochs on the papers' warm-up is the default
SHORT_WARMUP = 0.1  # of the steps of a shorter training


class TrainConfig(Config):
    """Optimisation (spec 2.8): AdamW, linear warm-up then cosine without a shift.

    The papers have one learning rate an epoch, and the first epoch of a warm-up trains at `min_lr`.
    With `warmup_fraction` the rate changes with every step and rises from the first step on, over
    that share of all steps. A training of fewer than 100 epochs that sets neither of the two has
    `warmup_fraction: 0.1`: ten epochs would be most of it, and the first would train nothing.
    """

    epochs: Count = 300
    batch_size: Annotated[int, Field(ge=2), IN_64_BITS] = 32
    """At least 2 (batch normalisation)."""
    eval_batch_size: Count = 64
    votes: Added[Count] = 1
    """Test predictions are the mean over so many copies, all but the first augmented as in
    training.
    """
    lr: NonNegative = 5e-4
    """The highest learning rate."""
    min_lr: NonNegative = 1e-6
    """The learning rate at the end of the cosine, and in the first epoch of a warm-up by epochs."""
    warmup_epochs: Natural = PAPER_WARMUP
    warmup_fraction: Added[Annotated[float, Field(gt=0, lt=1), EXACT] | None] = None
    """null: warm-up by epochs, as in the papers; else takes the place of warmup_epochs."""
    cosine_epochs: Whole | None = None
    """Period of the cosine; null: epochs, less lag_epochs."""
    lag_epochs: Added[Natural] = 0
    """The rate is that of so many epochs before, the first rate meanwhile; 1 in the programs for
    ModelNet40, Point-PEFT and APPT, which step their schedule late.
    """
    weight_decay: NonNegative = 0.05
    """Of what `decayed` says."""
    decayed: Added[Literal["matrices", "all"]] = "matrices"
    """matrices: not biases and other 1-D parameters; all: everything that trains, as in APPT's
    program.
    """
    adam_eps: Added[Positive] = 1e-8
    """Of AdamW; 1e-4 in APPT's program."""
    decay_tokens: bool = True
    """False: no decay on parameters whose name holds "token" (the ModelNet program)."""
    clip_norm: Positive = 10.0
    label_smoothing: Share = 0.0
    init: Literal["xavier", "trunc_normal"] = "xavier"
    """Of what is trained: ScanObjectNN's or ModelNet's program (spec 2.8)."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """auto: bf16 where this machine's processor multiplies in it (AMX or AVX-512), else fp32. The
    answer takes the place of the word: it is in the trial's key and record, on every machine.
    """
    compile: Added[bool] = False
    """The layers with the most traffic compiled, on a GPU: other roundings, so another trial."""

    @model_validator(mode="before")
    @classmethod
    def _short_warmup(cls, data: Any) -> Any:
        if (
            not isinstance(data, Mapping)
            or {"warmup_epochs", "warmup_fraction"} & data.keys()
        ):
            return data

        epochs = data.get("epochs")
        if isinstance(epochs, int) and epochs < PAPER_EPOCHS:
            # It is no longer the schedule of a program that steps late.
            return {**data, "warmup_fraction": SHORT_WARMUP, "lag_epochs": 0}

        return data

    @model_validator(mode="before")
    @classmethod
    def _chosen_precision(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("precision") != "auto":
            return data

        return {**data, "precision": "bf16" if bf16_unit(cpu_flags()) else "fp32"}

    @property
    def period(self) -> int:
        """Return after how many epochs of the schedule the cosine ends."""
        return self.cosine_epochs or max(self.epochs - self.lag_epochs, 1)

    @property
    def full_rate_after(self) -> int:
        """Return how many epochs there are of which a part, or all, is warm-up."""
        if self.warmup_fraction is None:
            return self.lag_epochs + self.warmup_epochs

        return math.ceil(self.warmup_fraction * self.epochs)

    def canonical(self) -> dict[str, str]:
        node = super().canonical()
        if self.precision == "bf16":
            # 2: places on lines and planes are worked out in single precision
            node["revision"] = "2"

        return node

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.min_lr > self.lr:
            yield "min_lr", f"must be from 0 to lr ({self.lr}), got {self.min_lr}"

        if self.decayed == "all" and not self.decay_tokens:
            yield (
                "decay_tokens",
                "false spares tokens, and decayed: all spares nothing; set one of the two",
            )

        if self.warmup_fraction is not None and self.warmup_epochs != PAPER_WARMUP:
            yield (
                "warmup_fraction",
                "takes the place of warmup_epochs; set one of the two",
            )

        if self.warmup_fraction is not None and self.lag_epochs:
            yield (
                "lag_epochs",
                "has no effect with warmup_fraction; leave one of the two out",
            )
