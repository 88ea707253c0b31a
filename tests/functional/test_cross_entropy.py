"""Cross-entropy, of labels and of shares, against the formula written out in float64."""

import pytest
import torch
import torch.nn.functional as TF
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import draws
from tests.cases import IGNORE, SIZES, backends, cross_entropy, labels, logits, real, shares, types

SMOOTHINGS = [0.0, 0.1, 0.6, 1.0]
smoothings = pytest.mark.parametrize("smoothing", SMOOTHINGS)


@backends
@types
def test_all_ignored_cross_entropy_is_zero(backend: str, dtype: torch.dtype) -> None:
    z = logits(3, 4, dtype).requires_grad_()
    loss = cross_entropy(z, torch.full((3,), IGNORE), backend=backend)
    loss.backward()
    assert loss == 0
    assert z.grad is not None
    assert (z.grad == 0).all()


def written_out(z: Tensor, y: Tensor, smoothing: float) -> Tensor:
    """Row by row, as it is written."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for z_i, y_i in zip(z.double(), y.double(), strict=True):
        if (y_i == 0).all():
            continue
        count += 1
        of = (1 - smoothing) * y_i + smoothing / len(y_i)
        log_p = z_i - z_i.logsumexp(0)
        total = total - (of * log_p)[of != 0].sum()
    return total / max(count, 1)


@types
@backends
@given(rows=SIZES, classes=SIZES, smoothing=st.sampled_from(SMOOTHINGS), seed=st.integers(0, 2**32))
def test_cross_entropy(dtype: torch.dtype, backend: str, rows: int, classes: int, smoothing: float, seed: int) -> None:
    """Errors are those of float32 (or float64) sums of terms of one sign, and of the gradient's own rounding."""
    draws.seed(seed)
    z, y = logits(rows, classes, dtype), shares(rows, classes, real(dtype))
    leaf, truth = z.clone().requires_grad_(), z.double().requires_grad_()
    loss, expected = cross_entropy(leaf, y, smoothing, backend=backend), written_out(truth, y, smoothing)
    assert loss.dtype == real(dtype)
    eps = torch.finfo(real(dtype)).eps
    # A term is of the size of the logits, up to 5 * 6, and a logarithm of the sum.
    torch.testing.assert_close(loss.double(), expected, rtol=32 * eps, atol=32 * eps * 40)
    ((grad,),) = [torch.autograd.grad(loss, leaf)]
    (slope,) = torch.autograd.grad(expected, truth) if expected.requires_grad else (torch.zeros_like(truth),)
    assert grad.dtype == dtype
    # Of p - y, each up to 1, over the number of rows that count.
    count = max(int((y != 0).any(1).sum()), 1)
    rounding = torch.finfo(dtype)
    torch.testing.assert_close(
        grad.double(), slope, rtol=rounding.eps, atol=32 * eps / count + rounding.smallest_normal * rounding.eps
    )


@backends
def test_a_class_without_a_share_may_be_ruled_out(backend: str) -> None:
    """`0 log 0` is 0, as of labels; what has a share and is ruled out is infinitely wrong."""
    z = torch.tensor([[1.0, 1.0, -torch.inf]]).requires_grad_()
    loss = cross_entropy(z, torch.tensor([[0.5, 0.5, 0.0]]), 0.0, backend=backend)
    (grad,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(loss.detach(), torch.tensor(2.0).log())
    assert torch.equal(grad, torch.zeros(1, 3))
    assert cross_entropy(z, torch.tensor([[0.5, 0.25, 0.25]]), 0.0, backend=backend) == torch.inf


@backends
@smoothings
@pytest.mark.parametrize("soft", [False, True])
def test_label_smoothing_is_pytorchs(backend: str, smoothing: float, soft: bool) -> None:
    z = logits(40, 9, torch.float64).requires_grad_()
    y = labels(40, 9)
    given = draws.uniform(40, 9, dtype=torch.float64).softmax(1) if soft else y
    expected = TF.cross_entropy(z, given, label_smoothing=smoothing)
    loss = cross_entropy(z, given, smoothing, backend=backend)
    torch.testing.assert_close(loss, expected)
    grads = [torch.autograd.grad(value, z)[0] for value in (loss, expected)]
    torch.testing.assert_close(*grads)
