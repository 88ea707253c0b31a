"""The distance of the sample representations."""

from torch import Tensor

import cid._checks as check
from cid.backends import checking, select
from cid.functional._operands import operands, rows

REDUCTIONS = ("none", "mean", "sum")


def sample_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    weight: Tensor | None = None,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Distance of the student's sample representations from the teacher's, relative to the teacher's norm.

    .. math:: \|s_i - t_i\|^2 / \|t_i\|^2

    for each sample i. A sample whose teacher representation is all zeros has no scale to compare with: it counts 0
    (the paper's code yields NaN).

    Args:
        student_features: s, shape (B, ...), already adapted to the teacher's size; flattened to rows.
        teacher_features: t, of the same shape; gets no gradient.
        weight: How many times each sample counts, shape (B,); see the module.
        reduction: `"none"`, shape (B,), `"mean"` over the samples, or `"sum"`.
        backend: See the module.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value, or a mean is asked of an empty batch.
        RuntimeError: The named backend can't serve the call.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
        >>> sample_loss(torch.zeros(2, 2), teacher, reduction="none")
        tensor([1., 1.])
        >>> sample_loss(torch.zeros(2, 2), teacher, weight=torch.tensor([0.0, 2.0]))
        tensor(1.)

    Source: Deng and Zhang 2021.
    """
    check.choice("reduction", reduction, REDUCTIONS)
    s, t = student_features, teacher_features
    chosen = checking(backend, s, t)
    if chosen is None:
        s, t = operands(student_features=s, teacher_features=t)
        s, t = rows("student_features", s), rows("teacher_features", t)
        check.shape("teacher_features", t, s.shape)
        check.not_empty("student_features", s, reduction)
        chosen = select(backend, s, t)
    if weight is not None:
        check.weights("weight", weight, "student_features", s)
    return chosen.sample_loss(s, t, reduction, weight)
