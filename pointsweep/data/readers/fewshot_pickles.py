"""Point-BERT's few-shot pickles -> npz, once and on demand (`pointsweep data --convert-fewshot
FOLDER`).

Source: the layout of spec 6.3: {5,10}way_{10,20}shot/{0..9}.pkl, each a dict train/test -> list of
(points (8192, 6) float32, label in the episode, class in ModelNet40). A pickle can run any program,
so what it names is never looked up: numpy's array, type and number are replaced by the small
classes below, which hold plain numbers only, and every other name is refused. numpy's own classes
are not used either, as a crafted type could make numpy take numbers for pointers.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pointsweep.data.modelnet40_fewshot import check_episode, episode_name
from pointsweep.errors import MissingDataError

NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class _Type:
    """Stand-in for numpy.dtype: one of NUMBERS."""

    def __init__(self, name: object, *unused: object) -> None:
        if name not in NUMBERS:
            raise pickle.UnpicklingError(f"refused numpy type {name!r}: only numbers are admitted")
        self.dtype = np.dtype(str(name))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *parts = state  # version, byte order, then what only structured types have
        if order not in ("<", ">", "|", "=") or any(part is not None for part in parts[:3]):
            raise pickle.UnpicklingError(
                "refused a structured numpy type: only numbers are admitted"
            )
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stand-in for numpy.ndarray and of the function that makes an empty one; the numbers come
    with the state.
    """

    def __init__(self, *unused: object) -> None:
        self.array = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        self.array = _numbers(raw, kind, shape, "F" if fortran else "C")


class _Buffer(_Array):
    """Stand-in for the function that makes an array of bytes (pickle protocol 5)."""

    def __init__(self, raw: object, kind: object, shape: tuple[int, ...], order: str) -> None:
        self.array = _numbers(raw, kind, shape, order)


class _Number(_Array):
    """Stand-in for the function that makes one number with a numpy type."""

    def __init__(self, kind: object, raw: object) -> None:
        self.array = _numbers(raw, kind, (), "C")


def _numbers(raw: object, kind: object, shape: tuple[int, ...], order: str) -> np.ndarray:
    if (
        not isinstance(kind, _Type)
        or not isinstance(raw, (bytes, bytearray))
        or order not in ("C", "F")
    ):
        raise pickle.UnpicklingError("refused an array that does not consist of numbers")
    return np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if order == "F" else "C")


ADMITTED: dict[tuple[str, str], type] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Number,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
}


class NumbersUnpickler(pickle.Unpickler):
    """Unpickler of containers, numbers, texts and numpy arrays of numbers; anything else raises
    UnpicklingError before it is looked up.
    """

    def find_class(self, module_name: str, global_name: str) -> type:
        # numpy 2 calls its inner package _core.
        found = ADMITTED.get((module_name.replace("numpy._core.", "numpy.core."), global_name))
        if found is None:
            raise pickle.UnpicklingError(
                f"refused {module_name}.{global_name}: only numpy arrays of numbers are admitted"
            )
        return found


def read_pickle(path: Path, way: int, shot: int) -> dict[str, np.ndarray]:
    """A fold: {train,test}_points (n, P, 3) as stored and _labels (n,), classes (way,). Raises
    ValueError naming the file.
    """
    with path.open("rb") as file:
        content = _load(file, str(path))
    arrays: dict[str, np.ndarray] = {}
    pairs: set[tuple[int, int]] = set()
    for split in ("train", "test"):
        try:
            items = [
                (item[0].array[:, :3], int(_plain(item[1])), int(_plain(item[2])))
                for item in content[split]
            ]
            arrays[f"{split}_points"] = np.stack([points for points, _, _ in items])
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path}: {split} is not a list of (points, label, class) with as many points each:"
                f" {error}"
            ) from error
        arrays[f"{split}_labels"] = np.array([label for _, label, _ in items], dtype=np.int64)
        pairs |= {(label, number) for _, label, number in items}
    if sorted(label for label, _ in pairs) != list(range(way)):
        raise ValueError(
            f"{path}: labels must be 0 to {way - 1}, each of one class; found (label, class)"
            f" {sorted(pairs)}"
        )
    arrays["classes"] = np.array([number for _, number in sorted(pairs)], dtype=np.int64)
    check_episode(arrays, way, shot, str(path))
    return arrays


def _load(file: BinaryIO, source: str) -> Any:
    try:
        return NumbersUnpickler(file).load()
    # What a damaged or malicious stream of instructions may raise.
    except (
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
    ) as error:
        raise ValueError(f"{source}: not a few-shot pickle of numpy arrays: {error}") from error


def _plain(value: Any) -> Any:
    return value.array if isinstance(value, _Array) else value


def convert(folder: Path) -> Iterator[Path]:
    """Converts every pickle of a ModelNetFewshot folder and yields each npz file. Raises
    MissingDataError, ValueError.
    """
    found = sorted(folder.glob("*way*shot/*.pkl"))
    if not found:
        raise MissingDataError(
            f"{folder}: no file {{5,10}}way_{{10,20}}shot/{{0..9}}.pkl (Point-BERT's"
            " ModelNetFewshot)"
        )
    for path in found:
        # Point-BERT's document writes the folder with and without the underscore.
        match = re.fullmatch(r"(5|10)way_?(10|20)shot/([0-9])", f"{path.parent.name}/{path.stem}")
        if match is None:
            raise ValueError(f"{path}: must be called {{5,10}}way_{{10,20}}shot/{{0..9}}.pkl")
        way, shot, fold = (int(part) for part in match.groups())
        target = folder / f"{episode_name(way, shot, fold)}.npz"
        target.parent.mkdir(exist_ok=True)
        beside = target.with_name(f".{target.stem}.{os.getpid()}.tmp.npz")
        np.savez(beside, **read_pickle(path, way, shot))  # type: ignore[arg-type]
        beside.rename(target)
        yield target
