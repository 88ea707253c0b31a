"""The context: the weights of a batch, and the sums that they are added to."""

from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cid import functional as F
from tests import bounds, draws
from tests.cases import SIZES, TYPES, backends, features, halves, labels, logits, real, shares, types


@types
@given(rows=SIZES, classes=SIZES, dim=SIZES, seed=st.integers(0, 2**32))
def test_context(dtype: torch.dtype, rows: int, classes: int, dim: int, seed: int) -> None:
    """Weights and sums; they add to what is there."""
    draws.seed(seed)
    f, q, y = features(rows, dim, dtype), logits(rows, classes, dtype), labels(rows, classes)
    start = features(classes, dim + 1, real(dtype))
    results = []
    for backend in ("native", "reference"):
        numerator, denominator = start[:, 1:].contiguous(), start[:, 0].contiguous()
        w = F.context_weights(q, y, temperature=2.0, backend=backend)
        F.accumulate_context(f, w, y, numerator, denominator, backend=backend)
        assert w.dtype == numerator.dtype
        results.append((w, numerator, denominator))
    # Each is off by the rounding of its exponentials, in the type that it is computed in, and then of its sums.
    part = bounds.exponentials(q.double() / 2.0).squeeze(1)
    sums = bounds.contexts(f, results[1][0], y, (start[:, 1:], start[:, 0]), bounds.growth(rows) + float(part.max()))
    scale = 2 * torch.finfo(real(dtype)).eps / bounds.EPS
    for mine, theirs, bound in zip(*results, (part * results[1][0], *sums), strict=True):
        bounds.close(mine, theirs, scale * bound)


@halves
@backends
@pytest.mark.parametrize("half_weights", [False, True])
@pytest.mark.parametrize("half_sums", [False, True])
def test_context_sums_of_halves(dtype: torch.dtype, backend: str, half_weights: bool, half_sums: bool) -> None:
    """Sums are of the features' type or of float32; what is refused has added nothing."""
    f, y = features(40, 9, dtype), labels(40, 3)
    w = draws.uniform(40).to(dtype if half_weights else torch.float32)
    sums = [torch.ones(*shape, dtype=dtype if half_sums else torch.float32) for shape in ((3, 9), (3,))]
    before, expected = [x.clone() for x in sums], [x.double() for x in sums]
    F.accumulate_context(f.double(), w.double(), y, expected[0], expected[1], backend="reference")
    F.accumulate_context(f, w, y, sums[0], sums[1], backend=backend)
    # The reference adds in the type of the sums.
    part = bounds.growth(40) * torch.finfo(sums[0].dtype).eps / bounds.EPS
    for mine, theirs, bound in zip(sums, expected, bounds.contexts(f, w, y, before, part), strict=True):
        bounds.close(mine, theirs, bound)
    before = [x.clone() for x in sums]
    for change in ({"weights": w.long()}, {"target": y + 3}, {"numerator": sums[0].double()}):
        arguments: dict[str, Any] = {"weights": w, "target": y, "numerator": sums[0], "denominator": sums[1]}
        with pytest.raises((TypeError, ValueError), match=rf"^{next(iter(change))}|^denominator"):
            F.accumulate_context(f, backend=backend, **(arguments | change))
    assert all(torch.equal(x, y) for x, y in zip(sums, before, strict=True))


@types
@backends
@given(rows=SIZES, classes=SIZES, dim=SIZES, seed=st.integers(0, 2**32))
def test_contexts(dtype: torch.dtype, backend: str, rows: int, classes: int, dim: int, seed: int) -> None:
    draws.seed(seed)
    f, q, y = features(rows, dim, dtype), logits(rows, classes, dtype), shares(rows, classes, real(dtype))
    w = F.context_weights(q, y, temperature=2.0, backend=backend)
    expected = y.double() * torch.softmax(q.double() / 2, 1)
    eps = torch.finfo(real(dtype)).eps
    assert w.shape == (rows, classes)
    assert w.dtype == real(dtype)
    torch.testing.assert_close(w.double(), expected, rtol=64 * eps, atol=eps)
    sums = torch.ones(classes, dim, dtype=real(dtype)), torch.ones(classes, dtype=real(dtype))
    F.accumulate_context(f, w, y, *sums, backend=backend)
    bound = eps * (rows + 2)  # of a sum of so many terms, relative to the sum of their magnitudes
    w = w.double()
    magnitude = 1 + w.T @ f.double().abs()
    assert ((sums[0].double() - (1 + w.T @ f.double())).abs() <= bound * magnitude).all()
    torch.testing.assert_close(sums[1].double(), 1 + w.sum(0), rtol=bound, atol=0)


@types
def test_what_half_precision_rounds_still_adds_up(dtype: torch.dtype) -> None:
    """Mixed, and smoothed over a thousand classes, in any type."""
    y = [TF.one_hot(draws.below(1000, 64), 1000).to(dtype) for _ in range(2)]
    y = [0.9 * x + 0.1 / 1000 for x in y]
    out = F.context_weights(logits(64, 1000, dtype), 0.7 * y[0] + 0.3 * y[1])
    assert out.isfinite().all()


@backends
@pytest.mark.parametrize("of", TYPES.values())
@pytest.mark.parametrize("weighted", TYPES.values())
def test_weights_are_added_in_the_type_of_the_sums(backend: str, of: torch.dtype, weighted: torch.dtype) -> None:
    f, w, y = features(40, 9, of), draws.uniform(40, dtype=weighted), labels(40, 3)
    wide = real(of)
    results = []
    for weights in (w, w.to(wide)):
        sums = torch.zeros(3, 9, dtype=wide), torch.zeros(3, dtype=wide)
        F.accumulate_context(f, weights, y, *sums, backend=backend)
        results.append(sums)
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)


class Kept(Tensor):
    """A tensor that may keep its values elsewhere: kernels must not write to it."""


def test_a_backend_is_asked_about_the_sums_too() -> None:
    f, w, y = features(6, 4, torch.float32), draws.uniform(6), labels(6, 3)
    sums = torch.zeros(3, 4).as_subclass(Kept), torch.zeros(3)
    with pytest.raises(RuntimeError, match="backend 'native' can't take this call: a tensor is a Kept"):
        F.accumulate_context(f, w, y, *sums, backend="native")
    F.accumulate_context(f, w, y, *sums)
    expected = torch.zeros(3, 4), torch.zeros(3)
    F.accumulate_context(f, w, y, *expected, backend="reference")
    assert torch.equal(sums[0].as_subclass(Tensor), expected[0])
    assert torch.equal(sums[1], expected[1])
