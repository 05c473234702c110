"""RoBERTa-base.

Source: RoBERTa (arXiv 1907.11692), weights `FacebookAI/roberta-base`; width 768, 12 post-norm
blocks. Of the 514 rows of its position table the first two are reserved, so the line has 512
places; the final norm of the model is new (spec 2.11, 7).
"""

from __future__ import annotations

from pointsweep.models.backbones.base import Shape
from pointsweep.models.backbones.bert import BERT


class RoBERTa(BERT):
    """The one token type's row, which is added to every word, is part of the position table."""

    form = Shape(768, 12, 12, 3072, post_norm=True, eps=1e-5)
    repository, prefix_of_names = "FacebookAI/roberta-base", "roberta."
    reserved = 2
