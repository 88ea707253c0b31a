"""The context of a sample by kernels: the student's mixture of those of the classes."""

import torch
from torch import Tensor

import cid._checks as check
from cid.backends.fused.softmax import softmax
from cid.backends.kernels import Kernels


def marginal_context(
    kernels: Kernels, student_logits: Tensor, context: Tensor, temperature: float, differentiable: bool
) -> Tensor:
    """See `cid.functional.marginal_context`; the matrix product stays with PyTorch."""
    if student_logits.dtype in check.HALVES:  # a belief rounded to half precision would cost the product its own
        wide = marginal_context(kernels, student_logits.float(), context.float(), temperature, differentiable)
        return wide.to(student_logits.dtype)
    belief = softmax(student_logits, temperature, kernels, differentiable)
    return torch.mm(belief, context.detach() if context.requires_grad else context)
