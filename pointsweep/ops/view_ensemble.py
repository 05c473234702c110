"""Any2Point's aggregation behind its attention as one operator with a gradient of its own: the mean
over the cells of every view, batch normalisation, GELU, and the sum of the views by their weights.

The same function as the plain layers (methods/any2point.py), but for rounding. It is for the CPU,
where the plain form moves tensors of all views through memory again and again. Here one view is
worked on after the other, in place, so that what one step gives is in the cache for the next; two
tensors of all views are kept for the gradient.

Source: Any2Point (arXiv 2404.07989), section 3.4; spec 2.5. Letters: B clouds, M views, N tokens,
C channels, R = B N rows of a view, E values that the attention mixed for a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pointsweep.ops.cells import Cells

SHORTEST = 1e-8  # a vector's length, at least, as in torch's cosine_similarity


@dataclass(frozen=True)
class Norm:
    """Batch normalisation of every view: weight and bias (M, C)."""

    weight: Tensor
    bias: Tensor
    eps: float


def training(
    tokens: Tensor, mixed: Tensor, out: Tensor, guide: Tensor, norm: Norm, cells: Cells
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sum_j w_j v_j (B, N, C), and the mean (M, C) and variance (M, C) of each view's cells.

    v_j = GELU(BN_j(A_j t + m_j W_j)) of tokens t (B, N, C), the cells' means of what attention
    mixed m (B, M, N, E), its last layer W (M, E, C) and A = `cells.average`. w_j is
    (cos(v_j, guide) + 1) / 2, divided by the sum of all views', with guide (B, N, C). The gradient
    cannot be differentiated again.
    """
    output, mean, variance = _Ensemble.apply(  # type: ignore[no-untyped-call]
        tokens, mixed, out, guide, norm.weight, norm.bias, norm.eps, cells
    )
    return output, mean, variance


@torch.no_grad()
def evaluation(
    tokens: Tensor, mixed: Tensor, out: Tensor, guide: Tensor, norm: Norm, cells: Cells,
    mean: Tensor, variance: Tensor,
) -> Tensor:  # fmt: skip
    """Return what `training` does, with these means and variances (M, C); it cannot be
    differentiated.
    """
    pooled = _Pooled(tokens, mixed, out, cells)
    views = tokens.new_empty(len(norm.weight), *tokens.shape).flatten(1, 2)
    buffer = torch.empty_like(views[0])
    scales = norm.weight * torch.rsqrt(variance + norm.eps)
    shifts = norm.bias - mean * scales

    for j, view in enumerate(views):
        pooled.write(j, view)
        torch.addcmul(shifts[j], view, scales[j], out=buffer)
        torch.ops.aten.gelu.out(buffer, out=view)

    return _Weights(views, guide.flatten(0, 1), buffer).sum(views).view_as(guide)


class _Pooled:
    """The cells' means of every view, A_j t + m_j W_j."""

    def __init__(
        self, tokens: Tensor, mixed: Tensor, out: Tensor, cells: Cells
    ) -> None:
        self.tokens = tokens
        self.average = cells.average.to(tokens.dtype).transpose(0, 1)  # (M, B, N, N)
        self.mixed = mixed.transpose(0, 1).flatten(1, 2)  # (M, R, E)
        self.out = out

    def write(self, view: int, rows: Tensor) -> None:
        """Write a view's means to rows (R, C)."""
        torch.bmm(self.average[view], self.tokens, out=rows.view_as(self.tokens))
        rows.addmm_(self.mixed[view], self.out[view])


class _Weights:
    """The weights of views (M, R, C) by their angles to the guide (R, C)."""

    def __init__(self, views: Tensor, guide: Tensor, buffer: Tensor) -> None:
        products = [torch.mul(view, guide, out=buffer).sum(1) for view in views]
        squares = [torch.mul(view, view, out=buffer).sum(1) for view in views]
        self.length = torch.stack(squares).sqrt_().clamp_(min=SHORTEST)  # (M, R)
        self.guide_length = torch.linalg.vector_norm(guide, dim=1).clamp_(min=SHORTEST)
        self.cosine = torch.stack(products) / (self.length * self.guide_length)
        halves = (self.cosine + 1) / 2
        self.total = halves.sum(0)  # (R,)
        self.share = halves / self.total

    def gradients(self, of_share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return p (M, R), q (M, R) and s (R,), the factors in the gradients that pass through the
        cosines: that of view j is p_j guide + q_j view_j, that of the guide is
        sum_j p_j view_j + s guide. `of_share` (M, R) is the gradient of the weights.
        """
        of_half = (of_share - (of_share * self.share).sum(0)) / self.total
        of_cosine = of_half / 2
        of_product = of_cosine / (self.length * self.guide_length)
        # of a vector's length, divided by that length; a length that was raised has none
        pull = -of_cosine * self.cosine
        of_view = pull / self.length.square()
        of_guide = pull.sum(0) / self.guide_length.square()
        of_view.masked_fill_(self.length <= SHORTEST, 0.0)
        of_guide.masked_fill_(self.guide_length <= SHORTEST, 0.0)

        return of_product, of_view, of_guide

    def sum(self, views: Tensor) -> Tensor:
        """(M, R, C) -> (R, C)."""
        output = views[0] * self.share[0].unsqueeze(1)
        for view, share in zip(views[1:], self.share[1:], strict=True):
            output.addcmul_(view, share.unsqueeze(1))

        return output


class _Ensemble(torch.autograd.Function):
    """See `training`."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, mixed: Tensor, out: Tensor, guide: Tensor, weight: Tensor,
        bias: Tensor, eps: float, cells: Cells,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        pooled = _Pooled(tokens, mixed, out, cells)
        # (M, R, C) both, kept for the gradient
        centred = tokens.new_empty(len(weight), *tokens.shape).flatten(1, 2)
        views = torch.empty_like(centred)
        buffer = torch.empty_like(centred[0])
        share = cells.share.to(tokens.dtype).transpose(0, 1).flatten(1)  # (M, R)
        empty = cells.count - share.sum(1)  # (M,)
        means, variances = torch.empty_like(weight), torch.empty_like(weight)

        for j, rows in enumerate(centred):
            pooled.write(j, rows)
            torch.mv(rows.T, share[j], out=means[j]).div_(cells.count)
            rows.sub_(means[j])
            spread = torch.mv(torch.mul(rows, rows, out=buffer).T, share[j])
            variances[j] = (spread + empty[j] * means[j].square()) / cells.count
            scale = weight[j] * torch.rsqrt(variances[j] + eps)
            torch.addcmul(bias[j], rows, scale, out=buffer)
            torch.ops.aten.gelu.out(buffer, out=views[j])

        weights = _Weights(views, guide.flatten(0, 1), buffer)
        ctx.mark_non_differentiable(means, variances)
        ctx.save_for_backward(
            tokens, pooled.mixed, out, guide, weight, bias, centred, views, variances
        )
        ctx.weights, ctx.average, ctx.eps = weights, pooled.average, eps
        ctx.part = share / cells.count  # of a token in its view's mean

        return weights.sum(views).view_as(guide), means, variances

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        tokens, mixed, out, guide, weight, bias, centred, views, variances = (
            ctx.saved_tensors
        )
        weights: _Weights = ctx.weights
        grad, towards = grad.reshape_as(views[0]), guide.flatten(0, 1)  # (R, C) each
        buffer = torch.empty_like(grad)

        of_share = torch.stack(
            [torch.mul(view, grad, out=buffer).sum(1) for view in views]
        )
        of_product, of_view, of_guide = weights.gradients(of_share)

        grad_tokens = torch.zeros_like(tokens)
        grad_mixed, grad_out = torch.empty_like(mixed), torch.empty_like(out)
        grad_guide = towards * of_guide.unsqueeze(1)
        grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
        rows_grad = torch.empty_like(grad)

        for j, (view, rows) in enumerate(zip(views, centred, strict=True)):
            grad_guide.addcmul_(view, of_product[j].unsqueeze(1))
            torch.mul(grad, weights.share[j].unsqueeze(1), out=rows_grad)
            rows_grad.addcmul_(towards, of_product[j].unsqueeze(1))
            rows_grad.addcmul_(view, of_view[j].unsqueeze(1))

            inverse = torch.rsqrt(variances[j] + ctx.eps)
            scale = weight[j] * inverse
            torch.addcmul(bias[j], rows, scale, out=buffer)
            torch.ops.aten.gelu_backward.grad_input(
                rows_grad, buffer, grad_input=rows_grad
            )

            torch.sum(rows_grad, 0, out=grad_bias[j])
            along = torch.mul(rows_grad, rows, out=buffer).sum(0)
            torch.mul(along, inverse, out=grad_weight[j])

            # A token's part in its view's mean and variance is its share of a cell.
            through_mean = scale * grad_bias[j]
            through_variance = scale * inverse.square() * along
            torch.addcmul(through_mean, rows, through_variance, out=buffer)
            rows_grad.mul_(scale).addcmul_(buffer, ctx.part[j].unsqueeze(1), value=-1)

            grad_tokens.baddbmm_(
                ctx.average[j].transpose(1, 2), rows_grad.view_as(tokens)
            )
            torch.mm(rows_grad, out[j].T, out=grad_mixed[j])
            torch.mm(mixed[j].T, rows_grad, out=grad_out[j])

        grad_mixed = grad_mixed.view(len(out), *tokens.shape[:2], -1).transpose(0, 1)
        return (
            grad_tokens, grad_mixed, grad_out, grad_guide.view_as(guide), grad_weight,
            grad_bias, None, None,
        )  # fmt: skip
