"""What a target says of each sample: its label, or, in a float tensor, the share of each class in it."""

import torch
from torch import Tensor

import cid._checks as check


def labelled(target: Tensor, num_classes: int | None, ignore_index: int) -> Tensor:
    """Which samples have a label, or a share of any class."""
    if target.is_floating_point():
        return target.amax(1) != 0  # not `any`, which takes many times longer
    check.label_range("target", target, num_classes, ignore_index)
    return target != ignore_index


def majority(target: Tensor, ignore_index: int) -> tuple[Tensor, int]:
    """Labels as they are, or of shares the class with more than half; and the label of samples that have none."""
    if not target.is_floating_point():
        return target, ignore_index
    share, label = target.max(1)
    return torch.where(share > 0.5, label, -1), -1


def smoothed(target: Tensor, num_classes: int, ignore_index: int, label_smoothing: float, dtype: torch.dtype) -> Tensor:
    """The shares of the classes, of which so much goes to all of them alike; zeros for a sample without a label.

    Labels have been checked, wherever that costs no wait for a device.
    """
    even, own = label_smoothing / num_classes, 1.0 - label_smoothing
    if target.is_floating_point():
        shares = target.detach().to(dtype)
        if label_smoothing == 0:
            return shares
        return (own * shares + even).masked_fill_(~labelled(shares, None, ignore_index)[:, None], 0.0)
    shares = torch.full((len(target), num_classes), even, dtype=dtype, device=target.device)
    # A label out of range, which on a device nobody refuses, counts as ignored.
    label = target.clamp(0, num_classes - 1)
    none = (label != target) | (target == ignore_index)
    return shares.scatter_(1, label[:, None], own + even).masked_fill_(none[:, None], 0.0)
