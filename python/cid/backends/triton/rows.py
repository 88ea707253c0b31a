"""What the kernels that go row by row share: how many rows a program takes, how it reads and writes them, what counts.

A program has a tile of rows. Where a whole row fits in it, each of a kernel's loops over the tiles of a row has one turn:
the compiler unrolls them and reads the row once, into registers. Longer rows are read once a loop.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Not yet measured on a GPU.
_WHOLE = 16384
"""The longest row that a program holds in registers."""
_PIECE = 4096
"""The piece in which it goes through a longer one."""
_TILE = 2048
"""The elements of a program that has several short rows."""
_ELEMENTS_PER_WARP = 512

# Products and sums stay as they are written, rounded one by one: equals cancel, whatever the version of Triton.
_OPTIONS = {"enable_fp_fusion": False}


def launch(kernel: Any, rows: int, columns: int, *arguments: object, **constants: object) -> None:
    """Runs a kernel over the rows of matrices with `columns` columns, on the current device.

    It gets `arguments`, `rows`, and the constants `COLUMNS`, `ROWS` and `BLOCK`. The number of columns is compiled in:
    it tells how wide an aligned access can be. That of the rows is not.
    """
    if rows == 0 or columns == 0:
        return
    block = triton.next_power_of_2(columns) if columns <= _WHOLE else _PIECE
    rows_a_program = max(1, _TILE // block)
    warps = min(max(rows_a_program * block // _ELEMENTS_PER_WARP, 1), 32)
    grid = (triton.cdiv(rows, rows_a_program),)
    kernel[grid](
        *arguments,
        rows,
        COLUMNS=columns,
        ROWS=rows_a_program,
        BLOCK=block,
        num_warps=warps,
        **constants,
        **_OPTIONS,
    )


@triton.jit
def rows_here(ROWS: tl.constexpr):
    """The indices of this program's rows. The last may lie beyond the matrix."""
    return tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)


@triton.jit
def tile_at(row, rows, start, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets of the elements from column `start`, and which of them there are."""
    column = start + tl.arange(0, BLOCK)
    return row[:, None] * COLUMNS + column, (row < rows)[:, None] & (column < COLUMNS)


@triton.jit
def load(pointer, at, other):
    """The elements of a tile in float32."""
    offset, there = at
    return tl.load(pointer + offset, mask=there, other=other).to(tl.float32)


@triton.jit
def store(pointer, at, value):
    """Writes a tile in the type of the tensor."""
    offset, there = at
    tl.store(pointer + offset, value.to(pointer.dtype.element_ty), mask=there)


@triton.jit
def labels_of(target, row, rows, ignore_index, COLUMNS: tl.constexpr):
    """The labels of rows, and which of them name a class: one that does not counts as ignored."""
    label = tl.load(target + row, mask=row < rows, other=-1)
    return label, (label >= 0) & (label < COLUMNS) & (label != ignore_index)


@triton.jit(do_not_specialize=["ignore_index", "rows"])
def _count_labelled(target, count, ignore_index, rows, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, rows, BLOCK):
        _, labelled = labels_of(target, start + tl.arange(0, BLOCK), rows, ignore_index, COLUMNS)
        total += labelled.to(tl.int32)
    tl.store(count, tl.sum(total, 0))


def count_labelled(target: Tensor, classes: int, ignore_index: int) -> Tensor:
    """The number of rows whose label names a class, as a tensor of one int32."""
    count = torch.empty(1, dtype=torch.int32, device=target.device)
    _count_labelled[(1,)](target, count, ignore_index, len(target), COLUMNS=classes, BLOCK=1024, num_warps=8)
    return count


@triton.jit
def mean_over(count):
    """What a row is multiplied by in the mean over those that count; 0 of them have the mean 0."""
    return 1.0 / tl.maximum(tl.load(count), 1).to(tl.float32)


def each_row(loss: Tensor, like: Tensor) -> Tensor:
    """Where a kernel writes the rows' values: `loss` itself, or room for what is added up into it."""
    return loss if loss.ndim == 1 else torch.empty(len(like), dtype=torch.float32, device=like.device)


def add_up(each: Tensor, loss: Tensor) -> None:
    """Adds up the rows' values into a `loss` that is one number, always in the same order."""
    if loss.ndim == 0:
        torch.sum(each, 0, out=loss)
