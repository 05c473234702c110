"""BERT-base.

Source: BERT (arXiv 1810.04805), weights `google-bert/bert-base-uncased`: width 768, 12 post-norm
blocks, 512 positions. Used as spec 2.11 says of RoBERTa: the tokens pass the frozen embedding norm,
the final norm is new.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pointsweep.config.backbones import BackboneConfig
from pointsweep.models.backbones.base import Backbone, Plane, Shape, lookup_line
from pointsweep.models.backbones.checkpoints import (
    BERT_BLOCKS,
    Names,
    hub_file,
    line_table,
    with_new_norm,
    without_prefix,
)

NAMES = Names(
    direct={
        "embeddings.LayerNorm.weight": "embedding_norm.weight",
        "embeddings.LayerNorm.bias": "embedding_norm.bias",
        # the hub's first files have TensorFlow's names
        "embeddings.LayerNorm.gamma": "embedding_norm.weight",
        "embeddings.LayerNorm.beta": "embedding_norm.bias",
        "embeddings.position_embeddings.weight": "table",
    },
    prefix="encoder.layer.",
    blocks=BERT_BLOCKS
    | {
        "attention.output.LayerNorm.gamma": "norm1.weight",
        "attention.output.LayerNorm.beta": "norm1.bias",
        "output.LayerNorm.gamma": "norm2.weight",
        "output.LayerNorm.beta": "norm2.bias",
    },
    dropped=(
        "embeddings.word_embeddings.", "embeddings.token_type_embeddings.",
        "embeddings.position_ids", "pooler.", "cls.", "lm_head.",
    ),
)  # fmt: skip


class BERT(Backbone):
    """The row of token type 0, which BERT adds to every word, is part of the position table. Its
    family differs in values alone.
    """

    plane = Plane(width=512, height=1, cell=13)
    form = Shape(768, 12, 12, 3072, post_norm=True, eps=1e-12)
    repository, prefix_of_names = "google-bert/bert-base-uncased", "bert."
    scheme = "normal"
    reserved = 0  # rows at the front of the position table that no word uses
    table: Tensor

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config, self.form)
        self.register_buffer("table", torch.zeros(512, self.dim))
        self.embedding_norm = nn.LayerNorm(self.dim, eps=self.form.eps)

    def positions(self, locations: Tensor) -> Tensor:
        return lookup_line(self.table, locations)

    def start(self, tokens: Tensor) -> Tensor:
        return self.embedding_norm(tokens)

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        return hub_file(config, cls.repository, fetch)

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        body = without_prefix(state, self.prefix_of_names)
        tensors = NAMES.apply(body, len(self.blocks))
        kinds = body.get("embeddings.token_type_embeddings.weight")

        if "table" in tensors and kinds is not None:
            rows = line_table(tensors["table"], self.reserved + len(self.table))
            tensors["table"] = rows[self.reserved :] + kinds[0]

        return with_new_norm(tensors, self.dim)
