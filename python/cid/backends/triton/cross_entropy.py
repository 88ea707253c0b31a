"""Cross-entropy: `-log softmax(z)[y]`, or of shares `-sum_k y_k log softmax(z)_k`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cid.backends.triton.rows import (
    add_up,
    count_labelled,
    each_row,
    labels_of,
    launch_rows,
    load,
    mean_over,
    rows_here,
    store,
    tile_at,
    weighed,
)
from cid.backends.triton.softmax import softmax_of, statistics


@triton.jit(do_not_specialize=["ignore_index", "rows"])
def _cross_entropy(
    logits_ptr,
    target_ptr,
    weight_ptr,
    count_ptr,
    loss_ptr,
    grad_ptr,
    ignore_index,
    rows,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = rows_here(ROWS)
    label, labelled = labels_of(target_ptr, row, rows, ignore_index, COLUMNS)
    own = tl.load(logits_ptr + row * COLUMNS + label, mask=labelled, other=0.0).to(tl.float32)
    largest, others = statistics(logits_ptr, row, rows, 1.0, label, COLUMNS, ROWS, BLOCK)
    total = tl.exp(own - largest) + others
    scale, counts = weighed(mean_over(count_ptr), labelled, weight_ptr, row, rows)
    if grad_ptr is not None:
        for start in range(0, COLUMNS, BLOCK):
            at = tile_at(row, rows, start, COLUMNS, BLOCK)
            p = softmax_of(load(logits_ptr, at, -float("inf")), largest, total, 1.0)
            # What the other classes have keeps what is left of a belief close to 1.
            beyond = tl.where(start + tl.arange(0, BLOCK) == label[:, None], -(others / total)[:, None], p)
            store(grad_ptr, at, tl.where(counts[:, None], beyond * scale[:, None], 0.0))
    tl.store(loss_ptr + row, tl.where(counts, scale * (largest - own + tl.log(total)), 0.0), mask=row < rows)


def cross_entropy_rows(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    count: Tensor,
    each: Tensor,
    grad: Tensor | None,
) -> None:
    """What each row adds to the mean over the `count` labelled ones, and its derivative."""
    launch_rows(_cross_entropy, "cross-entropy", *logits.shape, logits, target, weight, count, each, grad, ignore_index)


def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, loss: Tensor, grad: Tensor | None
) -> None:
    """The mean over the labelled rows of `-log softmax(z_i)[y_i]` into `loss` (shape ()), and its derivative in `z`.

    Each row times its weight, and 0 where that is.
    """
    each = each_row(loss, logits)
    count = count_labelled(target, logits.shape[1], ignore_index)
    cross_entropy_rows(logits, target, weight, ignore_index, count, each, grad)
    add_up(each, loss)


@triton.jit(do_not_specialize=["rows"])
def _soft_cross_entropy(
    logits_ptr,
    shares_ptr,
    weight_ptr,
    count_ptr,
    loss_ptr,
    grad_ptr,
    rows,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = rows_here(ROWS)
    largest, total = statistics(logits_ptr, row, rows, 1.0, None, COLUMNS, ROWS, BLOCK)
    # Summed over the row after the loop: Triton 3.6 can't compile two sums over the tiles of a long one.
    shares = tl.zeros((ROWS, BLOCK), tl.float32)
    products = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        at = tile_at(row, rows, start, COLUMNS, BLOCK)
        y = load(shares_ptr, at, 0.0)
        beyond = load(logits_ptr, at, -float("inf")) - largest[:, None]
        shares += y
        # A class without a share adds nothing, even where its logit is -inf.
        products += tl.where(y == 0.0, 0.0, y * beyond)
    share, dot = tl.sum(shares, 1), tl.sum(products, 1)
    counts = share != 0.0
    scale, counts = weighed(mean_over(count_ptr), counts, weight_ptr, row, rows)
    if grad_ptr is not None:
        for start in range(0, COLUMNS, BLOCK):
            at = tile_at(row, rows, start, COLUMNS, BLOCK)
            p = softmax_of(load(logits_ptr, at, -float("inf")), largest, total, 1.0)
            slope = (share[:, None] * p - load(shares_ptr, at, 0.0)) * scale[:, None]
            store(grad_ptr, at, tl.where(counts[:, None], slope, 0.0))
    tl.store(loss_ptr + row, tl.where(counts, scale * (share * tl.log(total) - dot), 0.0), mask=row < rows)


def soft_cross_entropy_rows(
    logits: Tensor, target: Tensor, weight: Tensor | None, each: Tensor, grad: Tensor | None
) -> None:
    """What each row adds to the mean over those with a share, and its derivative."""
    count = (target != 0).any(1).sum(dtype=torch.int32)
    launch_rows(_soft_cross_entropy, "soft-cross-entropy", *logits.shape, logits, target, weight, count, each, grad)


def soft_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, loss: Tensor, grad: Tensor | None
) -> None:
    """The mean over rows with a share of `-sum_k y_ik log softmax(z_i)_k` into `loss`, and its derivative in `z`.

    Each row times its weight, and 0 where that is.
    """
    each = each_row(loss, logits)
    soft_cross_entropy_rows(logits, target, weight, each, grad)
    add_up(each, loss)
