"""The sample term."""

import torch

from cid import functional as F
from tests.cases import backends, features, types


@backends
@types
def test_a_teacher_row_of_zeros_counts_nothing(backend: str, dtype: torch.dtype) -> None:
    s, t = features(3, 9, dtype).requires_grad_(), features(3, 9, dtype)
    t[1] = 0
    rows = F.sample_loss(s, t, reduction="none", backend=backend)
    (grad,) = torch.autograd.grad(rows.sum(), s)
    assert rows[1] == 0
    assert (grad[1] == 0).all()
    assert (rows[[0, 2]] > 0).all()
