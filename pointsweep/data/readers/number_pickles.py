"""Pickles of numpy arrays, read without running anything that they name.

A pickle can run any program, so what it names is never looked up: numpy's array, type and number
are replaced by the small classes below, which hold plain numbers only, and every other name is
refused. numpy's own classes are not used either, as a crafted type could make numpy take numbers
for pointers. Pickles are read by commands that convert them once, never by a trial.
"""

from __future__ import annotations

import pickle
from typing import Any, BinaryIO

import numpy as np

NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class _Type:
    """Stand-in for numpy.dtype: one of NUMBERS."""

    def __init__(self, name: object, *unused: object) -> None:
        if name not in NUMBERS:
            raise pickle.UnpicklingError(
                f"refused numpy type {name!r}: only numbers are admitted"
            )

        self.dtype = np.dtype(str(name))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # version, byte order, then what only structured types have
        _, order, *structure = state
        is_structured = any(field is not None for field in structure[:3])
        if is_structured or order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(
                "refused a structured numpy type: only numbers are admitted"
            )

        self.dtype = self.dtype.newbyteorder(order)


class Array:
    """Stand-in for numpy.ndarray and of the function that makes an empty one; the numbers come
    with the state.
    """

    def __init__(self, *unused: object) -> None:
        self.array = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        self.array = _numbers(raw, kind, shape, "F" if fortran else "C")


class _Buffer(Array):
    """Stand-in for the function that makes an array of bytes (pickle protocol 5)."""

    def __init__(
        self, raw: object, kind: object, shape: tuple[int, ...], order: str
    ) -> None:
        self.array = _numbers(raw, kind, shape, order)


class _Number(Array):
    """Stand-in for the function that makes one number with a numpy type."""

    def __init__(self, kind: object, raw: object) -> None:
        self.array = _numbers(raw, kind, (), "C")


def _numbers(
    raw: object, kind: object, shape: tuple[int, ...], order: str
) -> np.ndarray:
    if (
        not isinstance(kind, _Type)
        or not isinstance(raw, (bytes, bytearray))
        or order not in ("C", "F")
    ):
        raise pickle.UnpicklingError(
            "refused an array that does not consist of numbers"
        )

    values = np.frombuffer(raw, kind.dtype)
    return values.reshape(shape, order="F" if order == "F" else "C")


ADMITTED: dict[tuple[str, str], type] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): Array,
    ("numpy.core.multiarray", "_reconstruct"): Array,
    ("numpy.core.multiarray", "scalar"): _Number,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
}


class NumbersUnpickler(pickle.Unpickler):
    """Unpickler of containers, numbers, texts and numpy arrays of numbers; anything else raises
    UnpicklingError before it is looked up.
    """

    def find_class(self, module_name: str, global_name: str) -> type:
        # numpy 2 calls its inner package _core.
        known_module = module_name.replace("numpy._core.", "numpy.core.")
        admitted = ADMITTED.get((known_module, global_name))
        if admitted is None:
            raise pickle.UnpicklingError(
                f"refused {module_name}.{global_name}: only numpy arrays of numbers are admitted"
            )

        return admitted


def load_numbers(file: BinaryIO, source: str) -> Any:
    """Return what a pickle holds, every array as `.array` of an `Array`. Raises ValueError naming
    the source for anything but containers, numbers, texts and arrays of numbers.
    """
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
        raise ValueError(f"{source}: not a pickle of numpy arrays: {error}") from error


def plain(value: Any) -> Any:
    """Return the array behind a stand-in, anything else as it is."""
    return value.array if isinstance(value, Array) else value
