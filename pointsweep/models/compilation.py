"""`train.compile`: the parts that move the most memory in many small kernels, compiled: a
tokenizer's stages, Any2Point's views.

Compiled kernels round otherwise, above all in bf16, where what they fuse is not rounded in between:
so the setting is part of a trial's key. Each part is compiled by itself, once for all blocks, and
works alone and in a pack; frozen products are left as they are, and so is what draws noise from a
trial's own generator. CUDA graphs are not used: a pack's threads take turns within a step. Source
of the method: regional compilation,
https://docs.pytorch.org/tutorials/recipes/regional_compilation.html.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pointsweep.models.layers import DropPath

# By the kind of device. On a CPU a compiler takes longer than a trial gains.
BACKENDS = {"cuda": "inductor"}


def compile_parts(model: nn.Module, device: torch.device) -> None:
    """Compile a model's parts. Raises ValueError where there is no GPU."""
    backend = BACKENDS.get(device.type)
    if backend is None:
        raise ValueError(
            "train.compile: true needs a GPU, this trial runs on a CPU; set resources.gpus, or"
            " leave train.compile out"
        )

    for stage in getattr(getattr(model, "tokenizer", None), "stages", ()):
        stage.compile(backend=backend, dynamic=False)
        stage.compiled = True

    method: Any = getattr(model, "method", None)
    if hasattr(method, "aggregate") and not _draws_noise(method):
        method.compiled_aggregate = torch.compile(
            method.aggregate, backend=backend, dynamic=False
        )


def _draws_noise(method: nn.Module) -> bool:
    return any(
        isinstance(module, DropPath) and module.p > 0 for module in method.modules()
    )
