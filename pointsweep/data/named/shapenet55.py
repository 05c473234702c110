"""ShapeNet-55: 52,470 CAD shapes of 55 classes, and its part ShapeNet-34.

Source: PoinTr (arXiv 2108.08839), used for pretraining by Point-BERT and Point-MAE; layout of their
programs: `shapenet_pc/SYNSET-ID.npy` with 8,192 points each, and lists of names,
`ShapeNet-55/{train,test}.txt`, `ShapeNet-34/{train,test}.txt`. Classes are called by their synsets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pointsweep.config.datasets import DatasetConfig, ShapeNet55Config
from pointsweep.data.dataset import Copy
from pointsweep.data.files import Files, named_copies

ORIGIN = (
    "ShapeNet55-34 comes with the programs of PoinTr and Point-BERT; "
    "ShapeNet's terms of use apply."
)
PUBLISHED = {"train": 41952, "test": 10518}  # of ShapeNet-55


class ShapeNet55(Files):
    """Sampled first, then scaled and translated, as ModelNet40 (spec 2.9)."""

    origin = ORIGIN

    @classmethod
    def published_sizes(cls, config: DatasetConfig) -> Mapping[str, Sequence[int]]:
        default = ShapeNet55Config()
        asked = (config.train, config.test)  # type: ignore[attr-defined]
        if asked != (default.train, default.test):
            return {}

        return {split: (count,) for split, count in PUBLISHED.items()}

    @classmethod
    def copies(cls, root: Path) -> Iterator[Copy]:
        yield from named_copies(ShapeNet55Config(), root, PUBLISHED)
