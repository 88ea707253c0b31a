"""Sample representation: `||s - t||^2 / ||t||^2`."""

import triton
import triton.language as tl
from torch import Tensor

from cid.backends.triton.rows import add_up, each_row, launch_rows, load, rows_here, store, tile_at, weighed


@triton.jit
def _unit(largest):
    """What a row is measured in, so that no square overflows or vanishes that should not."""
    return tl.where((largest == 0.0) | (largest == float("inf")), 1.0, largest)


@triton.jit
def sample_rows(
    student_ptr,
    teacher_ptr,
    weight_ptr,
    loss_ptr,
    grad_ptr,
    scale,
    rows,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The value of each of this program's rows, and its derivative."""
    row = rows_here(ROWS)
    largest = tl.zeros((ROWS,), tl.float32)
    distance = tl.zeros((ROWS,), tl.float32)
    norm = tl.zeros((ROWS,), tl.float32)
    nonzero = tl.zeros((ROWS,), tl.int32)
    for start in range(0, COLUMNS, BLOCK):
        at = tile_at(row, rows, start, COLUMNS, BLOCK)
        t = load(teacher_ptr, at, 0.0)
        difference = load(student_ptr, at, 0.0) - t
        before = _unit(largest)
        largest = tl.maximum(largest, tl.max(tl.maximum(tl.abs(difference), tl.abs(t)), 1))
        unit = _unit(largest)
        shrink = tl.minimum(before / unit, 1.0)
        d, n = difference / unit[:, None], t / unit[:, None]
        distance = distance * shrink * shrink + tl.sum(d * d, 1)
        norm = norm * shrink * shrink + tl.sum(n * n, 1)
        nonzero = tl.maximum(nonzero, tl.max((t != 0.0).to(tl.int32), 1))
    unit = _unit(largest)
    # A teacher's row of zeros leaves the ratio undefined; it neither costs nor teaches anything.
    scale, counts = weighed(scale, nonzero != 0, weight_ptr, row, rows)
    if grad_ptr is not None:
        slope = 2.0 * scale / norm
        for start in range(0, COLUMNS, BLOCK):
            at = tile_at(row, rows, start, COLUMNS, BLOCK)
            d = (load(student_ptr, at, 0.0) - load(teacher_ptr, at, 0.0)) / unit[:, None]
            store(grad_ptr, at, tl.where(counts[:, None], d * slope[:, None] / unit[:, None], 0.0))
    tl.store(loss_ptr + row, tl.where(counts, scale * (distance / norm), 0.0), mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def _sample(
    student_ptr,
    teacher_ptr,
    weight_ptr,
    loss_ptr,
    grad_ptr,
    scale,
    rows,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample_rows(student_ptr, teacher_ptr, weight_ptr, loss_ptr, grad_ptr, scale, rows, COLUMNS, ROWS, BLOCK)


def sample(
    student_features: Tensor,
    teacher_features: Tensor,
    weight: Tensor | None,
    mean: bool,
    loss: Tensor,
    grad: Tensor | None,
) -> None:
    """`||s_i - t_i||^2 / ||t_i||^2` of each row, 0 where `t_i` is 0, and its derivative in `s`.

    Both times the row's weight; 0 where that is.
    """
    rows, columns = student_features.shape
    each = each_row(loss, student_features)
    scale = 1.0 / max(rows, 1) if mean else 1.0
    launch_rows(_sample, "sample", rows, columns, student_features, teacher_features, weight, each, grad, scale)
    add_up(each, loss)
