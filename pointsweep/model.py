"""PointModel: tokenizer + backbone + method + head, and the counts that a table prints.

Letters: B clouds, P points, N tokens, C channels, M views.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pointsweep import registry
from pointsweep.backbones.base import Backbone
from pointsweep.config import HeadConfig, TrialConfig
from pointsweep.layers import Dropout
from pointsweep.positions import Positions

PREFIX = 1  # tokens before the point tokens: the class token


class Head(nn.Module):
    """concat(class token, max over the point tokens) -> logits (spec 2.6). At width 768, 15 classes: 463,631 values."""

    def __init__(self, config: HeadConfig, dim: int, num_classes: int) -> None:
        super().__init__()
        self.max_first = config.order == "max_cls"
        width = config.hidden
        self.layers = nn.Sequential(
            nn.Linear(2 * dim, width, bias=config.bias), nn.BatchNorm1d(width), nn.ReLU(), Dropout(config.dropout),
            nn.Linear(width, width, bias=config.bias), nn.BatchNorm1d(width), nn.ReLU(), Dropout(config.dropout),
            nn.Linear(width, num_classes),
        )  # fmt: skip

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, 1 + N, C) -> logits (B, classes)."""
        pair = [tokens[:, 0], tokens[:, PREFIX:].amax(dim=1)]
        logits: Tensor = self.layers(torch.cat(pair[::-1] if self.max_first else pair, dim=1))
        return logits


class PointModel(nn.Module):
    """A frozen backbone behind a trained tokenizer and in front of a trained head, with a method in it.

    Trained in every model: tokenizer, class token and its position, the final norm, the head (spec 2.7).
    """

    def __init__(self, config: TrialConfig, num_classes: int) -> None:
        super().__init__()
        assert config.tokenizer and config.backbone and config.positions and config.method and config.head
        backbone: Backbone = registry.load("backbones", config.backbone.name)(config.backbone)
        # On the meta device there is nothing to load: the model is only counted.
        self.weights_origin = "none" if backbone.norm.weight.is_meta else backbone.load()
        self.backbone = backbone.requires_grad_(False)
        dim = backbone.dim
        self.tokenizer = registry.load("tokenizers", config.tokenizer.name)(config.tokenizer, dim, config.compat)
        self.positions = Positions(config.positions, backbone, self.tokenizer.num_tokens, config.compat)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        if backbone.cls_token is not None:
            self.cls_token = nn.Parameter(backbone.cls_token.detach().clone())
            backbone.cls_token = None
        self.cls_position = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.norm = backbone.norm.requires_grad_(True)
        backbone.norm = nn.Identity()  # type: ignore[assignment]
        self.method = registry.load("methods", config.method.name)(config.method)
        self.method.attach(backbone, PREFIX, config.positions.num_views)
        self.head = Head(config.head, dim, num_classes)

    def forward(self, points: Tensor) -> Tensor:
        """points (B, P, 3) -> logits (B, classes)."""
        tokens, centers = self.tokenizer(points)  # (B, N, C), (B, N, 3)
        places = self.positions.places(centers)
        encoding = self._encoding(tokens, centers, places)  # (B, 1 + N, C)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        if self.positions.at_start:
            tokens = tokens + encoding
        tokens = self.backbone.start(tokens)
        tokens, context = self.method.begin(tokens, centers, places)
        for index, block in enumerate(self.backbone.blocks):
            if self.positions.at_every_block:
                tokens = tokens + encoding
            tokens = self.method.before_block(index, tokens, context)
            tokens = block(tokens, partial(self._after_ffn, index, context))
            tokens = self.method.after_block(index, tokens, context)
        logits: Tensor = self.head(self.norm(tokens))
        return logits

    def _encoding(self, tokens: Tensor, centers: Tensor, places: Tensor | None) -> Tensor:
        found = self.positions(centers, places)
        points = torch.zeros_like(tokens) if found is None else found
        return torch.cat([self.cls_position.expand(len(tokens), -1, -1), points], dim=1)

    def _after_ffn(self, index: int, context: Any, output: Tensor) -> Tensor:
        changed: Tensor = self.method.after_ffn(index, output, context)
        return changed


@dataclass(frozen=True)
class ParameterCounts:
    """Any2Point's tables leave the head out, Point-PEFT's count it (spec 8, T21): both are kept."""

    trainable: int
    trainable_without_head: int
    total: int


def build(config: TrialConfig, num_classes: int) -> nn.Module:
    """The trial's model: trained weights new, frozen ones loaded. Under `torch.device("meta")`: only its structure, to count."""
    if config.network is not None:
        network: nn.Module = registry.load("networks", config.network.name)(config.network, num_classes, config.compat)
        return network
    return PointModel(config, num_classes)


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Counts of a built model; works on the meta device."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    head = sum(size for name, size in sizes.items() if name.startswith("head."))
    total = sum(p.numel() for p in model.parameters())
    return ParameterCounts(sum(sizes.values()), sum(sizes.values()) - head, total)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes, by name: trainable parameters and the statistics of batch normalisation. Detached, not copied."""
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for prefix, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            state |= {f"{prefix}.{name}": buffer for name, buffer in module.named_buffers(recurse=False)}
    return state


@torch.no_grad()
def load_trained_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The inverse of `trained_state`, in place. Raises ValueError if a name or a shape does not fit."""
    own = trained_state(model)
    wrong = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        raise ValueError(f"saved weights do not fit the model: {', '.join(wrong[:10])}")
    for name, tensor in own.items():
        tensor.copy_(state[name])
