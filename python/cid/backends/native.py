"""The formulas in Rust: each loss and its gradient in one pass over the data, on PyTorch's own threads.

The kernels write the gradient while a row is in cache; the backward only scales it. Float32, float64, bfloat16 and
float16 on the CPU; halves are read and written as they are, and computed in float32.
"""

import ctypes
import os
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from cid import _checks, _native
from cid.backends.options import CIDOptions, KDOptions

_KINDS = (Tensor, torch.nn.Parameter)  # a subclass may keep its values elsewhere
_TYPES = _checks.FLOATS


def _join_torch_threads() -> None:
    """Hand PyTorch's parallel loop to the kernels, by address: no second pool, no linking against libtorch."""
    library = ctypes.PyDLL(torch._C.__file__)
    try:
        addresses = [
            cast(int, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
            for name in ("torch_parallel_for", "torch_get_num_threads")
        ]
    except AttributeError:  # not exported on this platform: serial, with the same results
        return
    _native.use_torch_threads(*addresses)
    # A forked child inherits the pool's state without its threads, and would wait for them for ever.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_native.run_serially)


_join_torch_threads()


def refusal(tensors: Iterable[Tensor]) -> str | None:
    """Why these tensors can't be taken, or None if they can."""
    for tensor in tensors:
        if type(tensor) not in _KINDS:
            return f"a tensor is a {type(tensor).__name__}, accepted: torch.Tensor"
        if not tensor.is_cpu:
            return f"a tensor is on {tensor.device}, accepted: cpu"
        if tensor.dtype not in _TYPES:
            return f"a tensor is {tensor.dtype}, accepted: {', '.join(map(str, _TYPES))}"
        if tensor.layout is not torch.strided:
            return f"a tensor is {tensor.layout}, accepted: torch.strided"
    return _transform()


def _transform() -> str | None:
    """What there is, if anything, that must see PyTorch's own operations."""
    if torch.compiler.is_compiling():
        return "it is being traced by torch.compile"
    if torch._C._is_tracing():
        return "it is being traced by torch.jit.trace"
    if torch._C._len_torch_dispatch_stack():  # make_fx, FakeTensorMode, a counter of operations
        return "it runs under a TorchDispatchMode"
    if torch._C._are_functorch_transforms_active():
        return "it runs under a torch.func transform"
    if forward_ad._current_level >= 0:
        return "it runs under forward-mode differentiation"
    return None


def takes(*tensors: object) -> bool:
    """Whether these are float tensors that the kernels can read as they are, and may."""
    return _transform() is None and _native.plain(*tensors)


def _dense(tensor: Tensor) -> Tensor:
    """`tensor` as the kernels read it: its values in memory order."""
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().contiguous()  # `contiguous` alone would keep a negative bit


def _real(tensor: Tensor) -> torch.dtype:
    """The type that a tensor is computed in, and that its losses have."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _refuse_second_order() -> None:
    """`once_differentiable` would not do: it passes where only the saved gradient depends on the input."""
    if torch.is_grad_enabled():
        raise RuntimeError("backend 'native' has no second derivative (create_graph=True); backend='reference' has")


_Kernel = Callable[..., None]
"""`kernel(student, *arguments, loss, grad)` fills `loss`, and `grad` where it is not None."""


class _GradientInForward(torch.autograd.Function):
    """A loss whose kernel has written the gradient by the time the backward runs."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, shape: tuple[int, ...], kernel: _Kernel, *arguments: Any) -> Tensor:
        dense = _dense(student)
        loss, grad = dense.new_empty(shape, dtype=_real(dense)), torch.empty_like(dense)
        kernel(dense, *arguments, loss, grad)
        ctx.save_for_backward(grad)
        ctx.arguments = len(arguments)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_order()
        (grad,) = ctx.saved_tensors
        rest = (None,) * (2 + ctx.arguments)
        if grad_output.ndim == 0 and grad_output.item() == 1.0:  # on a CPU a look costs less than a pass over the data
            return grad, *rest
        # Out of place: a second backward over the same graph needs the saved gradient as it was. (Where the one handed
        # out above has been changed in place meanwhile, PyTorch raises.)
        return grad * (grad_output if grad_output.ndim == 0 else grad_output[:, None]), *rest


def _loss(student: Tensor, shape: tuple[int, ...], kernel: _Kernel, *arguments: Any) -> Tensor:
    """What `kernel` makes of these arguments, differentiable in `student`."""
    if student.requires_grad and torch.is_grad_enabled():
        if student.dtype == torch.float16:
            # It has no room for small gradients, which a scaled loss makes large: they must not be rounded before.
            student, *arguments = (  # type: ignore[assignment]
                x.float() if isinstance(x, Tensor) and x.dtype == torch.float16 else x for x in (student, *arguments)
            )
        return cast(Tensor, _GradientInForward.apply(student, shape, kernel, *arguments))
    dense = _dense(student)
    loss = dense.new_empty(shape, dtype=_real(dense))
    kernel(dense, *arguments, loss, None)
    return loss


def _rows(student: Tensor, reduction: str) -> tuple[tuple[int, ...], bool]:
    """Shape of a loss over rows, each by itself or one number, and whether that is their mean."""
    return (student.shape[:1] if reduction == "none" else ()), reduction not in ("none", "sum")


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, target: Tensor | None, options: KDOptions) -> Tensor:
    """See `cid.functional.kd_loss`."""
    shape, mean = _rows(student_logits, options.reduction)
    labels = None if target is None else _dense(target)
    numbers = options.temperature, options.divergence, options.beta, options.ignore_index
    return _loss(student_logits, shape, _native.kd, _dense(teacher_logits), labels, *numbers, mean)


def sample_loss(student_features: Tensor, teacher_features: Tensor, reduction: str) -> Tensor:
    """See `cid.functional.sample_loss`."""
    shape, mean = _rows(student_features, reduction)
    return _loss(student_features, shape, _native.sample, _dense(teacher_features), mean)


def class_loss(student_features: Tensor, teacher_features: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """See `cid.functional.class_loss`."""
    return _loss(student_features, (), _native.class_, _dense(teacher_features), _dense(target), ignore_index)


def cross_entropy(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """The mean over the labelled samples of `-log softmax(z)[y]`; 0 where there is none."""
    return _loss(logits, (), _native.cross_entropy, _dense(target), ignore_index)


def context_weights(teacher_logits: Tensor, target: Tensor, temperature: float, ignore_index: int) -> Tensor:
    """See `cid.functional.context_weights`."""
    weights = teacher_logits.new_empty(teacher_logits.shape[:1], dtype=_real(teacher_logits))
    _native.context_weights(_dense(teacher_logits), _dense(target), temperature, ignore_index, weights)
    return weights


def accumulate_context(
    features: Tensor, weights: Tensor, target: Tensor, ignore_index: int, numerator: Tensor, denominator: Tensor
) -> None:
    """See `cid.functional.accumulate_context`."""
    sums = numerator, denominator
    if features.dtype in _checks.HALVES:  # the weights and sums may be float32, as the kernel has them
        weights, sums = weights.float(), (numerator.float(), denominator.float())
    _native.accumulate_context(_dense(features), _dense(weights), _dense(target), ignore_index, *sums)
    if sums[0] is not numerator:
        numerator.copy_(sums[0])
        denominator.copy_(sums[1])


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float) -> Tensor:
        probabilities = _softmax(logits, temperature)
        ctx.save_for_backward(probabilities)
        ctx.temperature = temperature
        return probabilities

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        _refuse_second_order()
        (probabilities,) = ctx.saved_tensors
        grad = torch.empty_like(probabilities)
        _native.softmax_backward(_dense(grad_output), probabilities, ctx.temperature, grad)
        return grad, None


def _softmax(logits: Tensor, temperature: float) -> Tensor:
    dense = _dense(logits)
    probabilities = torch.empty_like(dense)
    _native.softmax(dense, temperature, probabilities)
    return probabilities


def marginal_context(student_logits: Tensor, context: Tensor, temperature: float, differentiable: bool) -> Tensor:
    """See `cid.functional.marginal_context`; the matrix product stays with PyTorch."""
    if student_logits.dtype in _checks.HALVES:  # a belief rounded to half precision would cost the product its own
        wide = marginal_context(student_logits.float(), context.float(), temperature, differentiable)
        return wide.to(student_logits.dtype)
    if differentiable and student_logits.requires_grad and torch.is_grad_enabled():
        belief = cast(Tensor, _Softmax.apply(student_logits, temperature))
    else:
        belief = _softmax(student_logits, temperature)
    return torch.mm(belief, context.detach() if context.requires_grad else context)


def _column_sums(matrix: Tensor, factor: float) -> Tensor:
    sums = matrix.new_empty(matrix.shape[1])
    _native.column_sums(matrix, factor, sums)
    return sums


class _CID(torch.autograd.Function):
    """All terms as one node: two calls of kernels, before the products that PyTorch computes and after them.

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
        head_weight: Tensor,
        head_bias: Tensor,
        t: Tensor,
        q: Tensor,
        y: Tensor,
        context: Tensor | None,
        context_sums: tuple[Tensor, Tensor] | None,
        options: CIDOptions,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        needs_f, needs_s, needs_adapter_weight, needs_adapter_bias, needs_weight, needs_bias = ctx.needs_input_grad[:6]
        terms = f.new_empty(4, dtype=_real(f))
        loss = terms.new_empty(())
        kd_grad = torch.empty_like(s) if needs_s else None
        class_grad = torch.empty_like(f) if needs_f else None
        x = belief = z = z_grad = None
        if context is not None:
            x, belief = f.new_empty(f.shape[0], 2 * f.shape[1]), torch.empty_like(s)
        numerator, denominator = context_sums or (None, None)
        _native.cid_before(
            f, s, t, q, y, options.temperature, options.ignore_index,
            terms, kd_grad, class_grad, x, belief, numerator, denominator,
        )  # fmt: skip
        adapted = F.linear(f, adapter_weight, adapter_bias)
        sample_grad = torch.empty_like(adapted) if needs_f or needs_adapter_weight or needs_adapter_bias else None
        if context is not None and x is not None and belief is not None:
            m = x.narrow(1, f.shape[1], f.shape[1])
            if s.dtype == context.dtype and s.dtype not in _checks.HALVES:
                torch.mm(belief, context, out=m)
            else:
                m.copy_(marginal_context(s, context, options.temperature, False))
            z = F.linear(x, head_weight, head_bias)  # W f and W m at once
            z_grad = belief if needs_f or needs_weight or needs_bias else None
        _native.cid_after(
            adapted, t, z, y, options.ignore_index, options.alpha, options.beta, options.gamma,
            terms, loss, sample_grad, z_grad,
        )  # fmt: skip
        ctx.mark_non_differentiable(terms, *(() if z is None else (z,)))
        ctx.options = options
        ctx.save_for_backward(f, x, adapter_weight, head_weight, kd_grad, class_grad, sample_grad, z_grad)
        return loss, terms, z

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_order()
        f, x, adapter_weight, head_weight, kd_grad, class_grad, sample_grad, z_grad = ctx.saved_tensors
        needs_f, needs_s, needs_adapter_weight, needs_adapter_bias, needs_weight, needs_bias = ctx.needs_input_grad[:6]
        g = grad_output.item()
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
            grad_adapter_bias = _column_sums(sample_grad, beta)
        if needs_weight and z_grad is not None:
            grad_weight = torch.addmm(head_weight, z_grad.t(), x, beta=0, alpha=alpha)
        if needs_bias and z_grad is not None:
            grad_bias = _column_sums(z_grad, alpha)
        rest = (None,) * 6
        return grad_f, grad_s, grad_adapter_weight, grad_adapter_bias, grad_weight, grad_bias, *rest


def cid_fits(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    target: Tensor,
    adapter: tuple[Tensor, Tensor],
    head: tuple[Tensor, Tensor],
    context: Tensor | None,
    context_sums: tuple[Tensor, Tensor] | None,
    options: CIDOptions,
) -> bool:
    """Whether `cid_loss` can take these arguments, whatever they are: all is well that its kernels do not check.

    Not float16, of whose gradients, written in the forward, too much would be lost before a `GradScaler`'s factor could
    save it; nor under autocast.
    """
    if _transform() is not None or torch.is_autocast_enabled("cpu"):
        return False
    factors = options.alpha, options.beta, options.gamma
    return (
        _native.cid_fits(
            *student, *teacher, target, *adapter, *head, context, factors, options.temperature, options.ignore_index
        )
        and student[0].dtype != torch.float16
        and (context_sums is None or not any(x.requires_grad or x.is_neg() for x in context_sums))
    )


def cid_loss(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    target: Tensor,
    adapter: tuple[Tensor, Tensor],
    head: tuple[Tensor, Tensor],
    context: Tensor | None,
    context_sums: tuple[Tensor, Tensor] | None,
    options: CIDOptions,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The total, its terms (ce, kd, sample, class) and z; see `cid.functional.cid_loss`.

    A pair is (features, logits) or (weight, bias). The marginal context is not differentiated.
    """
    if context is None:
        head = head[0].detach(), head[1].detach()  # warm-up: nothing of it reaches the loss
    trained: tuple[Tensor, ...] = (*student, *adapter, *head)
    if not torch.is_grad_enabled():  # autograd would ask for gradients all the same
        trained = tuple(x.detach() for x in trained)
    given = (*teacher, target, context)
    return cast(
        tuple[Tensor, Tensor, Tensor | None],
        _CID.apply(
            *trained, *(x if x is None or not x.requires_grad else x.detach() for x in given), context_sums, options
        ),
    )
