"""The softmax of a row, as the other formulas use it and on its own."""

import triton
import triton.language as tl
from torch import Tensor

from cid.backends.triton.rows import launch_rows, load, rows_here, store, tile_at


@triton.jit
def exponentials(x, largest, per_temperature):
    """`exp((x - max) / T)`."""
    return tl.exp((x - largest[:, None]) * per_temperature)


@triton.jit
def statistics(
    logits_ptr, row, rows, per_temperature, without, COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """The maximum of each row and the sum of its exponentials, but for the one in column `without` if that is given."""
    largest = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        x = load(logits_ptr, tile_at(row, rows, start, COLUMNS, BLOCK), -float("inf"))
        before = largest
        largest = tl.maximum(largest, tl.max(x, 1))
        # As long as there is nothing but -inf it is held against 0, since -inf - -inf is no number.
        against = tl.where(largest == -float("inf"), 0.0, largest)
        e = exponentials(x, against, per_temperature)
        if without is not None:
            e = tl.where(start + tl.arange(0, BLOCK) == without[:, None], 0.0, e)
        total = total * tl.exp((before - against) * per_temperature) + tl.sum(e, 1)
    return tl.where(largest == -float("inf"), 0.0, largest), total


@triton.jit
def softmax_of(x, largest, total, per_temperature):
    """`softmax(x / T)` of a row's elements. That of nothing but -inf is no number."""
    return exponentials(x, largest, per_temperature) * (1.0 / total)[:, None]


@triton.jit
def belief_in(logits_ptr, row, label, there, largest, total, per_temperature, COLUMNS: tl.constexpr):
    """`softmax(x / T)` of the element that is each row's label, 0 where there is none."""
    x = tl.load(logits_ptr + row * COLUMNS + label, mask=there, other=-float("inf")).to(tl.float32)
    return tl.where(there, tl.exp((x - largest) * per_temperature) * (1.0 / total), 0.0)


@triton.jit(do_not_specialize=["rows"])
def _softmax(
    logits_ptr, out_ptr, per_temperature, rows, COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    row = rows_here(ROWS)
    largest, total = statistics(logits_ptr, row, rows, per_temperature, None, COLUMNS, ROWS, BLOCK)
    for start in range(0, COLUMNS, BLOCK):
        at = tile_at(row, rows, start, COLUMNS, BLOCK)
        store(out_ptr, at, softmax_of(load(logits_ptr, at, -float("inf")), largest, total, per_temperature))


@triton.jit(do_not_specialize=["rows"])
def _softmax_backward(
    grad_output_ptr,
    probabilities_ptr,
    grad_ptr,
    per_temperature,
    rows,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = rows_here(ROWS)
    mean = tl.zeros((ROWS,), tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        at = tile_at(row, rows, start, COLUMNS, BLOCK)
        mean += tl.sum(load(probabilities_ptr, at, 0.0) * load(grad_output_ptr, at, 0.0), 1)
    for start in range(0, COLUMNS, BLOCK):
        at = tile_at(row, rows, start, COLUMNS, BLOCK)
        through = load(probabilities_ptr, at, 0.0) * (load(grad_output_ptr, at, 0.0) - mean[:, None])
        store(grad_ptr, at, through * per_temperature)


def softmax(logits: Tensor, temperature: float, out: Tensor) -> None:
    """`softmax(s_i / T)` of each row."""
    launch_rows(_softmax, "softmax", *logits.shape, logits, out, 1.0 / temperature)


def softmax_backward(grad_output: Tensor, probabilities: Tensor, temperature: float, grad: Tensor) -> None:
    """`P (g - sum_k P_k g_k) / T` of each row: the derivative through `softmax`."""
    launch_rows(_softmax_backward, "softmax-backward", *grad.shape, grad_output, probabilities, grad, 1.0 / temperature)
