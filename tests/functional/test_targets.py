"""Targets that hold the share of each class (mixup, CutMix, smoothing), against formulas written out in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

import cid
from cid import functional as F
from tests import draws
from tests.cases import IGNORE, backends, cross_entropy, features, logits, real, shares, types


@backends
@types
def test_a_sample_without_shares_may_hold_anything(backend: str, dtype: torch.dtype) -> None:
    f, t, q, z = (draw(6, n, dtype) for draw, n in ((features, 9), (features, 5), (logits, 4), (logits, 4)))
    y = shares(6, 4)
    y[:] = torch.where((y == 0).all(1, keepdim=True), 0.25, y)
    y[3] = 0
    keep = torch.arange(6) != 3
    for x in (f, t, q, z):
        x[3] = torch.nan
    f.requires_grad_(), z.requires_grad_()
    loss = F.class_loss(f, t, y, backend=backend) + cross_entropy(z, y, 0.1, backend=backend)
    grads = torch.autograd.grad(loss, (f, z), allow_unused=True)
    expected = F.class_loss(f[keep], t[keep], y[keep], backend=backend)
    expected = expected + cross_entropy(z[keep], y[keep], 0.1, backend=backend)
    torch.testing.assert_close(loss, expected)
    assert all((g[3] == 0).all() and g.isfinite().all() for g in grads)
    w = F.context_weights(q, y, backend=backend)
    sums = torch.zeros(4, 9, dtype=real(dtype)), torch.zeros(4, dtype=real(dtype))
    F.accumulate_context(f, w, y, *sums, backend=backend)
    assert (w[3] == 0).all()
    assert sums[0].isfinite().all()
    assert cross_entropy(z, torch.zeros(6, 4), 0.0, backend=backend) == 0


def criterion(**options: Any) -> cid.CIDLoss:
    draws.seed(0)
    return cid.CIDLoss(9, 9, 4, **({"beta": 1.0, "gamma": 1.0, "warmup_epochs": 0} | options))


def batch() -> tuple[Tensor, ...]:
    return (
        features(6, 9, torch.float32),
        logits(6, 4, torch.float32),
        features(6, 9, torch.float32),
        logits(6, 4, torch.float32),
    )


def bad(row: int, *values: float) -> Tensor:
    y = torch.full((6, 4), 0.25)
    y[row] = torch.tensor(values)
    return y


@backends
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            bad(2, 0.5, 0.5, 0.5, 0.0),
            r"^target: row 2 adds up to 1.5, accepted: shares from 0 that add up to 1, or zeros",
        ),
        (bad(1, 1.0, 1.0, 0.0, 0.0), r"^target: row 1 adds up to 2, "),
        (bad(0, 1.5, -0.5, 0.0, 0.0), r"^target: row 0 holds -0.5, "),
        (bad(5, torch.nan, 0.5, 0.5, 0.0), r"^target: row 5 holds nan, "),
        (bad(4, torch.inf, 0.0, 0.0, 0.0), r"^target: row 4 adds up to inf, "),
        (torch.full((6, 5), 0.2), r"^target: got shape \(6, 5\), accepted: \(6, 4\)"),
        (torch.full((5, 4), 0.25), r"^target: got shape \(5, 4\), accepted: \(6, 4\)"),
        (torch.rand(6), r"^target: got shape \(6,?\), accepted: \(6, 4\)"),
        (torch.ones(6, 4, dtype=torch.int64), r"^target: got shape \(6, 4\), accepted: \(6,\)"),
        (torch.full((6, 4), 0.25, device="meta"), r"^target: is on meta, accepted: cpu"),
    ],
    ids=["sum", "several", "negative", "nan", "inf", "classes", "rows", "flat", "int", "device"],
)
def test_what_is_no_share_is_refused(backend: str, target: Tensor, message: str) -> None:
    """By name, and before anything is changed."""
    loss, given = criterion(backend=backend), batch()
    with pytest.raises(ValueError, match=message):
        loss(*given, target)
    assert (loss.bank.denominator == 0).all()
    for call in (
        lambda: F.context_weights(given[3], target, backend=backend),
        lambda: F.accumulate_context(
            given[0], torch.zeros(target.shape), target, loss.bank.numerator, loss.bank.denominator, backend=backend
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"^target: got torch.complex64, accepted: torch.int64"):
        loss(*given, torch.zeros(6, 4, dtype=torch.complex64))


@backends
def test_weights_have_the_shape_of_the_target(backend: str) -> None:
    sums = torch.zeros(4, 9), torch.zeros(4)
    for weights, target in ((torch.rand(6), bad(0, 1, 0, 0, 0)), (torch.rand(6, 4), torch.zeros(6, dtype=torch.int64))):
        with pytest.raises(ValueError, match=r"^weights: got shape"):
            F.accumulate_context(features(6, 9, torch.float32), weights, target, *sums, backend=backend)
    assert all((x == 0).all() for x in sums)


def test_the_types_of_targets_change_nothing() -> None:
    """Neither the type of the loss nor that of what is computed; numpy's shares are float64."""
    given, y = batch(), bad(0, 0.5, 0.5, 0.0, 0.0)
    expected = criterion()(*given, y)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        out = criterion()(*given, y.to(dtype))
        assert out.loss.dtype == torch.float32
        assert torch.equal(out.loss, expected.loss)


def test_a_target_gets_no_gradient() -> None:
    given, y = batch(), bad(0, 0.0, 0.7, 0.3, 0.0).requires_grad_()
    for backend in ("native", "reference"):
        criterion(backend=backend)(*given, y).loss.backward()
        assert y.grad is None


@backends
@types
def test_ignored_samples_may_hold_anything(backend: str, dtype: torch.dtype) -> None:
    f, t, q = features(6, 9, dtype), features(6, 5, dtype), logits(6, 4, dtype)
    y = torch.tensor([0, 1, 0, IGNORE, 1, 0])
    keep = y != IGNORE
    for x in (f, t, q):
        x[3] = torch.nan
    f.requires_grad_()
    loss = F.class_loss(f, t, y, backend=backend)
    (grad,) = torch.autograd.grad(loss, f)
    torch.testing.assert_close(loss, F.class_loss(f[keep], t[keep], y[keep], backend=backend))
    assert (grad[3] == 0).all()
    w = F.context_weights(q, y, backend=backend)
    assert w[3] == 0
    numerator, denominator = torch.zeros(4, 9, dtype=w.dtype), torch.zeros(4, dtype=w.dtype)
    F.accumulate_context(f, torch.full_like(w, torch.nan).where(~keep, w), y, numerator, denominator, backend=backend)
    assert numerator.isfinite().all()
    torch.testing.assert_close(denominator[0], w[[0, 2, 5]].sum())
