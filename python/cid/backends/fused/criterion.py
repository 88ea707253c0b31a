"""The whole criterion as one autograd node: two calls of kernels, and PyTorch's products between them."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

import cid._checks as check
from cid.backends import targets
from cid.backends.fused.context import accumulate_context, context_weights
from cid.backends.fused.intervention import marginal_context
from cid.backends.fused.loss import Scale, can_look, refuse_second_order, scaled
from cid.backends.fused.tensors import real
from cid.backends.kernels import Kernels
from cid.backends.options import CIDInputs, CIDOptions, CIDOutput


def cid_loss(inputs: CIDInputs, options: CIDOptions, kernels: Kernels, scale: Scale) -> CIDOutput:
    """See `cid.functional.cid_loss`; the inputs are as `Fused.cid_loss_as_one` has them."""
    f, s, t, q, y, weight, adapter_weight, adapter_bias, head_weight, head_bias, context, context_sums = inputs
    trained: tuple[Tensor | None, ...] = (f, s, adapter_weight, adapter_bias)
    trained += (None, None) if context is None else (head_weight, head_bias)  # in warm-up nothing looks at the head
    if not torch.is_grad_enabled():  # autograd would ask for gradients all the same
        trained = tuple(None if x is None else x.detach() for x in trained)
    given = (x if x is None or not x.requires_grad else x.detach() for x in (t, q, y, weight, context))
    outputs = _CID.apply(*trained, *given, context_sums, options, kernels, scale)
    loss, terms, z = cast(tuple[Tensor, Tensor, Tensor | None], outputs)
    ce, kd, sample, class_ = terms.unbind()
    return CIDOutput(loss, ce, kd, sample, class_, z)


class _CID(torch.autograd.Function):
    """The terms (ce, kd, sample, class), their weighted total and z.

    The kernels write their gradients in the forward; the products with them wait for a backward, and scalar factors
    ride along in them. Of the size of the logits it allocates, beside z and the gradient in s, one matrix: first the
    student's belief, then the gradient in z.
    """

    @staticmethod
    def forward(
        ctx: Any,
        f: Tensor,
        s: Tensor,
        adapter_weight: Tensor,
        adapter_bias: Tensor,
        head_weight: Tensor | None,
        head_bias: Tensor | None,
        t: Tensor,
        q: Tensor,
        y: Tensor,
        weight: Tensor | None,
        context: Tensor | None,
        context_sums: tuple[Tensor, Tensor] | None,
        options: CIDOptions,
        kernels: Kernels,
        scale: Scale,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        needs_f, needs_s, needs_adapter_weight, needs_adapter_bias, needs_weight, needs_bias = ctx.needs_input_grad[:6]
        terms = f.new_empty(4, dtype=real(f))
        loss = terms.new_empty(())
        kd_grad = torch.empty_like(s) if needs_s else None
        class_grad = torch.empty_like(f) if needs_f else None
        x = belief = z = z_grad = None
        if context is not None:
            x, belief = f.new_empty(f.shape[0], 2 * f.shape[1]), torch.empty_like(s)
        soft = y.is_floating_point()
        labels, ignored = targets.majority(y, options.ignore_index)
        numerator, denominator = (None, None) if soft or context_sums is None else context_sums
        kernels.cid_before(
            f, s, t, q, labels, weight, options.temperature, ignored,
            terms, kd_grad, class_grad, x, belief, numerator, denominator,
        )  # fmt: skip
        if soft and context_sums is not None:
            weights = context_weights(kernels, q, y, options.temperature, ignored)
            accumulate_context(kernels, f, weights, y, *context_sums, ignored)
        adapted = F.linear(f, adapter_weight, adapter_bias)
        sample_grad = torch.empty_like(adapted) if needs_f or needs_adapter_weight or needs_adapter_bias else None
        if context is not None and x is not None and belief is not None and head_weight is not None:
            m = x.narrow(1, f.shape[1], f.shape[1])
            if s.dtype == context.dtype and s.dtype not in check.HALVES and not torch.compiler.is_compiling():
                torch.mm(belief, context, out=m)
            else:
                m.copy_(marginal_context(kernels, s, context, options.temperature, False))
            z = F.linear(x, head_weight, head_bias)  # W f and W m at once
            z_grad = belief if needs_f or needs_weight or needs_bias else None
            if soft or options.label_smoothing != 0:
                labels = targets.smoothed(y, z.shape[1], ignored, options.label_smoothing, terms.dtype)
        kernels.cid_after(
            adapted, t, z, labels, weight, ignored, options.alpha, options.beta, options.gamma,
            terms, loss, sample_grad, z_grad,
        )  # fmt: skip
        ctx.mark_non_differentiable(terms, *(() if z is None else (z,)))
        ctx.options, ctx.kernels, ctx.scale = options, kernels, scale
        ctx.save_for_backward(f, x, adapter_weight, head_weight, kd_grad, class_grad, sample_grad, z_grad)
        return loss, terms, z

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        f, x, adapter_weight, head_weight, kd_grad, class_grad, sample_grad, z_grad = ctx.saved_tensors
        needs_f, needs_s, needs_adapter_weight, needs_adapter_bias, needs_weight, needs_bias = ctx.needs_input_grad[:6]
        # A number rides along in the products; a factor that can't be looked at is multiplied in at the end.
        looked = can_look(grad_output)
        g = grad_output.item() if looked else 1.0
        alpha, beta, gamma = g * ctx.options.alpha, g * ctx.options.beta, g * ctx.options.gamma

        grad_f = grad_s = grad_adapter_weight = grad_adapter_bias = grad_weight = grad_bias = None
        if needs_f:
            grad_f = torch.addmm(class_grad, sample_grad, adapter_weight, beta=gamma, alpha=beta)
            if z_grad is not None:
                grad_f.addmm_(z_grad, head_weight.narrow(1, 0, f.shape[1]), alpha=alpha)
        if needs_s:
            grad_s = kd_grad if alpha == 1.0 else kd_grad * alpha
        if needs_adapter_weight:
            grad_adapter_weight = torch.addmm(adapter_weight, sample_grad.t(), f, beta=0, alpha=beta)
        if needs_adapter_bias:
            grad_adapter_bias = _column_sums(sample_grad, beta, ctx.kernels)
        if needs_weight and z_grad is not None:
            grad_weight = torch.addmm(head_weight, z_grad.t(), x, beta=0, alpha=alpha)
        if needs_bias and z_grad is not None:
            grad_bias = _column_sums(z_grad, alpha, ctx.kernels)
        grads: list[Tensor | None] = [
            grad_f,
            grad_s,
            grad_adapter_weight,
            grad_adapter_bias,
            grad_weight,
            grad_bias,
        ]
        if not looked:
            grads = [None if grad is None else scaled(grad, grad_output, ctx.scale) for grad in grads]
        return *grads, *(None,) * 9


def _column_sums(matrix: Tensor, factor: float, kernels: Kernels) -> Tensor:
    sums = matrix.new_empty(matrix.shape[1])
    kernels.column_sums(matrix, factor, sums)
    return sums
