"""The context bank: sums over the samples of each class, weighted by the teacher's belief in it."""

import triton
import triton.language as tl
from torch import Tensor

from cid.backends.triton import tiles
from cid.backends.triton.grouping import Groups, group
from cid.backends.triton.rows import labels_of, launch, launch_rows, load, rows_here, store, tile_at
from cid.backends.triton.softmax import belief_in, softmax_of, statistics


@triton.jit(do_not_specialize=["ignore_index", "rows"])
def _context_weights(
    logits_ptr,
    target_ptr,
    out_ptr,
    per_temperature,
    ignore_index,
    rows,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = rows_here(ROWS)
    label, labelled = labels_of(target_ptr, row, rows, ignore_index, COLUMNS)
    largest, total = statistics(logits_ptr, row, rows, per_temperature, None, COLUMNS, ROWS, BLOCK)
    weight = belief_in(logits_ptr, row, label, labelled, largest, total, per_temperature, COLUMNS)
    tl.store(out_ptr + row, weight, mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def _soft_context_weights(
    logits_ptr,
    shares_ptr,
    out_ptr,
    per_temperature,
    rows,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = rows_here(ROWS)
    largest, total = statistics(logits_ptr, row, rows, per_temperature, None, COLUMNS, ROWS, BLOCK)
    for start in range(0, COLUMNS, BLOCK):
        at = tile_at(row, rows, start, COLUMNS, BLOCK)
        share = load(shares_ptr, at, 0.0)
        belief = softmax_of(load(logits_ptr, at, -float("inf")), largest, total, per_temperature)
        store(out_ptr, at, tl.where(share == 0.0, 0.0, share * belief))


def context_weights(teacher_logits: Tensor, target: Tensor, temperature: float, ignore_index: int, out: Tensor) -> None:
    """`softmax(q_i / T)[y_i]` of each row, 0 for an ignored one."""
    numbers = 1.0 / temperature, ignore_index
    launch_rows(_context_weights, "context-weights", *teacher_logits.shape, teacher_logits, target, out, *numbers)


def soft_context_weights(teacher_logits: Tensor, target: Tensor, temperature: float, out: Tensor) -> None:
    """`y_ik softmax(q_i / T)_k`, 0 where `y_ik` is."""
    launch_rows(
        _soft_context_weights,
        "soft-context-weights",
        *teacher_logits.shape,
        teacher_logits,
        target,
        out,
        1.0 / temperature,
    )


def accumulate_context(
    features: Tensor,
    weights: Tensor,
    target: Tensor,
    ignore_index: int,
    numerator: Tensor,
    denominator: Tensor,
    groups: Groups | None = None,
) -> None:
    """`numerator[y] += w f` and `denominator[y] += w`, in float32 and in an order that is always the same.

    Args:
        features: (B, D).
        weights: (B,).
        target: Labels, (B,); one outside 0..C-1 or `ignore_index` adds nothing, whatever its sample holds.
        ignore_index: Label of the samples that have none.
        numerator: (C, D), changed in place.
        denominator: (C,), changed in place.
        groups: What `group` makes of `target` and `ignore_index`, where it is known already.
    """
    samples, columns = features.shape
    if samples == 0:
        return
    label, order, start, end, _ = groups or group(target, ignore_index)
    # A program for each place and not for each class: the classes may be many more than the samples, and a program
    # that is not at the start of a class ends at once. Nothing is read of a class that does not occur.
    grid = samples, max(triton.cdiv(columns, tiles.CONTEXT.columns), 1)
    launch(
        _accumulate_kernel,
        grid,
        features,
        weights,
        label,
        order,
        start,
        end,
        numerator,
        denominator,
        columns,
        len(denominator),
        ROWS=tiles.CONTEXT.rows,
        COLUMNS=tiles.CONTEXT.columns,
    )


@triton.jit(do_not_specialize=["classes"])
def _accumulate_kernel(
    features_ptr,
    weights_ptr,
    label_ptr,
    order_ptr,
    start_ptr,
    end_ptr,
    numerator_ptr,
    denominator_ptr,
    columns,
    classes,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    first = tl.program_id(0)
    end = tl.load(end_ptr + first)
    label = tl.load(label_ptr + first)
    if (tl.load(start_ptr + first) == first) & (end > first) & (label < classes):
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        weights = tl.zeros((ROWS,), tl.float32)
        weighted = tl.zeros((ROWS, COLUMNS), tl.float32)
        for at in range(first, end, ROWS):
            place = at + tl.arange(0, ROWS)
            sample = tl.load(order_ptr + place, mask=place < end, other=0)
            weight = tl.load(weights_ptr + sample, mask=place < end, other=0).to(tl.float32)
            there = (place < end)[:, None] & (column < columns)[None, :]
            features = tl.load(features_ptr + sample[:, None] * columns + column[None, :], mask=there, other=0)
            weights += weight
            weighted += weight[:, None] * features.to(tl.float32)
        numerators = numerator_ptr + label * columns + column
        numerator = tl.load(numerators, mask=column < columns, other=0).to(tl.float32) + tl.sum(weighted, 0)
        tl.store(numerators, numerator, mask=column < columns)
        if tl.program_id(1) == 0:
            denominator = tl.load(denominator_ptr + label).to(tl.float32) + tl.sum(weights, 0)
            tl.store(denominator_ptr + label, denominator)
