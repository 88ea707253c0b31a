"""What the fast backends share: the formulas as autograd nodes over kernels that write the gradient in the forward.

A kernel computes a loss and its gradient while a row is in cache (or in registers), into outputs that it is given; the
backward only scales. The kernels are those of Rust (`cid._native`), of Triton (`cid.backends.triton`), or either as
PyTorch sees it in a trace (`cid.backends.ops`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from cid import _checks
from cid.backends import targets
from cid.backends.options import CIDInputs, CIDOptions, KDOptions

_KINDS = (Tensor, torch.nn.Parameter)  # a subclass may keep its values elsewhere


def refusal(tensors: Iterable[Tensor], device: str, dtypes: Sequence[torch.dtype]) -> str | None:
    """Why kernels for the device and types can't take these tensors, or None if they can."""
    for tensor in tensors:
        if type(tensor) not in _KINDS:
            return f"a tensor is a {type(tensor).__name__}, accepted: torch.Tensor"
        if tensor.device.type != device:
            return f"a tensor is on {tensor.device}, accepted: {device}"
        if tensor.dtype not in dtypes:
            return f"a tensor is {tensor.dtype}, accepted: {', '.join(map(str, dtypes))}"
        if tensor.layout is not torch.strided:
            return f"a tensor is {tensor.layout}, accepted: torch.strided"
    if torch.compiler.is_compiling():  # no obstacle by itself: see `cid.backends.ops`
        # Not is_exporting(), which PyTorch 2.11's Dynamo takes to be true in every trace.
        return "it is being traced by torch.export" if torch.compiler._is_exporting_flag else _functorch()
    return transform()


def transform() -> str | None:
    """What there is, if anything, outside of torch.compile that must see PyTorch's own operations."""
    if torch._C._is_tracing():
        return "it is being traced by torch.jit.trace"
    if torch._C._len_torch_dispatch_stack():  # make_fx, FakeTensorMode, a counter of operations
        return "it runs under a TorchDispatchMode"
    if forward_ad._current_level >= 0:
        return "it runs under forward-mode differentiation"
    return _functorch()


def _functorch() -> str | None:
    return "it runs under a torch.func transform" if torch._C._are_functorch_transforms_active() else None


class Kernels(Protocol):
    """The kernels of a backend; `_native.pyi` says what each computes."""

    kd: Callable[..., None]
    cross_entropy: Callable[..., None]
    soft_cross_entropy: Callable[..., None]
    sample: Callable[..., None]
    class_: Callable[..., None]
    softmax: Callable[..., None]
    softmax_backward: Callable[..., None]
    context_weights: Callable[..., None]
    soft_context_weights: Callable[..., None]
    accumulate_context: Callable[..., None]
    column_sums: Callable[..., None]
    cid_before: Callable[..., None]
    cid_after: Callable[..., None]


class Fused:
    """A backend over a set of kernels: the functions of `cid.backends.Backend`, and the whole criterion as one."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels

    def kd_loss(
        self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor | None, options: KDOptions
    ) -> Tensor:
        """See `cid.functional.kd_loss`."""
        student_logits, teacher_logits = _side_by_side(student_logits, teacher_logits)
        by_row, mean = _reduced(options.reduction)
        labels = None if target is None else _dense(target)
        numbers = options.temperature, options.divergence, options.beta, options.ignore_index
        return _loss(student_logits, by_row, self.kernels.kd, _dense(teacher_logits), labels, *numbers, mean)

    def sample_loss(self, student_features: Tensor, teacher_features: Tensor, reduction: str) -> Tensor:
        """See `cid.functional.sample_loss`."""
        student_features, teacher_features = _side_by_side(student_features, teacher_features)
        by_row, mean = _reduced(reduction)
        return _loss(student_features, by_row, self.kernels.sample, _dense(teacher_features), mean)

    def class_loss(
        self, student_features: Tensor, teacher_features: Tensor, target: Tensor, ignore_index: int
    ) -> Tensor:
        """See `cid.functional.class_loss`."""
        student_features, teacher_features = _side_by_side(student_features, teacher_features)
        labels = _dense(target)
        return _loss(student_features, False, self.kernels.class_, _dense(teacher_features), labels, ignore_index)

    def cross_entropy(self, logits: Tensor, target: Tensor, ignore_index: int, label_smoothing: float = 0.0) -> Tensor:
        """The mean over the labelled samples of `-log softmax(z)[y]`; 0 where there is none.

        Of shares, or with label smoothing, of `-sum_k y_k log softmax(z)_k`.
        """
        if target.is_floating_point() or label_smoothing != 0:
            if not target.is_floating_point():
                _checks.label_range("target", target, logits.shape[1], ignore_index)
            shares = targets.smoothed(target, logits.shape[1], ignore_index, label_smoothing, real(logits))
            return _loss(logits, False, self.kernels.soft_cross_entropy, _dense(shares))
        return _loss(logits, False, self.kernels.cross_entropy, _dense(target), ignore_index)

    def context_weights(self, teacher_logits: Tensor, target: Tensor, temperature: float, ignore_index: int) -> Tensor:
        """See `cid.functional.context_weights`."""
        if target.is_floating_point():
            q = _dense(teacher_logits)
            weights = torch.empty_like(q, dtype=real(q))
            self.kernels.soft_context_weights(q, _dense(target.detach().to(weights.dtype)), temperature, weights)
            return weights
        weights = teacher_logits.new_empty(teacher_logits.shape[:1], dtype=real(teacher_logits))
        self.kernels.context_weights(_dense(teacher_logits), _dense(target), temperature, ignore_index, weights)
        return weights

    def accumulate_context(
        self,
        features: Tensor,
        weights: Tensor,
        target: Tensor,
        ignore_index: int,
        numerator: Tensor,
        denominator: Tensor,
    ) -> None:
        """See `cid.functional.accumulate_context`; with shares the sums are matrix products, PyTorch's."""
        wide, sums = real(features), (numerator, denominator)
        if weights.dtype != wide:
            weights = weights.to(wide)
        if features.dtype in _checks.HALVES:  # the sums may be of the same type, or float32, as the kernel has them
            sums = numerator.float(), denominator.float()
        if target.is_floating_point():
            # All classes may have a share of each sample: there is nothing for a kernel to leave out.
            none = ~targets.labelled(target, None, ignore_index)[:, None]
            f, w = (x.detach().to(wide).masked_fill(none, 0.0) for x in (features, weights))
            sums[0].addmm_(w.t(), f)
            sums[1].add_(w.sum(0))
        else:
            self.kernels.accumulate_context(_dense(features), _dense(weights), _dense(target), ignore_index, *sums)
        if sums[0] is not numerator:
            numerator.copy_(sums[0])
            denominator.copy_(sums[1])

    def marginal_context(
        self, student_logits: Tensor, context: Tensor, temperature: float, differentiable: bool
    ) -> Tensor:
        """See `cid.functional.marginal_context`; the matrix product stays with PyTorch."""
        if student_logits.dtype in _checks.HALVES:  # a belief rounded to half precision would cost the product its own
            wide = self.marginal_context(student_logits.float(), context.float(), temperature, differentiable)
            return wide.to(student_logits.dtype)
        if differentiable and student_logits.requires_grad and torch.is_grad_enabled():
            belief = cast(Tensor, _Softmax.apply(student_logits, temperature, self.kernels))
        else:
            belief = _softmax(student_logits, temperature, self.kernels)
        return torch.mm(belief, context.detach() if context.requires_grad else context)

    def cid_loss(self, inputs: CIDInputs, options: CIDOptions) -> tuple[Tensor, Tensor, Tensor | None]:
        """The total, its terms (ce, kd, sample, class) and z; see `cid.functional.cid_loss`.

        The inputs are dense (see `dense`), and of one type but for those of the teacher (see `takes_beside`), for the
        context, which may be of the type that the terms are computed in, and for its sums, which are. The marginal
        context is not differentiated.
        """
        f, s, t, q, y, adapter_weight, adapter_bias, head_weight, head_bias, context, context_sums = inputs
        if context is None:  # warm-up: nothing of the head reaches the loss
            head_weight, head_bias = head_weight.detach(), head_bias.detach()
        trained: tuple[Tensor, ...] = (f, s, adapter_weight, adapter_bias, head_weight, head_bias)
        if not torch.is_grad_enabled():  # autograd would ask for gradients all the same
            trained = tuple(x.detach() for x in trained)
        given = (x if x is None or not x.requires_grad else x.detach() for x in (t, q, y, context))
        outputs = _CID.apply(*trained, *given, context_sums, options, self.kernels)
        return cast(tuple[Tensor, Tensor, Tensor | None], outputs)


def dense(inputs: CIDInputs) -> CIDInputs:
    """All that is read as `Fused.cid_loss` takes it."""
    *read, context_sums = inputs
    return CIDInputs._make([*(x if x is None else _dense(x) for x in read), context_sums])


def _dense(tensor: Tensor) -> Tensor:
    """`tensor` as the kernels read it: its values in memory order."""
    if torch.compiler.is_compiling():  # which can't ask for the negative bit, and sees to it by itself
        return tensor.contiguous()
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().contiguous()  # `contiguous` alone would keep a negative bit


def real(tensor: Tensor) -> torch.dtype:
    """The type that a tensor is computed in, and that its losses have."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def takes_beside(student: torch.dtype, teacher: torch.dtype) -> bool:
    """Whether the kernels take a student and a teacher of these types: the same, or either half beside float32."""
    return student == teacher or (student == torch.float32 and teacher in _checks.HALVES)


def _side_by_side(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in types that the kernels take: as they are, or converted up.

    The student's gradient passes back through the conversion to its own type.
    """
    if student.dtype != teacher.dtype:
        wide = torch.promote_types(real(student), real(teacher))
        student = student.to(wide)
        if not takes_beside(wide, teacher.dtype):
            teacher = teacher.detach().to(wide)
    return student, teacher


def _refuse_second_order() -> None:
    """`once_differentiable` would not do: it passes where only the saved gradient depends on the input."""
    if not torch.compiler.is_compiling() and torch.is_grad_enabled():
        raise RuntimeError(
            "backends 'native' and 'triton' have no second derivative (create_graph=True); backend='reference' has"
        )


def _can_look(tensor: Tensor) -> bool:
    """Whether a look at the tensor's value costs no wait for a device and breaks no trace."""
    return tensor.is_cpu and not torch.compiler.is_compiling()


_Kernel = Callable[..., None]
"""`kernel(student, *arguments, loss, grad)` fills `loss`, and `grad` where it is not None."""


class _GradientInForward(torch.autograd.Function):
    """A loss whose kernel has written the gradient by the time the backward runs."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, by_row: bool, kernel: _Kernel, *arguments: Any) -> Tensor:
        dense = _dense(student)
        loss, grad = _room(dense, by_row), torch.empty_like(dense)
        kernel(dense, *arguments, loss, grad)
        ctx.save_for_backward(grad)
        ctx.arguments, ctx.handed_out = len(arguments), False
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_order()
        (grad,) = ctx.saved_tensors
        rest = (None,) * (2 + ctx.arguments)
        if grad_output.ndim == 0 and _can_look(grad_output) and grad_output.item() == 1.0:
            ctx.handed_out = True  # where it is then changed in place, and the graph was kept, PyTorch raises
            return grad, *rest
        return _scaled(grad, grad_output, ctx.handed_out), *rest


def _scaled(grad: Tensor, factor: Tensor, handed_out: bool = False) -> Tensor:
    """A gradient times `factor`, of shape () or one for each row; in place where nobody else will see it again."""
    by_row = factor if factor.ndim == 0 else factor[:, None]
    if torch.compiler.is_compiling() or handed_out or torch._C._autograd._get_current_graph_task_keep_graph():
        return grad * by_row
    if factor.ndim == 0 and grad.is_cuda:
        from cid.backends.triton.scale import scale

        scale(grad, factor)
        return grad
    return grad.mul_(by_row)


def _loss(student: Tensor, by_row: bool, kernel: _Kernel, *arguments: Any) -> Tensor:
    """What `kernel` makes of these arguments, one number or one for each row, differentiable in `student`."""
    if student.requires_grad and torch.is_grad_enabled():
        if student.dtype == torch.float16:
            # It has no room for small gradients, which a scaled loss makes large: they must not be rounded before.
            student = student.float()  # beside a teacher in float16, or none
        return cast(Tensor, _GradientInForward.apply(student, by_row, kernel, *arguments))
    dense = _dense(student)
    loss = _room(dense, by_row)
    kernel(dense, *arguments, loss, None)
    return loss


def _room(student: Tensor, by_row: bool) -> Tensor:
    """Where a kernel writes its loss."""
    return student.new_empty(student.shape[:1] if by_row else (), dtype=real(student))


def _reduced(reduction: str) -> tuple[bool, bool]:
    """Whether a loss has one number for each row, and whether it is their mean."""
    return reduction == "none", reduction not in ("none", "sum")


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float, kernels: Kernels) -> Tensor:
        probabilities = _softmax(logits, temperature, kernels)
        ctx.save_for_backward(probabilities)
        ctx.temperature, ctx.kernels = temperature, kernels
        return probabilities

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        _refuse_second_order()
        (probabilities,) = ctx.saved_tensors
        grad = torch.empty_like(probabilities)
        ctx.kernels.softmax_backward(_dense(grad_output), probabilities, ctx.temperature, grad)
        return grad, None, None


def _softmax(logits: Tensor, temperature: float, kernels: Kernels) -> Tensor:
    dense = _dense(logits)
    probabilities = torch.empty_like(dense)
    kernels.softmax(dense, temperature, probabilities)
    return probabilities


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
        kernels: Kernels,
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
            f, s, t, q, labels, options.temperature, ignored,
            terms, kd_grad, class_grad, x, belief, numerator, denominator,
        )  # fmt: skip
        if soft and context_sums is not None:
            fused = Fused(kernels)
            weights = fused.context_weights(q, y, options.temperature, ignored)
            fused.accumulate_context(f, weights, y, ignored, *context_sums)
        adapted = F.linear(f, adapter_weight, adapter_bias)
        sample_grad = torch.empty_like(adapted) if needs_f or needs_adapter_weight or needs_adapter_bias else None
        if context is not None and x is not None and belief is not None:
            m = x.narrow(1, f.shape[1], f.shape[1])
            if s.dtype == context.dtype and s.dtype not in _checks.HALVES and not torch.compiler.is_compiling():
                torch.mm(belief, context, out=m)
            else:
                m.copy_(Fused(kernels).marginal_context(s, context, options.temperature, False))
            z = F.linear(x, head_weight, head_bias)  # W f and W m at once
            z_grad = belief if needs_f or needs_weight or needs_bias else None
            if soft or options.label_smoothing != 0:
                labels = targets.smoothed(y, z.shape[1], ignored, options.label_smoothing, terms.dtype)
        kernels.cid_after(
            adapted, t, z, labels, ignored, options.alpha, options.beta, options.gamma,
            terms, loss, sample_grad, z_grad,
        )  # fmt: skip
        ctx.mark_non_differentiable(terms, *(() if z is None else (z,)))
        ctx.options, ctx.kernels = options, kernels
        ctx.save_for_backward(f, x, adapter_weight, head_weight, kd_grad, class_grad, sample_grad, z_grad)
        return loss, terms, z

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_order()
        f, x, adapter_weight, head_weight, kd_grad, class_grad, sample_grad, z_grad = ctx.saved_tensors
        needs_f, needs_s, needs_adapter_weight, needs_adapter_bias, needs_weight, needs_bias = ctx.needs_input_grad[:6]
        # A number rides along in the products; a factor that can't be looked at is multiplied in at the end.
        looked = _can_look(grad_output)
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
            grads = [None if grad is None else _scaled(grad, grad_output) for grad in grads]
        return *grads, *(None,) * 7


def _column_sums(matrix: Tensor, factor: float, kernels: Kernels) -> Tensor:
    sums = matrix.new_empty(matrix.shape[1])
    kernels.column_sums(matrix, factor, sums)
    return sums
