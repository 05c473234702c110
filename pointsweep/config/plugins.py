"""Plug-ins: Python files and packages of a user's own that add components, read as text and
imported from that text.

So the digest that a record keeps is that of the code that ran, and workers that do not see the
user's folder import the same code under the same name: the text travels with the job. Only files
ending in .py travel.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.abc
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from pointsweep.config import registry
from pointsweep.config.base import NamedConfig
from pointsweep.config.contract import stated_name
from pointsweep.errors import PluginError

MOST_BYTES = 4 * 2**20  # of one plug-in: it travels with every launch
DIGITS = 16  # of a digest, as of the package's own tree
SITE = ("purelib", "platlib")  # names of sysconfig's folders: of installed packages
INSTALLED = (*SITE, "stdlib", "platstdlib")
BUILT_INTO_PYTHON = ("built-in", "frozen")  # origins of modules that are no files


@dataclass(frozen=True)
class Source:
    """The code of one plug-in. `name` is what it is imported as, `files` are (path, text):
    ("mine.py", ...).

    `folder` is where the files lie on this machine; of an installed package there are no files, and
    every machine has its own.
    """

    name: str
    files: tuple[tuple[str, str], ...] = ()
    folder: str = ""

    @property
    def is_installed(self) -> bool:
        """Return whether it is a package that every machine has installed."""
        return not self.files

    @cached_property
    def texts(self) -> Mapping[str, str]:
        """The text of each file by its path."""
        return dict(self.files)

    @cached_property
    def digest(self) -> str:
        """The digest of all files."""
        return _digest(self.files)

    @property
    def shown(self) -> str:
        """The name of the file, or of the package's folder."""
        if self.is_installed:
            return self.name
        if f"{self.name}.py" in self.texts:
            return f"{self.name}.py"

        return f"{self.name}/"


def _digest(files: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for path, text in sorted(files):
        digest.update(path.encode() + b"\0" + text.encode() + b"\0")

    return digest.hexdigest()[:DIGITS]


# Reading


def read_source(path: Path) -> Source:
    """Read a plug-in: a file NAME.py, or a folder NAME with an __init__.py. Nothing is imported.
    Raises PluginError.
    """
    if path.is_file() and path.suffix != ".py":
        raise PluginError(f"{path.name} is no Python file: its name must end in .py")

    name = path.stem if path.suffix == ".py" else path.name
    if not name.isidentifier():
        raise PluginError(
            f"{path.name} cannot be imported: {name!r} is not a Python name; rename it"
        )
    if path.is_file() and path.suffix == ".py":
        return Source(name, ((path.name, _text(path)),), str(path.parent.resolve()))

    if path.is_dir() and (path / "__init__.py").is_file():
        files = []
        for file in sorted(path.rglob("*.py")):
            inner = file.relative_to(path)
            if not any(part.startswith(".") for part in inner.parts):
                files.append((f"{name}/{inner.as_posix()}", _text(file)))

        size = sum(len(text) for _, text in files)
        if size > MOST_BYTES:
            raise PluginError(
                f"{path.name}/ holds {size:,} bytes of Python; at most {MOST_BYTES:,} travel with a"
                " launch"
            )

        return Source(name, tuple(files), str(path.parent.resolve()))

    if path.is_dir():
        raise PluginError(
            f"the folder {path.name} is no package: it has no __init__.py"
        )

    raise PluginError(f"no file {path}{_near(path)}")


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"

    names = []
    for entry in sorted(path.parent.iterdir()):
        if entry.suffix == ".py" or (entry / "__init__.py").is_file():
            names.append(entry.name)

    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    hint = f". Did you mean '{near[0]}'?" if near else ""

    return f"{hint or '.'} Python files in that folder: {', '.join(names) or 'none'}"


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise PluginError(
                f"{path.name} has more than {MOST_BYTES:,} bytes, which is the most that travels"
                " with a launch"
            )

        return importlib.util.decode_source(path.read_bytes())
    except OSError as error:
        raise PluginError(f"{path.name} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, SyntaxError) as error:
        raise PluginError(f"{path.name} cannot be read: {error}") from error


def locate(name: str, folder: Path) -> Source | None:
    """Return the source of a top-level module: beside the sweep file, else where Python finds it;
    None if nowhere.

    Nothing is imported. Raises PluginError for what is no plug-in.
    """
    for path in (folder / f"{name}.py", folder / name):
        if path.is_file() or (path / "__init__.py").is_file():
            return read_source(path)

    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    if spec.origin is None and spec.submodule_search_locations:
        folders = ", ".join(spec.submodule_search_locations)
        raise PluginError(f"{name} is no package: {folders} has no __init__.py")
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise PluginError(f"{name} is no package or file of Python code")

    origin = Path(spec.origin).resolve()
    if _is_below(origin, SITE):
        return Source(name)
    if name == "pointsweep":
        raise PluginError(f"{name} is no plug-in: it comes with pointsweep")
    if _is_below(origin, INSTALLED):
        raise PluginError(f"{name} is no plug-in: it comes with Python")

    return read_source(origin.parent if origin.name == "__init__.py" else origin)


def _is_below(path: Path, names: Iterable[str]) -> bool:
    folders = [Path(sysconfig.get_path(name)).resolve() for name in names]
    return any(path.is_relative_to(folder) for folder in folders)


# Permission

ALLOW_VARIABLE = "POINTSWEEP_ALLOW_PLUGINS"
HOW_TO_ALLOW = (
    f"--allow-plugins allows it once, {ALLOW_VARIABLE}=1 always, {ALLOW_VARIABLE}=FOLDER for what"
    " lies below a folder"
)


def is_allowed(source: Source, requested: bool) -> bool:
    """Tell whether a plug-in may be imported: it was asked for, or the user's environment allows
    it.
    """
    if requested or source.is_installed:
        return True

    setting = os.environ.get(ALLOW_VARIABLE, "")
    if setting in ("", "0"):
        return False
    if setting == "1":
        return True

    if not source.folder:
        return False

    own_folder = Path(source.folder).resolve()
    for folder in filter(None, setting.split(os.pathsep)):
        if own_folder.is_relative_to(Path(folder).expanduser().resolve()):
            return True

    return False


# Importing

_active: dict[str, Source] = {}


class _Loader(importlib.abc.ExecutionLoader):
    """Import loader that takes a module from the text of a plug-in."""

    def __init__(self, source: Source, file: str) -> None:
        self.source = source
        self.file = file

    def get_filename(self, fullname: str) -> str:
        """Return where the text was read from, for tracebacks."""
        return str(Path(self.source.folder, self.file))

    def get_source(self, fullname: str) -> str:
        """Return the text."""
        return self.source.texts[self.file]

    def is_package(self, fullname: str) -> bool:
        """Tell whether the module is a package."""
        return self.file.endswith("__init__.py")


class _Finder(importlib.abc.MetaPathFinder):
    """Import finder of the modules of the plug-ins that are active in this process."""

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> ModuleSpec | None:
        """Return where a module is, if it is a plug-in's."""
        source = _active.get(fullname.partition(".")[0])
        if source is None or source.is_installed:
            return None

        base = fullname.replace(".", "/")
        for file in (f"{base}/__init__.py", f"{base}.py"):
            if file in source.texts:
                return importlib.util.spec_from_loader(fullname, _Loader(source, file))

        return None


_finder = _Finder()


def adopt(sources: Iterable[Source]) -> dict[str, ModuleType]:
    """Import plug-ins and register their components; return their modules by name. What is there
    already stays.

    Raises PluginError, with file and line, for one that cannot be imported or lacks something.
    """
    sources = list(sources)
    if any(_is_new(source) for source in sources):
        for source in sources:
            forget(source.name)

    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)

    fresh = [source for source in sources if source.name not in _active]
    modules = {}
    try:
        for source in fresh:
            with _naming(source):
                _refuse_taken(source)
                _active[source.name] = source

        for source in sources:
            with _naming(source):
                modules[source.name] = imported(source, source.name)

        for source in fresh:
            if not source.is_installed:
                with _naming(source):
                    _register(source, modules[source.name])
    except PluginError:
        for source in fresh:
            forget(source.name)
        raise

    return modules


@contextmanager
def _naming(source: Source) -> Iterator[None]:
    """Let a PluginError say of which plug-in it is."""
    try:
        yield
    except PluginError as error:
        error.plugin = source.name
        raise


def _is_new(source: Source) -> bool:
    known = _active.get(source.name)
    return known is not None and known.files != source.files


def forget(name: str) -> None:
    """Take out a plug-in with its components and modules, so that it can be imported anew."""
    registry.forget(name)
    source = _active.pop(name, None)

    if source is None or source.is_installed:
        return

    for module in list(sys.modules):
        if module.partition(".")[0] == name:
            del sys.modules[module]


def _refuse_taken(source: Source) -> None:
    """Refuse a plug-in that would hide a module of Python, of an installed package, or one that is
    loaded.
    """
    if source.is_installed:
        return

    loaded = sys.modules.get(source.name)
    if loaded is not None:
        loaded_file = getattr(loaded, "__file__", None)
        own_files = {Path(source.folder, file).resolve() for file in source.texts}
        if loaded_file is not None and Path(loaded_file).resolve() in own_files:
            return
    else:
        spec = importlib.util.find_spec(source.name)
        loaded_file = spec.origin if spec is not None else None
        if loaded_file is None:
            return

        is_built_in = loaded_file in BUILT_INTO_PYTHON
        if not is_built_in and not _is_below(Path(loaded_file).resolve(), INSTALLED):
            return

    raise PluginError(
        f"{source.shown}: the name {source.name} is that of another module here"
        f" ({loaded_file or 'no file'}); rename it"
    )


def imported(source: Source, module: str) -> ModuleType:
    """Import a module of a plug-in. Raises PluginError with the line at which it fails."""
    before = set(sys.modules)
    try:
        loaded = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        # whatever somebody else's code raises: said with its words
        raise PluginError(
            f"{_where(source, error)}: {_words(error)}{_beside(source, error)}"
        ) from error

    for other in sorted(sys.modules.keys() - before):
        if "." not in other and other not in _active and _lies_beside(other, source):
            text = (
                f"imports {other}, which lies beside it and does not travel to workers: list it"
                " under plugins: too"
            )
            raise PluginError(f"{source.shown} {text}")

    return loaded


def _lies_beside(module: str, source: Source) -> bool:
    file = getattr(sys.modules[module], "__file__", None)
    if not source.folder or file is None or module == "pointsweep":
        return False

    path = Path(file)
    folder = path.parent.parent if path.name == "__init__.py" else path.parent
    return folder.resolve() == Path(source.folder)


def _where(source: Source, error: BaseException) -> str:
    """Return the file and line of a plug-in at which an import ended."""
    if isinstance(error, SyntaxError) and error.filename:
        for file in source.texts:
            if str(Path(source.folder, file)) == error.filename:
                return f"{file}, line {error.lineno}"

    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        for other in (source, *_active.values()):
            for file in other.texts:
                if str(Path(other.folder, file)) == frame.filename:
                    return f"{file}, line {frame.lineno}"

    return source.shown


def _words(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(f"{type(error).__name__}: {text}".split())[:400]


def _beside(source: Source, error: BaseException) -> str:
    """Return a hint at a file beside the plug-in that it imports and that is not listed."""
    name = getattr(error, "name", None)
    if not isinstance(error, ModuleNotFoundError) or not name or not source.folder:
        return ""

    top = name.partition(".")[0]
    folder = Path(source.folder)
    for file in (folder / f"{top}.py", folder / top / "__init__.py"):
        if file.is_file():
            return f"; {top} lies beside it: list it under plugins: too"

    return ""


# What is in a plug-in


def _register(source: Source, module: ModuleType) -> None:
    """Register the components of a plug-in's own module. Raises PluginError."""
    own = list(_own_classes(source, module))
    implemented = set()

    for component in own:
        config = vars(component).get("Config")
        if issubclass(component, NamedConfig) or not isinstance(config, type):
            continue

        if issubclass(config, NamedConfig):
            _register_one(source, component)
            implemented.add(config)

    for component in own:
        if not issubclass(component, NamedConfig) or component in implemented:
            continue

        # else a base of other classes
        if component.implementation or stated_name(component):
            _register_one(source, component)


def _register_one(source: Source, component: type) -> None:
    try:
        registry.register_class(component, source.name)
    except PluginError as error:
        raise PluginError(f"{place_of(source, component)}: {error}") from error


def _own_classes(source: Source, module: ModuleType) -> Iterator[type]:
    seen: set[type] = set()
    for value in vars(module).values():
        if not isinstance(value, type) or value in seen:
            continue

        seen.add(value)
        if value.__module__.partition(".")[0] == source.name:
            yield value


def place_of(source: Source, component: type) -> str:
    """Return the file and line of a plug-in's class."""
    base = component.__module__.replace(".", "/")
    for file in (f"{base}.py", f"{base}/__init__.py"):
        lines = source.texts.get(file, "").splitlines()
        for number, line in enumerate(lines, start=1):
            words = line.replace("(", " ").replace(":", " ").split()
            if words[:2] == ["class", component.__name__]:
                return f"{file}, line {number}"

    return source.shown


def component_at(source: Source, module: str, attribute: str) -> tuple[str, str]:
    """Return the kind and name of the component that "module:Class" names, registered. Raises
    PluginError.
    """
    loaded = imported(source, module)
    component = getattr(loaded, attribute, None)

    if not isinstance(component, type):
        classes = []
        for name, value in sorted(vars(loaded).items()):
            if isinstance(value, type) and "Config" in vars(value):
                classes.append(name)

        near = difflib.get_close_matches(attribute, classes, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise PluginError(
            f"{module} has no class {attribute}.{hint} Classes with a Config:"
            f" {', '.join(classes) or 'none'}"
        )

    try:
        return registry.register_class(component, source.name)
    except PluginError as error:
        raise PluginError(f"{place_of(source, component)}: {error}") from error


# Digests


def plugin_of(kind: str, name: str) -> Source | None:
    """Return the plug-in that a component came from; None for ours and for those of installed
    packages.
    """
    source = _active.get(registry.source_of(kind, name))
    if source is not None and not source.is_installed:
        return source

    return None


def digest_of(name: str) -> str:
    """Return the digest of the code that a top-level module of somebody else's has in this
    process.
    """
    source = _active.get(name)
    if source is not None and not source.is_installed:
        return source.digest

    return _installed_digest(name)


def _installed_digest(name: str) -> str:
    file = sys.modules[name].__file__
    if file is not None and Path(file).name != "__init__.py":
        return _digest([(Path(file).name, _text(Path(file)))])

    files = []
    for folder in _package_folders(name):
        for path in sorted(folder.rglob("*.py")):
            files.append((path.relative_to(folder).as_posix(), _text(path)))

    return _digest(files)


def _package_folders(name: str) -> list[Path]:
    """Return the folders of an imported package.

    There is one, whose `__init__.py` was imported. Without such a file Python takes any folder of
    that name on its path for the package, also that of an editable installation's project, so
    the folders are those of the modules that were imported.
    """
    file = sys.modules[name].__file__
    if file is not None:
        return [Path(file).parent]

    folders = set()
    for module_name, module in list(sys.modules.items()):
        module_file = getattr(module, "__file__", None)
        if module_file is None or not module_name.startswith(f"{name}."):
            continue

        path = Path(module_file)
        if path.name == "__init__.py":
            path = path.parent

        folders.add(path.parents[module_name.count(".") - 1])

    return sorted(folders)


def digests(parts: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the digest of every plug-in behind some components, each (kind, name), and of those
    that they import.
    """
    pending: list[str] = []
    for kind, component in parts:
        name = registry.source_of(kind, component)
        if name:
            pending.append(name)

    digest_by_name: dict[str, str] = {}
    while pending:
        name = pending.pop()
        if name in digest_by_name:
            continue

        digest_by_name[name] = digest_of(name)
        source = _active.get(name)
        if source is None:
            continue

        for other in _active:
            if other != name and _mentions(source, other):
                pending.append(other)

    return dict(sorted(digest_by_name.items()))


def _mentions(source: Source, other: str) -> bool:
    """Tell whether a plug-in imports another one."""
    return any(other in _imports(text) for text in source.texts.values())


@cache
def _imports(text: str) -> frozenset[str]:
    """Return the top-level names of the modules that a file imports."""
    modules = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules.add(node.module.partition(".")[0])

    return frozenset(modules)
