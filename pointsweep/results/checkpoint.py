"""The bytes of a checkpoint: tensors as safetensors, the state as JSON in its header, and a sha256
over both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def encode(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> bytes:
    """Return what `decode` reads."""
    from safetensors.torch import save

    body = json.dumps(state)
    metadata = {"state": body, "sha256": _digest(tensors, body)}

    return save(dict(tensors), metadata=metadata)


def decode(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the checkpoint at `path`; None if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError):
        return None

    if metadata.get("sha256") != _digest(tensors, metadata.get("state", "")):
        return None

    return tensors, json.loads(metadata["state"])


def _digest(tensors: Mapping[str, Tensor], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        as_bytes = tensor.contiguous().flatten().view(_uint8())
        digest.update(as_bytes.numpy().data)

    return digest.hexdigest()


def _uint8() -> Any:
    import torch

    return torch.uint8
