"""PointGST: bottleneck adapters beside the feed-forward branch that tune tokens in the spectra of
graphs of their centres.

Source: Parameter-Efficient Fine-Tuning in Spectral Domain for Point Cloud Learning (arXiv
2410.08114), section 4, and its program (github.com/jerryfeng2003/PointGST, models/PGST.py and
models/PointTransformer.py, read in November 2026). The adapter reads the stream between attention
and feed-forward branch, and is added behind the latter: down (C -> r), then SiLU of it, plus for
the points' tokens what is tuned in two spectra, then up (r -> C), which starts at zero, so the
model starts as it was. In a spectrum s: s + SiLU(W LN(s) + b); W and b are the same for both, and
start at zero; each has a norm of its own. The graphs: all tokens, and groups of 32 neighbours on a
Z-order curve; between two centres a weight of d_min / d, for the smallest distance d_min; the basis
are the eigenvectors U of the Laplacian D - A.

Followed here and not there: a graph's d_min is its own, not that of the whole batch, on which a
prediction would then depend; two centres in one place have weight 1 (there: infinite); the curve
runs over the cloud's own box (there: coordinates times 100, of which negative ones wrap around). Of
an eigenvector the sign is taken in which its largest entry is positive (there: as the library gives
it). The program takes U s for the spectrum and U^T for the way back, the other way round than a
graph Fourier transform: `transform: program`. The count of 0.62M is met with the final norm frozen,
as the programs that it builds on have it (inferred: the file that says what trains is not
published). Letters: B clouds, N tokens, C channels, r bottleneck, G local graphs, S tokens of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointsweep.models.backbones.base import Backbone, Block
from pointsweep.models.batch_cache import cached
from pointsweep.models.methods.base import Method

BITS = 10  # of a coordinate on the Z-order curve


@dataclass(frozen=True)
class Spectra:
    """The bases of one scale's graphs, and the order in which the local ones take the tokens."""

    whole: Tensor  # (B, N, N), eigenvectors in columns
    local: Tensor  # (B, G, S, S)
    order: Tensor  # (B, N)
    back: Tensor  # (B, N), the order's inverse


@dataclass
class Context:
    """Context of one forward: the scale's spectra, and what the running block's
    adapter adds.
    """

    spectra: Spectra
    added: Tensor | None = None


class SpectralAdapter(nn.Module):
    """Spectral adapter: tokens (B, prefix + N, C) and spectra -> what is added to the tokens."""

    def __init__(self, dim: int, config: Any) -> None:
        super().__init__()
        width = config.bottleneck
        self.scopes = config.scopes
        self.inverse_first = config.transform == "program"
        self.down = nn.Linear(dim, width)
        self.up = nn.Linear(width, dim)
        self.tune = nn.Linear(width, width)

        if self.scopes != "local":
            self.norm_whole = nn.LayerNorm(width)

        if self.scopes != "global":
            self.norm_local = nn.LayerNorm(width)

        nn.init.xavier_uniform_(self.down.weight)
        for layer in (self.up, self.tune):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, spectra: Spectra) -> Tensor:
        low = self.down(tokens)  # (B, prefix + N, r)
        prefix = low.shape[1] - spectra.order.shape[1]
        points = low[:, prefix:]  # (B, N, r)
        tuned = F.silu(points)

        if self.scopes != "local":
            tuned = tuned + self._in_spectrum(points, spectra.whole, self.norm_whole)

        if self.scopes != "global":
            tuned = tuned + self._in_groups(points, spectra)

        output: Tensor = self.up(torch.cat([F.silu(low[:, :prefix]), tuned], dim=1))
        return output

    def _in_spectrum(self, values: Tensor, basis: Tensor, norm: nn.Module) -> Tensor:
        """values (..., S, r), basis (..., S, S) -> (..., S, r)."""
        transform, inverse = basis.transpose(-2, -1), basis
        if self.inverse_first:
            transform, inverse = inverse, transform

        spectrum = transform @ values
        return inverse @ (spectrum + F.silu(self.tune(norm(spectrum))))

    def _in_groups(self, points: Tensor, spectra: Spectra) -> Tensor:
        groups = spectra.local.shape[-3:-1]  # G, S
        in_order = reordered(points, spectra.order).unflatten(1, groups)  # (B, G, S, r)
        tuned = self._in_spectrum(in_order, spectra.local, self.norm_local)
        return reordered(tuned.flatten(1, 2), spectra.back)


class PointGST(Method):
    """PointGST. With Point-MAE and the two-layer head for 15 classes: 622,831 values, 354,528 of
    them the adapters'.
    """

    works_between = True

    def attach(self, backbone: Backbone, prefix: int, num_views: int) -> None:
        for block in backbone.blocks:
            if not isinstance(block, Block):
                raise ValueError(
                    "method: point_gst works between the branches of a block, which the layers of"
                    f" {backbone.config.name} do not show"
                )

        self.adapters = nn.ModuleList()
        for width in backbone.widths:
            self.adapters.append(SpectralAdapter(width, self.config))

        backbone.norm.requires_grad_(False)

    def begin(
        self,
        index: int,
        tokens: Tensor,
        centers: Tensor,
        locations: Tensor | None,
        seen: Any,
    ) -> tuple[Tensor, Context]:
        return tokens, Context(self.geometry(centers, locations))

    def geometry(self, centers: Tensor, locations: Tensor | None) -> Spectra:
        size = self.config.local_size
        return cached([centers], ("spectra", size), lambda own: spectra_of(own, size))

    def after_attention(self, index: int, tokens: Tensor, context: Context) -> Tensor:
        context.added = self.adapters[index](tokens, context.spectra)
        return tokens

    def after_ffn(
        self, index: int, output: Tensor, inputs: Tensor, context: Context
    ) -> Tensor:
        assert context.added is not None
        added = context.added
        context.added = None
        return output + added


@torch.no_grad()
def spectra_of(centers: Tensor, size: int) -> Spectra:
    """Return the bases of the graph of all tokens and of local graphs of `size` tokens each, from
    the tokens' centres (B, N, 3), with the order along the curve and its inverse.

    A size of N or more makes one local graph. Raises ValueError if N is not a multiple of `size`.
    """
    count = centers.shape[1]
    size = min(size, count)

    if count % size:
        fitting = [number for number in range(1, count + 1) if count % number == 0]
        raise ValueError(
            f"method.local_size: {count} tokens cannot be shared out among local graphs of {size}; "
            f"allowed: {', '.join(map(str, fitting))}, or more"
        )

    order = z_order(centers).sort(dim=1, stable=True).indices  # (B, N)
    groups = (count // size, size)
    local = reordered(centers, order).unflatten(1, groups)  # (B, G, S, 3)
    inverse = order.argsort(dim=1)

    return Spectra(basis_of(centers), basis_of(local), order, inverse)


def basis_of(centers: Tensor) -> Tensor:
    """centers (..., S, 3) -> the Laplacian's eigenvectors in columns, lowest frequency first (...,
    S, S).
    """
    xyz = centers.double()
    distances = (xyz.unsqueeze(-2) - xyz.unsqueeze(-3)).norm(dim=-1)  # (..., S, S)
    separated = torch.where(distances > 0, distances, torch.inf)
    smallest = separated.flatten(-2).amin(dim=-1)[..., None, None]
    # of a centre with itself 1, which the Laplacian drops
    weights = torch.where(distances > 0, smallest / separated, 1.0)
    laplacian = torch.diag_embed(weights.sum(dim=-1)) - weights
    vectors = torch.linalg.eigh(laplacian).eigenvectors
    largest = vectors.abs().argmax(dim=-2, keepdim=True)

    return (vectors * vectors.gather(-2, largest).sign()).to(centers.dtype)


def z_order(centers: Tensor) -> Tensor:
    """centers (B, N, 3) -> places on a Z-order curve through the cloud's box (B, N), whole
    numbers.
    """
    low = centers.amin(dim=1, keepdim=True)
    offsets = centers - low
    smallest = torch.finfo(centers.dtype).tiny  # of a cloud of one place, say
    extent = offsets.amax(dim=(1, 2), keepdim=True).clamp(min=smallest)
    most = (1 << BITS) - 1
    cells = (offsets / extent * most).round().long()  # (B, N, 3)
    code = torch.zeros_like(cells[..., 0])

    for bit in range(BITS):
        for axis in range(3):
            code = code | (((cells[..., axis] >> bit) & 1) << (3 * bit + axis))

    return code


def reordered(values: Tensor, order: Tensor) -> Tensor:
    """values (B, N, C), order (B, N) -> the values in that order."""
    return values.gather(1, order.unsqueeze(-1).expand(*order.shape, values.shape[-1]))
