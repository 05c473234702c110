"""What the tests of models by name share: a library's own run, ours beside it, and two training steps with a method in it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn import functional as F

from pointsweep.config.validation import trial_from_dict
from pointsweep.models.backbones.base import Backbone
from pointsweep.models.layers import set_noise
from pointsweep.models.point_model import build

METHODS = [
    {"name": "lora", "rank": 2, "targets": ["q", "k", "v", "out", "fc1", "fc2"]},
    {"name": "adapter", "kind": "houlsby"},
    {"name": "dapt", "bottleneck": 4, "dynamic_scale": False},
    {"name": "any2point", "bottleneck": 4, "attn_dim": 8, "attn_heads": 2},
    {"name": "bitfit"},
    {"name": "prompt", "num_prompts": 2},
    {"name": "full"},
]


def library_run(module: torch.nn.Module, stack: str, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into the library's first layer in its own forward, and what comes out of the last."""
    layers, seen = module.get_submodule(stack), []

    def note(layer, args, kwargs, output):
        seen.append((args[0] if args else kwargs["hidden_states"], output[0] if isinstance(output, tuple) else output))

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        module(**{name: value.double() if value.is_floating_point() else value for name, value in inputs.items()})
    for handle in handles:
        handle.remove()
    return seen[0][0], seen[-1][1]


def own_places(backbone: Backbone, count: int) -> torch.Tensor:
    """The places of the library's own tokens: 0, 1, 2 ... on a line, the centres of patches on a plane."""
    if backbone.plane.height == 1:
        return torch.arange(count, dtype=torch.float64)
    rows, columns = backbone.anatomy.grid
    x = torch.arange(columns, dtype=torch.float64) * (backbone.plane.width - 1) / max(columns - 1, 1)
    y = torch.arange(rows, dtype=torch.float64) * (backbone.plane.height - 1) / max(rows - 1, 1)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


def in_double(kind: Any, config: Any) -> tuple[torch.nn.Module, Backbone]:
    """The library's model with weights of a usual size, and ours around a copy of it, both in double precision."""
    torch.manual_seed(3)
    theirs = kind.drawn(config).double().eval()
    for parameter in theirs.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return theirs, kind(config, copy.deepcopy(theirs)).double().eval()


@torch.no_grad()
def same_blocks(ours: Backbone, hidden: torch.Tensor, expected: torch.Tensor, places: torch.Tensor) -> None:
    """Our blocks make of the library's first hidden states what its own forward makes of them."""
    bias = ours.attention_bias(0, hidden, places[None, None])
    tokens = hidden
    for block in ours.blocks:
        tokens = block(tokens, lambda branch, inputs: branch, bias)
    torch.testing.assert_close(tokens, expected, atol=1e-6, rtol=1e-6)
    assert bool((expected - hidden).abs().max() > 0.01)


def run_blocks(made: Backbone, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    bias = made.attention_bias(0, torch.zeros(len(tokens), places.shape[1], 3), places.unsqueeze(1))
    encodings = made.positions(places)
    tokens = made.start(tokens if encodings is None else tokens + encodings)
    for block in made.blocks:
        tokens = block(tokens, lambda branch, inputs: branch, bias)
    return tokens


def some_places(made: Backbone, seed: int = 0) -> torch.Tensor:
    size = (2, 7) if made.plane.height == 1 else (2, 7, 2)
    numbers = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return numbers * (torch.tensor([made.plane.width, made.plane.height])[: len(size) - 1] - 1.0).squeeze()


def points(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 40, 3, generator=torch.Generator().manual_seed(seed)) * 0.5


def with_method(backbone: dict, method: dict) -> torch.nn.Module:
    config = trial_from_dict({
        "dataset": "synthetic",
        "tokenizer": {"name": "point_pn_light", "num_tokens": 6, "neighbours": 6},
        "backbone": backbone,
        "positions": {"num_views": 2},
        "method": method,
    })  # fmt: skip
    made = build(config, 5)
    set_noise(made, torch.Generator().manual_seed(0))
    return made


def two_steps(made: torch.nn.Module) -> None:
    """Two steps move every trained weight that has a gradient, and nothing that is frozen."""
    made.double().train()
    before = {name: tensor.detach().clone() for name, tensor in made.state_dict().items()}
    trained = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(made(points().double()), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    parameters = dict(made.named_parameters())
    assert all(parameters[name].grad is not None for name in trained), [n for n in trained if parameters[n].grad is None]
    largest = max(float(parameters[name].grad.abs().max()) for name in trained)
    flat = {name for name in trained if float(parameters[name].grad.abs().max()) <= 1e-12 * largest}
    keys = tuple(made.backbone.flat_parameters("backbone."))
    assert all(name in keys or "norm" in name.lower() or name.startswith("tokenizer.") for name in flat), flat - set(keys)
    assert not {name for name in trained - flat if torch.equal(parameters[name], before[name])}
    after = made.state_dict()
    statistics = {name for name in before if "running_" in name or name.endswith("num_batches_tracked")}
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - trained - statistics)
