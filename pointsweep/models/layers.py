"""Pieces used by several methods, backbones and networks.

Letters: B clouds, P points, N tokens, G centres, K neighbours, C channels, D width of a layer, S
prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.ops.linear import linear
from pointsweep.ops.point_ops import gather
from pointsweep.ops.vmap import uniform

AnyLinear = TypeVar("AnyLinear", bound=nn.Linear)


class Dropout(nn.Module):
    """Dropout whose masks come from a generator that `set_noise` sets before every step.

    A step's masks then depend on the trial's seed and the step alone: a resumed trial and a trial
    of a pack draw the same ones.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x

        keep = uniform(x.shape, self.generator, x.device) >= self.p
        return x * keep / (1.0 - self.p)


class DropPath(nn.Module):
    """Stochastic depth: drops a whole residual branch of a sample in training (arXiv
    1603.09382); see `Dropout` for its noise.

    `lead`: how many of the first axes have a draw for each of their entries; 1 is a draw for each
    sample.
    """

    lead = 1

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x

        shape = x.shape[: self.lead] + (1,) * (x.dim() - self.lead)
        keep = uniform(shape, self.generator, x.device) >= self.p
        return x * keep / (1.0 - self.p)


def set_noise(model: nn.Module, generator: torch.Generator) -> None:
    """Make every `Dropout` and `DropPath` of the model draw from `generator`."""
    for module in model.modules():
        if isinstance(module, (Dropout, DropPath)):
            module.generator = generator


def has_hooks(module: nn.Module) -> bool:
    """Return whether anything is called around the module's forward or backward pass."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def drawn(std: float, *shape: int) -> Tensor:
    """std * torch.randn(shape), but without values on the meta device, where a model is only
    counted: drawing and multiplying there would load torch's compiler, which takes seconds.
    """
    values = torch.empty(shape)
    if values.is_meta:
        return values

    return values.normal_().mul_(std)


class Linear(nn.Linear):
    """torch's linear layer, its products by `ops.linear`."""

    @classmethod
    def of(cls, layer: nn.Linear) -> Linear:
        """Return a layer with the tensors of another."""
        return _sharing(cls, layer)

    def plain(self) -> nn.Linear:
        """Return torch's own layer with this one's tensors."""
        return _sharing(nn.Linear, self)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def _sharing(kind: type[AnyLinear], layer: nn.Linear) -> AnyLinear:
    """Return a linear layer of a class with the tensors of another."""
    made = kind(layer.in_features, layer.out_features, bias=False, device="meta")
    made.weight, made.bias = layer.weight, layer.bias
    return made


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), CLIP's activation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Chain(nn.Sequential):
    """A frozen layer with something before or behind it, in the layer's place."""

    @property
    def weight(self) -> Tensor:
        """The frozen layer's weight; T5's layers ask for its type."""
        for layer in self:
            weight = getattr(layer, "weight", None)
            if isinstance(weight, Tensor):
                return weight

        raise AttributeError("weight")


class Bottleneck(nn.Sequential):
    """Linear C -> d, QuickGELU, dropout, linear d -> C, without a residual of its own (spec
    2.5).
    """

    def __init__(self, dim: int, width: int, dropout: float = 0.1) -> None:
        super().__init__(
            nn.Linear(dim, width), QuickGELU(), Dropout(dropout), nn.Linear(width, dim)
        )
        self.start("xavier")

    def start(self, kind: str) -> None:
        """Initialise in place: biases zero; matrices Xavier-uniform, truncated normal 0.02
        (`trunc_normal`), or such that nothing is added (`zero_up`).
        """
        for layer in (self[0], self[3]):
            assert isinstance(layer, nn.Linear)
            init_matrix(layer.weight, kind)
            nn.init.zeros_(layer.bias)

            if kind == "zero_up" and layer is self[3]:
                nn.init.zeros_(layer.weight)


class Residual(nn.Module):
    """ReLU(h + BN(W2 ReLU(BN(W1 h)))) over (B, D, G, K)."""

    def __init__(self, dim: int, middle: int, bias: bool = True) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(dim, middle, 1, bias=bias), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, dim, 1, bias=bias), nn.BatchNorm2d(dim),
        )  # fmt: skip

    def forward(self, h: Tensor) -> Tensor:
        return torch.relu(h + self.layers(h))


class PairLinear(nn.Linear):
    """A linear layer without bias over concat(neighbour, centre), or concat(neighbour - centre,
    centre) where `relative`.

    A product of a concatenation is a sum of products, so there is one per point and one per centre
    instead of one per pair.
    """

    def __init__(self, dim: int, width: int, relative: bool = False) -> None:
        super().__init__(2 * dim, width, bias=False)
        self.relative = relative

    def forward(self, x: Tensor, own: Tensor, near: Tensor) -> Tensor:  # type: ignore[override]
        """Features x (B, P, C), those of the centres own (B, G, C), indices near (B, G, K) -> (B,
        D, G, K).
        """
        neighbour, center = self.weight.chunk(2, dim=1)  # (D, C) each
        if self.relative:
            center = center - neighbour

        of_neighbour = gather(F.linear(x, neighbour), near)  # (B, G, K, D)
        of_center = F.linear(own, center).unsqueeze(2)  # (B, G, 1, D)
        return (of_neighbour + of_center).permute(0, 3, 1, 2)


def shared_mlp(widths: Sequence[int], axes: int, bias: bool = False) -> nn.Sequential:
    """The same layers at every place of (B, C, P), `axes` 1, or (B, C, G, K), `axes` 2: linear,
    batch normalisation, ReLU.
    """
    convolution: type[nn.Conv1d | nn.Conv2d] = nn.Conv2d
    norm: type[nn.BatchNorm1d | nn.BatchNorm2d] = nn.BatchNorm2d

    if axes == 1:
        convolution, norm = nn.Conv1d, nn.BatchNorm1d

    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [convolution(before, after, 1, bias=bias), norm(after), nn.ReLU()]

    return nn.Sequential(*layers)


def fully_connected(
    widths: Sequence[int], dropout: float = 0.0, bias: bool = True
) -> nn.Sequential:
    """Linear, batch normalisation, ReLU and dropout over (B, C), once for every width behind the
    first.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [
            nn.Linear(before, after, bias=bias),
            nn.BatchNorm1d(after),
            nn.ReLU(),
            Dropout(dropout),
        ]

    return nn.Sequential(*layers)


def init_matrix(weight: Tensor, kind: str) -> None:
    """Initialise in place: truncated normal 0.02 for `trunc_normal` (the ModelNet program), else
    Xavier-uniform (the ScanObjectNN program).
    """
    if kind == "trunc_normal":
        nn.init.trunc_normal_(weight, std=0.02)
    else:
        nn.init.xavier_uniform_(weight)


def insert_tokens(tokens: Tensor, new: Tensor, at: int) -> Tensor:
    """tokens (B, N, C) and new (S, C) or (B, S, C) -> (B, N + S, C), the new ones from index `at`
    on.
    """
    if new.dim() == 2:
        new = new.expand(len(tokens), -1, -1)

    return torch.cat([tokens[:, :at], new, tokens[:, at:]], dim=1)


def remove_tokens(tokens: Tensor, count: int, at: int) -> Tensor:
    """tokens (B, N + S, C) -> (B, N, C), without the `count` tokens from index `at` on."""
    return torch.cat([tokens[:, :at], tokens[:, at + count :]], dim=1)
