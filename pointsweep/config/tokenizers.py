"""Configurations of the tokenizers. Their code is in pointsweep/models/tokenizers.py."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pointsweep.config.base import IN_64_BITS, Added, Count, NamedConfig

Normalisation = Literal["scan", "mn40"]


class TokenizerConfig(NamedConfig):
    """Base of the tokenizers' configurations."""

    skip_near_origin: Added[bool | None] = None
    """Centres are never within 0.0316 of the origin, but for the first; null: as the program has it
    under official, false under fixed.
    """


class PointPNLightConfig(TokenizerConfig):
    """Any2Point's tokenizer: three stages of Point-PN."""

    # 2: on a CPU stages work by rows, which rounds otherwise; 3: by larger slices, and with AVX-512
    # by oneDNN's products
    code_revision: ClassVar[int] = 3

    name: Literal["point_pn_light"] = "point_pn_light"
    neighbours: Count = 81
    """Points of a neighbourhood."""
    num_tokens: Count = 128
    """Of the last stage; the two before it have two and four times as many centres."""
    normalisation: Normalisation = "scan"
    """Of neighbourhoods: ScanObjectNN's or ModelNet40's program (spec 1.1)."""
    last_width: Count = 32
    """Of the last stage's bottleneck."""


class PointPNTokenizerConfig(TokenizerConfig):
    """APPT's tokenizer: 64 tokens of neighbourhoods of 40, 96 channels before the first stage."""

    name: Literal["point_pn"] = "point_pn"
    neighbours: Count = 40
    """Points of a neighbourhood."""
    num_tokens: Count = 64
    """Of the last stage; the three before it have two, four and eight times as many centres."""
    embed_dim: Annotated[int, Field(ge=3, multiple_of=3), IN_64_BITS] = 96
    """Channels before the first stage."""
    normalisation: Normalisation = "scan"
    """Of neighbourhoods: ScanObjectNN's or ModelNet40's program (spec 1.1)."""
    height: bool = True
    """The height above the cloud's lowest point as a fourth channel."""


class PatchConfig(TokenizerConfig):
    """Patches: groups of neighbours around farthest points, as the 3D transformers have them."""

    name: Literal["patch"] = "patch"
    num_tokens: Count = 128
    """Groups."""
    neighbours: Count = 32
    """Points of a group."""
