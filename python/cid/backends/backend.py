"""What a backend computes."""

from typing import Protocol

from torch import Tensor

from cid.backends.options import CIDInputs, CIDOptions, CIDOutput, KDOptions


class Backend(Protocol):
    """The formulas of `cid.functional`, under their names there.

    The arguments have been checked, but for the values of labels and weights, and are passed by position.
    """

    def kd_loss(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor | None,
        options: KDOptions,
        weight: Tensor | None = None,
        /,
    ) -> Tensor:
        """See `cid.functional.kd_loss`; the logits are rows."""

    def sample_loss(
        self, student_features: Tensor, teacher_features: Tensor, reduction: str, weight: Tensor | None = None, /
    ) -> Tensor:
        """See `cid.functional.sample_loss`; the features are rows."""

    def class_loss(
        self, student_features: Tensor, teacher_features: Tensor, target: Tensor, ignore_index: int, /
    ) -> Tensor:
        """See `cid.functional.class_loss`; the features are rows, the target labels."""

    def cross_entropy(
        self,
        logits: Tensor,
        target: Tensor,
        ignore_index: int,
        label_smoothing: float = 0.0,
        weight: Tensor | None = None,
        /,
    ) -> Tensor:
        """The ce of `cid.functional.cid_loss`."""

    def context_weights(
        self, teacher_logits: Tensor, target: Tensor, temperature: float, ignore_index: int, /
    ) -> Tensor:
        """See `cid.functional.context_weights`."""

    def accumulate_context(
        self,
        features: Tensor,
        weights: Tensor,
        target: Tensor,
        numerator: Tensor,
        denominator: Tensor,
        ignore_index: int,
        /,
    ) -> None:
        """See `cid.functional.accumulate_context`."""

    def marginal_context(
        self, student_logits: Tensor, context: Tensor, temperature: float, differentiable: bool, /
    ) -> Tensor:
        """See `cid.functional.marginal_context`."""

    def cid_loss(self, inputs: CIDInputs, options: CIDOptions, /) -> CIDOutput:
        """See `cid.functional.cid_loss`."""
