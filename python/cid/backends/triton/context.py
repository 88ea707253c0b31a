"""The context bank: sums over the samples of each class, weighted by the teacher's belief in it."""

import triton
import triton.language as tl
from torch import Tensor

from cid.backends.triton import tiles
from cid.backends.triton.grouping import Groups, group
from cid.backends.triton.rows import launch


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
