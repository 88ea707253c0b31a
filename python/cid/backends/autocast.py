"""Autocast: a loss of half-precision layers is computed in float32, as PyTorch's losses are."""

import torch
from torch import Tensor

import cid._checks as check


def is_on(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device; some devices have none, and to ask of them raises."""
    device = tensor.device.type
    # PyTorch 2.11's Dynamo can't trace the question whether there is autocast.
    known = device != "meta" if torch.compiler.is_compiling() else torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors of half precision in float32 where autocast is on for the device of the first.

    Those in float64 stay so, as autocast itself leaves them.
    """
    # What is no tensor is refused by the checks that follow.
    if isinstance(tensors[0], Tensor) and is_on(tensors[0]):
        return tuple(t.float() if isinstance(t, Tensor) and t.dtype in check.HALVES else t for t in tensors)
    return tensors
