"""What a formula hands to a backend as one."""

from typing import NamedTuple

from torch import Tensor


class KDOptions(NamedTuple):
    """Those of `cid.functional.kd_loss`."""

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
    ignore_index: int
    label_smoothing: float
