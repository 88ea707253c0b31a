"""The kernel of kd against the reference in float64."""

import pytest
import torch

from cid import functional as F
from cid.backends import reference
from cid.backends.options import KDOptions
from tests import draws
from tests.bounds import close
from tests.cases import IGNORE, labels, logits

pytest.importorskip("triton", reason="needs triton")
from cid.backends.triton import kernels
from tests.backends.triton.rows import INF, NAN, both_close, by_pieces, cases, divergences, kd, run, types


@cases
@divergences
def test_kd(shape: tuple[int, int], dtype: torch.dtype, divergence: str, beta: float) -> None:
    s, q = logits(*shape, dtype), logits(*shape, dtype)
    both_close(*kd(s, q, divergence=divergence, beta=beta, reduction="mean"))


@by_pieces
@types
@divergences
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_kd_of_extreme_logits(dtype: torch.dtype, divergence: str, beta: float, factor: float) -> None:
    if dtype == torch.float16:
        factor **= 0.1  # what it can hold
    s, q = (factor * logits(5, 37, dtype) for _ in range(2))
    both_close(*kd(s, q, temperature=3.0, divergence=divergence, beta=beta))


@by_pieces
@divergences
def test_kd_of_close_distributions_does_not_cancel(divergence: str, beta: float) -> None:
    """The bound is of the derivative, which is as small as the distributions are close."""
    q = logits(2, 37, torch.float32)
    s = q + 1e-3 * draws.normal(2, 37)
    both_close(*kd(s, q, divergence=divergence, beta=beta))
    (loss, grad), *_ = kd(q, q, divergence=divergence, beta=beta)
    assert (loss == 0).all()
    assert (grad == 0).all()


@by_pieces
@divergences
def test_kd_is_as_accurate_as_eager(divergence: str, beta: float) -> None:
    """About where the series for ratios close to 1 ends: what it leaves out is far below what the bounds allow."""
    q = draws.normal(32, 37)
    s = q + 4.0 * 0.8 * (draws.uniform(32, 37) < 1 / 3)
    (loss, _), (expected, _), _ = kd(s, q, divergence=divergence, beta=beta)
    eager = reference.kd_loss(s, q, None, KDOptions(4.0, divergence, beta, IGNORE, "none"))
    ours, theirs = (float((x.cpu() - expected).square().mean().sqrt()) for x in (loss, eager))
    assert ours <= theirs


@divergences
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_kd_leaves_out_rows(divergence: str, beta: float, reduction: str) -> None:
    """By their label; they may hold anything."""
    s, q, y = logits(9, 10, torch.float32), logits(9, 10, torch.float32), labels(9, 10)
    y[2], y[4] = IGNORE, 3
    s[2], q[2, 1] = NAN, INF
    (loss, grad), expected, bound = kd(s, q, y, divergence=divergence, beta=beta, reduction=reduction)
    both_close((loss, grad), expected, bound)
    y[2], y[y == IGNORE] = 2**40, -1
    other, other_grad = run(
        kernels.kd, s, q, y, None, 4.0, divergence, beta, IGNORE, reduction == "mean", each=reduction == "none"
    )
    assert torch.equal(other, loss)
    assert torch.equal(other_grad, grad)


@by_pieces
@divergences
def test_kd_of_masked_and_missing_logits(divergence: str, beta: float) -> None:
    s, q = logits(6, 37, torch.float32), logits(6, 37, torch.float32)
    s[0, 4] = q[0, 4] = -INF  # ruled out by both
    s[1, :20] = q[1, :20] = -INF
    one_alone = s if divergence == "reverse" else q  # ruled out by one, not infinitely wrong
    one_alone[2, 7] = -INF
    s[3, 5], q[4, 6], s[5] = NAN, NAN, -INF
    (loss, grad), *_ = kd(s, q, divergence=divergence, beta=beta)
    assert loss[3:].isnan().all()
    assert grad[3:].isnan().all()
    # The reference's gradient of the Jensen-Shannon divergence has no place for -inf.
    _, expected, bound = kd(*(x[:3].clamp(min=-1e6) for x in (s, q)), divergence=divergence, beta=beta)
    both_close((loss[:3], grad[:3]), expected, bound)
    if divergence != "js":
        (s if divergence == "forward" else q)[0, 1] = -INF
        assert kd(s, q, divergence=divergence)[0][0][0] == INF


@cases
@divergences
@pytest.mark.parametrize("student", [torch.float32, torch.bfloat16])
def test_kd_of_two_types(
    shape: tuple[int, int], dtype: torch.dtype, divergence: str, beta: float, student: torch.dtype
) -> None:
    """As it is where the teacher's logits are converted before."""
    s, q = logits(*shape, torch.float32).to(student), logits(*shape, dtype)
    results = [run(kernels.kd, s, x, None, None, 4.0, divergence, beta, IGNORE, True) for x in (q, q.float())]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_kd_agrees_with_the_function() -> None:
    """That of the user, on the CPU."""
    s, q = logits(8, 10, torch.float32), logits(8, 10, torch.float32)
    (loss, _), _, bound = kd(s, q, reduction="mean")
    close(loss, F.kd_loss(s, q, temperature=4.0), 2 * bound.value)
