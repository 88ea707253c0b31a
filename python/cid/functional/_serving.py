"""Which backend serves a call, and the tensors as it is to see them."""

from torch import Tensor

import cid._checks as check
from cid.backends import Backend, autocast, select


def serving(backend: str | None, **tensors: Tensor) -> tuple[Backend, list[Tensor]]:
    """The backend for some float tensors, and the tensors: as they are, or in float32 under autocast.

    Raises:
        TypeError: What came is no tensor, or none of floats.
        ValueError: The tensors are on several devices, or the backend's name is unknown.
        RuntimeError: The named backend can't take them.
    """
    first = next(iter(tensors))
    seen = dict(zip(tensors, autocast.widened(*tensors.values()), strict=True))
    check.beside(first, check.tensor(first, seen[first]), **seen)
    return select(backend, *seen.values()), [*seen.values()]


def rows(name: str, features: Tensor) -> Tensor:
    """Features of any rank as one row a sample."""
    if features.ndim == 2:
        return features
    if features.ndim < 1:
        raise ValueError(f"{name}: got shape (), accepted: (B, ...)")
    # Not flatten(1), which can't tell the columns of an empty batch.
    return features.reshape(features.shape[0], features.shape[1:].numel())
