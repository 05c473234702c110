"""RoBERTa-base.

Source: RoBERTa (arXiv 1907.11692), weights `FacebookAI/roberta-base`; width 768, 12 post-norm blocks. Of the 514 rows of its position
table the first two are reserved, so the line has 512 places; the final norm of the model is new (spec 2.11, 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from pointsweep.backbones.base import Backbone, Plane, Shape, lookup_line
from pointsweep.backbones.weights import BERT_BLOCKS, Names, hub_file, with_new_norm, without_prefix
from pointsweep.config import BackboneConfig

RESERVED = 2  # rows of the position table that no word uses
NAMES = Names(
    direct={
        "embeddings.LayerNorm.weight": "embedding_norm.weight",
        "embeddings.LayerNorm.bias": "embedding_norm.bias",
        "embeddings.position_embeddings.weight": "table",
    },
    prefix="encoder.layer.",
    blocks=BERT_BLOCKS,
    dropped=("embeddings.word_embeddings.", "embeddings.token_type_embeddings.", "embeddings.position_ids", "pooler.", "lm_head."),
)


@dataclass(frozen=True)
class RoBERTaConfig(BackboneConfig):
    modality: ClassVar[str] = "1d"


class RoBERTa(Backbone):
    """The one token type's row, which is added to every word, is part of the position table."""

    plane = Plane(width=512, height=1, cell=13)
    table: Tensor

    def __init__(self, config: RoBERTaConfig) -> None:
        super().__init__(config, Shape(768, 12, 12, 3072, post_norm=True, eps=1e-5))
        self.register_buffer("table", torch.zeros(512, 768))
        self.embedding_norm = nn.LayerNorm(768, eps=1e-5)

    def positions(self, places: Tensor) -> Tensor:
        return lookup_line(self.table, places)

    def start(self, tokens: Tensor) -> Tensor:
        return self.embedding_norm(tokens)

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        return hub_file(config, "FacebookAI/roberta-base", fetch)

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        body = without_prefix(state, "roberta.")
        found = NAMES.apply(body, len(self.blocks))
        kinds = body.get("embeddings.token_type_embeddings.weight")
        if "table" in found and kinds is not None:
            found["table"] = found["table"][RESERVED:] + kinds[0]
        return with_new_norm(found, self.dim)
