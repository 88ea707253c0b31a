"""Softened logits: `T^2` times a divergence between `P = softmax(s / T)` and `Q = softmax(q / T)`."""

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
from cid.backends.triton.softmax import belief_in, softmax_of, statistics


@triton.jit
def _kl_terms(a, b, d):
    """What adds up to `KL(A || B)`; `d = log B - log A`.

    As `A` and `B` both add up to 1, it is the sum of `A (exp(d) - 1 - d)`, of which no term is negative: nothing
    cancels where they are close.
    """
    series = tl.full(d.shape, 1.0, tl.float32)
    for n in tl.static_range(9, 2, -1):
        series = tl.fma(series, d * (1.0 / n), 1.0)
    near = a * (0.5 * d * d * series)
    far = b - a - a * d
    # Where `A` is 0, the difference of the logarithms may be anything.
    return tl.where(a == 0.0, b, tl.where(tl.abs(d) < 0.5, near, far))


@triton.jit
def _log_of_ratio(a, b, x):
    """`log(a / b)`, 0 where `a` is; with `x = a / b - 1`, which may be exact where the ratio is close to 1."""
    ratio = a / b
    log = tl.where(ratio == 1.0, x, tl.log(ratio) * (x / (ratio - 1.0)))
    return tl.where(a == 0.0, 0.0, log)


@triton.jit
def _logs_to_mixture(p, q, beta):
    """`log(P / M)` and `log(Q / M)` with `M = beta Q + (1 - beta) P`."""
    m = beta * q + (1.0 - beta) * p
    u = (p - q) / m  # exact where P and Q are close
    return _log_of_ratio(p, m, beta * u), _log_of_ratio(q, m, (beta - 1.0) * u)


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
def _pair(student_ptr, teacher_ptr, at, s_max, s_sum, q_max, q_sum, per_temperature):
    """`P`, `Q` and `log P - log Q` of a tile."""
    s, q = load(student_ptr, at, -float("inf")), load(teacher_ptr, at, -float("inf"))
    d = ((s - s_max[:, None]) - (q - q_max[:, None])) * per_temperature - tl.log(s_sum / q_sum)[:, None]
    return softmax_of(s, s_max, s_sum, per_temperature), softmax_of(q, q_max, q_sum, per_temperature), d


@triton.jit(do_not_specialize=["ignore_index", "rows"])
def _kd(
    student_ptr,
    teacher_ptr,
    target_ptr,
    weight_ptr,
    count_ptr,
    loss_ptr,
    grad_ptr,
    belief_ptr,
    context_weight_ptr,
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
    s_max, s_sum = statistics(student_ptr, row, rows, per_temperature, None, COLUMNS, ROWS, BLOCK)
    q_max, q_sum = statistics(teacher_ptr, row, rows, per_temperature, None, COLUMNS, ROWS, BLOCK)

    counts = row < rows
    if target_ptr is not None:
        label, labelled = labels_of(target_ptr, row, rows, ignore_index, COLUMNS)
        if context_weight_ptr is None:
            counts = labelled
    if count_ptr is not None:
        scale = mean_over(count_ptr)
    scale, counts = weighed(scale, counts, weight_ptr, row, rows)
    slope = temperature * scale

    value = tl.zeros((ROWS,), tl.float32)
    mean = tl.zeros((ROWS,), tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        at = tile_at(row, rows, start, COLUMNS, BLOCK)
        p, q, d = _pair(student_ptr, teacher_ptr, at, s_max, s_sum, q_max, q_sum, per_temperature)
        value += tl.sum(_kd_terms(p, q, d, beta, DIVERGENCE), 1)
        if DIVERGENCE == "forward":
            if grad_ptr is not None:
                store(grad_ptr, at, tl.where(counts[:, None], (p - q) * slope[:, None], 0.0))
            if belief_ptr is not None:
                store(belief_ptr, at, p)
        else:
            mean += tl.sum(p * _logs(p, q, d, beta, DIVERGENCE), 1)

    if DIVERGENCE != "forward" and grad_ptr is not None:
        for start in range(0, COLUMNS, BLOCK):
            at = tile_at(row, rows, start, COLUMNS, BLOCK)
            p, q, d = _pair(student_ptr, teacher_ptr, at, s_max, s_sum, q_max, q_sum, per_temperature)
            beyond = _logs(p, q, d, beta, DIVERGENCE) - mean[:, None]
            store(grad_ptr, at, tl.where(counts[:, None], tl.where(p == 0.0, 0.0, p * beyond) * slope[:, None], 0.0))
    # Last, as what was read before a write would have to be read again.
    tl.store(loss_ptr + row, tl.where(counts, value * temperature * slope, 0.0), mask=row < rows)
    if context_weight_ptr is not None:
        own = belief_in(teacher_ptr, row, label, labelled, q_max, q_sum, per_temperature, COLUMNS)
        tl.store(context_weight_ptr + row, own, mask=row < rows)


def kd_rows(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None,
    weight: Tensor | None,
    count: Tensor | None,
    each: Tensor,
    grad: Tensor | None,
    temperature: float,
    scale: float,
    ignore_index: int,
    divergence: str = "forward",
    beta: float = 0.5,
    belief: Tensor | None = None,
    context_weights: Tensor | None = None,
) -> None:
    """What each row adds to the mean over `count` of them, or times `scale` to the sum, and its derivative.

    In passing, of the forward divergence: `P` into `belief`, and what the context takes of each row into
    `context_weights`. With these all rows count, whatever their label.
    """
    launch_rows(
        _kd,
        f"kd-{divergence}",
        *student_logits.shape,
        student_logits,
        teacher_logits,
        target,
        weight,
        count,
        each,
        grad,
        belief,
        context_weights,
        float(temperature),
        1.0 / temperature,
        beta,
        scale,
        ignore_index,
        DIVERGENCE=divergence,
    )


def kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None,
    weight: Tensor | None,
    temperature: float,
    divergence: str,
    beta: float,
    ignore_index: int,
    mean: bool,
    loss: Tensor,
    grad: Tensor | None,
) -> None:
    """`T^2` times a divergence ("forward", "reverse" or "js") of the rows' softmaxes, and its derivative in `s`.

    Both times the row's weight; 0 where that is 0 or the label `ignore_index`.
    """
    rows, classes = student_logits.shape
    each = each_row(loss, student_logits)
    count = count_labelled(target, classes, ignore_index) if mean and target is not None else None
    scale = 1.0 / max(rows, 1) if mean else 1.0
    kd_rows(
        student_logits,
        teacher_logits,
        target,
        weight,
        count,
        each,
        grad,
        temperature,
        scale,
        ignore_index,
        divergence,
        beta,
    )
    add_up(each, loss)
