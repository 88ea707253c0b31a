"""The distance of the class representations."""

from torch import Tensor

import cid._checks as check
from cid.backends import checking, select
from cid.backends.targets import majority
from cid.functional._operands import operands, rows


def class_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    backend: str | None = None,
) -> Tensor:
    r"""Distance of the student's class representations from the teacher's.

    A class is represented by the cosines between all pairs of its samples in the batch, diagonal included. Over the
    classes k with :math:`n_k \ge 2` samples,

    .. math:: \mathrm{mean}_k \, \|G^t_k - G^s_k\|_F^2 / n_k^2

    and 0 where no class has two. A row is normalised by max(norm, 1e-12). The two sizes Ds and Dt need not agree.

    Args:
        student_features: The student's raw (not adapted) representations, shape (B, Ds); of higher rank, flattened.
        teacher_features: The teacher's, shape (B, Dt); gets no gradient.
        target: Labels, int64, shape (B,): any numbers from 0, one a class. Or shares, shape (B, C): a sample is in the
            class that has more than half of it, or in none.
        ignore_index: A label that marks a sample as in no class.
        backend: See the module.

    Returns:
        A scalar.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value.
        RuntimeError: The named backend can't serve the call.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
        >>> teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> class_loss(student, teacher, torch.tensor([0, 0, 1]))
        tensor(0.5000)

    Source: Deng and Zhang 2021.
    """
    check.integer("ignore_index", ignore_index)
    s, t = student_features, teacher_features
    chosen = checking(backend, s, t)
    if chosen is None:
        s, t = operands(student_features=s, teacher_features=t)
        s, t = rows("student_features", s), rows("teacher_features", t)
        check.shape("teacher_features", t, (s.shape[0], "Dt"))
        chosen = select(backend, s, t)
    check.targets("target", target, s, None, ignore_index)
    return chosen.class_loss(s, t, *majority(target, ignore_index))
