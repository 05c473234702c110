"""Files of each split of a folder of clouds, and their classes: folders of classes, or lists of
names.

Letters: n clouds.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PureWindowsPath

from pointsweep.data.readers import cloud_arrays, cloud_files
from pointsweep.data.readers.text import lines_of, read_text
from pointsweep.errors import MissingDataError

LISTS = (".txt", ".lst", ".list", ".csv")
# no names of classes, in lists
SPLIT_FOLDERS = ("train", "training", "test", "testing", "val", "valid", "validation")
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class SplitFiles:
    """The files of a split: one cloud each, with its class; or arrays of clouds, which hold their
    labels.
    """

    clouds: tuple[tuple[Path, str], ...] = ()
    arrays: tuple[Path, ...] = ()
    lists: tuple[Path, ...] = ()  # that name them

    @property
    def files(self) -> list[Path]:
        """All files that decide what the split holds, in a fixed order."""
        return [*self.lists, *self.arrays, *(path for path, _ in self.clouds)]


def split_files(
    root: Path,
    split: str,
    value: str,
    pattern: str | None,
    lists_folder: str | None = None,
    class_before: str | None = None,
) -> SplitFiles:
    """Return the files of the split that `value` names below `root`.

    `value`: a folder with a folder for each class, the name of a folder in each class's folder, a
    list of names, a file of arrays, or a pattern of those. `split` is the field of the
    configuration. A list names files below `lists_folder`, whose class is their name up to the
    first `class_before`. Raises MissingDataError, ValueError.
    """
    where = f"dataset.{split}: {value!r}"
    splits = _split_files(
        root,
        where,
        value,
        pattern=pattern,
        lists_folder=lists_folder,
        class_before=class_before,
    )

    for field, text in (("lists_folder", lists_folder), ("class_before", class_before)):
        if text is not None and (splits.arrays or not splits.lists):
            raise ValueError(
                f"dataset.{field}: {text!r} is for lists of files with one cloud each, and"
                f" {where} is none; leave it out"
            )

    return splits


def _split_files(
    root: Path,
    where: str,
    value: str,
    pattern: str | None,
    lists_folder: str | None,
    class_before: str | None,
) -> SplitFiles:
    if _leads_out(value):
        raise ValueError(
            f"{where} leads out of dataset.root; allowed are names below it"
        )
    if any(sign in value for sign in "*?["):
        return _matching_arrays(root, where, value)

    path = root / value
    if path.is_file():
        return _of_file(
            root,
            path,
            where,
            pattern=pattern,
            lists_folder=lists_folder,
            class_before=class_before,
        )

    folders = _class_folders(root, where, value)
    clouds: list[tuple[Path, str]] = []
    for name, folder in sorted(folders.items()):
        for cloud in _clouds_below(folder, pattern):
            clouds.append((cloud, name))

    if not clouds:
        wanted = f"of a kind that is read ({', '.join(cloud_files.SUFFIXES)})"
        if pattern:
            wanted = f"called {pattern!r}"

        raise MissingDataError(
            f"{where}: the {len(folders)} folders of classes hold no file {wanted};"
            f" {contents(folders[min(folders)])}"
        )

    return SplitFiles(clouds=tuple(clouds))


def _leads_out(name: str) -> bool:
    """Return whether a name may lead out of the folder that it is looked up in."""
    return Path(name).is_absolute() or ".." in PureWindowsPath(name).parts


def _matching_arrays(root: Path, where: str, value: str) -> SplitFiles:
    """Return the files of arrays whose names match. Raises MissingDataError if none does."""
    suffixes = cloud_arrays.SUFFIXES
    paths = sorted(root.glob(value))
    arrays = [path for path in paths if path.suffix.lower() in suffixes]

    if not arrays:
        raise MissingDataError(
            f"{where} matches no {' or '.join(suffixes)} file in {root}; {contents(root)}"
        )

    return SplitFiles(arrays=tuple(arrays))


def _class_folders(root: Path, where: str, value: str) -> dict[str, Path]:
    """Return a split's folders by class: those in SPLIT/CLASS, else those called CLASS/SPLIT.
    Raises MissingDataError.
    """
    split_folder = root / value
    if split_folder.is_dir():
        folders = {path.name: path for path in _folders(split_folder)}
        if not folders:
            raise MissingDataError(
                f"{where}: {split_folder} holds no folders, one for each class is expected;"
                f" {contents(split_folder)}"
            )

        return folders

    class_folders = list(_folders(root))
    folders = {}
    for path in class_folders:
        if (path / value).is_dir():
            folders[path.name] = path / value

    if folders:
        return folders

    names = [path.name for path in root.iterdir()]
    inner_names: set[str] = set()
    for path in class_folders:
        inner_names.update(inner.name for inner in _folders(path))

    near = difflib.get_close_matches(value, [*names, *inner_names], n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise MissingDataError(
        f"{where}: neither {split_folder} nor {root}/CLASS/{value} is there.{hint}"
        f" {contents(root)}"
    )


def one_kind(splits: Sequence[SplitFiles], pattern: str | None) -> None:
    """Raise ValueError where files of several kinds lie in the folders of classes and no pattern
    says which are meant.
    """
    counts: Counter[str] = Counter()
    for split in splits:
        counts.update(path.suffix.lower() for path, _ in split.clouds)

    if len(counts) < 2 or pattern is not None:
        return

    ranked = counts.most_common()  # of equally frequent ones, the first found
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in ranked)
    most_frequent, _ = ranked[0]
    raise ValueError(
        f"files of several kinds: {kinds}; set dataset.pattern to those that are meant, say"
        f" '*{most_frequent}', or '*' for all"
    )


def contents(folder: Path) -> str:
    """Return in words what a folder holds."""
    names = []
    for path in folder.iterdir():
        names.append(f"{path.name}/" if path.is_dir() else path.name)

    names.sort()
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""

    return f"{folder.name} holds {', '.join(names[:SHOWN]) or 'nothing'}{more}"


def _folders(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith((".", "__MACOSX")):
            yield path


def _clouds_below(folder: Path, pattern: str | None) -> Iterator[Path]:
    """Yield the files of clouds below a folder, in the order of their names; hidden ones are left
    out.
    """
    for path, folders, names in os.walk(folder, followlinks=True):
        # os.walk goes on with what is left in its list
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() not in cloud_files.SUFFIXES:
                continue

            if pattern is None or fnmatch(name, pattern):
                yield Path(path, name)


# Lists


def _of_file(
    root: Path,
    path: Path,
    where: str,
    pattern: str | None,
    lists_folder: str | None,
    class_before: str | None,
) -> SplitFiles:
    """Return the files of a split: the file of arrays at `path`, or those that a list there names.

    `where` is the field that names it, for messages. Raises ValueError for a list that is empty,
    names a file twice or no file.
    """
    suffix = path.suffix.lower()
    if suffix in cloud_arrays.SUFFIXES:
        return SplitFiles(arrays=(path,))

    if suffix not in LISTS:
        allowed = ", ".join((*LISTS, *cloud_arrays.SUFFIXES))
        raise ValueError(
            f"{where}: {suffix or 'a file without ending'} is neither a list nor arrays; allowed:"
            f" {allowed}"
        )

    numbered = list(_numbered_lines(path))
    if not numbered:
        raise ValueError(f"{path}: lists no file")

    # A list names files of arrays or clouds, and its first line says which. PureWindowsPath takes
    # both kinds of slash.
    _, first_line = numbered[0]
    if PureWindowsPath(first_line).suffix.lower() in cloud_arrays.HDF5:
        arrays = tuple(_listed_arrays(root, path, numbered))
        return SplitFiles(arrays=arrays, lists=(path,))

    if lists_folder and _leads_out(lists_folder):
        raise ValueError(
            f"dataset.lists_folder: {lists_folder!r} leads out of dataset.root; allowed are names"
            " below it"
        )

    below = root if lists_folder is None else root / lists_folder
    if not below.is_dir():
        raise MissingDataError(
            f"dataset.lists_folder: no folder {below}, in which the files of {path} are looked for;"
            f" {contents(root)}"
        )

    names = _Names(below, pattern, class_before)
    clouds = []
    line_of: dict[Path, int] = {}

    for number, line in numbered:
        cloud, name = names.look_up(line, f"{path}, line {number}")
        if cloud in line_of:
            raise ValueError(
                f"{path}, line {number}: {line!r} is listed in line {line_of[cloud]} already"
            )

        line_of[cloud] = number
        clouds.append((cloud, name))

    return SplitFiles(clouds=tuple(clouds), lists=(path,))


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a list that are not empty, with their numbers from 1 on."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _listed_arrays(
    root: Path, list_file: Path, numbered: Sequence[tuple[int, str]]
) -> Iterator[Path]:
    """Yield the h5 files of a list; where a line holds a path of its maker's machine, its last part
    counts.
    """
    for number, line in numbered:
        relative = PureWindowsPath(line)
        inside = not relative.is_absolute() and ".." not in relative.parts
        path = root / Path(*relative.parts) if inside else root / relative.name

        if not path.is_file():
            path = root / relative.name

        if not path.is_file():
            raise MissingDataError(
                f"{list_file}, line {number}: names {line!r}, which is not in {root}"
            )

        yield path


class _Names:
    """The files of clouds below a folder by the names that lists use, with or without folders and
    ending.
    """

    def __init__(
        self, root: Path, pattern: str | None, class_before: str | None
    ) -> None:
        self.root = root
        self.class_before = class_before
        self.by_path: dict[str, Path] = {}
        self.by_stem: dict[str, list[Path]] = {}

        for path in _clouds_below(root, pattern):
            relative = path.relative_to(root)
            self.by_path[relative.as_posix()] = path
            if len(relative.parts) > 1 or class_before is not None:
                stem = relative.with_suffix("").as_posix()
                self.by_stem.setdefault(stem, []).append(path)

    def look_up(self, line: str, source: str) -> tuple[Path, str]:
        """Return the file that a line names, and its class: the line's second column, the folder,
        or the name's beginning.
        """
        path = self._file(line, source)
        if path is not None:
            return path, self._class(path, source)

        for separator in ("\t", ",", ";", " "):
            name, _, label = line.rpartition(separator)
            if not name.strip() or not label.strip():
                continue

            path = self._file(name.strip(), source)
            if path is not None:
                return path, label.strip()

        near = difflib.get_close_matches(line, [*self.by_path, *self.by_stem], n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise MissingDataError(
            f"{source}: names {line!r}, which is not in {self.root}.{hint}"
        )

    def _file(self, name: str, source: str) -> Path | None:
        relative = PureWindowsPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(
                f"{source}: {name!r} leads out of dataset.root; allowed are names below it"
            )

        plain = relative.as_posix()
        # ModelNet's lists: night_stand_0001 lies in the folder night_stand.
        for candidate in (plain, f"{relative.name.rpartition('_')[0]}/{plain}"):
            if candidate in self.by_path:
                return self.by_path[candidate]

            paths = self.by_stem.get(candidate, [])
            if len(paths) > 1:
                names = ", ".join(path.name for path in paths)
                raise ValueError(
                    f"{source}: {name!r} may be {names}; set dataset.pattern to one kind, say"
                    f" '*{paths[0].suffix}'"
                )

            if paths:
                return paths[0]

        return None

    def _class(self, path: Path, source: str) -> str:
        if self.class_before is not None:
            name, separator, _ = path.stem.partition(self.class_before)
            if not separator or not name:
                raise ValueError(
                    f"{source}: {path.name} has no class before {self.class_before!r}, which"
                    " dataset.class_before asks for"
                )

            return name

        folders = []
        for part in path.relative_to(self.root).parts[:-1]:
            if part not in SPLIT_FOLDERS:
                folders.append(part)

        if folders:
            return folders[-1]

        name = path.stem.rpartition("_")[0]
        if not name:
            raise ValueError(
                f"{source}: no class is known of {path.name}: name it in a second column, or use a"
                " folder for each class"
            )

        return name


def names_of(path: Path) -> tuple[str, ...]:
    """Return the names of classes that a text file lists, one a line, in the order of their
    numbers.
    """
    return tuple(lines_of(read_text(path)))
