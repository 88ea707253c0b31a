"""Sums over the rows of a matrix: the gradient of a bias from that of a linear layer's output."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cid.backends.triton import tiles
from cid.backends.triton.rows import launch


@triton.jit(do_not_specialize=["rows", "run"])
def _column_sums(
    matrix_ptr, factor, out_ptr, rows, run, COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """The column sums of `run` rows into row `program_id(1)` of `out`, times `factor`."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.program_id(1).to(tl.int64)
    last = tl.minimum(rows, (part + 1) * run)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(part * run, last, ROWS):
        row = first + tl.arange(0, ROWS)
        there = (row < last)[:, None] & (column < COLUMNS)
        total += tl.load(matrix_ptr + row[:, None] * COLUMNS + column, mask=there, other=0.0).to(tl.float32)
    sums = factor * tl.sum(total, 0)
    tl.store(out_ptr + part * COLUMNS + column, sums.to(out_ptr.dtype.element_ty), mask=column < COLUMNS)


def column_sums(matrix: Tensor, factor: float, out: Tensor) -> None:
    """`factor` times the sum of each column."""
    rows, columns = matrix.shape
    if columns == 0:
        return
    choice, run = tiles.COLUMN_SUMS, tiles.COLUMN_RUN
    block = min(triton.next_power_of_2(columns), choice.columns)

    def add_up(matrix: Tensor, factor: float, out: Tensor, run: int) -> None:
        grid = triton.cdiv(columns, block), triton.cdiv(max(len(matrix), 1), run)
        launch(
            _column_sums, grid, matrix, factor, out, len(matrix), run, COLUMNS=columns, ROWS=choice.rows, BLOCK=block
        )

    if rows > 2 * run:  # in parts, so that there are programs for the whole device
        parts = torch.empty(triton.cdiv(rows, run), columns, dtype=torch.float32, device=matrix.device)
        add_up(matrix, 1.0, parts, run)
        matrix, rows = parts, len(parts)
    add_up(matrix, factor, out, max(rows, 1))
