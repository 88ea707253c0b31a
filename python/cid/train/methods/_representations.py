"""The representations that two classifiers make: what each one's last layer reads."""

from __future__ import annotations

from torch import Tensor, nn

from cid.capture import Classifier
from cid.teacher import ask_teacher
from cid.train.data import Batch
from cid.train.methods._base import Ingredients


class Representations(nn.Module):
    """Where the representations of both networks are found.

    Args:
        given: the student, and the teacher or the size of its cached features.

    Attributes:
        student_dim: the size of the student's.
        teacher_dim: that of the teacher's.
    """

    def __init__(self, given: Ingredients) -> None:
        super().__init__()
        classes, teacher = given.spec.classes, given.teacher
        self._student = Classifier(given.student, classes, role="student")
        self._teacher = None if teacher is None else Classifier(teacher, classes, role="teacher")
        self.student_dim = self._student.dim
        dim = given.teacher_dim if self._teacher is None else self._teacher.dim
        if dim is None:
            raise ValueError("teacher, teacher_dim: got None, accepted: one of both")
        self.teacher_dim = dim

    def forward(
        self, student: nn.Module, teacher: nn.Module | None, batch: Batch
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Of the student, and without gradient of the teacher: the representation (B, D) and the logits (B, C).

        The teacher's logits are adjusted, if they are to be.

        Raises:
            ValueError: there is neither a teacher nor, in the batch, what it said.
        """
        if batch.teacher is not None:
            theirs = batch.teacher
        elif self._teacher is None or teacher is None:
            raise ValueError("teacher: not given, accepted: (features, logits), as the method has no teacher")
        else:
            theirs = ask_teacher(self._teacher, teacher, batch.inputs)
        return self._student.read(student, batch.inputs), (theirs[0], batch.adjusted(theirs[1]))
