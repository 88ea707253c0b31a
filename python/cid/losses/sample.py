"""The distance of the sample representations as a module."""

from torch import Tensor, nn

import cid._checks as check
import cid.functional as F


class SampleLoss(nn.Module):
    """`cid.functional.sample_loss` as a module.

    Args:
        reduction: `"mean"`, `"sum"` or `"none"`.
        backend: See `cid.functional`.

    Example:
        >>> import torch
        >>> SampleLoss()(torch.zeros(3, 4), torch.ones(3, 4))
        tensor(1.)
    """

    def __init__(self, *, reduction: str = "mean", backend: str | None = None) -> None:
        super().__init__()
        check.choice("reduction", reduction, F.REDUCTIONS)
        self.reduction = reduction
        self.backend = backend

    def forward(self, student_features: Tensor, teacher_features: Tensor, weight: Tensor | None = None) -> Tensor:
        """The distance of the (adapted) sample representations; with a weight a sample, see `cid.functional`."""
        return F.sample_loss(
            student_features, teacher_features, weight=weight, reduction=self.reduction, backend=self.backend
        )

    def extra_repr(self) -> str:
        """The options."""
        return f"reduction={self.reduction!r}"
