"""The contexts by kernels: the samples' weights, and the sums of the bank."""

import torch
from torch import Tensor

import cid._checks as check
from cid.backends import reference
from cid.backends.fused.tensors import dense, real
from cid.backends.kernels import Kernels


def context_weights(
    kernels: Kernels, teacher_logits: Tensor, target: Tensor, temperature: float, ignore_index: int
) -> Tensor:
    """See `cid.functional.context_weights`."""
    q = dense(teacher_logits)
    if target.is_floating_point():
        weights = torch.empty_like(q, dtype=real(q))
        kernels.soft_context_weights(q, dense(target.detach().to(weights.dtype)), temperature, weights)
        return weights
    weights = q.new_empty(q.shape[:1], dtype=real(q))
    kernels.context_weights(q, dense(target), temperature, ignore_index, weights)
    return weights


def accumulate_context(
    kernels: Kernels,
    features: Tensor,
    weights: Tensor,
    target: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    ignore_index: int,
) -> None:
    """See `cid.functional.accumulate_context`."""
    sums = numerator, denominator
    if weights.dtype != real(features):
        weights = weights.to(real(features))
    if features.dtype in check.HALVES:  # the sums may be of the same type, or float32, as the kernel has them
        sums = numerator.float(), denominator.float()
    if target.is_floating_point():
        # Each class may have a share of each sample: there is nothing for a kernel to leave out of PyTorch's products.
        reference.accumulate_context(features, weights, target, *sums, ignore_index)
    else:
        kernels.accumulate_context(dense(features), dense(weights), dense(target), ignore_index, *sums)
    if sums[0] is not numerator:
        numerator.copy_(sums[0])
        denominator.copy_(sums[1])
