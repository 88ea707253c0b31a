"""The student's belief as an autograd node: `softmax(s/T)` of each row."""

from typing import Any, cast

import torch
from torch import Tensor

from cid.backends.fused.loss import refuse_second_order
from cid.backends.fused.tensors import dense
from cid.backends.kernels import Kernels


def softmax(logits: Tensor, temperature: float, kernels: Kernels, differentiable: bool = False) -> Tensor:
    """`softmax(s/T)` of each row, differentiable in `s` where that is asked for."""
    if differentiable and logits.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _Softmax.apply(logits, temperature, kernels))
    logits = dense(logits)
    probabilities = torch.empty_like(logits)
    kernels.softmax(logits, temperature, probabilities)
    return probabilities


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float, kernels: Kernels) -> Tensor:
        probabilities = softmax(logits, temperature, kernels)
        ctx.save_for_backward(probabilities)
        ctx.temperature, ctx.kernels = temperature, kernels
        return probabilities

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_order()
        (probabilities,) = ctx.saved_tensors
        grad = torch.empty_like(probabilities)
        ctx.kernels.softmax_backward(dense(grad_output), probabilities, ctx.temperature, grad)
        return grad, None, None
