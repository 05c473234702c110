"""A stage of Point-PN's tokenizer as one operator with a gradient of its own: residual blocks over
pairs of a centre and a neighbour, and the maximum over the neighbours.

The same function as the plain layers (layers.Residual behind tokenizers.PointPNLight), but for
rounding. It is for the CPU, where the plain form moves each tensor over all pairs through memory
some thirty times. Here the pairs are rows of matrices, and work goes slice by slice, so that what
one product gives is normalised, added and reduced while it is still in the cache. Beside that,
algebra leaves out what need not be computed for every pair:

- The second layer's batch statistics follow from those of what it is fed, r: with mean u and
  scatter C of r, W r has mean W u and variances diag(W C W') / n. So its output is never stored,
  neither for the statistics nor for the gradient.
- A gradient that is only to be summed over pairs, for the points and the centres, is summed before
  it is multiplied by the first layer's weights.
- The gradient of the maximum is zero but for one neighbour of each centre and channel, so that both
  products with it take one row in K.

Letters: B clouds, P points, G centres, K neighbours, C channels of a point, D = 2 C of a pair, E in
the middle of a block, n = B G K rows.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pointsweep.ops.linear import product, transposed_product

SLICE_BYTES = 1 << 20  # of a slice's rows (., D): about the second cache
PARAMETERS = 8  # of a block, in the order of `Block`
FEW_NEIGHBOURS = 16  # of which the largest is found in a pass for each

# (first, last) of all B G centres -> rows ((last - first) K, D)
Encoder = Callable[[int, int], Tensor]
# mean (C,) and variance (C,), without Bessel's correction, of what a norm is given
Statistics = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Block:
    """The parameters of ReLU(x + BN2(W2 ReLU(BN1(W1 x + b1)) + b2)), and its norms' eps."""

    eps: tuple[float, float]
    w1: Tensor  # (E, D)
    b1: Tensor
    weight1: Tensor
    bias1: Tensor
    w2: Tensor  # (D, E)
    b2: Tensor
    weight2: Tensor
    bias2: Tensor

    def parameters(self) -> tuple[Tensor, ...]:
        """Return the tensors in the order of the fields."""
        return (
            self.w1, self.b1, self.weight1, self.bias1,
            self.w2, self.b2, self.weight2, self.bias2,
        )  # fmt: skip


@dataclass
class _Kept:
    """Intermediates that a block's forward leaves for its backward, beside x (n, D) and a (n,
    E).
    """

    scale1: Tensor = field(init=False)  # (E,) of the first norm, in double precision
    scale_rows: Tensor = field(init=False)  # BN1(a) = a * scale_rows + shift_rows
    shift_rows: Tensor = field(init=False)
    mean1: Tensor = field(init=False)  # of a
    inverse1: Tensor = field(init=False)  # 1 / its standard deviation
    mean_r: Tensor = field(init=False)  # (E,)
    scatter_r: Tensor = field(init=False)  # (E, E)
    scale2: Tensor = field(init=False)  # (D,)
    shift2: Tensor = field(init=False)
    inverse2: Tensor = field(init=False)


@dataclass(frozen=True)
class Slice:
    """Some of the centres of one cloud, or all of some clouds, among all B G centres."""

    clouds: slice
    centres: slice
    rows: slice


class Pairs:
    """The pairs of a stage: features (B, P, C) of points, own (B, G, C) of centres, near (B, G, K),
    and what gives the encodings to be added.
    """

    def __init__(
        self, features: Tensor, own: Tensor, near: Tensor, encode: Encoder
    ) -> None:
        self.features = features
        self.own = own
        self.near = near
        self.encode = encode
        self.clouds, self.centres, self.neighbours = near.shape
        self.points, self.half = features.shape[1:]
        self.width = 2 * self.half
        self.count = near.numel()
        # what stands at a row, among the points of all clouds
        starts = torch.arange(self.clouds) * self.points
        self.index = (near + starts[:, None, None]).flatten()
        # for `fill`; a view of a transpose would be copied anew for every slice
        self.of_points = features.detach().flatten(0, 1)
        self.of_centres = own.detach().flatten(0, 1)

    def slices(self) -> Iterator[Slice]:
        """Yield all rows, one slice after the other."""
        row_bytes = self.width * self.features.element_size()
        step = max(1, SLICE_BYTES // (row_bytes * self.neighbours))
        together = max(1, step // self.centres)  # clouds

        if together > 1:
            step = self.centres

        for cloud in range(0, self.clouds, together):
            behind = min(cloud + together, self.clouds)
            for first in range(0, self.centres, step):
                last = min(first + step, self.centres)
                start = cloud * self.centres + first
                stop = (behind - 1) * self.centres + last
                rows = slice(start * self.neighbours, stop * self.neighbours)
                yield Slice(slice(cloud, behind), slice(start, stop), rows)

    def by_centre(self, rows: Tensor) -> Tensor:
        """(. K, C) -> (., K, C)."""
        return rows.view(-1, self.neighbours, rows.shape[1])

    def fill(self, part: Slice, into: Tensor) -> Tensor:
        """Write concat(neighbour, centre) + encoding into rows (., D)."""
        encoding = self.encode(part.centres.start, part.centres.stop)
        points = self.of_points.index_select(0, self.index[part.rows])
        torch.add(encoding[:, : self.half], points, out=into[:, : self.half])
        own = self.of_centres[part.centres].unsqueeze(1)
        torch.add(
            self.by_centre(encoding)[:, :, self.half :],
            own,
            out=self.by_centre(into)[:, :, self.half :],
        )

        return into

    def add_to_points(self, part: Slice, rows: Tensor, into: Tensor) -> None:
        """Add rows (., C) to what stands at their points in (B P, C)."""
        start = part.clouds.start * self.points
        stop = part.clouds.stop * self.points
        into[start:stop] += torch.ops.aten.embedding_dense_backward(
            rows, self.index[part.rows] - start, stop - start, -1, False
        )


def training(pairs: Pairs, blocks: Sequence[Block]) -> tuple[Tensor, list[Statistics]]:
    """The stage's output (B, G, D) with batch statistics, and these, in double precision, two for
    each block. Its gradient cannot be differentiated again.
    """
    parameters: list[Tensor] = []
    for block in blocks:
        parameters += block.parameters()

    eps = [block.eps for block in blocks]
    output, *statistics = _Stage.apply(  # type: ignore[no-untyped-call]
        pairs.features, pairs.own, pairs, eps, *parameters
    )
    means, variances = statistics[::2], statistics[1::2]

    return output, list(zip(means, variances, strict=True))


@torch.no_grad()
def evaluation(
    pairs: Pairs, blocks: Sequence[Block], statistics: Sequence[Statistics]
) -> Tensor:
    """The stage's output (B, G, D) with given statistics; nothing of it can be differentiated."""
    maxima = pairs.features.new_empty(pairs.clouds * pairs.centres, pairs.width)
    layers = []

    for block, first, second in zip(
        blocks, statistics[::2], statistics[1::2], strict=True
    ):
        scale, _ = _scale(block.weight1, first[1], block.eps[0])
        w1, t1 = _folded(block.w1, block.b1, block.bias1, scale, first[0])
        scale, _ = _scale(block.weight2, second[1], block.eps[1])
        layers.append(
            (w1, t1, *_folded(block.w2, block.b2, block.bias2, scale, second[0]))
        )

    for part in pairs.slices():
        x = pairs.fill(
            part, maxima.new_empty(part.rows.stop - part.rows.start, pairs.width)
        )
        for w1, t1, w2, t2 in layers:
            r = product(x, w1.t(), t1).relu_()
            x = product(r, w2.t(), t2).add_(x).relu_()

        torch.amax(pairs.by_centre(x), dim=1, out=maxima[part.centres])

    return maxima.view(pairs.clouds, pairs.centres, pairs.width)


def _folded(
    weight: Tensor, own: Tensor, bias: Tensor, scale: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor]:
    """A linear layer and the norm behind it as one linear layer: weight and bias."""
    shift = bias.double() + (own.double() - mean.double()) * scale
    return (weight.double() * scale[:, None]).to(weight.dtype), shift.to(weight.dtype)


def _scale(weight: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """weight / sd and 1 / sd, in double precision."""
    inverse = torch.rsqrt(var.double() + eps)
    return weight.double() * inverse, inverse


class _Stage(torch.autograd.Function):
    """(features, own, pairs, eps, parameters of every block) -> (output, statistics)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        features: Tensor,
        own: Tensor,
        pairs: Pairs,
        eps: Sequence[tuple[float, float]],
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        maxima = features.new_empty(pairs.clouds * pairs.centres, pairs.width)
        argmax = torch.empty_like(maxima, dtype=torch.long)
        x = _room(features, pairs.count, pairs.width)
        passes: list[_Pass] = []
        statistics: list[Tensor] = []
        blocks = _blocks(parameters, eps)

        for index, block in enumerate(blocks):
            one = _Pass(pairs, block, x)
            statistics += one.first_layer(fill=index == 0)
            statistics += one.moments()

            if index == len(blocks) - 1:
                one.maximum(maxima, argmax)
            else:
                x = _room(features, *x.shape)
                one.output(x)

            passes.append(one)

        ctx.pairs = pairs
        ctx.eps = eps
        ctx.kept = [one.kept for one in passes]
        rows: list[Tensor] = []

        for one in passes:
            rows += (one.x, one.a)

        ctx.save_for_backward(maxima, argmax, *rows, *parameters)
        ctx.mark_non_differentiable(*statistics)

        return maxima.view(pairs.clouds, pairs.centres, pairs.width), *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:  # type: ignore[override]
        depth = len(ctx.kept)
        maxima, argmax, *rest = ctx.saved_tensors
        rows, blocks = rest[: 2 * depth], _blocks(rest[2 * depth :], ctx.eps)
        dy: _AtMaximum | _EveryRow = _AtMaximum(
            ctx.pairs, argmax, gradient.flatten(0, 1) * (maxima > 0)
        )
        of_parameters: list[Tensor] = []

        for index in reversed(range(depth)):
            x, a = rows[2 * index : 2 * index + 2]
            one = _Pass(ctx.pairs, blocks[index], x, a, ctx.kept[index])
            back = _Backward(one, dy)
            back.second_layer()
            back.first_norm()

            if index > 0:
                dy = _EveryRow(back.to_block_before())
            else:
                of_features, of_own = back.to_points()

            of_parameters = [*back.parameter_gradients(), *of_parameters]

        return of_features, of_own, None, None, *of_parameters


class _Pass:
    """Passes over all rows, slice by slice, in the forward of one block."""

    def __init__(
        self,
        pairs: Pairs,
        block: Block,
        x: Tensor,
        a: Tensor | None = None,
        kept: _Kept | None = None,
    ) -> None:
        self.pairs = pairs
        self.block = block
        self.x = x
        self.a = _room(x, len(x), len(block.w1)) if a is None else a
        self.kept = _Kept() if kept is None else kept

    def first_layer(self, fill: bool) -> tuple[Tensor, Tensor]:
        """Compute a = W1 x - p for all rows, where the pilot p is about the mean of W1 x, so that
        the sum of squares loses no digits. Return the mean and variance of W1 x + b1.
        """
        block, pilot = self.block, None
        total = _zeros(self.a, len(block.w1))
        squares = _zeros(self.a, len(block.w1))
        across = block.w1.t()

        for part in self.pairs.slices():
            x = self.x[part.rows]
            if fill:
                self.pairs.fill(part, x)

            if pilot is None:
                pilot = product(x, across).mean(dim=0)

            a = product(x, across, -pilot)
            self.a[part.rows] = a
            total += _column_sums(a)
            squares += _column_sums(a.square_())

        assert pilot is not None
        mean = total / len(self.x)
        var = (squares / len(self.x) - mean.square()).clamp_(min=0)
        scale, inverse = _scale(block.weight1, var, block.eps[0])
        self.kept.mean1 = mean
        self.kept.scale1 = scale
        self.kept.inverse1 = inverse
        self.kept.scale_rows = scale.to(self.a)
        self.kept.shift_rows = (block.bias1.double() - mean * scale).to(self.a)

        return mean + pilot + block.b1, var

    def r(self, rows: slice) -> Tensor:
        """ReLU(BN1(a))."""
        kept = self.kept
        return torch.addcmul(kept.shift_rows, self.a[rows], kept.scale_rows).relu_()

    def moments(self) -> tuple[Tensor, Tensor]:
        """Compute the mean and scatter of r over all rows. Return the mean and variance of W2 r +
        b2, which follow from them.
        """
        block, kept = self.block, self.kept
        middle, count = len(block.w1), len(self.x)
        total = _zeros(self.a, middle)
        products = _zeros(self.a, middle, middle)

        for part in self.pairs.slices():
            r = self.r(part.rows)
            total += _column_sums(r)
            products += transposed_product(r, r)

        kept.mean_r = total / count
        kept.scatter_r = products - count * torch.outer(kept.mean_r, kept.mean_r)
        w2 = block.w2.double()
        mean = w2 @ kept.mean_r
        var = ((w2 @ kept.scatter_r) * w2).sum(dim=1).clamp_(min=0) / count
        kept.scale2, kept.inverse2 = _scale(block.weight2, var, block.eps[1])
        kept.shift2 = block.bias2.double() - mean * kept.scale2

        return mean + block.b2, var

    @property
    def scaled_w2(self) -> Tensor:
        """W2 with the scale of the norm behind it (D, E)."""
        return (self.block.w2.double() * self.kept.scale2[:, None]).to(self.x)

    def _before_relu(self, rows: slice, across: Tensor, shift: Tensor) -> Tensor:
        return product(self.r(rows), across, shift).add_(self.x[rows])

    def output(self, into: Tensor) -> None:
        """ReLU(x + BN2(W2 r + b2)) of all rows."""
        across, shift = self.scaled_w2.t(), self.kept.shift2.to(self.x)
        for part in self.pairs.slices():
            torch.clamp_min(
                self._before_relu(part.rows, across, shift), 0, out=into[part.rows]
            )

    def maximum(self, maxima: Tensor, argmax: Tensor) -> None:
        """The same, of each centre the largest, (B G, D), and which neighbour it is."""
        across, shift = self.scaled_w2.t(), self.kept.shift2.to(self.x)
        for part in self.pairs.slices():
            before = self.pairs.by_centre(self._before_relu(part.rows, across, shift))
            _largest(before, maxima[part.centres], argmax[part.centres])

        maxima.relu_()


class _AtMaximum:
    """A gradient of rows (n, D) that is zero but at the largest neighbours, one for each centre and
    channel: products with it take one row in K.
    """

    def __init__(self, pairs: Pairs, argmax: Tensor, gradient: Tensor) -> None:
        self.pairs = pairs
        self.argmax = argmax  # (B G, D)
        self.gradient = gradient  # (B G, D)
        # The same by rows: the channels of a centre in the order of their neighbours, and where
        # those of each row begin.
        self.channels = _stable_order(argmax, pairs.neighbours)
        self.by_row = gradient.gather(1, self.channels)
        counts = torch.bincount(
            self._rows(slice(0, len(argmax))).flatten(), minlength=pairs.count
        )
        self.begins = counts.cumsum(0) - counts

    def _rows(self, centres: slice) -> Tensor:
        """Return the indices (., D) of the largest neighbours among the rows of some centres."""
        argmax = self.argmax[centres]
        return argmax + self.pairs.neighbours * torch.arange(len(argmax)).unsqueeze(1)

    def transposed_times(self, part: Slice, rows: Tensor) -> Tensor:
        """The slice's gradient, transposed, times its rows (., E): (D, E)."""
        index = self._rows(part.centres).t().contiguous()
        weights = self.gradient[part.centres].t().contiguous()
        return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)

    def sums(self, part: Slice) -> Tensor:
        """The sums (D,) of the slice's gradient."""
        return _column_sums(self.gradient[part.centres])

    def add_product(self, part: Slice, weight: Tensor, into: Tensor) -> None:
        """Add the slice's gradient times weight (D, E) to rows (., E)."""
        begins = self.begins[part.rows]
        into += F.embedding_bag(
            self.channels[part.centres].flatten(),
            weight,
            begins - begins[0],
            mode="sum",
            per_sample_weights=self.by_row[part.centres].flatten(),
        )

    def add_to(self, part: Slice, rows: Tensor) -> None:
        """Add the slice's gradient to its rows (., D)."""
        argmax = self.argmax[part.centres]
        gradient = self.gradient[part.centres]
        self.pairs.by_centre(rows).scatter_add_(
            1, argmax.unsqueeze(1), gradient.unsqueeze(1)
        )


class _EveryRow:
    """A gradient of rows (n, D), as it stands."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def transposed_times(self, part: Slice, rows: Tensor) -> Tensor:
        """The slice's gradient, transposed, times its rows (., E): (D, E)."""
        return transposed_product(self.rows[part.rows], rows)

    def sums(self, part: Slice) -> Tensor:
        """The sums (D,) of the slice's gradient."""
        return _column_sums(self.rows[part.rows])

    def add_product(self, part: Slice, weight: Tensor, into: Tensor) -> None:
        """Add the slice's gradient times weight (D, E) to rows (., E)."""
        into += product(self.rows[part.rows], weight)

    def add_to(self, part: Slice, rows: Tensor) -> None:
        """Add the slice's gradient to its rows (., D)."""
        rows += self.rows[part.rows]


class _Backward:
    """Passes over all rows, slice by slice, in the backward of one block.

    With y = BN2(W2 r + b2), z = BN1(a), and dy etc. the gradient of the loss with respect to y: the
    gradient through a norm is scale (dy - mean(dy) - y^ mean(dy y^)), y^ being what was normalised.
    """

    def __init__(self, one: _Pass, dy: _AtMaximum | _EveryRow) -> None:
        self.one = one
        self.pairs = one.pairs
        self.dy = dy
        self.dz = _room(one.a, *one.a.shape)

    def second_layer(self) -> None:
        """The gradients of W2 and of the norm behind it, and the linear function of r that the norm
        takes from the gradient of r in every row.
        """
        one = self.one
        kept = self.one.kept
        block = self.one.block
        width, middle = block.w2.shape
        w2 = block.w2.double()
        products, total = _zeros(one.a, width, middle), _zeros(one.a, width)

        for part in self.pairs.slices():
            products += self.dy.transposed_times(part, one.r(part.rows))
            total += self.dy.sums(part)

        count = len(one.x)
        centred = products - torch.outer(total, kept.mean_r)  # dy' (r - mean)
        self.of_weight2 = kept.inverse2 * (w2 * centred).sum(dim=1)
        self.of_bias2 = total
        share = kept.inverse2 * self.of_weight2 / count
        self.of_w2 = kept.scale2[:, None] * (
            centred - share[:, None] * (w2 @ kept.scatter_r)
        )
        weighed = w2 * kept.scale2[:, None]
        self.linear = (w2 * share[:, None]).t() @ weighed  # (E, E)
        self.constant = kept.mean_r @ self.linear - (total / count) @ weighed

    def first_norm(self) -> None:
        """The gradient of z, and those of the first norm."""
        one = self.one
        kept = self.one.kept
        scaled = self.one.scaled_w2
        linear, constant = -self.linear.to(one.a), self.constant.to(one.a)
        total = _zeros(one.a, len(constant))
        products = _zeros(one.a, len(constant))

        for part in self.pairs.slices():
            r, dz = one.r(part.rows), self.dz[part.rows]
            dr = product(r, linear, constant)
            self.dy.add_product(part, scaled, dr)
            _through_relu(dr, r, dz)
            total += _column_sums(dz)
            products += _column_sums(dz * one.a[part.rows])

        self.of_bias1 = total
        self.of_weight1 = kept.inverse1 * (products - kept.mean1 * total)

    def _of_rows(self) -> Iterator[tuple[Slice, Tensor]]:
        """Yield each slice with the gradient of a / scale1; on the way that of W1."""
        one, kept = self.one, self.one.kept
        count = len(one.x)
        share = kept.inverse1 * self.of_weight1 / count
        constant = (kept.mean1 * share - self.of_bias1 / count).to(one.a)
        factor = (-share).to(one.a)
        products = _zeros(one.a, *one.block.w1.shape)

        for part in self.pairs.slices():
            u = torch.addcmul(self.dz[part.rows], one.a[part.rows], factor).add_(
                constant
            )
            products += transposed_product(u, one.x[part.rows])
            yield part, u

        self.of_w1 = kept.scale1[:, None] * products

    @property
    def _scaled_w1(self) -> Tensor:
        return (self.one.block.w1.double() * self.one.kept.scale1[:, None]).to(
            self.one.x
        )

    def to_block_before(self) -> Tensor:
        """The gradient of the sum in front of the ReLU of the block before."""
        x, dy = self.one.x, self.dy
        gradient = dy.rows if isinstance(dy, _EveryRow) else _room(x, *x.shape)
        scaled = self._scaled_w1

        for part, u in self._of_rows():
            dx = product(u, scaled)
            dy.add_to(part, dx)
            _through_relu(dx, x[part.rows], gradient[part.rows])

        return gradient

    def to_points(self) -> tuple[Tensor, Tensor]:
        """The gradients of features (B, P, C) and own (B, G, C): sums over pairs first, then one
        product.
        """
        pairs = self.pairs
        half = self.pairs.half
        scaled = self._scaled_w1
        a = self.one.a
        points = pairs.clouds * pairs.points
        centres = pairs.clouds * pairs.centres
        features, own = a.new_zeros(points, half), a.new_zeros(centres, half)
        u_points = a.new_zeros(points, a.shape[1])
        u_own = a.new_empty(centres, a.shape[1])

        for part, u in self._of_rows():
            pairs.add_to_points(part, u, u_points)
            torch.sum(pairs.by_centre(u), dim=1, out=u_own[part.centres])
            if isinstance(self.dy, _EveryRow):
                dy = self.dy.rows[part.rows]
                pairs.add_to_points(part, dy[:, :half].contiguous(), features)
                torch.sum(
                    pairs.by_centre(dy)[:, :, half:], dim=1, out=own[part.centres]
                )

        if isinstance(self.dy, _AtMaximum):
            gradient, argmax = self.dy.gradient, self.dy.argmax[:, :half]
            at = pairs.index.view(centres, -1).gather(1, argmax)
            features.scatter_add_(0, at, gradient[:, :half])
            own += gradient[:, half:]

        features.addmm_(u_points, scaled[:, :half])
        own.addmm_(u_own, scaled[:, half:])
        return features.view_as(pairs.features), own.view_as(pairs.own)

    def parameter_gradients(self) -> list[Tensor]:
        """The gradients of the block's parameters, in their order. A bias in front of a norm has
        none.
        """
        block = self.one.block
        gradients = (
            self.of_w1, torch.zeros_like(block.b1), self.of_weight1, self.of_bias1,
            self.of_w2, torch.zeros_like(block.b2), self.of_weight2, self.of_bias2,
        )  # fmt: skip

        shaped = []

        for gradient, parameter in zip(gradients, block.parameters(), strict=True):
            shaped.append(gradient.to(parameter).view_as(parameter))

        return shaped


def _blocks(
    parameters: Sequence[Tensor], eps: Sequence[tuple[float, float]]
) -> list[Block]:
    blocks = []
    for index, of_block in enumerate(eps):
        start = PARAMETERS * index
        blocks.append(Block(of_block, *parameters[start : start + PARAMETERS]))

    return blocks


def _stable_order(keys: Tensor, limit: int) -> Tensor:
    """Return the order that sorts each row of integers below a limit, equal ones as they come.

    NumPy sorts numbers of 16 bits by their digits, five times as fast as torch sorts them.
    """
    small = keys.numpy().astype(np.int16 if limit <= 1 << 15 else np.int64)
    return torch.from_numpy(np.argsort(small, axis=1, kind="stable"))


def _largest(rows: Tensor, maxima: Tensor, argmax: Tensor) -> None:
    """Write the largest of rows (m, K, D) over K and the first index where it stands, (m, D) both.

    `torch.max` looks at one value after the other; a pass for each of a few neighbours takes a
    third of its time.
    """
    neighbours = rows.shape[1]
    if neighbours == 1 or neighbours > FEW_NEIGHBOURS:
        torch.max(rows, dim=1, out=(maxima, argmax))
        return

    torch.maximum(rows[:, 0], rows[:, 1], out=maxima)
    at = torch.gt(rows[:, 1], rows[:, 0]).view(torch.uint8)
    for index in range(2, neighbours):
        larger = torch.gt(rows[:, index], maxima).view(torch.uint8)
        torch.maximum(at, larger.mul_(index), out=at)
        torch.maximum(maxima, rows[:, index], out=maxima)

    argmax.copy_(at)


def _through_relu(gradient: Tensor, of: Tensor, into: Tensor) -> None:
    """Write the gradient where `of` is above zero, and zero elsewhere."""
    torch.ops.aten.threshold_backward.grad_input(gradient, of, 0, grad_input=into)


def _zeros(like: Tensor, *shape: int) -> Tensor:
    """Sums over slices are kept in double precision."""
    return like.new_zeros(shape, dtype=torch.float64)


def _column_sums(rows: Tensor) -> Tensor:
    """(n, C) -> (C,): a product, which is faster than `sum` over the first axis."""
    return rows.new_ones(len(rows)) @ rows


def _room(like: Tensor, rows: int, width: int) -> Tensor:
    """A tensor (rows, width) without values, in memory that an earlier one has left if there is
    some.
    """
    count = rows * width
    memory = _memory.take(count, _NUMPY[like.dtype])
    view = memory[:count].reshape(rows, width)
    # The tensor and all its views hold this view of the memory, which ends with the last of them.
    weakref.finalize(view, _memory.give, memory).atexit = False

    return torch.from_numpy(view)


class Memory:
    """Memory of tensors that are gone, for the next ones of about their size.

    New memory is mapped page by page, which takes as long as the work on it; and each step asks for
    the sizes that the step before asked for. NumPy asks the system for large pages.
    """

    def __init__(self) -> None:
        self.free: list[np.ndarray] = []  # the longest unused first
        # Collected garbage may give memory back while some is taken.
        self.lock = threading.RLock()

    def take(self, count: int, dtype: type[np.generic]) -> np.ndarray:
        """Return the smallest free memory of at least `count` values and at most twice as many.

        Where there is none, as much as is needed is first let go, so that the whole does not grow
        beyond what was needed at one time.
        """
        with self.lock:
            fitting = []
            for index, memory in enumerate(self.free):
                if memory.dtype == dtype and count <= memory.size <= 2 * count:
                    fitting.append((memory.size, index))

            if fitting:
                _, index = min(fitting)
                return self.free.pop(index)

            needed = count * np.dtype(dtype).itemsize
            while self.free and needed > 0:
                needed -= self.free.pop(0).nbytes

        return np.empty(count, dtype)

    def give(self, memory: np.ndarray) -> None:
        """Keep memory for others."""
        with self.lock:
            self.free.append(memory)

    def let_go(self) -> None:
        """Give all free memory back to the system."""
        with self.lock:
            self.free.clear()


_memory = Memory()
_NUMPY: dict[torch.dtype, type[np.generic]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
}


def let_memory_go() -> None:
    """Give back what stages keep for their next step: when a trial has ended."""
    _memory.let_go()
