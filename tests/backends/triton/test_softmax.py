"""The softmax, its derivative and the weights of the contexts against the reference in float64."""

import pytest
import torch

from cid.backends import reference
from tests import bounds
from tests.bounds import close
from tests.cases import IGNORE, features, labels, logits
from tests.gpu import DEVICE

pytest.importorskip("triton", reason="needs triton")
from cid.backends.triton import kernels
from tests.backends.triton.rows import INF, NAN, by_pieces, cases, shares


@by_pieces
@cases
def test_softmax(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, g = logits(*shape, dtype).to(DEVICE), features(*shape, dtype).to(DEVICE)
    out, grad = torch.full_like(x, 7.0), torch.full_like(x, 7.0)
    kernels.softmax(x, 3.0, out)
    close(out, *bounds.softmax(x, 3.0))
    kernels.softmax_backward(g, out, 3.0, grad)
    p = out.double()
    close(grad, p * (g - (p * g).sum(1, keepdim=True)) / 3.0, bounds.softmax_backward(p, g, 3.0))


@by_pieces
def test_softmax_of_masked_and_missing_logits() -> None:
    x = logits(4, 37, torch.float32).to(DEVICE)
    x[0, :-1], x[1, 2], x[2], x[3, 0] = -INF, NAN, -INF, INF
    out = torch.empty_like(x)
    kernels.softmax(x, 1.0, out)
    assert (out[0, :-1] == 0).all()
    assert out[0, -1] == 1
    assert out[1:].isnan().all()


@cases
def test_context_weights(shape: tuple[int, int], dtype: torch.dtype) -> None:
    q, y = logits(*shape, dtype), labels(*shape)
    expected, part = reference.context_weights(q.double(), y, 2.0, IGNORE), bounds.exponentials(q.double() / 2.0)
    q[y == IGNORE] = NAN
    out = torch.full((len(q),), 7.0, device=DEVICE)
    kernels.context_weights(q.to(DEVICE), y.to(DEVICE), 2.0, IGNORE, out)
    close(out, expected, part.squeeze(1) * expected)
    kernels.context_weights(q.to(DEVICE), torch.full_like(y, shape[1]).to(DEVICE), 2.0, IGNORE, out)
    assert (out == 0).all()


@by_pieces
@cases
def test_soft_context_weights(shape: tuple[int, int], dtype: torch.dtype) -> None:
    q, y = logits(*shape, dtype), shares(*shape)
    expected, (belief, rounding) = reference.context_weights(q.double(), y, 2.0, IGNORE), bounds.softmax(q, 2.0)
    q[(y == 0).all(1)] = NAN
    out = torch.full(shape, 7.0, device=DEVICE)
    kernels.soft_context_weights(q.to(DEVICE), y.to(DEVICE), 2.0, out)
    bounds.close(out, expected, y * (rounding + bounds.EPS * belief))
