"""From beliefs in the true class to the weights of samples, and what speaks against them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import cid._checks as check
from cid.propensity import _checks


def propensity_weights(
    context_belief: Tensor,
    full_belief: Tensor | None = None,
    *,
    target: Tensor | None = None,
    power: float = 1.0,
    clip: float = 50.0,
    floor: float = 1e-4,
) -> Tensor:
    r"""Stabilised inverse propensities, of mean 1.

    .. math:: w_i \propto \frac{\pi_i}{\max(p_\mathrm{context}(y_i \mid x_i), \mathrm{floor})^\lambda}

    Scaled to mean 1, clipped from above at `clip`, and scaled to mean 1 again, which may lift the largest above it.
    The denominator is the belief in the label of a model that knows the context and not more, calibrated
    (`label_belief`); the numerator is how likely the label is right, by a model that knows all it can
    (`right_label_belief`). Neither has seen the sample (`CrossFit`). Where only the context speaks against the
    label, the sample is heavy; where both do, it is likely mislabelled, and is not.

    Args:
        context_belief: Of a model that knows the context and not more, shape (N,), from 0 to 1.
        full_belief: That the label is right, shape (N,), from 0 to 1; None for ones, which is the plain inverse
            propensity: labels have to be right then.
        target: Labels, int64, shape (N,), from 0. With them the weights of each class have mean 1: a class that no
            context speaks against would vanish beside the others.
        power: :math:`\lambda`, from 0, which is no intervention, to 1, the plain inverse; `context_power` finds it.
        clip: The largest weight, in means; from 1.
        floor: The smallest context belief that counts, above 0, at most 1.

    Returns:
        w, shape (N,), without gradient; float32 for half-precision beliefs.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value, or all of `full_belief` is 0.

    Example:
        >>> import torch
        >>> propensity_weights(torch.tensor([0.9, 0.9, 0.9, 0.1]))
        tensor([0.3333, 0.3333, 0.3333, 3.0000])
        >>> propensity_weights(torch.tensor([0.9, 0.9, 0.9, 0.1]), torch.tensor([0.9, 0.9, 0.9, 0.1]))
        tensor([1., 1., 1., 1.])

    Source: Horvitz and Thompson 1952; Robins et al. 2000 (numerator); Hajek 1971 (scaling in each class); Ionides 2008
    (clipping).
    """
    check.number("power", power, low=0, high=1)
    check.number("clip", clip, low=1)
    check.number("floor", floor, low=0, high=1, open_low=True)
    weight = _belief("context_belief", context_belief).clamp_min(floor) ** -power
    if full_belief is not None:
        full = _belief("full_belief", full_belief)
        check.beside("context_belief", context_belief, full_belief=full_belief)
        check.shape("full_belief", full, context_belief.shape)
        if not bool(full.any()):
            raise ValueError("full_belief: got zeros alone, accepted: at least one belief above 0")
        weight = full * weight
    if target is not None:
        _checks.labels(target, "context_belief", context_belief)
    weight = _to_mean_one(_to_mean_one(weight, target).clamp_max(clip), target)
    return weight.to(torch.promote_types(context_belief.dtype, torch.float32))


def _to_mean_one(weight: Tensor, target: Tensor | None) -> Tensor:
    """The weights scaled to mean 1: all together, or those of each class."""
    if target is None:
        return weight / weight.mean()
    sums = weight.new_zeros(int(target.max()) + 1).index_add_(0, target, weight)
    counts = weight.new_zeros(len(sums)).index_add_(0, target, torch.ones_like(weight))
    # A class all of whose weights are 0 keeps them.
    factors = torch.where(sums > 0, counts / sums, 0.0)
    return weight * factors[target]


_MOST_POWER = 0.7


def context_power(context_belief: Tensor, target: Tensor) -> float:
    r"""The power of the weights, by how much of the labels' entropy the context tells.

    .. math::
        \lambda = 0.7 \, \frac{r^2}{r^2 + (1 - r)^2}, \quad
        r = \max\left(0, \, 1 - \frac{-\frac{1}{N} \sum_i \log p_\mathrm{context}(y_i \mid x_i)}{H(Y)} \right)

    A context that tells little biases little, and the inverse would make samples heavy for what is chance, or for what
    the class itself looks like. Nor is it the plain inverse where the context tells all: that leaves no sign of the
    context in the weighted samples, but few samples that count, and they are learned by heart. With 0.7 some of the
    first is left, and there are more of the second.

    Args:
        context_belief: Calibrated, in the true class, shape (N,), from 0 to 1; below 1e-6 taken for that.
        target: Labels, int64, shape (N,), from 0.

    Returns:
        A number from 0 to 0.7; 0 where there is one class.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value.

    Example:
        >>> import torch
        >>> context_power(torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([0, 0, 1, 1]))
        0.0
        >>> context_power(torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1]))
        0.7

    Source: r is the statistic of McFadden 1974; the power is ours, and `docs/bias.md` says how it was found.
    """
    belief = _belief("context_belief", context_belief)
    _checks.labels(target, "context_belief", context_belief)
    share = target.bincount().double() / len(target)
    entropy = float(-(share * share.clamp_min(1e-300).log()).sum())
    told = 1 + float(belief.clamp_min(1e-6).log().mean()) / entropy if entropy > 0 else 0.0
    told = min(max(told, 0.0), 1.0)
    return _MOST_POWER * told**2 / (told**2 + (1 - told) ** 2)


def effective_sample_size(weight: Tensor) -> float:
    r"""How many samples of equal weight would estimate a mean as well, :math:`(\sum_i w_i)^2 / \sum_i w_i^2`.

    Args:
        weight: w, shape (N,), finite, from 0, and not all 0.

    Returns:
        A number from 1 to N; N where all weights are equal.

    Raises:
        TypeError: `weight` is no float tensor.
        ValueError: It has a wrong shape or value.

    Example:
        >>> import torch
        >>> effective_sample_size(torch.tensor([1.0, 1.0, 1.0, 1.0]))
        4.0
        >>> effective_sample_size(torch.tensor([0.0, 0.0, 0.0, 4.0]))
        1.0

    Source: Kish 1965, "Survey Sampling".
    """
    w = _column("weight", weight)
    _checks.weight_range(w)
    w = w / w.max()  # whose squares neither overflow nor vanish
    return float(w.sum() ** 2 / (w**2).sum())


# Below this part of the samples, an effective size is small; above this part of log C, a cross-entropy is a guess's.
_FEW, _GUESS, _MOST, _SAME = 0.05, 0.98, 0.5, 0.1


def overlap_warnings(weight: Tensor, context_belief: Tensor, num_classes: int, *, floor: float = 1e-4) -> list[str]:
    """What makes weights doubtful, each in a sentence.

    - Few samples carry the weight: the effective size is below a twentieth of the samples.
    - Samples whose context belief is below `floor` carry most of it: the floor decides what they weigh, not the data.
    - The context model knows no more than a guess: its weights are of no context.
    - All weights are within a tenth of 1: they change nothing.

    Args:
        weight: As `propensity_weights` gave it, shape (N,).
        context_belief: What it was made from, shape (N,).
        num_classes: C.
        floor: As it was there.

    Returns:
        The sentences; none where nothing is doubtful.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape or value.

    Example:
        >>> import torch
        >>> overlap_warnings(torch.ones(4), torch.full((4,), 0.1), 10)[0]
        "the context model only guesses (mean -log belief 2.30, a guess's 2.30): its weights are of no context"
    """
    check.size("num_classes", num_classes)
    belief = _belief("context_belief", context_belief)
    size = effective_sample_size(weight)
    check.shape("weight", weight, belief.shape)
    w, count = weight.detach().double() / weight.detach().double().mean(), len(belief)
    found: list[str] = []
    if size < _FEW * count:
        heaviest = w.topk(max(1, round(count / 100))).values.sum() / count
        found.append(
            f"few samples carry most of the weight (effective size {size:.0f} of {count}, the heaviest hundredth has "
            f"{heaviest:.0%}): students may learn these by heart"
        )
    if float(w[belief < floor].sum() / count) > _MOST:
        found.append(
            f"samples whose context belief is below the floor of {floor:g} carry most of the weight: the floor decides "
            "how much"
        )
    surprise, guess = float(-belief.clamp_min(1e-12).log().mean()), math.log(num_classes)
    if surprise >= _GUESS * guess:
        found.append(
            f"the context model only guesses (mean -log belief {surprise:.2f}, a guess's {guess:.2f}): its weights are "
            "of no context"
        )
    if float((w - 1).abs().max()) <= _SAME:
        found.append("all weights are near 1: they change next to nothing")
    return found


def _column(name: str, value: Tensor) -> Tensor:
    """One float a sample, at least one sample, as float64 without gradient."""
    check.beside(name, value, **{name: value})
    check.shape(name, value, ("N",))
    check.not_empty(name, value, "mean")
    return value.detach().double()


def _belief(name: str, value: Tensor) -> Tensor:
    """A column of numbers from 0 to 1."""
    return _checks.beliefs(name, _column(name, value))
