"""Losses that several methods have."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The mean over the samples, of which sample i counts `weight[i]` times; None counts each once."""
    from torch.nn import functional

    if weight is None:
        return functional.cross_entropy(logits, target)
    return (weight * functional.cross_entropy(logits, target, reduction="none")).mean()


def full(x: Tensor) -> Tensor:
    """In float32 at least: squares and sums of half precision are not to be rounded to it."""
    from torch import float32, promote_types

    return x.to(promote_types(x.dtype, float32))


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """Vectors along a dimension, each over its length; 0, and without gradient, where that is 0.

    There `torch.nn.functional.normalize` has a gradient of 1e12.
    """
    from torch import inf, linalg

    length = linalg.vector_norm(x, dim=dim, keepdim=True)
    found: Tensor = x / length.masked_fill(length == 0, inf)
    return found
