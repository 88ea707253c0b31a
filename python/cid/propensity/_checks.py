"""What the functions of weights ask of labels and weights, whose values, unlike a loss, they may wait for."""

from __future__ import annotations

import torch
from torch import Tensor

import cid._checks as check


def labels(target: Tensor, like: str, lead: Tensor, num_classes: int | None = None) -> None:
    """A label from 0, and below `num_classes` where that is known, for each row of `lead`."""
    if check.tensor("target", target).dtype != torch.int64:
        raise TypeError(f"target: got {target.dtype}, accepted: torch.int64")
    check.shape("target", target, lead.shape[:1])
    if target.device != lead.device:
        raise ValueError(f"target: is on {target.device}, accepted: {lead.device}, the device of {like}")
    lowest, highest = (int(label) for label in target.aminmax())
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        accepted = "0 and up" if num_classes is None else f"0 to {num_classes - 1}"
        raise ValueError(f"target: got label {lowest if lowest < 0 else highest}, accepted: {accepted}")


def beliefs(name: str, value: Tensor) -> Tensor:
    """The same, if all are numbers from 0 to 1."""
    wrong = (~((value >= 0) & (value <= 1))).nonzero()  # not NaN, with which no comparison is true
    if len(wrong):
        where = tuple(wrong[0].tolist())
        shown = ", ".join(str(index) for index in where)
        raise ValueError(f"{name}: got {float(value[where]):g} at index {shown}, accepted: numbers from 0 to 1")
    return value


def weight_range(weight: Tensor) -> None:
    """Finite numbers from 0, not all of them 0."""
    if not (bool(check.are_weights(weight).all()) and bool(weight.any())):
        raise ValueError(
            "weight: got a negative, NaN or infinite number, or zeros alone, accepted: finite numbers >= 0"
        )
