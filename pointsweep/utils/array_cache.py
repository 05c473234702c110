"""Converted data on the disk of a node: made once, opened as memory maps, so that all workers share
one copy.

An entry is a folder named after the content that it was made of, never after the place where that
content lay. Beside its arrays lies a manifest with the digest of every block of every file. On
opening sizes and headers are compared, and blocks: all of them if the file is small or was touched
since it was last checked, else a random choice. `pointsweep data --verify` compares all blocks of
all entries. What is damaged is made again. Where the cache cannot be written the arrays stay in
memory, and a warning says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import random
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger("pointsweep.data")

VERSION = 2  # of an entry's files
READERS = 2  # raised when the readers make other arrays of the same files
MANIFEST, STAMPS = "manifest.json", "stamps.json"
LOCKS, SOURCES = "locks", "sources"  # folders of the cache
BLOCK_BYTES = 4 << 20
SAMPLED_BLOCKS = 8  # of a file that has not been touched, whenever it is opened
# The times of a file tell of a change only if it is not younger than the coarsest clock of a file
# system.
SETTLED_NS = 2 * 10**9


class CacheError(ValueError):
    """An entry of the cache is damaged or of another version; the message says which file and
    how.
    """


def cache_folder() -> Path:
    """Return $POINTSWEEP_CACHE, else ~/.cache/pointsweep."""
    return Path(
        os.environ.get("POINTSWEEP_CACHE") or Path.home() / ".cache" / "pointsweep"
    )


def cached_arrays(
    key: str, make: Callable[[], Mapping[str, np.ndarray]]
) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays stored under `key`, made first if they are absent or damaged, and the
    digest of their content.

    Several processes may call this at once: one makes the entry, the others wait for it. What
    `make` raises is raised.
    """
    folder = cache_folder() / key
    with suppress(FileNotFoundError, NotADirectoryError, CacheError):
        return open_entry(folder)

    with _locked(key):
        try:
            return open_entry(folder)  # another process may have made it meanwhile
        except (FileNotFoundError, NotADirectoryError):
            pass
        except CacheError as error:
            log.warning("%s; it is made again", error)

        arrays = make()
        digest = content_digest(arrays)
        try:
            _store(folder, arrays, digest)
            return open_entry(folder)
        except (OSError, CacheError) as error:
            log.warning(
                "the data cache %s cannot be used (%s); the data stay in this process's memory. "
                "POINTSWEEP_CACHE names another folder",
                cache_folder(),
                error,
            )

        return {name: _read_only(array) for name, array in arrays.items()}, digest


def arrays_of_files(
    name: str,
    files: Sequence[Path],
    read: Callable[[], Mapping[str, np.ndarray]],
    *more: object,
) -> tuple[dict[str, np.ndarray], str]:
    """Return what `read` makes of some files, from the cache where it has been made of the same
    content before.

    `more` is what `read` depends on beside the files. Raises OSError, ValueError, and what `read`
    raises.
    """
    key = signature(files, *more)

    def make() -> Mapping[str, np.ndarray]:
        arrays = read()
        if signature(files, *more) != key:
            raise ValueError(
                f"{files[0].parent}: its files were changed while they were read; run it again"
            )

        return arrays

    return cached_arrays(f"{name}-{key}", make)


def open_entry(
    folder: Path, in_full: bool = False
) -> tuple[dict[str, np.ndarray], str]:
    """Return an entry's arrays as read-only memory maps, and the digest of their content.

    Raises FileNotFoundError if there is no entry, CacheError if it is damaged. `in_full`: all
    blocks are compared.
    """
    if not folder.exists() and not folder.is_symlink():
        raise FileNotFoundError(folder)

    manifest = _read_json(folder / MANIFEST)
    if manifest.get("version") != VERSION:
        raise CacheError(
            f"{folder}: of version {manifest.get('version')}, this program has {VERSION}"
        )

    stamps = {}
    with suppress(CacheError):
        stamps = _read_json(folder / STAMPS)

    arrays = {}
    current = {}
    try:
        for name, about in manifest["arrays"].items():
            path = folder / f"{name}.npy"
            _check_size(path, about["bytes"])
            current[name] = _stamp(path)
            _check_blocks(
                path, about["blocks"], in_full or current[name] != stamps.get(name)
            )
            arrays[name] = _open_array(path, about)

        digest = str(manifest["digest"])
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{folder}: damaged: {error!r}") from error

    if current != stamps:
        # a cache that is only read is compared in full every time
        with suppress(OSError):
            _write_beside(folder / STAMPS, json.dumps(current).encode())

    return arrays, digest


def find_entry(digest: str) -> dict[str, np.ndarray] | None:
    """Return the arrays of an entry whose content has this digest; None if there is none, or if it
    is damaged.
    """
    for manifest in sorted(cache_folder().glob(f"*/{MANIFEST}")):
        with suppress(OSError, CacheError):
            if _read_json(manifest).get("digest") == digest:
                return open_entry(manifest.parent)[0]

    return None


def entries() -> Iterator[Path]:
    """Yield the folders of the cache's entries, whole or not."""
    root = cache_folder()
    if root.is_dir():
        for folder in sorted(root.iterdir()):
            if (folder / MANIFEST).exists() or next(
                folder.glob("*.npy"), None
            ) is not None:
                yield folder


def remove_entry(folder: Path) -> None:
    """Remove an entry, or whatever lies in its place; readers that have it open keep what they
    opened.
    """
    doomed = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return

    if doomed.is_dir() and not doomed.is_symlink():
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        doomed.unlink()


def content_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the sha256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.data)

    return digest.hexdigest()


def signature(files: Sequence[Path], *more: object) -> str:
    """Return a key (32 hex digits) for what is made of some files in this order: it changes with a
    byte of any of them.

    The files are read once; their digests are kept with size, times and inode, and read again when
    one of these differs.
    """
    names = [path.name for path in files]
    parts = [READERS, names, file_digests(files), *map(str, more)]
    text = json.dumps(parts)

    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_digests(files: Sequence[Path]) -> list[str]:
    """Return the sha256 of every file. Raises OSError."""
    paths = [str(path.resolve()) for path in files]
    name = hashlib.sha256(json.dumps(paths).encode()).hexdigest()[:32]
    cache_file = cache_folder() / SOURCES / f"{name}.json"
    known: dict[str, Any] = {}

    with suppress(OSError, CacheError):
        known = _read_json(cache_file)

    digests: list[str] = []
    settled: dict[str, list[Any]] = {}
    for path, resolved in zip(files, paths, strict=True):
        stamp = _stamp(path)
        before = known.get(resolved)
        if isinstance(before, list) and before[:-1] == stamp:
            digests.append(before[-1])
        else:
            started_ns = time.time_ns()
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())

            is_fresh = started_ns - max(stamp[1], stamp[2]) < SETTLED_NS
            if is_fresh or _stamp(path) != stamp:
                continue

        settled[resolved] = [*stamp, digests[-1]]

    if settled != known:
        with suppress(OSError):  # the next time they are read again
            cache_file.parent.mkdir(parents=True, exist_ok=True)
            _write_beside(cache_file, json.dumps(settled).encode())

    return digests


def _store(folder: Path, arrays: Mapping[str, np.ndarray], digest: str) -> None:
    """Write an entry beside its place, flush it to the disk and rename it. The caller holds the
    key's lock.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for remains in folder.parent.glob(f"{folder.name}.*.tmp"):  # of a process that died
        shutil.rmtree(remains, ignore_errors=True)

    temporary = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        about = {}
        for name, array in arrays.items():
            path = temporary / f"{name}.npy"
            with path.open("wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())

            about[name] = {
                "dtype": array.dtype.str,
                "shape": list(array.shape),
                "bytes": path.stat().st_size,
                "blocks": list(_block_digests(path)),
            }

        manifest = {"version": VERSION, "digest": digest, "arrays": about}
        _write_flushed(temporary / MANIFEST, json.dumps(manifest).encode())
        _flush_folder(temporary)
        remove_entry(folder)
        temporary.rename(folder)
        _flush_folder(folder.parent)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _open_array(path: Path, about: Mapping[str, Any]) -> np.ndarray:
    try:
        # An empty array cannot be mapped.
        array: np.ndarray = np.load(
            path, mmap_mode="r" if 0 not in about["shape"] else None, allow_pickle=False
        )
    except (ValueError, EOFError) as error:
        raise CacheError(f"{path}: damaged: {error}") from error

    if array.dtype.str != about["dtype"] or list(array.shape) != about["shape"]:
        raise CacheError(
            f"{path}: holds {array.dtype} {array.shape}, expected {about['dtype']}"
            f" {tuple(about['shape'])}"
        )

    return array


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise CacheError(f"{path}: is gone, or no file")
    if (found := path.stat().st_size) != expected:
        raise CacheError(f"{path}: {found} bytes, expected {expected}")


def _check_blocks(path: Path, expected: Sequence[str], all_of_them: bool) -> None:
    """Compare blocks of a file with their digests. Raises CacheError."""
    numbers = list(range(len(expected)))
    if not all_of_them and len(numbers) > SAMPLED_BLOCKS:
        inner = random.SystemRandom().sample(numbers[1:-1], SAMPLED_BLOCKS - 2)
        numbers = [numbers[0], *sorted(inner), numbers[-1]]

    for number, found in zip(numbers, _block_digests(path, numbers), strict=True):
        if found != expected[number]:
            raise CacheError(f"{path}: damaged from byte {number * BLOCK_BYTES} on")


def _block_digests(path: Path, numbers: Sequence[int] | None = None) -> Iterator[str]:
    """Yield the sha256 of some blocks of a file, by default of all."""
    if numbers is None:
        numbers = range(-(-path.stat().st_size // BLOCK_BYTES))

    with path.open("rb") as file:
        for number in numbers:
            file.seek(number * BLOCK_BYTES)
            yield hashlib.sha256(file.read(BLOCK_BYTES)).hexdigest()


def _stamp(path: Path) -> list[int]:
    """Return what changes when a file is written or replaced; the third, of the inode, cannot be
    set by programs.
    """
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object. Raises CacheError if the file is absent or holds something else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CacheError(f"{path}: cannot be read: {error}") from error

    if not isinstance(content, dict):
        raise CacheError(f"{path}: holds no JSON object")

    return content


def _write_flushed(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_beside(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        _write_flushed(temporary, data)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _flush_folder(folder: Path) -> None:
    """Flush names to the disk; not every file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read_only(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    array.setflags(write=False)
    return array


@contextmanager
def _locked(key: str) -> Iterator[None]:
    """Hold the key's lock on this node; without one where the cache cannot be written."""
    path = cache_folder() / LOCKS / f"{key}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError:
        yield
        return

    with file:
        # a file system without locks: the last one to rename wins
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
