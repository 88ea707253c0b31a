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


class Whole(NamedTuple):
    """The batch of several ranks that the samples of `CIDInputs` are a part of.

    The mean of the ranks' losses has the gradients of the loss of the whole batch.
    """

    student_features: Tensor
    """Of all samples that class compares; those of this rank have gradients."""
    teacher_features: Tensor
    labels: Tensor
    """Their classes, int64."""
    ignore_index: int
    """The label of a sample in no class."""
    share: Tensor
    """How many times the mean over the samples of this rank counts."""
    labelled_share: Tensor
    """How many times that over those with a label does."""
    pulls: int
    """How many times the gradients of class count: each rank has those of its own samples alone."""
