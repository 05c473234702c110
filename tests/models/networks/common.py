"""What the networks' tests share: settled statistics, layers written out on rows, and the papers' parameter counts."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import nn

import pointsweep


def clouds(count: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    return 0.4 * torch.randn(count, size, 3, generator=torch.Generator().manual_seed(seed))


def settle(made: nn.Module, size: int = 32) -> nn.Module:
    """Statistics of real batches, and weights that are not at a special start."""
    made.train()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        for seed in range(3):
            made(clouds(8, size, seed))
    return made.eval()


def by_hand(layers: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """rows (n, C) through linear layers, 1x1 convolutions, batch normalisations and activations, each by its formula."""
    if isinstance(layers, nn.Sequential):
        for layer in layers:
            rows = by_hand(layer, rows)
        return rows
    if isinstance(layers, nn.BatchNorm1d | nn.BatchNorm2d):
        return (rows - layers.running_mean) / (layers.running_var + layers.eps).sqrt() * layers.weight + layers.bias
    if isinstance(layers, nn.Linear | nn.Conv1d | nn.Conv2d):
        product = rows @ layers.weight.flatten(1).t()
        return product if layers.bias is None else product + layers.bias
    if isinstance(layers, nn.LeakyReLU):
        return torch.where(rows > 0, rows, layers.negative_slope * rows)
    return rows.clamp(min=0) if isinstance(layers, nn.ReLU) else rows  # else dropout, which does nothing in evaluation


def closest(center: torch.Tensor, rows: torch.Tensor, count: int) -> list[int]:
    """The `count` rows (n, C) nearest to a centre (C,), nearest first."""
    return ((rows - center) ** 2).sum(dim=1).argsort()[:count].tolist()


def dense(before: int, after: int, bias: bool = True) -> int:
    """Parameters of a linear layer with its batch normalisation."""
    return before * after + bias * after + 2 * after


def head(width: int, classes: int, bias: bool = True) -> int:
    """Parameters of the head of widths 512 and 256."""
    return dense(width, 512, bias) + dense(512, 256, bias) + 256 * classes + classes


def printed(row: str) -> float:
    """Millions of parameters in Any2Point's Table 1."""
    with (Path(pointsweep.__file__).parent / "sweep" / "published.csv").open() as file:
        found = {float(line["params_m"]) for line in csv.DictReader(file) if (line["table"], line["row"]) == ("Table 1", row)}
    assert len(found) == 1
    return found.pop()
