"""The native backend against the reference, which is the truth in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cid.backends import reference
from tests import bounds, draws
from tests.cases import HALVES, SIZES, Term, terms, types, wide


@terms
@given(rows=SIZES, columns=SIZES, seed=st.integers(0, 2**32))
def test_float64_equals_the_reference(term: Term, rows: int, columns: int, seed: int) -> None:
    draws.seed(seed)
    inputs = term.draw(rows, columns, torch.float64)
    ours, truth = (term.value_and_grad(inputs, backend) for backend in ("native", "reference"))
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@terms
@pytest.mark.parametrize("shape", [(64, 100), (37, 129), (16, 5000), (1000, 10), (3, 2048), (3, 2049)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES.values()], ids=["f32", *HALVES])
def test_at_least_as_accurate_as_eager(
    term: Term, shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss within its bound; the gradient by root mean square errors, as a largest is the luck of one element."""
    count = 20 if dtype == torch.float32 else 5
    errors = {"native": 0.0, "reference": 0.0, "eager": 0.0}
    for seed in range(count):
        draws.seed(seed)
        inputs = term.draw(*shape, dtype)
        truth = term.value_and_grad(wide(inputs), "reference")
        for name in errors:
            with monkeypatch.context() as patch:
                if name == "eager":  # the same formulas, in the type of the inputs
                    patch.setattr(reference, "_real", lambda *tensors: tensors)
                value, grad = term.value_and_grad(inputs, "native" if name == "native" else "reference")
            errors[name] += bounds.squared_error(grad, truth[1]) / count
            if name == "native":
                bounds.close(value, truth[0], term.bound(*inputs).value)
    ours, *others = (error**0.5 for error in errors.values())
    for theirs in others:
        if math.isnan(theirs):  # class in float16: the floor of a norm, 1e-12, is 0
            continue
        # PyTorch's own sums go another way on each processor. Below half a unit in the last place nothing is better.
        assert ours <= max(1.5 * theirs, torch.finfo(dtype).eps / 2), errors


@terms
@types
@pytest.mark.parametrize("factor", [1e-30, 1e-10, 1e10, 1e30])
def test_extreme_factors(term: Term, dtype: torch.dtype, factor: float) -> None:
    """Wherever the float64 truth is representable the result is it, not an overflow or a NaN."""
    if dtype == torch.float16:
        factor **= 0.1  # what it can hold
    inputs = tuple(x * factor if x.is_floating_point() else x for x in term.draw(33, 129, dtype))
    ours, truth = term.value_and_grad(inputs, "native"), term.value_and_grad(wide(inputs), "reference")
    bound = term.bound(*inputs)
    # Of float64 the truth is off by as much; and where the divergence of close distributions is 0, by what cancels.
    eps = torch.finfo(torch.float64).eps
    scale = 2 * eps / bounds.EPS if dtype == torch.float64 else 1.0
    bounds.close(ours[0], truth[0], scale * bound.value + (4.0**2 * 4 * eps if term.name.startswith("kd") else 0.0))
    bounds.close(ours[1], truth[1], scale * bound.grad)
