"""Few-shot ScanObjectNN: `way` classes, `shot` training clouds and 20 test clouds of each, ten
folds of every kind.

The protocol is that of few-shot ModelNet40 (Point-BERT, arXiv 2111.14819), and so is the draw:
training clouds from the training split, test clouds from the test split, in an order by sha256
(`modelnet40_fewshot`). Papers that print few-shot numbers on ScanObjectNN (CrossPoint, arXiv
2203.00680) drew their episodes at random and published none, so these are others. A class with
fewer than `shot` training or 20 test clouds is in no episode: in the variants with one cloud an
object some have fewer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pointsweep.config.datasets import DatasetConfig, ScanObjectNNFewshotConfig
from pointsweep.data.dataset import Dataset, data_folder, text_digest
from pointsweep.data.modelnet40_fewshot import (
    TEST_PER_CLASS,
    draw,
    episode_class_names,
    episode_name,
)
from pointsweep.data.scanobjectnn import (
    CLASSES,
    ONE_CLOUD_AN_OBJECT,
    ORIGIN,
    split_files,
    stored,
)
from pointsweep.utils.array_cache import cached_arrays


class ScanObjectNNFewshot(Dataset):
    """One episode. `class_names` begins with the episode's classes, in the order of their labels;
    the others follow.
    """

    origin = ORIGIN
    made_from = "scanobjectnn"

    def __init__(self, config: ScanObjectNNFewshotConfig) -> None:
        fold = config.fold
        assert fold is not None, "a trial has a fold: config.with_seed fills it in"
        folder = data_folder("scanobjectnn_fewshot", config.folder, ORIGIN)
        clouds, clouds_digest = stored(folder, config.variant)
        name = episode_name(config.way, config.shot, fold)
        key = text_digest(f"{clouds_digest} {name}")
        among = classes_with_enough(clouds, config.shot)
        make = partial(
            draw,
            clouds,
            config.way,
            config.shot,
            fold,
            class_names=CLASSES,
            among=among,
        )

        arrays, digest = cached_arrays(f"fewshot-{key}", make)

        names = episode_class_names(arrays["classes"], CLASSES)
        super().__init__(config, names, arrays, digest)

        self.marks = ("generated folds",)
        left_out = [name for number, name in enumerate(CLASSES) if number not in among]

        if left_out:
            text = f"too few clouds to be drawn: {', '.join(left_out)}"
            self.marks = (*self.marks, text)

    @classmethod
    def holds_copies(cls, config: DatasetConfig) -> bool:
        return config.variant not in ONE_CLOUD_AN_OBJECT  # type: ignore[attr-defined]

    @classmethod
    def available(cls, config: Any) -> None:
        folder = data_folder("scanobjectnn_fewshot", config.folder, ORIGIN)
        split_files(folder, config.variant)

    @classmethod
    def published_sizes(cls, config: Any) -> Mapping[str, Sequence[int]]:
        return {
            "train": (config.way * config.shot,),
            "test": (config.way * TEST_PER_CLASS,),
        }


def classes_with_enough(arrays: Mapping[str, np.ndarray], shot: int) -> list[int]:
    """Return the classes that have `shot` training and 20 test clouds."""
    num_train = np.bincount(arrays["train_labels"], minlength=len(CLASSES))
    num_test = np.bincount(arrays["test_labels"], minlength=len(CLASSES))
    has_enough = (num_train >= shot) & (num_test >= TEST_PER_CLASS)

    return [int(number) for number in np.flatnonzero(has_enough)]
