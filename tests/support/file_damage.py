"""Kinds of damage to a file: what disks, people, other programs and other versions do. Every one is applied to a file that is whole.

A test takes each kind for each file of a folder and looks at what the commands then say.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], object]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _replace(path: Path, data: bytes) -> None:
    _remove(path)
    path.write_bytes(data)


def missing(path: Path) -> None:
    _remove(path)


def empty(path: Path) -> None:
    _replace(path, b"")


def one_byte(path: Path) -> None:
    _replace(path, b"x")


def first_half(path: Path) -> None:
    data = path.read_bytes()
    _replace(path, data[: len(data) // 2])


def last_byte_cut_off(path: Path) -> None:
    _replace(path, path.read_bytes()[:-1])


def second_half(path: Path) -> None:
    data = path.read_bytes()
    _replace(path, data[len(data) // 2 :])


def zeros(path: Path) -> None:
    """As after a power failure on some file systems: the length is right, the content is not."""
    _replace(path, bytes(path.stat().st_size))


def last_block_zeros(path: Path) -> None:
    data = path.read_bytes()
    count = min(len(data), 512)
    _replace(path, data[:-count] + bytes(count))


def random_bytes(path: Path) -> None:
    _replace(path, random.Random(0).randbytes(max(path.stat().st_size, 64)))


def one_bit_flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2] ^= 1
    _replace(path, bytes(data))


def one_digit_changed(path: Path) -> None:
    """An edit that keeps the length: the last digit becomes another one."""
    data = bytearray(path.read_bytes())
    for at in range(len(data) - 1, -1, -1):
        if data[at] in b"0123456789":
            data[at] = ord("0") + (data[at] - ord("0") + 1) % 10
            break
    _replace(path, bytes(data))


def bytes_appended(path: Path) -> None:
    _replace(path, path.read_bytes() + b"\x00\xffrest of another file")


def twice(path: Path) -> None:
    _replace(path, path.read_bytes() * 2)


def html(path: Path) -> None:
    """What a proxy answers in place of a file."""
    _replace(path, b"<!DOCTYPE html><title>502 Bad Gateway</title>\n")


def merge_conflict(path: Path) -> None:
    data = path.read_bytes()
    _replace(path, b"<<<<<<< HEAD\n" + data + b"=======\n" + data + b">>>>>>> other\n")


def utf_16(path: Path) -> None:
    """Saved by an editor of another system."""
    _replace(path, path.read_bytes().decode("latin-1").encode("utf-16"))


def byte_order_mark(path: Path) -> None:
    _replace(path, b"\xef\xbb\xbf" + path.read_bytes())


def windows_lines(path: Path) -> None:
    _replace(path, path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")


def json_null(path: Path) -> None:
    _replace(path, b"null\n")


def json_list(path: Path) -> None:
    _replace(path, b"[1, 2, {}]\n")


def json_number(path: Path) -> None:
    _replace(path, b"7\n")


def json_empty_object(path: Path) -> None:
    _replace(path, b"{}\n")


def json_nested(path: Path) -> None:
    _replace(path, b"[" * 100_000)


def json_not_a_number(path: Path) -> None:
    _replace(path, b'{"schema": NaN, "format": Infinity, "type": -Infinity}\n')


def json_of_other_types(path: Path) -> None:
    """The names are those of the file, what stands behind them is not."""
    try:
        data = json.loads(path.read_bytes())
    except ValueError:
        data = {}
    names = data if isinstance(data, dict) else {}
    _replace(path, json.dumps({name: [None, "x"] for name in names}).encode())


def json_of_a_later_version(path: Path) -> None:
    later = {"schema": 10**6, "format": 10**6, "version": 10**6, "layout": {"cells": [{"colour": "red"}]}, "kind": "pointsweep store"}
    _replace(path, json.dumps(later).encode())


def folder(path: Path) -> None:
    _remove(path)
    path.mkdir()


def folder_with_content(path: Path) -> None:
    _remove(path)
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def link_to_nothing(path: Path) -> None:
    _remove(path)
    path.symlink_to(path.parent / "not" / "there")


def link_to_itself(path: Path) -> None:
    _remove(path)
    path.symlink_to(path.name)


def link_to_a_file_elsewhere(path: Path) -> None:
    """The target must never be cut off, locked or replaced: tests look at it afterwards."""
    elsewhere = path.parent / f"elsewhere-{path.name}"
    if not elsewhere.exists():
        elsewhere.write_bytes(b"a thesis\n")
    _remove(path)
    path.symlink_to(elsewhere)


def named_pipe(path: Path) -> None:
    """Whoever opens it to read waits for ever, unless it is looked at first."""
    _remove(path)
    os.mkfifo(path)


DAMAGES: tuple[Damage, ...] = (
    missing, empty, one_byte, first_half, last_byte_cut_off, second_half, zeros, last_block_zeros, random_bytes, one_bit_flipped,
    one_digit_changed, bytes_appended, twice, html, merge_conflict, utf_16, byte_order_mark, windows_lines, json_null, json_list,
    json_number, json_empty_object, json_nested, json_not_a_number, json_of_other_types, json_of_a_later_version, folder,
    folder_with_content, link_to_nothing, link_to_itself, link_to_a_file_elsewhere, named_pipe,
)  # fmt: skip
