"""The temperature at which a model's beliefs are as good as its predictions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import cid._checks as check

LOWEST, HIGHEST = 0.05, 1e3
_HALVINGS = 40  # of log(HIGHEST / LOWEST), 9.9: to a part of 1e-11


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
    check.beside("logits", logits, logits=logits)
    check.shape("logits", logits, ("N", "C"))
    check.classes("logits", logits)
    check.not_empty("logits", logits, "mean")
    if check.tensor("target", target).dtype != torch.int64:
        raise TypeError(f"target: got {target.dtype}, accepted: torch.int64")
    check.shape("target", target, logits.shape[:1])
    if target.device != logits.device:
        raise ValueError(f"target: is on {target.device}, accepted: {logits.device}, the device of logits")
    low_label, high_label = (int(label) for label in target.aminmax())
    if low_label < 0 or high_label >= logits.shape[1]:
        wrong = low_label if low_label < 0 else high_label
        raise ValueError(f"target: got label {wrong}, accepted: 0 to {logits.shape[1] - 1}")
    z = logits.detach().double()
    if not bool(z.isfinite().all()):
        raise ValueError("logits: got a NaN or an infinity, accepted: finite numbers")
    shown = z.gather(1, target[:, None])[:, 0].mean()

    def falls(log_temperature: float) -> bool:
        """Whether the cross-entropy falls where 1/T grows."""
        expected = (torch.softmax(z * math.exp(-log_temperature), 1) * z).sum(1).mean()
        return bool(expected < shown)

    low, high = math.log(LOWEST), math.log(HIGHEST)
    if not falls(high):
        return HIGHEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if falls(middle) else (middle, high)
    return math.exp(high)
