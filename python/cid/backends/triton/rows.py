"""What the kernels that go row by row share: how many rows a program takes, how it reads and writes them, what counts.

A program has a tile of rows. Where a whole row fits in it, each of a kernel's loops over the tiles of a row has one
turn: the compiler unrolls them and reads the row once, into registers. Longer rows are read once a loop.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cid.backends.triton import tiles

# Products and sums stay as they are written, rounded one by one: equals cancel, whatever the version of Triton.
_OPTIONS = {"enable_fp_fusion": False}


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *arguments: Any, **constants: Any) -> None:
    """Runs a kernel on the device of its first argument."""
    with torch.cuda.device_of(first):
        kernel[grid](first, *arguments, **constants, **_OPTIONS)


def launch_rows(kernel: Any, tiles_of: str, rows: int, columns: int, *arguments: Any, **constants: Any) -> None:
    """Runs a kernel over the rows of matrices with `columns` columns.

    It gets `arguments`, `rows`, and the constants `COLUMNS`, `ROWS` and `BLOCK`, the latter by its entry `tiles_of` in
    `tiles.ROWS`. The number of columns is compiled in: it tells how wide an aligned access can be. That of the rows is
    not, so that no batch but the first waits for the compiler, a second or two for each kernel.
    """
    if rows == 0:
        return
    block, rows_a_program, options = cut(tiles.ROWS[tiles_of], columns, arguments[0].device)
    constants |= {"COLUMNS": columns, "ROWS": rows_a_program, "BLOCK": block, **options}
    launch(kernel, (triton.cdiv(rows, rows_a_program),), *arguments, rows, **constants)


def cut(choice: tiles.Rows, columns: int, device: torch.device) -> tuple[int, int, dict[str, int]]:
    """Columns and rows that a program takes at once, and the warps and cluster that it is run with."""
    cluster = 1
    if columns > choice.whole:
        if columns > choice.whole * choice.cluster or not reduces_across_programs(device):
            return choice.piece, max(choice.tile // choice.piece, 1), {"num_warps": choice.piece_warps}
        cluster = choice.cluster
    block = triton.next_power_of_2(max(columns, 1))
    rows = max(choice.tile // block, 1)
    warps = min(max(rows * block // cluster // choice.per_warp, 1), 32)
    return block, rows, {"num_warps": warps, "num_ctas": cluster}


@functools.cache
def reduces_across_programs(device: torch.device) -> bool:
    """Whether the programs of a cluster can add up a row together: not before Triton 3.9, nor before Hopper."""
    if triton.knobs.runtime.interpret or tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        return False
    with torch.cuda.device_of(torch.empty(0, device=device)):
        target = triton.runtime.driver.active.get_current_target()
    return bool(target.backend == "cuda" and target.arch >= 90)


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
def load(ptr, at, other):
    """The elements of a tile in float32."""
    offset, there = at
    return tl.load(ptr + offset, mask=there, other=other).to(tl.float32)


@triton.jit
def store(ptr, at, value):
    """Writes a tile in the type of the tensor."""
    offset, there = at
    tl.store(ptr + offset, value.to(ptr.dtype.element_ty), mask=there)


@triton.jit
def labels_of(target_ptr, row, rows, ignore_index, classes):
    """The labels of rows, -1 where none names a class, and where one does: any other counts as ignored."""
    label = tl.load(target_ptr + row, mask=row < rows, other=-1)
    labelled = (label >= 0) & (label < classes) & (label != ignore_index)
    return tl.where(labelled, label, -1).to(tl.int32), labelled


@triton.jit
def count_into(count_ptr, target_ptr, ignore_index, rows, classes, BLOCK: tl.constexpr):
    """Writes how many rows' labels name a class: for one program."""
    total = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, rows, BLOCK):
        _, labelled = labels_of(target_ptr, start + tl.arange(0, BLOCK), rows, ignore_index, classes)
        total += labelled.to(tl.int32)
    tl.store(count_ptr, tl.sum(total, 0))


@triton.jit(do_not_specialize=["ignore_index", "rows", "classes"])
def _count_labelled(count_ptr, target_ptr, ignore_index, rows, classes):
    count_into(count_ptr, target_ptr, ignore_index, rows, classes, 4096)


def count_labelled(target: Tensor, classes: int, ignore_index: int) -> Tensor:
    """The number of rows whose label names a class, as a tensor of one int32."""
    count = torch.empty(1, dtype=torch.int32, device=target.device)
    launch(_count_labelled, (1,), count, target, ignore_index, len(target), classes, num_warps=16)
    return count


@triton.jit
def mean_over(count_ptr):
    """What a row is multiplied by in the mean over those that count; 0 of them have the mean 0."""
    return 1.0 / tl.maximum(tl.load(count_ptr), 1).to(tl.float32)


@triton.jit
def weighed(scale, counts, weight_ptr, row, rows):
    """What each row is multiplied by, `scale` times its weight if there are any, and which count: none of weight 0.

    A weight that is negative, infinite or no number counts as 0.
    """
    if weight_ptr is None:
        return tl.full(row.shape, scale, tl.float32), counts
    else:
        weight = tl.load(weight_ptr + row, mask=row < rows, other=0.0)
        good = (weight > 0.0) & (weight < float("inf"))
        return scale * weight, counts & good


def each_row(loss: Tensor, like: Tensor) -> Tensor:
    """Where a kernel writes the rows' values: `loss` itself, or room for what is added up into it."""
    return loss if loss.ndim == 1 else room_for_rows(like)


def room_for_rows(like: Tensor) -> Tensor:
    """A float32 for each row of a tensor."""
    return torch.empty(len(like), dtype=torch.float32, device=like.device)


def add_up(each: Tensor, loss: Tensor) -> None:
    """Adds up the rows' values into a `loss` that is one number, always in the same order."""
    if loss.ndim == 0:
        torch.sum(each, 0, out=loss)
