"""The formulas in plain PyTorch: readable, on any device and type; the truth for every fast backend.

Half-precision inputs are computed in float32, and all of a formula in float64 where one of them is; losses and context
weights come out in the type that they are computed in.
Nothing here waits for the device. Callers have checked the arguments, but for the values of the labels.
"""

import math
import sys
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

import cid._checks as check
from cid.backends import composed, targets
from cid.backends.backend import Backend
from cid.backends.options import CIDInputs, CIDOptions, CIDOutput, KDOptions

NORM_FLOOR = 1e-12  # as `torch.nn.functional.normalize`


def _real(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the type that a formula of them is computed in."""
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    return tuple(x.to(dtype) for x in tensors)


def _reduce(rows: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.mean()


def _factors(weight: Tensor | None, like: Tensor) -> Tensor | None:
    """The weights in the type that a formula is computed in; 0 for what is none, where nobody could refuse it."""
    if weight is None:
        return None
    weight = weight.detach().to(like.dtype)
    check.weight_range("weight", weight)
    return torch.where(check.are_weights(weight), weight, 0.0)


def _kept(labelled: Tensor | None, factors: Tensor | None, *rows: Tensor) -> tuple[Tensor, ...]:
    """The rows, with zeros in those that count nothing: they may hold anything, which 0 * NaN would not leave out."""
    counts = None if factors is None else factors != 0
    if labelled is not None:
        counts = labelled if counts is None else labelled & counts
    return rows if counts is None else tuple(torch.where(counts[:, None], x, 0.0) for x in rows)


def _weighted(factors: Tensor | None, rows: Tensor) -> Tensor:
    return rows if factors is None else factors * rows


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None,
    options: KDOptions,
    weight: Tensor | None = None,
) -> Tensor:
    """`T^2` times a divergence between `P = softmax(s/T)` and `Q = softmax(q/T)`, with `0 log 0 = 0`."""
    labelled = None if target is None else targets.labelled(target, student_logits.shape[1], options.ignore_index)
    student, teacher = (x / options.temperature for x in _real(student_logits, teacher_logits.detach()))
    factors = _factors(weight, student)
    student, teacher = _kept(labelled, factors, student, teacher)
    log_p, log_q = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    if options.divergence == "forward":
        rows = _kl(log_q, log_p)
    elif options.divergence == "reverse":
        rows = _kl(log_p, log_q)
    else:
        beta = options.beta
        # Where both rule a class out, log M is -inf too, and its gradient NaN; any number will do, as nothing is added.
        neither = (log_q == -math.inf) & (log_p == -math.inf)
        safe_q, safe_p = (torch.where(neither, 0.0, x) for x in (log_q, log_p))
        log_m = torch.logaddexp(safe_q + math.log(beta), safe_p + math.log1p(-beta))
        rows = beta * _kl(log_q, log_m) + (1.0 - beta) * _kl(log_p, log_m)
    rows = _weighted(factors, options.temperature**2 * rows)
    if labelled is None or options.reduction == "none":
        return _reduce(rows, options.reduction)
    return rows.sum() if options.reduction == "sum" else rows.sum() / labelled.sum().clamp(min=1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """`KL(A || B)` of each row of logarithms."""
    a = log_a.exp()
    nothing = a == 0
    # A class that A rules out adds nothing, even where both logarithms are -inf; nor does it to the gradient.
    difference = torch.where(nothing, 0.0, log_a) - torch.where(nothing, 0.0, log_b)
    return (a * difference).sum(1)


def sample_loss(
    student_features: Tensor, teacher_features: Tensor, reduction: str, weight: Tensor | None = None
) -> Tensor:
    """`||s - t||^2 / ||t||^2` of each row; a teacher's row of zeros has no scale to compare with and counts 0."""
    student, teacher = _real(student_features, teacher_features.detach())
    factors = _factors(weight, student)
    student, teacher = _kept(None, factors, student, teacher)
    norm = teacher.norm(dim=1, keepdim=True)
    safe = torch.where(norm == 0, 1.0, norm)
    # Divided before squaring: a ratio of norms neither overflows nor underflows where the squares would.
    rows = ((student - teacher) / safe).square().sum(1)
    return _reduce(_weighted(factors, torch.where(norm.squeeze(1) == 0, 0.0, rows)), reduction)


def class_loss(student_features: Tensor, teacher_features: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """`mean_k ||Gt_k - Gs_k||_F^2 / n_k^2` over the classes with two samples or more, as one masked B x B product."""
    labelled = targets.labelled(target, None, ignore_index)
    same = (target[:, None] == target) & labelled[:, None] & labelled
    count = same.sum(1)
    paired = count >= 2
    # An unlabelled row may hold anything, which 0 * NaN would let into the gradients of the others.
    student, teacher = (
        F.normalize(torch.where(labelled[:, None], x, 0.0), dim=1, eps=NORM_FLOOR)
        for x in _real(student_features, teacher_features.detach())
    )
    difference = torch.where(same & paired[:, None], teacher @ teacher.T - student @ student.T, 0.0)
    weight = torch.where(paired, 1.0 / count.clamp(min=1).to(difference.dtype), 0.0)
    classes = weight.sum().round().clamp(min=1)  # each of a class's n samples adds 1/n
    return (difference.square().sum(1) * weight.square()).sum() / classes


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """`-log softmax(z)[y]` or `-sum_k y_k log softmax(z)_k`, the mean over the labelled samples; 0 where there is none.

    Label smoothing mixes `1 / C` of each class into `y`.
    """
    labelled = targets.labelled(target, logits.shape[1], ignore_index)
    (z,) = _real(logits)
    factors = _factors(weight, z)
    (z,) = _kept(labelled, factors, z)
    log_p = F.log_softmax(z, dim=1)
    if target.is_floating_point():
        shares = (1.0 - label_smoothing) * target.detach().to(z.dtype) + label_smoothing / logits.shape[1]
        # A class without a share adds nothing, even where its logarithm is -inf.
        rows = -(shares * torch.where(shares == 0, 0.0, log_p)).sum(1)
        total = torch.where(labelled, _weighted(factors, rows), 0.0).sum()
    else:
        if factors is not None:
            log_p = factors[:, None] * log_p
        total = F.nll_loss(log_p, target, ignore_index=ignore_index, reduction="sum")
        if label_smoothing != 0:
            even = -torch.where(labelled, log_p.sum(1), 0.0).sum()
            total = (1.0 - label_smoothing) * total + label_smoothing / z.shape[1] * even
    return total / labelled.sum().clamp(min=1)


def context_weights(teacher_logits: Tensor, target: Tensor, temperature: float, ignore_index: int) -> Tensor:
    """`softmax(q/T)[y]`, 0 for an ignored sample, or `y_k softmax(q/T)_k`: like a loss, never in half precision."""
    labelled = targets.labelled(target, teacher_logits.shape[1], ignore_index)
    (q,) = _real(teacher_logits.detach())
    belief = torch.softmax(q / temperature, dim=1)
    if target.is_floating_point():
        shares = target.detach().to(belief.dtype)
        return torch.where(shares == 0, 0.0, shares * belief)
    own = belief.gather(1, torch.where(labelled, target, 0)[:, None]).squeeze(1)
    return torch.where(labelled, own, 0.0)


def accumulate_context(
    features: Tensor, weights: Tensor, target: Tensor, numerator: Tensor, denominator: Tensor, ignore_index: int
) -> None:
    """`numerator[y] += w f` and `denominator[y] += w`, or to each class k its `w_k f` and `w_k`.

    An ignored sample adds 0, whatever it holds.
    """
    labelled = targets.labelled(target, len(denominator), ignore_index)
    f = torch.where(labelled[:, None], features.detach().to(numerator.dtype), 0.0)
    if target.is_floating_point():
        w = torch.where(labelled[:, None], weights.detach().to(denominator.dtype), 0.0)
        numerator.addmm_(w.T, f)
        denominator.add_(w.sum(0))
        return
    row = torch.where(labelled, target, 0)
    w = torch.where(labelled, weights.detach().to(denominator.dtype), 0.0)
    numerator.index_add_(0, row, w[:, None] * f)
    denominator.index_add_(0, row, w)


def marginal_context(student_logits: Tensor, context: Tensor, temperature: float, differentiable: bool) -> Tensor:
    """`m = softmax(s/T) M`, in the type of the logits."""
    logits = student_logits if differentiable else student_logits.detach()
    s, context = _real(logits, context.detach())
    return (torch.softmax(s / temperature, dim=1) @ context).to(student_logits.dtype)


def cid_loss(inputs: CIDInputs, options: CIDOptions) -> CIDOutput:
    """The sum of these terms: see `cid.backends.composed`."""
    return composed.cid_loss(cast(Backend, sys.modules[__name__]), inputs, options)
