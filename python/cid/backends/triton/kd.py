"""Softened logits: `T^2` times a divergence between `P = softmax(s / T)` and `Q = softmax(q / T)`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cid.backends.triton.rows import (
    add_up,
    count_labelled,
    each_row,
    labels_of,
    launch,
    load,
    mean_over,
    rows_here,
    store,
    tile_at,
)
from cid.backends.triton.softmax import belief_in, softmax_of, statistics


@triton.jit
def _kl_terms(a, b, d):
    """What adds up to `KL(A || B)`; `d = log B - log A`.

    As `A` and `B` both add up to 1, it is the sum of `A (exp(d) - 1 - d)`, of which no term is negative: nothing cancels
    where they are close.
    """
    series = tl.full(d.shape, 1.0, tl.float32)
    for n in tl.static_range(9, 2, -1):
        series = tl.fma(series, d * (1.0 / n), 1.0)
    near = a * (0.5 * d * d * series)
    far = b - a - a * d
    # Where `A` is 0, the difference of the logarithms may be anything.
    return tl.where(a == 0.0, b, tl.where(tl.abs(d) < 0.5, near, far))


@triton.jit
def _log1p(x):
    """`log(1 + x)`, exact where `x` is small: the logarithm of what `1 + x` is rounded to, scaled to `x`."""
    y = 1.0 + x
    return tl.where(y == 1.0, x, tl.log(y) * (x / (y - 1.0)))


@triton.jit
def _logs_to_mixture(p, q, beta):
    """`log(P / M)` and `log(Q / M)` with `M = beta Q + (1 - beta) P`, 0 where `P` or `Q` is."""
    # `P / M - 1 = beta u` and `Q / M - 1 = -(1 - beta) u`: exact where `P` and `Q` are close.
    u = (p - q) / (beta * q + (1.0 - beta) * p)
    return tl.where(p == 0.0, 0.0, _log1p(beta * u)), tl.where(q == 0.0, 0.0, _log1p((beta - 1.0) * u))


@triton.jit
def _kd_terms(p, q, d, beta, DIVERGENCE: tl.constexpr):
    """What adds up to a row's divergence; `d = log P - log Q`."""
    if DIVERGENCE == "forward":
        return _kl_terms(q, p, d)
    elif DIVERGENCE == "reverse":
        return _kl_terms(p, q, -d)
    else:
        log_p, log_q = _logs_to_mixture(p, q, beta)
        return (1.0 - beta) * (p * log_p) + beta * (q * log_q)


@triton.jit
def _logs(p, q, d, beta, DIVERGENCE: tl.constexpr):
    """`l`, with which the derivative of the reverse and the Jensen-Shannon divergence is `P (l - sum_k P_k l_k)`."""
    if DIVERGENCE == "reverse":
        return tl.where(p == 0.0, 0.0, d)
    else:
        return (1.0 - beta) * _logs_to_mixture(p, q, beta)[0]


@triton.jit
def _pair(
    student, teacher, at, s_max, s_sum, q_max, q_sum, per_temperature
):
    """`P`, `Q` and `log P - log Q` of a tile."""
    s, q = load(student, at, -float("inf")), load(teacher, at, -float("inf"))
    d = ((s - s_max[:, None]) - (q - q_max[:, None])) * per_temperature - tl.log(s_sum / q_sum)[:, None]
    return softmax_of(s, s_max, s_sum, per_temperature), softmax_of(q, q_max, q_sum, per_temperature), d


@triton.jit(do_not_specialize=["ignore_index", "rows"])
def _kd(
    student,
    teacher,
    target,
    count,
    loss,
    grad,
    belief,
    weight,
    temperature,
    per_temperature,
    beta,
    scale,
    ignore_index,
    rows,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DIVERGENCE: tl.constexpr,
):
    row = rows_here(ROWS)
    s_max, s_sum = statistics(student, row, rows, per_temperature, None, COLUMNS, ROWS, BLOCK)
    q_max, q_sum = statistics(teacher, row, rows, per_temperature, None, COLUMNS, ROWS, BLOCK)

    counts = row < rows
    if target is not None:
        label, labelled = labels_of(target, row, rows, ignore_index, COLUMNS)
        if weight is not None:
            own = belief_in(teacher, row, label, labelled, q_max, q_sum, per_temperature, COLUMNS)
            tl.store(weight + row, own, mask=row < rows)
        else:
            counts = labelled
    if count is not None:
        scale = mean_over(count)
    slope = temperature * scale

    value = tl.zeros((ROWS,), tl.float32)
    mean = tl.zeros((ROWS,), tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        at = tile_at(row, rows, start, COLUMNS, BLOCK)
        p, q, d = _pair(student, teacher, at, s_max, s_sum, q_max, q_sum, per_temperature)
        value += tl.sum(_kd_terms(p, q, d, beta, DIVERGENCE), 1)
        if DIVERGENCE == "forward":
            if grad is not None:
                store(grad, at, tl.where(counts[:, None], (p - q) * slope, 0.0))
            if belief is not None:
                store(belief, at, p)
        else:
            mean += tl.sum(p * _logs(p, q, d, beta, DIVERGENCE), 1)

    if DIVERGENCE != "forward" and grad is not None:
        for start in range(0, COLUMNS, BLOCK):
            at = tile_at(row, rows, start, COLUMNS, BLOCK)
            p, q, d = _pair(student, teacher, at, s_max, s_sum, q_max, q_sum, per_temperature)
            beyond = _logs(p, q, d, beta, DIVERGENCE) - mean[:, None]
            store(grad, at, tl.where(counts[:, None], tl.where(p == 0.0, 0.0, p * beyond) * slope, 0.0))
    # Last: what was read before a write would have to be read again.
    tl.store(loss + row, tl.where(counts, value * temperature * slope, 0.0), mask=row < rows)


def kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None,
    temperature: float,
    divergence: str,
    beta: float,
    ignore_index: int,
    mean: bool,
    loss: Tensor,
    grad: Tensor | None,
) -> None:
    """`T^2` times a divergence ("forward", "reverse" or "js") of the rows' softmaxes, and its derivative in `s`.

    0 where the label is `ignore_index`.
    """
    with torch.cuda.device_of(student_logits):
        rows, columns = student_logits.shape
        each = each_row(loss, student_logits)
        count = count_labelled(target, columns, ignore_index) if mean and target is not None else None
        launch(
            _kd,
            rows,
            columns,
            student_logits,
            teacher_logits,
            target,
            count,
            each,
            grad,
            None,
            None,
            temperature,
            1.0 / temperature,
            beta,
            1.0 / max(rows, 1) if mean else 1.0,
            ignore_index,
            DIVERGENCE=divergence,
        )
        add_up(each, loss)
