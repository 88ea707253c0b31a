"""How far a result may be from the truth, by what its formula rounds on the way.

Each bound is of what float32 rounds (`EPS`, twice what one rounding can do), for the inputs at hand: of the largest
numbers that meet, not of a result in which they cancel. A result in half precision is rounded once more: see `close`.

- A sum of n terms rounds n times, each time at most half an eps of what there is so far. In whatever order, these do
  not all go one way: `growth(n)` is four of their standard deviations, and the terms' own rounding.
- What is good to e in its logits has a loss that is good to e times the derivative in them, all taken as positive, and
  probabilities that are good to a part e of themselves.
- A sum of squares L of numbers that are good to d is good to `2 d sqrt(L) + d^2`: where it is 0, d^2 is left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cid.backends import reference
from cid.backends.options import KDOptions

EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Bound:
    """Of a value and of its derivative in the student's tensor."""

    value: Tensor
    grad: Tensor


def growth(terms: int) -> float:
    """What a sum of so many terms is off by, in parts of the sum of their absolute values."""
    return EPS * (1 + math.sqrt(terms) / 2)


def close(ours: Tensor, truth: Tensor, bound: Tensor | float = 0.0, name: str = "result") -> None:
    """Equal within a bound, and within the last place of the type that a result is in."""
    info = torch.finfo(ours.dtype)
    ours, truth = ours.detach().double().cpu(), truth.detach().double().cpu()
    # A number below the smallest normal one is rounded to a multiple of the smallest, or to 0.
    smallest = info.tiny * (info.eps if info.dtype == "float16" else 1.0)
    allowed = torch.as_tensor(bound).double().cpu() + info.eps * truth.abs() + smallest
    same = (ours == truth) | (ours.isnan() & truth.isnan()) | ((ours.abs() > info.max) & (truth.abs() >= info.max))
    wrong = ~(same | ((ours - truth).abs() <= allowed))
    if wrong.any():
        worst = ((ours - truth).abs() / allowed).where(wrong, 0.0).max()
        at = wrong.nonzero()[0].tolist()
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} are off, up to {float(worst):.3g} of the bound, the first "
            f"at {at}: {float(ours[tuple(at)])!r}, not {float(truth[tuple(at)])!r}"
        )


def squared_error(ours: Tensor, truth: Tensor) -> float:
    """The mean squared error, relative to the mean square."""
    return float((ours.double() - truth).square().mean() / truth.square().mean().clamp(min=1e-300))


def exponentials(x: Tensor) -> Tensor:
    """What `x - max x` of each row, its exponential, the sum of these and their share in it are good to: (B, 1).

    What lies 104 or more below the maximum has no part in the softmax.
    """
    below = x.amax(1, keepdim=True) - x
    return EPS * (4 + torch.where(below < 104, below, 0.0).amax(1, keepdim=True)) + growth(x.shape[1])


def softmax(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`softmax(x/T)`, and what it is good to."""
    x = logits.double() / temperature
    belief = x.softmax(1)
    return belief, belief * exponentials(x)


def softmax_backward(belief: Tensor, grad: Tensor, temperature: float) -> Tensor:
    """Of `p (g - sum_k p_k g_k) / T`."""
    p, g = belief.double(), grad.double().abs()
    return p * (g + (p * g).sum(1, keepdim=True)) * (growth(p.shape[1]) + 2 * EPS) / temperature


def _weighted(bound: Bound, weight: Tensor | None) -> Bound:
    """Of rows that count so many times."""
    if weight is None:
        return bound
    w = weight.detach().double()
    return Bound(bound.value * w, bound.grad * w[:, None])


def kd(
    student: Tensor, teacher: Tensor, target: Tensor | None, options: KDOptions, weight: Tensor | None = None
) -> Bound:
    """Of the loss, and of a gradient of `P` and `Q` and the logarithms of their ratio."""
    s, q = (x.detach().double().requires_grad_() for x in (student, teacher))
    t = options.temperature
    p_, q_ = ((x.detach() / t).softmax(1) for x in (s, q))
    e = exponentials(s.detach() / t) + exponentials(q.detach() / t)
    counts = torch.ones(len(s), dtype=torch.bool) if target is None else target != options.ignore_index
    share = {"none": 1.0, "sum": 1.0}.get(options.reduction, 1.0 / max(int(counts.sum()), 1))

    # The reference has no derivative in the teacher: the same formula, the two changed about, has it.
    reverse = {"forward": "reverse", "reverse": "forward", "js": "js"}[options.divergence]
    sensitivity = torch.zeros_like(e)
    for a, b, divergence, beta in (
        (s, q, options.divergence, options.beta),
        (q, s, reverse, 1 - options.beta),
    ):
        rows = reference.kd_loss(a, b, None, KDOptions(t, divergence, beta, options.ignore_index, "none"))
        (grad,) = torch.autograd.grad(rows.sum(), a)
        sensitivity += t * grad.abs().sum(1, keepdim=True)
    value = share * (e * sensitivity + (t * e).square()).squeeze(1) + growth(s.shape[1]) * share * rows.detach()

    # `log(P/Q)` or `log(P/M)`, which the gradient of the forward divergence does without.
    m = {"forward": p_, "reverse": q_, "js": options.beta * q_ + (1 - options.beta) * p_}[options.divergence]
    log = torch.where(p_ == 0, 0.0, (p_ / m).log().abs())
    grad = share * t * e * (p_ * (2 + log + (p_ * log).sum(1, keepdim=True)) + q_)
    value, grad = torch.where(counts, value, 0.0), torch.where(counts[:, None], grad, 0.0)
    bound = _weighted(Bound(value, grad), weight)
    return bound if options.reduction == "none" else Bound(bound.value.sum(), bound.grad)


def cross_entropy(logits: Tensor, target: Tensor, ignore_index: int, weight: Tensor | None = None) -> Bound:
    """Of the loss, a logarithm of sums from 1 up; of the gradient, in which nothing cancels, close to 1 either."""
    z = logits.detach().double().requires_grad_()
    loss = reference.cross_entropy(z, target, ignore_index, 0.0, weight)
    (grad,) = torch.autograd.grad(loss, z)
    labelled = (target != ignore_index)[:, None]
    e = torch.where(labelled, exponentials(z.detach()), 0.0)
    each = e if weight is None else e * weight.detach().double()[:, None]
    return Bound(each.sum() / labelled.sum().clamp(min=1) + growth(len(z)) * loss.detach(), 2 * e * grad.abs())


def soft_cross_entropy(logits: Tensor, shares: Tensor, weight: Tensor | None = None) -> Bound:
    """Of the loss, sums of `y (z - max z)` and logarithms; of the gradient, `p - y`, of which either may be 1."""
    z, y = logits.detach().double(), shares.double()
    counts = y.amax(1, keepdim=True) != 0
    share = y.sum(1, keepdim=True) / counts.sum().clamp(min=1)
    z = torch.where(counts, z, 0.0)
    below = torch.where(y == 0, 0.0, y * (z.amax(1, keepdim=True) - z)).sum(1, keepdim=True) / counts.sum().clamp(min=1)
    rows = share * (exponentials(z) + growth(z.shape[1]) * math.log(z.shape[1])) + growth(z.shape[1]) * below
    loss = reference.cross_entropy(z, y, 0, 0.0, weight)
    p, e = z.softmax(1), exponentials(z) + growth(z.shape[1])
    bound = _weighted(Bound(rows.squeeze(1), 2 * e * p * share + 2 * EPS * y / counts.sum().clamp(min=1)), weight)
    return Bound(bound.value.sum() + growth(len(z)) * loss, bound.grad)


def sample(student: Tensor, teacher: Tensor, reduction: str, weight: Tensor | None = None) -> Bound:
    """Nothing cancels but `s - t`, which is exact or rounded once."""
    s = student.detach().double().requires_grad_()
    loss = reference.sample_loss(s, teacher.double(), reduction, weight)
    (grad,) = torch.autograd.grad(loss.sum(), s)
    part = 4 * EPS + 2 * growth(s.shape[1])
    return Bound((part + growth(len(s))) * loss.detach(), part * grad.abs())


def class_(student: Tensor, teacher: Tensor, target: Tensor, ignore_index: int) -> Bound:
    """The loss is of squares of differences of cosines; the gradient is their products with the normalised rows."""
    # What two cosines are good to: their sums, and the norms and factors of both.
    d = growth(student.shape[1]) + growth(teacher.shape[1]) + 4 * EPS
    labelled = (target != ignore_index)[:, None]
    s, t = (torch.where(labelled, x.double(), 0.0) for x in (student, teacher))
    loss = reference.class_loss(s, t, target, ignore_index)
    value = 2 * d * loss.sqrt() + d**2 + growth(len(s)) * loss

    norm = s.norm(dim=1, keepdim=True).clamp(min=reference.NORM_FLOOR)
    rows, others = s / norm, torch.nn.functional.normalize(t, eps=reference.NORM_FLOOR)
    same = (target[:, None] == target) & labelled
    count = same.sum(1, keepdim=True)
    classes = torch.where(count >= 2, 1 / count, 0.0).sum().clamp(min=1)
    # The differences meet half-precision rows as the sum of two numbers of their type.
    half = 0.0 if student.dtype in (torch.float32, torch.float64) else torch.finfo(student.dtype).eps ** 2 / 4
    differences = (rows @ rows.T - others @ others.T).abs()
    error = torch.where(same, d + (growth(len(s)) + half) * differences, 0.0)
    grad = (
        4 * (error @ rows.abs() + error.sum(1, keepdim=True) * rows.abs()) / (count.clamp(min=1) ** 2 * classes * norm)
    )
    return Bound(value, torch.where(count >= 2, grad, 0.0))


def contexts(
    features: Tensor, weights: Tensor, target: Tensor, sums: Sequence[Tensor], part: float | None = None
) -> tuple[Tensor, Tensor]:
    """Of the sums of `w f` and of w, added to what there is: a part of the sum of all that is added, as positive.

    The part is float32's, where the weights are exact.
    """
    numerator, denominator = (x.double().abs() for x in sums)
    for row, label in enumerate(target.tolist()):
        if 0 <= label < len(denominator):
            numerator[label] += (weights[row].double() * features[row].double()).abs()
            denominator[label] += weights[row].double().abs()
    part = growth(len(target)) if part is None else part
    return part * numerator, part * denominator


def marginal(student_logits: Tensor, context: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`softmax(s/T) M`, and what it is good to."""
    belief, rounding = softmax(student_logits, temperature)
    m = context.double()
    return belief @ m, (rounding + growth(len(m)) * belief) @ m.abs()


def logits(values: Tensor, layers: int, terms: int, dtype: torch.dtype = torch.float32) -> float:
    """Of a network's logits that are computed in another way: in another batch, by another program or compiled.

    Each of `layers` rounds sums of up to `terms` products, in one way and in the other.
    """
    return 2 * layers * growth(terms) * torch.finfo(dtype).eps / EPS * float(values.detach().abs().max())
