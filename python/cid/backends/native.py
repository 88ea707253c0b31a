"""The formulas in Rust: each loss and its gradient in one pass over the data, on PyTorch's own threads.

The kernels write the gradient while a row is in cache; the backward only scales it. Float32 and float64 on the CPU.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cid import _native

_TYPES = (torch.float32, torch.float64)


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


def refusal(tensors: Sequence[Tensor]) -> str | None:
    """Why these tensors can't be taken, or None if they can."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"a tensor is on {tensor.device}, accepted: cpu"
        if tensor.dtype not in _TYPES:
            return f"a tensor is {tensor.dtype}, accepted: torch.float32, torch.float64"
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"a tensor is a {type(tensor).__name__}, accepted: torch.Tensor"
    if torch.compiler.is_compiling():
        return "it is being traced by torch.compile"
    if torch._C._are_functorch_transforms_active():
        return "it runs under a torch.func transform"
    if forward_ad._current_level >= 0:
        return "it runs under forward-mode differentiation"
    return None


def _dense(tensor: Tensor) -> Tensor:
    """`tensor` as the kernels read it: its values in memory order (`contiguous` alone would keep a negative bit)."""
    return tensor.detach().resolve_neg().contiguous()


_Kernel = Callable[[Tensor, Tensor, Tensor | None], None]
"""Fills `loss` and, where it is wanted, `grad` from the student's tensor."""


class _GradientInForward(torch.autograd.Function):
    """A loss whose kernel has written the gradient by the time the backward runs."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, loss_shape: tuple[int, ...], kernel: _Kernel) -> Tensor:
        dense = _dense(student)
        loss, grad = dense.new_empty(loss_shape), torch.empty_like(dense)
        kernel(dense, loss, grad)
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        # Out of place: a second backward over the same graph needs the saved gradient as it was.
        (grad,) = ctx.saved_tensors
        return grad * (grad_output if grad_output.ndim == 0 else grad_output[:, None]), None, None


def _loss(student: Tensor, loss_shape: tuple[int, ...], kernel: _Kernel) -> Tensor:
    if student.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _GradientInForward.apply(student, loss_shape, kernel))
    dense = _dense(student)
    loss = dense.new_empty(loss_shape)
    kernel(dense, loss, None)
    return loss


def _row_loss(
    student: Tensor, reduction: str, kernel: Callable[[Tensor, float, Tensor, Tensor | None], None]
) -> Tensor:
    """A loss that is summed over rows: by row, or reduced to a scalar in the kernel."""
    rows = student.shape[0]
    scale = 1.0 if reduction in ("none", "sum") else 1.0 / rows
    shape = (rows,) if reduction == "none" else ()
    return _loss(student, shape, lambda dense, loss, grad: kernel(dense, scale, loss, grad))


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float, reduction: str) -> Tensor:
    """See `cid.functional.kd_loss`."""
    teacher = _dense(teacher_logits)
    return _row_loss(
        student_logits,
        reduction,
        lambda student, scale, loss, grad: _native.kd(student, teacher, temperature, scale, loss, grad),
    )


def sample_loss(student_features: Tensor, teacher_features: Tensor, reduction: str) -> Tensor:
    """See `cid.functional.sample_loss`."""
    teacher = _dense(teacher_features)
    return _row_loss(
        student_features,
        reduction,
        lambda student, scale, loss, grad: _native.sample(student, teacher, scale, loss, grad),
    )


def class_loss(student_features: Tensor, teacher_features: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """See `cid.functional.class_loss`."""
    teacher, labels = _dense(teacher_features), target.contiguous()
    return _loss(
        student_features,
        (),
        lambda student, loss, grad: _native.class_(student, teacher, labels, ignore_index, loss, grad),
    )


def cross_entropy(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """The mean over the labelled samples of `-log softmax(z)[y]`; 0 where there is none."""
    labels = target.contiguous()
    labelled = max(int((labels != ignore_index).sum()), 1)
    return _loss(
        logits,
        (),
        lambda dense, loss, grad: _native.cross_entropy(dense, labels, ignore_index, 1.0 / labelled, loss, grad),
    )


def context_weights(teacher_logits: Tensor, target: Tensor, temperature: float, ignore_index: int) -> Tensor:
    """See `cid.functional.context_weights`."""
    logits = _dense(teacher_logits)
    weights = logits.new_empty(logits.shape[0])
    _native.context_weights(logits, target.contiguous(), temperature, ignore_index, weights)
    return weights


def accumulate_context(
    features: Tensor, weights: Tensor, target: Tensor, ignore_index: int, numerator: Tensor, denominator: Tensor
) -> None:
    """See `cid.functional.accumulate_context`."""
    _native.accumulate_context(
        _dense(features), _dense(weights), target.contiguous(), ignore_index, numerator, denominator
    )


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float) -> Tensor:
        probabilities = _softmax(logits, temperature)
        ctx.save_for_backward(probabilities)
        ctx.temperature = temperature
        return probabilities

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
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
    if differentiable and student_logits.requires_grad and torch.is_grad_enabled():
        belief = cast(Tensor, _Softmax.apply(student_logits, temperature))
    else:
        belief = _softmax(student_logits, temperature)
    return belief @ context.detach()
