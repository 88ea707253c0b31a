"""What a formula hands to a backend as one, and what comes back as one."""

from typing import NamedTuple

from torch import Tensor


class KDOptions(NamedTuple):
    """The options of `cid.functional.kd_loss`."""

    temperature: float
    divergence: str
    beta: float
    ignore_index: int
    reduction: str


class CIDInputs(NamedTuple):
    """The tensors of `cid.functional.cid_loss`."""

    student_features: Tensor
    student_logits: Tensor
    teacher_features: Tensor
    teacher_logits: Tensor
    target: Tensor
    weight: Tensor | None
    adapter_weight: Tensor
    adapter_bias: Tensor
    head_weight: Tensor
    head_bias: Tensor
    context: Tensor | None
    context_sums: tuple[Tensor, Tensor] | None


class CIDOptions(NamedTuple):
    """The numbers of `cid.functional.cid_loss`."""

    alpha: float
    beta: float
    gamma: float
    temperature: float
    differentiable_context: bool
    ignore_index: int
    label_smoothing: float


class CIDOutput(NamedTuple):
    """What a step of `cid_loss` yields. `loss` alone carries gradients."""

    loss: Tensor
    """The weighted total, a scalar."""
    ce: Tensor
    """Cross-entropy of the interventional logits, detached; 0 in warm-up."""
    kd: Tensor
    """Divergence of the softened logits, detached."""
    sample: Tensor
    """Distance of the sample representations, detached."""
    class_: Tensor
    """Distance of the class representations, detached."""
    logits: Tensor | None
    """The interventional logits z, (B, C), detached; None in warm-up."""
