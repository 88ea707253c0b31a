"""A loss as an autograd node whose gradient is written in the forward."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from cid.backends.fused.tensors import dense, real

Kernel = Callable[..., None]
"""`kernel(student, *arguments, loss, grad)` fills `loss`, and `grad` where it is not None."""
Scale = Callable[[Tensor, Tensor], object]
"""`scale(grad, factor)` is `grad *= factor`, for a factor of shape () on the device, which nobody waits for."""


def loss_of(student: Tensor, by_row: bool, kernel: Kernel, scale: Scale, *arguments: Any) -> Tensor:
    """What `kernel` makes of these arguments, one number or one for each row, differentiable in `student`."""
    if student.requires_grad and torch.is_grad_enabled():
        if student.dtype == torch.float16:
            # It has no room for small gradients, which a scaled loss makes large: they must not be rounded before.
            student = student.float()  # beside a teacher in float16, or none
        return cast(Tensor, _GradientInForward.apply(student, by_row, kernel, scale, *arguments))
    student = dense(student)
    loss = _room(student, by_row)
    kernel(student, *arguments, loss, None)
    return loss


class _GradientInForward(torch.autograd.Function):
    """A loss whose kernel has written the gradient by the time the backward runs."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, by_row: bool, kernel: Kernel, scale: Scale, *arguments: Any) -> Tensor:
        student = dense(student)
        loss, grad = _room(student, by_row), torch.empty_like(student)
        kernel(student, *arguments, loss, grad)
        ctx.save_for_backward(grad)
        ctx.scale, ctx.arguments, ctx.handed_out = scale, len(arguments), False
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        (grad,) = ctx.saved_tensors
        rest = (None,) * (3 + ctx.arguments)
        if grad_output.ndim == 0 and can_look(grad_output) and grad_output.item() == 1.0:
            ctx.handed_out = True  # where it is then changed in place, and the graph was kept, PyTorch raises
            return grad, *rest
        return scaled(grad, grad_output, ctx.scale, ctx.handed_out), *rest


def _room(student: Tensor, by_row: bool) -> Tensor:
    """Where a kernel writes its loss."""
    return student.new_empty(student.shape[:1] if by_row else (), dtype=real(student))


def scaled(grad: Tensor, factor: Tensor, scale: Scale, handed_out: bool = False) -> Tensor:
    """A gradient times `factor`, of shape () or one for each row; in place where nobody else will see it again."""
    by_row = factor if factor.ndim == 0 else factor[:, None]
    if torch.compiler.is_compiling() or handed_out or torch._C._autograd._get_current_graph_task_keep_graph():
        return grad * by_row
    if factor.ndim == 0:
        scale(grad, factor)
        return grad
    return grad.mul_(by_row)


def refuse_second_order() -> None:
    """`once_differentiable` would not do: it passes where only the saved gradient depends on the input."""
    if not torch.compiler.is_compiling() and torch.is_grad_enabled():
        raise RuntimeError(
            "backends 'native' and 'triton' have no second derivative (create_graph=True); backend='reference' has"
        )


def can_look(tensor: Tensor) -> bool:
    """Whether a look at the tensor's value costs no wait for a device and breaks no trace."""
    return tensor.is_cpu and not torch.compiler.is_compiling()
