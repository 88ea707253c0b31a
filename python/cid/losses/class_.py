"""The distance of the class representations as a module."""

from torch import Tensor, nn

import cid._checks as check
import cid.functional as F


class ClassLoss(nn.Module):
    """`cid.functional.class_loss` as a module.

    Args:
        ignore_index: A label that marks a sample as in no class.
        backend: See `cid.functional`.

    Example:
        >>> import torch
        >>> features = torch.eye(4)
        >>> ClassLoss()(features, features, torch.tensor([0, 0, 1, 1]))
        tensor(0.)
    """

    def __init__(self, *, ignore_index: int = -100, backend: str | None = None) -> None:
        super().__init__()
        check.integer("ignore_index", ignore_index)
        self.ignore_index = ignore_index
        self.backend = backend

    def forward(self, student_features: Tensor, teacher_features: Tensor, target: Tensor) -> Tensor:
        """The distance of the class representations."""
        return F.class_loss(
            student_features, teacher_features, target, ignore_index=self.ignore_index, backend=self.backend
        )

    def extra_repr(self) -> str:
        """The options."""
        return f"ignore_index={self.ignore_index}"
