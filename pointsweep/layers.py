"""Pieces used by several methods, backbones and networks.

Letters: B clouds, N tokens, C channels, S prompts.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.geometry import gather


class Dropout(nn.Module):
    """Dropout whose masks come from a generator that `seed_noise` sets before every step.

    A step's masks then depend on the trial's seed and the step alone: a resumed trial and a trial of a pack draw the same ones.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.p
        return x * keep / (1.0 - self.p)


class DropPath(nn.Module):
    """Drops a whole residual branch of a sample in training (stochastic depth, arXiv 1603.09382); see `Dropout` for its noise."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        shape = (x.shape[0],) + (1,) * (x.dim() - 1)
        keep = torch.rand(shape, generator=self.generator, device=x.device) >= self.p
        return x * keep / (1.0 - self.p)


def set_noise(model: nn.Module, generator: torch.Generator) -> None:
    """Makes every `Dropout` and `DropPath` of the model draw from `generator`."""
    for module in model.modules():
        if isinstance(module, (Dropout, DropPath)):
            module.generator = generator


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), CLIP's activation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Bottleneck(nn.Sequential):
    """Linear C -> d, QuickGELU, dropout, linear d -> C, without a residual of its own (spec 2.5)."""

    def __init__(self, dim: int, width: int, dropout: float = 0.1) -> None:
        super().__init__(nn.Linear(dim, width), QuickGELU(), Dropout(dropout), nn.Linear(width, dim))
        self.start("xavier")

    def start(self, kind: str) -> None:
        """Biases zero; matrices Xavier-uniform, truncated normal 0.02 (`trunc_normal`), or such that nothing is added (`zero_up`)."""
        for layer in (self[0], self[3]):
            assert isinstance(layer, nn.Linear)
            init_matrix(layer.weight, kind)
            nn.init.zeros_(layer.bias)
            if kind == "zero_up" and layer is self[3]:
                nn.init.zeros_(layer.weight)


def init_matrix(weight: Tensor, kind: str) -> None:
    """In place: truncated normal 0.02 for `trunc_normal` (the ModelNet program), else Xavier-uniform (the ScanObjectNN program)."""
    if kind == "trunc_normal":
        nn.init.trunc_normal_(weight, std=0.02)
    else:
        nn.init.xavier_uniform_(weight)


class Dense(nn.Module):
    """Linear, batch norm over all but the last dimension, activation: (..., C_in) -> (..., C_out)."""

    def __init__(self, dim_in: int, dim_out: int, bias: bool = True, slope: float | None = 0.0) -> None:
        super().__init__()
        self.linear, self.norm, self.slope = nn.Linear(dim_in, dim_out, bias=bias), nn.BatchNorm1d(dim_out), slope

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        x = self.norm(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        return x if self.slope is None else F.leaky_relu(x, self.slope)


def classifier(dims: tuple[int, ...], num_classes: int, dropout: float, bias: bool = True, slope: float = 0.0) -> nn.Sequential:
    """The head of the networks: a `Dense` with dropout from each width to the next, then a linear layer to the classes."""
    layers: list[nn.Module] = []
    for dim_in, dim_out in itertools.pairwise(dims):
        layers += [Dense(dim_in, dim_out, bias, slope), Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(dims[-1], num_classes))


class EdgeConv(nn.Module):
    """Points or tokens (B, N, C) -> (B, N, D): the maximum over neighbours j of LeakyReLU(BN(W [x_j - x_i, x_i])).

    Source: DGCNN (arXiv 1801.07829), equation 8. Neighbours are the `neighbours` nearest by their features, i among them; all points
    where there are fewer. W is applied before the neighbours are gathered: W1 (x_j - x_i) + W2 x_i = W1 x_j + (W2 - W1) x_i.
    """

    def __init__(self, dim_in: int, dim_out: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.linear, self.norm = nn.Linear(2 * dim_in, dim_out, bias=False), nn.BatchNorm1d(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            near = torch.cdist(x, x).topk(min(self.neighbours, x.shape[1]), dim=2, largest=False).indices  # (B, N, K)
        of_neighbour, of_own = self.linear.weight.chunk(2, dim=1)
        edges = gather(F.linear(x, of_neighbour), near) + F.linear(x, of_own - of_neighbour).unsqueeze(2)  # (B, N, K, D)
        normed = self.norm(edges.flatten(0, 2)).view_as(edges)
        return F.leaky_relu(normed, 0.2).amax(dim=2)


def insert_tokens(tokens: Tensor, new: Tensor, at: int) -> Tensor:
    """tokens (B, N, C) and new (S, C) or (B, S, C) -> (B, N + S, C), the new ones from index `at` on."""
    if new.dim() == 2:
        new = new.expand(len(tokens), -1, -1)
    return torch.cat([tokens[:, :at], new, tokens[:, at:]], dim=1)


def remove_tokens(tokens: Tensor, count: int, at: int) -> Tensor:
    """tokens (B, N + S, C) -> (B, N, C), without the `count` tokens from index `at` on."""
    return torch.cat([tokens[:, :at], tokens[:, at + count :]], dim=1)
