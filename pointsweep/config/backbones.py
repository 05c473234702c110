"""Configurations of the frozen transformers. Their code is in pointsweep/models/backbones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Strict

from pointsweep.config.base import (
    Count,
    Modality,
    NamedConfig,
    Natural,
    Positive,
    Share,
    TwoCounts,
    Whole,
)

# Values of `backbone.weights` besides a file's path. What is drawn depends on `weights_seed`;
# `random` and `reinitialised` read no checkpoint.
WEIGHT_KINDS = ("pretrained", "random", "shuffled", "reinitialised")
DRAWN_WEIGHTS = ("random", "shuffled", "reinitialised")
WITHOUT_CHECKPOINT = ("random", "reinitialised")


class BackboneConfig(NamedConfig):
    """Base of the backbones' configurations: the fields that every one has.

    `weights`: `pretrained`, a file's path, or a control, which every record and table marks:
    `shuffled` (the values of each pretrained tensor permuted), `reinitialised` (as the
    architecture's own program starts it), `random` (N(0, 0.02) at any width).
    """

    # 2: products by oneDNN on some CPUs, places on a line by `lerp`, groups' embeddings in rows;
    # other last digits
    code_revision: ClassVar[int] = 2
    class_token: ClassVar[bool] = (
        True  # false: no token stands before those of the points
    )
    stand_in: ClassVar[bool] = (
        False  # for tests and smoke runs: nobody compares with it
    )
    max_blocks: ClassVar[int] = 12  # of the checkpoint
    # which published programs there are
    compats: ClassVar[tuple[str, ...]] = ("fixed", "official")

    weights: str = "pretrained"
    """pretrained, a file's path, or a control: shuffled, reinitialised, random."""
    sha256: str | None = None
    """Of the weight file, checked when given."""
    weights_seed: Whole | None = 0
    """Of what is drawn. A number: one frozen network for all seeds; null: the trial's seed."""
    num_blocks: Natural | None = None
    """The first so many blocks; 0: none (tokenizer, positions, norm and head stay); null: all."""
    attention_dropout: Share = 0.0
    """In training; the table of spec 2.8."""
    drop_path: Share = 0.0
    """In training; grows linearly from 0 at the first block to this at the last."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.num_blocks is not None and self.num_blocks > self.max_blocks:
            yield (
                "num_blocks",
                f"{self.name} has {self.max_blocks} blocks, got {self.num_blocks}",
            )

    @property
    def reads_files(self) -> bool:
        """Return whether files are needed to build it: a checkpoint, or what says how the network
        is built.
        """
        return self.weights not in WITHOUT_CHECKPOINT


class BERTConfig(BackboneConfig):
    """BERT-base."""

    modality: ClassVar[str] = "1d"

    name: Literal["bert"] = "bert"


class CLIPTextConfig(BackboneConfig):
    """The text tower of CLIP ViT-L/14."""

    modality: ClassVar[str] = "1d"

    name: Literal["clip_text"] = "clip_text"


class CLIPVisionConfig(BackboneConfig):
    """The image tower of CLIP ViT-B/16."""

    modality: ClassVar[str] = "2d"

    name: Literal["clip_vision"] = "clip_vision"


class DeiTConfig(BackboneConfig):
    """DeiT-B, a ViT-B/16 trained on ImageNet-1k."""

    modality: ClassVar[str] = "2d"

    name: Literal["deit"] = "deit"


class DINOv2Config(BackboneConfig):
    """DINOv2 ViT-B/14."""

    modality: ClassVar[str] = "2d"

    name: Literal["dinov2"] = "dinov2"


class ImageBindAudioConfig(BackboneConfig):
    """The audio trunk of ImageBind-huge."""

    modality: ClassVar[str] = "2d"

    name: Literal["imagebind_audio"] = "imagebind_audio"
    bias_kv: bool = False


class KWT1Config(BackboneConfig):
    """KWT-1, a keyword spotter."""

    modality: ClassVar[str] = "1d"

    name: Literal["kwt1"] = "kwt1"


class MiniLMConfig(BackboneConfig):
    """all-MiniLM-L6-v2, a sentence encoder."""

    modality: ClassVar[str] = "1d"
    max_blocks: ClassVar[int] = 6

    name: Literal["minilm"] = "minilm"


class PointBERTConfig(BackboneConfig):
    """Point-BERT."""

    modality: ClassVar[str] = "3d"

    name: Literal["point_bert"] = "point_bert"


class PointM2AEConfig(BackboneConfig):
    """Point-M2AE. The tokenizer makes the tokens of the first scale (512).

    Groups of 16 in the later scales are ScanObjectNN's, 8 ModelNet's.
    """

    modality: ClassVar[str] = "3d"
    max_blocks: ClassVar[int] = 15
    class_token: ClassVar[bool] = False

    name: Literal["point_m2ae"] = "point_m2ae"
    scale_tokens: TwoCounts = (256, 64)
    """Tokens of the second and the third scale."""
    scale_neighbours: TwoCounts = (16, 16)
    """Tokens of a group in the second and the third scale."""


class PointMAEConfig(BackboneConfig):
    """Point-MAE."""

    modality: ClassVar[str] = "3d"

    name: Literal["point_mae"] = "point_mae"


class RoBERTaConfig(BackboneConfig):
    """RoBERTa-base."""

    modality: ClassVar[str] = "1d"

    name: Literal["roberta"] = "roberta"


class SSASTConfig(BackboneConfig):
    """SSAST-B, an audio spectrogram transformer."""

    modality: ClassVar[str] = "2d"

    name: Literal["ssast"] = "ssast"


class T5Config(BackboneConfig):
    """The encoder of T5-base."""

    modality: ClassVar[str] = "1d"

    name: Literal["t5"] = "t5"


class TinyConfig(BackboneConfig):
    """A transformer small enough for tests and smoke runs, with random frozen weights."""

    max_blocks: ClassVar[int] = 2
    stand_in: ClassVar[bool] = True

    name: Literal["tiny"] = "tiny"
    weights: str = "random"
    """tiny has no pretrained weights: random alone is allowed."""
    modality: Modality = "1d"
    """What it stands for: a backbone of text (1d), images (2d) or clouds (3d)."""
    like: str = ""
    """The backbone that it stands for, so that the stand-ins of two backbones differ."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.weights != "random":
            yield (
                "weights",
                f"tiny has no pretrained weights; allowed: random, got {self.weights!r}",
            )


class ViTConfig(BackboneConfig):
    """The augreg ViT-B/16, trained on ImageNet-21k."""

    modality: ClassVar[str] = "2d"

    name: Literal["vit_in21k"] = "vit_in21k"


class ViTMNISTConfig(BackboneConfig):
    """A vision transformer trained on MNIST."""

    modality: ClassVar[str] = "2d"
    max_blocks: ClassVar[int] = 6

    name: Literal["vit_mnist"] = "vit_mnist"


class LibraryBackboneConfig(BackboneConfig):
    """A model of a library of models, by its id or its folder. What is not set here is found of the
    model itself.
    """

    max_blocks: ClassVar[int] = (
        1_000_000  # how many a model has is found when it is built
    )
    compats: ClassVar[tuple[str, ...]] = ("fixed",)

    model: str = ""
    """The hub id of a model, or a folder with its files, also below POINTSWEEP_DATA."""
    revision: str | None = None
    """Of the hub: a commit, a tag or a branch; null: main."""
    sizes: Annotated[tuple[str, ...], Strict(False)] = ()
    """Entries of its configuration that are to be others, as KEY=VALUE: [num_hidden_layers=2]."""
    modality: Literal["1d", "2d"] | None = None
    """What its positions lie on: a line (1d) or a plane (2d); null: as in the model."""
    causal: bool | None = None
    """Tokens look at those in front of them alone; null: as in the model's own program."""
    line: Count | None = None
    """Places on the line; null: the rows of the model's table, else its context, at most 512."""
    cell: Positive | None = None
    """The side of a cell on the line or plane; null: a 39th of the line, a patch of the plane."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.weights not in WEIGHT_KINDS:
            allowed = f"allowed: {', '.join(WEIGHT_KINDS)}"
            yield (
                "weights",
                (
                    f"weights of your own are named by their folder, as `model:`; {allowed}, got"
                    f" {self.weights!r}"
                ),
            )

        for entry in self.sizes:
            key, _, value = entry.partition("=")
            if not key.isidentifier() or not value:
                yield (
                    "sizes",
                    f"an entry is KEY=VALUE, as in num_hidden_layers=2, got {entry!r}",
                )

        if self.sizes and self.weights not in WITHOUT_CHECKPOINT:
            yield (
                "sizes",
                (
                    "another network than the checkpoint's needs drawn weights:"
                    f" {' or '.join(WITHOUT_CHECKPOINT)}"
                ),
            )

        if self.attention_dropout:
            yield (
                "attention_dropout",
                (
                    "a library's attention has noise of its own, which cannot be repeated; allowed"
                    f" of {self.name}: 0"
                ),
            )


class TransformersConfig(LibraryBackboneConfig):
    """Any transformer of the library transformers."""

    name: Literal["transformers"] = "transformers"
    model_type: str = ""
    """In place of `model`: an architecture of the library (bert, llama), with its usual sizes and
    drawn weights.
    """
    tower: str = ""
    """Of a model with several networks the one that is taken: text, vision, audio."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if bool(self.model) == bool(self.model_type):
            yield (
                "model",
                (
                    "either model (a hub id or a folder) or model_type (an architecture of the"
                    " library) must be set"
                ),
            )

        if self.model_type and self.weights not in WITHOUT_CHECKPOINT:
            text = (
                "an architecture has no pretrained weights; allowed with model_type:"
                f" {', '.join(WITHOUT_CHECKPOINT)}"
            )
            yield "weights", f"{text}, got {self.weights!r}"

        if self.model_type and self.revision:
            yield "revision", "is one of a model on the hub; model_type has none"

    @property
    def reads_files(self) -> bool:
        """A model's own configuration says how it is built, whatever its weights."""
        return bool(self.model)


class TimmConfig(LibraryBackboneConfig):
    """Any plain vision transformer of the library timm."""

    name: Literal["timm"] = "timm"
    image_size: Count | None = None
    """Side of the square image that positions lie on, in pixels; null: the model's own."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if not self.model:
            yield (
                "model",
                "a name of timm, as vit_small_patch14_dinov2.lvd142m, or a folder must be set",
            )
