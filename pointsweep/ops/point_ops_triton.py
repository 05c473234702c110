"""Farthest points compiled by Triton for CUDA: the same indices as point_ops.py's own, bit for bit.

One program a cloud holds all its points in registers, so a step reads nothing but the last chosen
point. Products are not fused with sums (`enable_fp_fusion`), as nowhere in this package, and of
equal distances the first row is taken. Letters: B clouds, P points.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_POINTS = 16_384  # of a cloud: four floats a point in the registers of one program


def farthest_points(points: Tensor, nearest_chosen: Tensor, count: int) -> Tensor:
    """Indices (B, count) int64 of points (B, P, 3) float32; nearest_chosen (B, P) is where the
    distances start.
    """
    clouds, size = nearest_chosen.shape
    chosen = torch.zeros(clouds, count, dtype=torch.long, device=points.device)
    block = triton.next_power_of_2(size)
    warps = max(1, min(16, block // 256))
    arguments = points.contiguous(), nearest_chosen.contiguous(), chosen, size, count
    _farthest[(clouds,)](
        *arguments, BLOCK=block, num_warps=warps, enable_fp_fusion=False
    )

    return chosen


@triton.jit
def _farthest(points, nearest_chosen, chosen, size, count, BLOCK: tl.constexpr):
    cloud = tl.program_id(0).to(tl.int64)
    points += cloud * size * 3
    row = tl.arange(0, BLOCK)
    inside = row < size
    x = tl.load(points + 3 * row, mask=inside, other=0.0)
    y = tl.load(points + 3 * row + 1, mask=inside, other=0.0)
    z = tl.load(points + 3 * row + 2, mask=inside, other=0.0)
    # what is no point is never the farthest
    near = tl.load(nearest_chosen + cloud * size + row, mask=inside, other=-2.0)
    last = tl.zeros((), dtype=tl.int32)

    for step in range(1, count):
        dx = x - tl.load(points + 3 * last)
        dy = y - tl.load(points + 3 * last + 1)
        dz = z - tl.load(points + 3 * last + 2)
        near = tl.minimum(near, dx * dx + dy * dy + dz * dz)
        last = tl.argmax(near, axis=0, tie_break_left=True).to(tl.int32)
        tl.store(chosen + cloud * count + step, last.to(tl.int64))
