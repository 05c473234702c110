"""Few-shot ModelNet40: `way` classes, `shot` training shapes and 20 test shapes of each, ten folds
of every kind.

Source: the protocol of Point-BERT (arXiv 2111.14819), used by Point-MAE (arXiv 2203.06604); spec
6.3. Labels are those of the episode, 0 to way - 1; the head keeps ModelNet40's 40 outputs, as in
the papers' programs, so outputs from `way` on are never right.

`generated` draws the folds from the ModelNet40 at hand, so few-shot works wherever ModelNet40 is.
The draw is no random generator's but an order by sha256, so it is the same for everybody and for
ever: of the text "<way>way_<shot>shot/<fold>/class/<name>" for the classes (the first `way` make
the episode, in this order) and of ".../<split>/<name>/<k>" for the k-th shape of a class in file
order. As in Point-BERT's program the training shapes come from the training split and the test
shapes from the test split. The two layouts of ModelNet40 list their shapes in different order, so
they give different shapes (of the same classes); the digest tells.

`point_bert` reads Point-BERT's own folds, once `pointsweep data --convert-fewshot FOLDER` has made
npz files of its pickles. A pickle is never read here.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pointsweep.config.datasets import ModelNet40FewshotConfig
from pointsweep.data.dataset import (
    Copy,
    Dataset,
    data_folder,
    folders_with,
    text_digest,
)
from pointsweep.data.modelnet40 import CLASSES, ORIGIN, layout, stored
from pointsweep.data.readers.clouds import check_clouds, unit_sphere
from pointsweep.errors import MissingDataError
from pointsweep.utils.array_cache import arrays_of_files, cached_arrays

KINDS = [(way, shot) for way in (5, 10) for shot in (10, 20)]
NUM_FOLDS = 10
TEST_PER_CLASS = 20
ARRAYS = ("train_points", "train_labels", "test_points", "test_labels", "classes")
FOLDS_ORIGIN = (
    "Point-BERT's folds come with its program (ModelNetFewshot); convert them: pointsweep data"
    " --convert-fewshot"
)


class ModelNet40Fewshot(Dataset):
    """One episode. `class_names` begins with the episode's classes, in the order of their labels;
    the others follow.
    """

    augment_first = False
    shuffles = True
    origin = FOLDS_ORIGIN
    made_from = "modelnet40"

    def __init__(self, config: ModelNet40FewshotConfig) -> None:
        folder = source_folder(config)
        fold = config.fold
        assert fold is not None, "a trial has a fold: config.with_seed fills it in"

        if config.source == "generated":
            shapes, shapes_digest = stored(folder)
            name = episode_name(config.way, config.shot, fold)
            key = text_digest(f"{shapes_digest} {name}")
            make = partial(draw, shapes, config.way, config.shot, fold)
            arrays, digest = cached_arrays(f"fewshot-{key}", make)
        else:
            path = fold_file(folder, config.way, config.shot, fold)
            read = partial(read_npz, path, config.way, config.shot)
            arrays, digest = arrays_of_files("fewshot", [path], read, "point_bert")

        names = episode_class_names(arrays["classes"], CLASSES)
        super().__init__(config, names, arrays, digest)

        if config.source == "generated":
            self.marks = ("generated folds",)

    @classmethod
    def available(cls, config: Any) -> None:
        folder = source_folder(config)
        fold = config.fold
        assert fold is not None, "a trial has a fold: config.with_seed fills it in"

        if config.source == "generated":
            layout(folder)
        else:
            fold_file(folder, config.way, config.shot, fold)

    @classmethod
    def folders(cls, config: Any) -> list[Path]:
        return [source_folder(config)]

    @classmethod
    def published_sizes(cls, config: Any) -> Mapping[str, Sequence[int]]:
        return {
            "train": (config.way * config.shot,),
            "test": (config.way * TEST_PER_CLASS,),
        }

    @classmethod
    def copies(cls, root: Path) -> Iterator[Copy]:
        for folder in folders_with(root, "*way_*shot"):
            for way, shot in KINDS:
                if not (folder / f"{way}way_{shot}shot").is_dir():
                    continue

                for fold in range(NUM_FOLDS):
                    name = episode_name(way, shot, fold)
                    yield Copy(
                        location=f"{folder.relative_to(root)}/{name}",
                        read=partial(_read_fold, folder, way, shot, fold),
                        class_names=CLASSES[:way],
                        published={
                            "train": (way * shot,),
                            "test": (way * TEST_PER_CLASS,),
                        },
                    )


def source_folder(config: ModelNet40FewshotConfig) -> Path:
    """The folder of ModelNet40 or of the converted folds. Raises MissingDataError."""
    if config.source == "generated":
        return data_folder(
            "modelnet40_fewshot", config.folder or "modelnet40_ply_hdf5_2048", ORIGIN
        )

    return data_folder(
        "modelnet40_fewshot", config.folder or "ModelNetFewshot", FOLDS_ORIGIN
    )


def episode_name(way: int, shot: int, fold: int) -> str:
    """5way_10shot/0: the name of Point-BERT's files, and what the draw of `generated` depends
    on.
    """
    return f"{way}way_{shot}shot/{fold}"


def episode_class_names(
    classes: np.ndarray, class_names: Sequence[str]
) -> tuple[str, ...]:
    """Return the names of an episode's classes, in the order of their labels, then the others."""
    chosen = [class_names[number] for number in classes]
    others = [name for name in class_names if name not in chosen]
    return (*chosen, *others)


def fold_file(folder: Path, way: int, shot: int, fold: int) -> Path:
    """The converted file of a fold. Raises MissingDataError, which says if the pickle waits to be
    converted.
    """
    path = folder / f"{episode_name(way, shot, fold)}.npz"
    if path.is_file():
        return path
    if path.with_suffix(".pkl").is_file():
        raise MissingDataError(
            f"{path.with_suffix('.pkl')} is not converted: run pointsweep data --convert-fewshot"
            f" {folder}"
        )

    raise MissingDataError(
        f"data set modelnet40_fewshot: no file {path}. {FOLDS_ORIGIN}"
    )


def draw(
    arrays: Mapping[str, np.ndarray],
    way: int,
    shot: int,
    fold: int,
    class_names: Sequence[str] = CLASSES,
    among: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """An episode out of all of ModelNet40: the arrays named in ARRAYS, points (n, P, 3).

    Of another set its `class_names` are given; `among`: the classes that may be drawn, by default
    all. Raises ValueError naming the classes that have too few shapes.
    """
    name = episode_name(way, shot, fold)
    drawable = range(len(class_names)) if among is None else among

    if len(drawable) < way:
        raise ValueError(
            f"few-shot episode {name}: {way} classes are needed that have {shot} training and"
            f" {TEST_PER_CLASS} test shapes, {len(drawable)} have them"
        )

    def class_order(number: int) -> str:
        return text_digest(f"{name}/class/{class_names[number]}")

    classes = sorted(drawable, key=class_order)[:way]
    needed = {"train": shot, "test": TEST_PER_CLASS}
    check_shapes_suffice(arrays, classes, name, needed, class_names)
    episode = {"classes": np.array(classes, dtype=np.int64)}

    for split, count in needed.items():
        # digest, row of the stored clouds, label
        chosen: list[tuple[str, int, int]] = []
        for label, number in enumerate(classes):
            rows = np.flatnonzero(arrays[f"{split}_labels"] == number)
            candidates = []
            for k, row in enumerate(rows):
                digest = text_digest(f"{name}/{split}/{class_names[number]}/{k}")
                candidates.append((digest, int(row), label))

            chosen += sorted(candidates)[:count]

        # The classes are mixed, as in Point-BERT's files: a program that mixes the clouds of a
        # batch would profit from their order.
        chosen.sort()
        clouds = [arrays[f"{split}_points"][row] for _, row, _ in chosen]
        labels = [label for _, _, label in chosen]
        episode[f"{split}_points"] = np.stack(clouds)
        episode[f"{split}_labels"] = np.array(labels, dtype=np.int64)

    return episode


def check_shapes_suffice(
    arrays: Mapping[str, np.ndarray],
    classes: Sequence[int],
    name: str,
    needed: Mapping[str, int],
    class_names: Sequence[str],
) -> None:
    """Raise ValueError unless the episode's classes have the shapes that it takes of each."""
    lacking = []
    for split, count in needed.items():
        stored = np.bincount(arrays[f"{split}_labels"], minlength=len(class_names))
        short = []
        for number in classes:
            if stored[number] < count:
                short.append(f"{class_names[number]} has {stored[number]}")

        if short:
            lacking.append(
                f"{count} {split} shapes of a class are needed, here {', '.join(short)}"
            )

    if lacking:
        raise ValueError(f"few-shot episode {name}: {'; '.join(lacking)}")


def read_npz(path: Path, way: int, shot: int) -> dict[str, np.ndarray]:
    """A converted fold, every cloud in the unit sphere. Raises ValueError naming the file and what
    is wrong with it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS}
    except (
        OSError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f"{path}: not a converted few-shot fold with {', '.join(ARRAYS)}: {error}"
        ) from error

    check_episode(arrays, way, shot, str(path))
    for name, array in arrays.items():
        if name.endswith("points"):
            arrays[name] = unit_sphere(array)
        else:
            arrays[name] = array.astype(np.int64)

    return arrays


def _read_fold(folder: Path, way: int, shot: int, fold: int) -> dict[str, np.ndarray]:
    return read_npz(fold_file(folder, way, shot, fold), way, shot)


def check_episode(
    arrays: Mapping[str, np.ndarray], way: int, shot: int, source: str
) -> None:
    """Raise ValueError unless there are `way` classes of ModelNet40 with `shot` and 20 sound clouds
    each.
    """
    classes = arrays["classes"]
    if (
        classes.shape != (way,)
        or classes.dtype.kind not in "iu"
        or len(np.unique(classes)) != way
    ):
        raise ValueError(
            f"{source}: classes must be {way} different numbers, found {classes.dtype}"
            f" {classes.tolist()}"
        )
    if classes.min() < 0 or classes.max() >= len(CLASSES):
        raise ValueError(
            f"{source}: classes must be from 0 to {len(CLASSES) - 1}, found {classes.tolist()}"
        )

    for split, count in (("train", shot), ("test", TEST_PER_CLASS)):
        labels = arrays[f"{split}_labels"]
        if labels.dtype.kind not in "iu":
            raise ValueError(
                f"{source}: {split}_labels must be whole numbers, found {labels.dtype}"
            )

        check_clouds(arrays[f"{split}_points"], labels, way, f"{source}: {split}")
        counts = np.bincount(labels, minlength=way)
        if (counts != count).any():
            raise ValueError(
                f"{source}: {split} must hold {count} clouds of each of {way} classes, found"
                f" {counts.tolist()}"
            )
