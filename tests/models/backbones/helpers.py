"""What the tests of the backbones share."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from pointsweep.config import registry
from pointsweep.models.backbones.base import Backbone


def ours(name: str, weights: str | Path = "pretrained", **fields) -> Backbone:
    config = registry.config_class("backbones", name)(name=name, weights=str(weights), **fields)
    backbone = registry.load("backbones", name)(config)
    backbone.load()
    return backbone.eval()


def block_outputs(backbone: Backbone, tokens: torch.Tensor) -> list[torch.Tensor]:
    outputs = []
    for block in backbone.blocks:
        tokens = block(tokens, lambda f, y: f)
        outputs.append(tokens)
    return outputs


def check(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Equal but for rounding, which is measured by the largest value: the two sides may multiply by other libraries."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=max(1e-5, 3e-6 * b.abs().max().item()), rtol=1e-5)


def save(model: torch.nn.Module, path: Path, prefix: str = "", extra: dict | None = None) -> Path:
    state = {f"{prefix}{name}": tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(state | (extra or {}), path)
    return path


def save_as_on_the_hub(model: torch.nn.Module, folder: Path) -> Path:
    """The library writes a checkpoint under the names that the hub's files have, which differ from those in memory."""
    model.save_pretrained(folder)
    return folder / "model.safetensors"


def layers_of(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The library's stack of blocks, under whatever name its version has."""
    return next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))


def library_outputs(model: torch.nn.Module, tokens: torch.Tensor, **arguments) -> list[torch.Tensor]:
    """What the library's own blocks make of the tokens, one after the other."""
    outputs = []
    for layer in layers_of(model):
        out = layer(tokens, **arguments)
        tokens = out[0] if isinstance(out, tuple) else out
        outputs.append(tokens)
    return outputs
