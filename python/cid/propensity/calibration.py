"""The temperature, and the rate of wrong labels, at which a model's beliefs are as good as its predictions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import cid._checks as check
from cid.propensity import _checks

LOWEST, HIGHEST = 0.05, 1e3
MOST_NOISE = 0.9
_HALVINGS = 40  # of log(HIGHEST / LOWEST), 9.9: to 1e-11
_TRIED = 40  # temperatures, each 1.3 times the next, before the best of them is refined


def calibrate(logits: Tensor, target: Tensor) -> float:
    r"""The temperature T that minimises the cross-entropy of :math:`\mathrm{softmax}(z / T)` with the labels.

    .. math:: T = \arg\min_{T} \; -\frac{1}{N} \sum_i \log \mathrm{softmax}(z_i / T)_{y_i}

    The logits have to be of samples that the model was not trained on. Of a model that knows nothing T is large, and
    its beliefs are 1/C. In 1/T the cross-entropy is convex: its derivative's only change of sign is found by bisection,
    in float64.

    Args:
        logits: z, shape (N, C), finite.
        target: Labels y, int64, shape (N,).

    Returns:
        T, from 0.05 to 1000.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value, or there are no samples.

    Example:
        >>> import torch
        >>> round(calibrate(torch.tensor([[4.0, 0.0]]).expand(4, 2), torch.tensor([0, 0, 0, 1])), 4)
        3.641

        Three of four are right, and at this temperature the belief is 3/4.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """
    z = _checked(logits, target, None)
    shown = z.gather(1, target[:, None])[:, 0].mean()

    def falls(log_temperature: float) -> bool:
        """Whether the cross-entropy falls where 1/T grows."""
        expected = (torch.softmax(z * math.exp(-log_temperature), 1) * z).sum(1).mean()
        return bool(expected < shown)

    return math.exp(_first(falls, math.log(LOWEST), high)) if falls(high := math.log(HIGHEST)) else HIGHEST


class NoisyCalibration(NamedTuple):
    """What `calibrate_with_noise` finds.

    Attributes:
        temperature: T, from 0.05 to 1000.
        noise: The rate of labels that are drawn at random from all classes, from 0 to 0.9.
    """

    temperature: float
    noise: float


def calibrate_with_noise(logits: Tensor, target: Tensor, *, weight: Tensor | None = None) -> NoisyCalibration:
    r"""The temperature and the rate of wrong labels that minimise the cross-entropy with the labels.

    .. math:: T, \epsilon = \arg\min_{T, \epsilon} \; -\sum_i w_i \log\left(
        (1 - \epsilon) \, \mathrm{softmax}(z_i / T)_{y_i} + \frac{\epsilon}{C} \right)

    A label is the model's with probability :math:`1 - \epsilon`, and else any. Without :math:`\epsilon` a few labels
    that the model is sure are wrong make all its beliefs flat.

    Args:
        logits: z, shape (N, C), finite, of samples that the model was not trained on.
        target: Labels y, int64, shape (N,).
        weight: w, shape (N,), finite, from 0, not all 0; those that the model was trained with. None for ones.

    Returns:
        T and the rate. In the rate the cross-entropy is convex, and its derivative is bisected; so is that in log T,
        about the best of temperatures from all of the range. All in float64.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value, or there are no samples.

    Example:
        >>> import torch
        >>> sure, unsure = torch.tensor([9.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> logits = torch.cat([sure.expand(100, 3), unsure.expand(100, 3)])
        >>> target = torch.tensor([0, 1, 2]).repeat(2).repeat_interleave(torch.tensor([90, 5, 5, 54, 23, 23]))
        >>> found = calibrate_with_noise(logits, target)
        >>> round(found.temperature, 1), round(found.noise, 2)
        (1.0, 0.15)

        Where the model is sure, 10 in 100 are wrong: of labels at random two thirds are.

    Source: the noise of Natarajan et al. 2013, "Learning with Noisy Labels", beside the temperature of Guo et al. 2017.
    """
    z = _checked(logits, target, weight)
    w = torch.ones_like(z[:, 0]) if weight is None else weight.detach().double()
    counts, chance = w > 0, 1 / z.shape[1]  # samples that do not count may be impossible ones
    z, y, w = z[counts], target[counts][:, None], w[counts] / w.max()
    w = w / w.sum()

    def fitted(log_temperature: float) -> tuple[float, float, bool]:
        """The least cross-entropy at this temperature, the rate there, and whether it rises with the temperature."""
        scaled = z * math.exp(-log_temperature)
        belief = torch.softmax(scaled, 1)
        own = belief.gather(1, y)[:, 0]
        gain = chance - own  # of a label's probability, by the rate

        def rises(noise: float) -> bool:
            return bool((w * gain / (own + noise * gain)).sum() <= 0)

        noise = 0.0 if rises(0.0) else _first(rises, 0.0, MOST_NOISE)
        mixed, lead = own + noise * gain, scaled.gather(1, y)[:, 0] - (belief * scaled).sum(1)
        return -float((w * mixed.log()).sum()), noise, bool((w * own / mixed * lead).sum() >= 0)

    tried = torch.linspace(math.log(HIGHEST), math.log(LOWEST), _TRIED, dtype=torch.float64).tolist()
    best = min(range(_TRIED), key=lambda i: fitted(tried[i])[0])
    low, high = tried[min(best + 1, _TRIED - 1)], tried[max(best - 1, 0)]
    refined = _first(lambda each: fitted(each)[2], low, high)
    log_temperature = min(tried[best], refined, key=lambda each: fitted(each)[0])
    return NoisyCalibration(min(max(math.exp(log_temperature), LOWEST), HIGHEST), fitted(log_temperature)[1])


def label_belief(logits: Tensor, calibration: NoisyCalibration) -> Tensor:
    r"""How likely each class is as a label: the model's, or one at random.

    .. math:: p_{ij} = (1 - \epsilon) \, \mathrm{softmax}(z_i / T)_j + \frac{\epsilon}{C}

    Of a model of the context :math:`\epsilon` says how often labels are not the context's, and none of its beliefs is
    below that: without it, what a network is too sure of would make the largest weights.

    Args:
        logits: z, shape (N, C), finite, of samples that the model was not trained on.
        calibration: T and the rate, as `calibrate_with_noise` found them.

    Returns:
        The probabilities, shape (N, C), without gradient; float32 for half-precision logits.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape or value, or there are no samples.

    Example:
        >>> import torch
        >>> label_belief(torch.tensor([[4.0, 0.0]]), NoisyCalibration(temperature=1.0, noise=0.1))
        tensor([[0.9338, 0.0662]])
    """
    z, (temperature, noise) = _finite(logits), _in_range(calibration)
    belief = (1 - noise) * torch.softmax(z / temperature, 1) + noise / z.shape[1]
    return belief.to(torch.promote_types(logits.dtype, torch.float32))


def right_label_belief(logits: Tensor, target: Tensor, calibration: NoisyCalibration) -> Tensor:
    r"""How likely each label is the model's, and not one at random.

    .. math:: \pi_i = \frac{(1 - \epsilon) \, p_i}{(1 - \epsilon) \, p_i + \epsilon / C}, \quad
        p_i = \mathrm{softmax}(z_i / T)_{y_i}

    Args:
        logits: z, shape (N, C), finite, of samples that the model was not trained on.
        target: Labels y, int64, shape (N,).
        calibration: T and the rate, as `calibrate_with_noise` found them.

    Returns:
        The probabilities, shape (N,), without gradient; 1 where the rate is 0.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value, or there are no samples.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0]])
        >>> right_label_belief(logits, torch.tensor([0, 1]), NoisyCalibration(temperature=1.0, noise=0.1))
        tensor([0.9465, 0.2446])

    Source: Bayes' rule.
    """
    z, (temperature, noise) = _checked(logits, target, None), _in_range(calibration)
    own = (1 - noise) * torch.softmax(z / temperature, 1).gather(1, target[:, None])[:, 0]
    other = noise / z.shape[1]
    belief = own / (own + other) if other else torch.ones_like(own)
    return belief.to(torch.promote_types(logits.dtype, torch.float32))


def _first(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where something begins to hold between two numbers, up to the second, by bisection."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _in_range(calibration: NoisyCalibration) -> NoisyCalibration:
    """The same, if both numbers are what `calibrate_with_noise` may yield."""
    check.number("calibration.temperature", calibration.temperature, low=LOWEST, high=HIGHEST)
    check.number("calibration.noise", calibration.noise, low=0, high=MOST_NOISE)
    return calibration


def _checked(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The logits, in float64, with labels and weights that go with them."""
    z = _finite(logits)
    _checks.labels(target, "logits", logits, logits.shape[1])
    if weight is not None:
        check.weights("weight", weight, "logits", logits)
        _checks.weight_range(weight)
    return z


def _finite(logits: Tensor) -> Tensor:
    """The logits, in float64."""
    check.beside("logits", logits, logits=logits)
    check.shape("logits", logits, ("N", "C"))
    check.classes("logits", logits)
    check.not_empty("logits", logits, "mean")
    z = logits.detach().double()
    if not bool(z.isfinite().all()):
        raise ValueError("logits: got a NaN or an infinity, accepted: finite numbers")
    return z
