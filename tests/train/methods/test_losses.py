"""What methods' losses share."""

import torch
from torch.nn.functional import normalize

from cid.train.methods._losses import full, unit
from cid.train.methods.rkd import cosines, distances
from cid.train.methods.sp import similarities
from tests import draws


def test_lengths_of_one() -> None:
    x = draws.normal(4, 3, 5, dtype=torch.float64).requires_grad_()
    for dim in (1, 2):
        torch.testing.assert_close(unit(x, dim), normalize(x, dim=dim))
    weight = draws.normal(4, 3, 5, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((weight * of(x)).sum(), x)[0] for of in (unit, normalize))
    torch.testing.assert_close(ours, theirs)


def test_samples_that_are_alike_or_dead_have_no_huge_gradients() -> None:
    """Two equal rows have no direction between them, and a row of zeros is like none."""
    rows = draws.normal(5, 3)
    rows[1] = rows[0]
    rows[2] = 0
    for of in (unit, cosines, distances, similarities):
        x = rows.clone().requires_grad_()
        found = of(x)
        (draws.normal(*found.shape) * found).sum().backward()
        assert x.grad is not None
        assert x.grad.abs().max() < 1e3, of
    for of in (unit, cosines, distances, similarities):
        x = torch.zeros(4, 3, requires_grad=True)
        of(x).sum().backward()
        assert x.grad is not None
        assert torch.equal(x.grad, torch.zeros(4, 3)), of


def test_half_precision_is_made_full_and_double_is_left() -> None:
    assert full(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert full(torch.ones(2, dtype=torch.float64)).dtype == torch.float64
