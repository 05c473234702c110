"""Checkpoint files of many programs, read without running what is in them: which tensors they hold,
and where.

Files of torch are read with `weights_only`. Beside the weights, programs save scores, paths and
settings. Objects of a few well-known kinds of these become an empty stand-in: their own code is
never looked up. Any other kind is refused by its name.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Kinds of objects that programs save beside weights: scores and settings.
HARMLESS = re.compile(
    r"numpy(\._?core\.(multiarray|numeric))?\.(scalar|_reconstruct|_frombuffer|ndarray|dtype)"
    r"|numpy\.dtypes\.\w+|numpy\.(float|int|uint)\d+|numpy\.bool_?|numpy\.str_|_codecs\.encode"
    r"|argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w*Path|datetime\.\w+|omegaconf\.[\w.]+|typing\.Any"
)
# Those of them that are dicts of some kind: their members may be the weights.
DICTS = re.compile(
    r"easydict\.EasyDict|addict\.addict\.Dict|yacs\.config\.CfgNode"
    r"|ml_collections\.config_dict\.config_dict\.\w+|(mmcv|mmengine)\.[\w.]+\.ConfigDict"
    r"|(pytorch_lightning|lightning|lightning_fabric)\.[\w.]+\.AttributeDict"
)
REFUSED = re.compile(r"GLOBAL ([\w.]+) (?:was not an allowed global|whose module)")
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
MAX_KINDS = 100
# Where programs put the weights, in the order in which they are tried.
CONTAINERS = (
    "base_model", "model", "state_dict", "model_state_dict", "model_state", "net", "network",
    "module", "backbone", "encoder",
    "weights", "params", "teacher", "student", "model_ema", "state_dict_ema", "ema",
    "ema_state_dict",
)  # fmt: skip
# beginnings of names
OTHER_STATE = ("optim", "sched", "scaler", "amp", "loss", "rng", "callbacks", "loops")
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
PREFIXES = (
    "model.",
    "net.",
    "network.",
    "backbone.",
    "base_model.",
    "encoder.",
    "teacher.",
    "student.",
    "momentum_encoder.",
)
DEPTH = 2  # of containers in containers, and of prefixes


class StandIn:
    """Stand-in for an object that is not read: it keeps nothing and does nothing."""

    def __init__(self, *unused: object) -> None:
        pass

    def __setstate__(self, unused: object) -> None:
        pass


class DictStandIn:
    """Stand-in for a class that is a dict of some kind, and makes plain ones."""

    def __new__(cls, *unused: object) -> Any:
        return OrderedDict()  # which torch fills


def read_checkpoint(path: Path) -> dict[Any, Any]:
    """Return what a .safetensors file or a file of torch holds, without running code of it.

    Raises ValueError naming the file and the cause.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error

    if head.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path}: is a pointer of Git LFS, not the weights; fetch them: git lfs pull"
        )
    if head.lstrip()[:1] == b"<":
        raise ValueError(
            f"{path}: is a web page, not weights; download the file itself"
        )
    if not head:
        raise ValueError(f"{path}: is empty")
    if path.suffix == ".safetensors" and not head.startswith(b"PK"):
        return _read_safetensors(path)
    if _is_torchscript(path):
        raise ValueError(
            f"{path}: is a TorchScript archive, a program, as OpenAI publishes CLIP; it is not run"
            " here. Where you trust it, save its weights alone:"
            f" torch.save(torch.jit.load({path.name!r}, map_location='cpu').state_dict(),"
            " 'weights.pth')"
        )

    loaded = _read_torch(path)
    if not isinstance(loaded, dict):
        raise ValueError(
            f"{path}: expected a dict of tensors, got {type(loaded).__name__}"
        )

    return loaded


def candidates(
    loaded: Mapping[Any, Any],
) -> Iterator[tuple[str, dict[str, Tensor], dict[str, Tensor]]]:
    """Yield every set of tensors that may be the network's; the likeliest first.

    Each with words for where it stands, and under the names that the file has.
    """
    for place, tensors in _containers(loaded, "", DEPTH):
        for prefix, found in _without_prefixes(tensors, "", DEPTH):
            words = [f"'{place}'"] if place else []
            if prefix:
                words.append(f"the names below '{prefix}'")

            yield ", ".join(words) or "the file itself", found, tensors


def _containers(
    loaded: Mapping[Any, Any], place: str, depth: int
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    likeliest = [name for name in CONTAINERS if name in loaded]
    names = [name for name in loaded if isinstance(name, str)]
    if depth:
        for name in dict.fromkeys([*likeliest, *names]):
            inner = loaded[name]
            if isinstance(inner, Mapping) and not name.lower().startswith(OTHER_STATE):
                inner_place = f"{place}.{name}" if place else name
                yield from _containers(inner, inner_place, depth - 1)

    tensors = {}
    for name in names:
        if isinstance(loaded[name], Tensor):
            tensors[name] = loaded[name]

    if tensors:
        yield place, tensors


def _without_prefixes(
    tensors: dict[str, Tensor], prefix: str, depth: int
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    yield prefix, tensors
    bare = {_unwrapped(name): tensor for name, tensor in tensors.items()}
    if bare.keys() != tensors.keys():
        yield prefix, bare

    if depth:
        for more in PREFIXES:
            below = {}
            for name, tensor in bare.items():
                if name.startswith(more):
                    below[name.removeprefix(more)] = tensor

            if below:
                yield from _without_prefixes(below, prefix + more, depth - 1)


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPERS):
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
    return name


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{path}: damaged, truncated, or not a .safetensors file: {_plain(error)}"
        ) from error

    return tensors


def _read_torch(path: Path) -> Any:
    """Load a file of torch; kinds of objects that are HARMLESS become stand-ins as they are met."""
    stand_ins: list[Any] = []  # (class, the name that it stands for)
    while True:
        try:
            # An open file, as torch would judge a path by its ending.
            with torch.serialization.safe_globals(stand_ins), path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            kind = _refused_kind(str(error))
            known = {name for _, name in stand_ins}
            if kind is None:
                raise ValueError(
                    f"{path}: damaged, truncated, or not a file of torch: {_plain(error)}"
                ) from error

            is_dict = DICTS.fullmatch(kind) is not None
            if (
                not (is_dict or HARMLESS.fullmatch(kind))
                or kind in known
                or len(known) == MAX_KINDS
            ):
                raise ValueError(
                    f"{path}: holds an object of the kind {kind}, which is not read, as reading it"
                    " could run code (weights only are read). Save the weights alone where you"
                    " trust the file: torch.save(model.state_dict(), 'weights.pth')"
                ) from error

            base = DictStandIn if is_dict else StandIn
            # torch needs a class of its own for every kind
            stand_ins.append((type(base.__name__, (base,), {}), kind))
        except (
            EOFError,
            RuntimeError,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
        ) as error:
            raise ValueError(
                f"{path}: damaged, truncated, or not a file of torch: {_plain(error)}"
            ) from error


def _refused_kind(text: str) -> str | None:
    """Return the name of the kind of object that torch has refused; None if it stopped for
    something else.
    """
    match = REFUSED.search(ESCAPES.sub("", text))
    return match.group(1) if match else None


def _plain(error: Exception) -> str:
    """Return an exception's first words without the escapes of a terminal."""
    message = " ".join(ESCAPES.sub("", str(error)).split())
    return (
        message.rpartition("WeightsUnpickler error: ")[2][:200] or type(error).__name__
    )
