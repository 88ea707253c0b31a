"""The whole criterion, `alpha (ce + kd) + beta sample + gamma class`, but for its matrix products.

What comes before them, and what comes after; no formula is here but the total.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cid.backends.triton.class_ import class_
from cid.backends.triton.context import accumulate_context
from cid.backends.triton.cross_entropy import cross_entropy_rows, soft_cross_entropy_rows
from cid.backends.triton.grouping import group
from cid.backends.triton.kd import kd_rows
from cid.backends.triton.rows import add_up, count_into, launch, launch_rows, room_for_rows
from cid.backends.triton.sample import sample_rows

# Where the value of each term stands.
_CE: tl.constexpr = tl.constexpr(0)
_KD: tl.constexpr = tl.constexpr(1)
_SAMPLE: tl.constexpr = tl.constexpr(2)
_CLASS: tl.constexpr = tl.constexpr(3)


def cid_before(
    student_features: Tensor,
    student_logits: Tensor,
    teacher_features: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    temperature: float,
    ignore_index: int,
    terms: Tensor,
    kd_grad: Tensor | None,
    class_grad: Tensor | None,
    inputs: Tensor | None,
    belief: Tensor | None,
    numerator: Tensor | None,
    denominator: Tensor | None,
) -> None:
    """All of the criterion that comes before its products.

    kd and class into `terms` (ce, kd, sample, class), f into the left half of `inputs` (B, 2 Ds), `softmax(s/T)` into
    `belief`; the batch's contexts are added to the sums. `weight` is of kd alone.
    """
    rows, columns = student_features.shape
    each = room_for_rows(student_logits)
    context_weights = None if numerator is None else room_for_rows(teacher_logits)
    kd_rows(
        student_logits,
        teacher_logits,
        None if context_weights is None else target,
        weight,
        None,
        each,
        kd_grad,
        temperature,
        1.0 / max(rows, 1),
        ignore_index,
        belief=belief,
        context_weights=context_weights,
    )
    add_up(each, terms[_KD.value])
    groups = group(target, ignore_index)
    class_(student_features, teacher_features, target, ignore_index, terms[_CLASS.value], class_grad, groups)
    if inputs is not None:
        inputs.narrow(1, 0, columns).copy_(student_features)
    if context_weights is not None and numerator is not None and denominator is not None:
        accumulate_context(student_features, context_weights, target, ignore_index, numerator, denominator, groups)


@triton.jit(do_not_specialize=["ignore_index", "classes", "rows"])
def _sample_and_count(
    student_ptr,
    teacher_ptr,
    target_ptr,
    weight_ptr,
    each_ptr,
    grad_ptr,
    count_ptr,
    scale,
    ignore_index,
    classes,
    rows,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if count_ptr is not None:
        if tl.program_id(0) == 0:
            count_into(count_ptr, target_ptr, ignore_index, rows, classes, 1024)
    sample_rows(student_ptr, teacher_ptr, weight_ptr, each_ptr, grad_ptr, scale, rows, COLUMNS, ROWS, BLOCK)


@triton.jit
def _sum_of(each_ptr, rows, BLOCK: tl.constexpr):
    """The sum of what the rows add, always in the same order."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        total += tl.load(each_ptr + row, mask=row < rows, other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["rows"])
def _total(sample_each_ptr, ce_each_ptr, terms_ptr, loss_ptr, alpha, beta, gamma, rows, BLOCK: tl.constexpr):
    """Adds up sample and ce into `terms`, and `alpha (ce + kd) + beta sample + gamma class` into `loss`."""
    sample = _sum_of(sample_each_ptr, rows, BLOCK)
    ce = 0.0
    if ce_each_ptr is not None:
        ce = _sum_of(ce_each_ptr, rows, BLOCK)
    tl.store(terms_ptr + _SAMPLE, sample)
    tl.store(terms_ptr + _CE, ce)
    total = alpha * (ce + tl.load(terms_ptr + _KD)) + beta * sample + gamma * tl.load(terms_ptr + _CLASS)
    tl.store(loss_ptr, total)


def cid_after(
    adapted: Tensor,
    teacher_features: Tensor,
    logits: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    alpha: float,
    beta: float,
    gamma: float,
    terms: Tensor,
    loss: Tensor,
    sample_grad: Tensor | None,
    ce_grad: Tensor | None,
) -> None:
    """All that comes after: sample and ce (0 without logits) into `terms`, and the total into `loss`.

    The target of ce may be shares, as of `soft_cross_entropy`. Of both each row is times its weight.
    """
    rows = len(adapted)
    each, ce_each, count, classes = room_for_rows(adapted), None, None, 0
    if logits is not None:
        ce_each, classes = room_for_rows(adapted), logits.shape[1]
    if logits is not None and not target.is_floating_point():
        count = torch.empty(1, dtype=torch.int32, device=adapted.device)
    launch_rows(
        _sample_and_count,
        "sample",
        *adapted.shape,
        adapted,
        teacher_features,
        target,
        weight,
        each,
        sample_grad,
        count,
        1.0 / max(rows, 1),
        ignore_index,
        classes,
    )
    if logits is not None and ce_each is not None and count is not None:
        cross_entropy_rows(logits, target, weight, ignore_index, count, ce_each, ce_grad)
    elif logits is not None and ce_each is not None:
        soft_cross_entropy_rows(logits, target, weight, ce_each, ce_grad)
    launch(
        _total,
        (1,),
        each,
        ce_each,
        terms,
        loss,
        float(alpha),
        float(beta),
        float(gamma),
        rows,
        BLOCK=4096,
        num_warps=16,
    )
