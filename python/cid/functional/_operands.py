"""The operands of a formula as a backend is to see them."""

from torch import Tensor

import cid._checks as check
from cid.backends import autocast


def operands(**tensors: Tensor) -> list[Tensor]:
    """Float tensors on one device: as they are, or, of half precision under autocast, in float32.

    Raises:
        TypeError: What came is no tensor, or none of floats.
        ValueError: The tensors are on several devices.
    """
    first = next(iter(tensors))
    seen = dict(zip(tensors, autocast.widened(*tensors.values()), strict=True))
    check.beside(first, check.tensor(first, seen[first]), **seen)
    return [*seen.values()]


def rows(name: str, features: Tensor) -> Tensor:
    """Features of any rank as one row a sample."""
    if features.ndim == 2:
        return features
    if features.ndim < 1:
        raise ValueError(f"{name}: got shape (), accepted: (B, ...)")
    # Not flatten(1), which can't tell the columns of an empty batch.
    return features.reshape(features.shape[0], features.shape[1:].numel())
