"""What the fast backends share: the formulas as autograd nodes over kernels that write the gradient in the forward.

A kernel computes a loss and its gradient while a row is in cache (or in registers), into outputs that it is given; the
backward only scales. The kernels are those of Rust (`cid._native`), of Triton (`cid.backends.triton`), or either as
PyTorch sees it in a trace (`cid.backends.ops`).
"""

from typing import Any

import torch
from torch import Tensor

import cid._checks as check
from cid.backends import autocast, composed, targets
from cid.backends.fused import criterion
from cid.backends.fused.context import accumulate_context, context_weights
from cid.backends.fused.intervention import marginal_context
from cid.backends.fused.loss import Scale, loss_of
from cid.backends.fused.tensors import dense, real, side_by_side, takes_beside, weight_beside
from cid.backends.kernels import Kernels
from cid.backends.options import CIDInputs, CIDOptions, CIDOutput, KDOptions

__all__ = ["Fused"]


class Fused:
    """A `cid.backends.backend.Backend` over a set of kernels.

    Args:
        kernels: The kernels.
        scale: `scale(grad, factor)` is `grad *= factor`, for a factor of shape () on the device.
    """

    def __init__(self, kernels: Kernels, scale: Scale = Tensor.mul_) -> None:
        self.kernels = kernels
        self.scale = scale

    def kd_loss(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor | None,
        options: KDOptions,
        weight: Tensor | None = None,
    ) -> Tensor:
        """See `cid.functional.kd_loss`."""
        s, q = side_by_side(student_logits, teacher_logits)
        labels = None if target is None else dense(target)
        temperature, divergence, beta, ignore_index, reduction = options
        numbers = temperature, divergence, beta, ignore_index, _is_mean(reduction)
        given = dense(q), labels, weight_beside(weight, s)
        return loss_of(s, reduction == "none", self.kernels.kd, self.scale, *given, *numbers)

    def sample_loss(
        self, student_features: Tensor, teacher_features: Tensor, reduction: str, weight: Tensor | None = None
    ) -> Tensor:
        """See `cid.functional.sample_loss`."""
        s, t = side_by_side(student_features, teacher_features)
        given = dense(t), weight_beside(weight, s)
        return loss_of(s, reduction == "none", self.kernels.sample, self.scale, *given, _is_mean(reduction))

    def class_loss(
        self, student_features: Tensor, teacher_features: Tensor, target: Tensor, ignore_index: int
    ) -> Tensor:
        """See `cid.functional.class_loss`."""
        s, t = side_by_side(student_features, teacher_features)
        return loss_of(s, False, self.kernels.class_, self.scale, dense(t), dense(target), ignore_index)

    def cross_entropy(
        self,
        logits: Tensor,
        target: Tensor,
        ignore_index: int,
        label_smoothing: float = 0.0,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The mean over the labelled samples of `-log softmax(z)[y]`; 0 where there is none.

        Of shares, or with label smoothing, of `-sum_k y_k log softmax(z)_k`.
        """
        w = weight_beside(weight, logits)
        if target.is_floating_point() or label_smoothing != 0:
            if not target.is_floating_point():
                check.label_range("target", target, logits.shape[1], ignore_index)
            shares = targets.smoothed(target, logits.shape[1], ignore_index, label_smoothing, real(logits))
            return loss_of(logits, False, self.kernels.soft_cross_entropy, self.scale, dense(shares), w)
        return loss_of(logits, False, self.kernels.cross_entropy, self.scale, dense(target), w, ignore_index)

    def context_weights(self, teacher_logits: Tensor, target: Tensor, temperature: float, ignore_index: int) -> Tensor:
        """See `cid.functional.context_weights`."""
        return context_weights(self.kernels, teacher_logits, target, temperature, ignore_index)

    def accumulate_context(
        self,
        features: Tensor,
        weights: Tensor,
        target: Tensor,
        numerator: Tensor,
        denominator: Tensor,
        ignore_index: int,
    ) -> None:
        """See `cid.functional.accumulate_context`."""
        accumulate_context(self.kernels, features, weights, target, numerator, denominator, ignore_index)

    def marginal_context(
        self, student_logits: Tensor, context: Tensor, temperature: float, differentiable: bool
    ) -> Tensor:
        """See `cid.functional.marginal_context`."""
        return marginal_context(self.kernels, student_logits, context, temperature, differentiable)

    def cid_loss(self, inputs: CIDInputs, options: CIDOptions) -> CIDOutput:
        """See `cid.functional.cid_loss`: as one node where the kernels can, else term by term."""
        if _fits(inputs, options):
            read: dict[str, Any] = {name: dense(x) for name, x in _read(inputs).items()}
            read["weight"] = weight_beside(inputs.weight, inputs.student_features)
            return self.cid_loss_as_one(inputs._replace(**read), options)
        return composed.cid_loss(self, inputs, options)

    def cid_loss_as_one(self, inputs: CIDInputs, options: CIDOptions) -> CIDOutput:
        """See `cid.functional.cid_loss`: as one node.

        The inputs are dense, and of one type but for those of the teacher (see `takes_beside`), for the context, which
        may be of the type that the terms are computed in, and for its sums and the weight, which are.
        """
        return criterion.cid_loss(inputs, options, self.kernels, self.scale)


def _is_mean(reduction: str) -> bool:
    return reduction not in ("none", "sum")


def _read(inputs: CIDInputs) -> dict[str, Tensor]:
    """The tensors that the criterion reads: in warm-up the head may be anything."""
    unread = ("head_weight", "head_bias") if inputs.context is None else ()
    return {name: x for name, x in inputs._asdict().items() if isinstance(x, Tensor) and name not in unread}


def _fits(inputs: CIDInputs, options: CIDOptions) -> bool:
    """Whether `Fused.cid_loss_as_one` can take these inputs, which have been checked, when they are dense."""
    student, teacher, wide = inputs.student_features, inputs.teacher_features.dtype, real(inputs.student_features)
    if (
        options.differentiable_context
        or autocast.is_on(student)
        # Too much of its gradients, written in the forward, would be lost before a GradScaler's factor could save it.
        or student.dtype == torch.float16
        or not takes_beside(student.dtype, teacher)
        or (inputs.context is not None and inputs.context.dtype not in (student.dtype, wide))
        or (inputs.context_sums is not None and any(x.dtype != wide for x in inputs.context_sums))
    ):
        return False
    types = {"target": inputs.target.dtype, "context": wide, "teacher_features": teacher, "teacher_logits": teacher}
    return all(
        x.numel() != 0 and (name in ("context", "weight") or x.dtype == types.get(name, student.dtype))
        for name, x in _read(inputs).items()
    )
