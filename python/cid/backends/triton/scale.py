"""A gradient times the factor that the backward brings, which is 1 more often than not; nobody waits to know."""

import triton
import triton.language as tl
from torch import Tensor

from cid.backends.triton import tiles
from cid.backends.triton.rows import launch


def scale(grad: Tensor, factor: Tensor) -> None:
    """`grad *= factor` for a factor of shape (), on the device; with a factor of 1 nothing is read but that."""
    if grad.numel():
        grid = (triton.cdiv(grad.numel(), tiles.SCALE),)
        launch(_scale, grid, grad, factor, grad.numel(), BLOCK=tiles.SCALE, num_warps=8)


@triton.jit(do_not_specialize=["size"])
def _scale(grad_ptr, factor_ptr, size, BLOCK: tl.constexpr):
    factor = tl.load(factor_ptr).to(tl.float32)
    if factor != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        grad = tl.load(grad_ptr + at, mask=at < size, other=0.0).to(tl.float32)
        tl.store(grad_ptr + at, (grad * factor).to(grad_ptr.dtype.element_ty), mask=at < size)
