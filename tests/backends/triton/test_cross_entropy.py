"""The kernels of cross-entropy against the reference in float64."""

import pytest
import torch

from cid.backends import reference
from tests import bounds
from tests.cases import IGNORE, labels, logits

pytest.importorskip("triton", reason="needs triton")
from cid.backends.triton import kernels
from tests.backends.triton.rows import INF, NAN, both_close, by_pieces, cases, ce_truth, run, shares, truth


@by_pieces
@cases
def test_cross_entropy(shape: tuple[int, int], dtype: torch.dtype) -> None:
    z, y = logits(*shape, dtype), labels(*shape)
    expected, bound = ce_truth(z, y), bounds.cross_entropy(z, y, IGNORE)
    z[y == IGNORE] = NAN
    loss, grad = run(kernels.cross_entropy, z, y, None, IGNORE)
    both_close((loss, grad), expected, bound)
    other, other_grad = run(kernels.cross_entropy, z, torch.where(y == IGNORE, shape[1], y), None, IGNORE)
    assert torch.equal(other, loss)
    assert torch.equal(other_grad, grad)


@by_pieces
@cases
def test_soft_cross_entropy(shape: tuple[int, int], dtype: torch.dtype) -> None:
    z, y = logits(*shape, dtype), shares(*shape)
    expected = truth(z, lambda z: reference.cross_entropy(z, y.double(), IGNORE))
    bound = bounds.soft_cross_entropy(z, y)
    z[(y == 0).all(1)] = NAN
    both_close(run(kernels.soft_cross_entropy, z, y, None), expected, bound)


@by_pieces
def test_a_class_without_a_share_may_be_ruled_out() -> None:
    z, y = logits(5, 37, torch.float32), shares(5, 37)
    z[y == 0] = -INF
    z[(y == 0).all(1)] = 0.0
    expected = truth(z, lambda z: reference.cross_entropy(z, y.double(), IGNORE))
    found = run(kernels.soft_cross_entropy, z, y, None)
    assert found[0].isfinite()
    both_close(found, expected, bounds.soft_cross_entropy(z, y))


@by_pieces
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_cross_entropy_of_extreme_logits(factor: float) -> None:
    z, y = factor * logits(5, 37, torch.float32), labels(5, 37)
    y[0], y[1] = 0, 2
    z[0, 3] = z[1, 1] = -INF
    both_close(run(kernels.cross_entropy, z, y, None, IGNORE), ce_truth(z, y), bounds.cross_entropy(z, y, IGNORE))


@by_pieces
def test_what_is_left_of_a_belief_close_to_1() -> None:
    z = torch.zeros(1, 37)
    z[0, 1] = 15
    y = torch.tensor([1])
    both_close(run(kernels.cross_entropy, z, y, None, IGNORE), ce_truth(z, y), bounds.cross_entropy(z, y, IGNORE))
