"""The sums of the context bank on a GPU against the formula in float64."""

import pytest
import torch
from torch import Tensor

from cid.backends import reference
from tests import bounds, draws
from tests.cases import IGNORE
from tests.gpu import DEVICE

pytest.importorskip("triton", reason="needs triton")
from cid.backends.triton.context import accumulate_context
from cid.backends.triton.grouping import group


def draw(samples: int, columns: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Features, weights, labels of which some name no class, and what the sums were before."""
    features, weights = draws.normal(samples, columns).to(DEVICE), draws.uniform(samples).to(DEVICE)
    target = draws.below(classes, samples).to(DEVICE)
    for row, label in enumerate([IGNORE, -1, classes, 2**40][: samples // 2]):
        target[row], features[row], weights[row] = label, float("nan"), float("nan")
    before = draws.normal(classes, columns).to(DEVICE), draws.uniform(classes).to(DEVICE)
    return features, weights, target, *before


def truth(features: Tensor, weights: Tensor, target: Tensor, *sums: Tensor) -> tuple[Tensor, ...]:
    expected = [x.double() for x in sums]
    target = torch.where((target < 0) | (target >= len(sums[1])), IGNORE, target)
    reference.accumulate_context(features.double(), weights.double(), target, expected[0], expected[1], IGNORE)
    return tuple(expected)


def check(features: Tensor, weights: Tensor, target: Tensor, numerator: Tensor, denominator: Tensor) -> None:
    expected = truth(features, weights, target, numerator, denominator)
    bound = bounds.contexts(features, weights, target, (numerator, denominator))
    accumulate_context(features, weights, target, IGNORE, numerator, denominator)
    bounds.close(numerator, expected[0], bound[0])
    bounds.close(denominator, expected[1], bound[1])


@pytest.mark.parametrize(
    ("samples", "columns", "classes"),
    [(1, 1, 1), (2, 37, 3), (37, 129, 2), (50, 3, 1), (129, 16, 1000), (9, 5, 128_256)],
)
def test_odd_sizes(samples: int, columns: int, classes: int) -> None:
    check(*draw(samples, columns, classes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sums", ["float32", "half"])
def test_half_precision(dtype: torch.dtype, sums: str) -> None:
    """Sums of that type are rounded to it once, at the end."""
    features, *others = draw(40, 20, 3)
    if sums == "half":
        others = [x.to(dtype) if x.is_floating_point() else x for x in others]
    check(features.to(dtype), *others)


def test_classes_that_do_not_occur_are_not_touched() -> None:
    features, weights, _, numerator, denominator = draw(6, 5, 4)
    numerator[0], denominator[0] = float("nan"), float("nan")
    before = numerator.clone(), denominator.clone()
    accumulate_context(features, weights, torch.full((6,), 4, device=DEVICE), IGNORE, numerator, denominator)
    torch.testing.assert_close((numerator, denominator), before, rtol=0, atol=0, equal_nan=True)


def test_no_samples() -> None:
    features, weights, target, numerator, denominator = draw(0, 5, 4)
    before = numerator.clone(), denominator.clone()
    accumulate_context(features, weights, target, IGNORE, numerator, denominator)
    assert torch.equal(numerator, before[0])
    assert torch.equal(denominator, before[1])


def test_known_groups() -> None:
    features, weights, target, *sums = draw(20, 5, 4)
    again = [x.clone() for x in sums]
    accumulate_context(features, weights, target, IGNORE, sums[0], sums[1])
    accumulate_context(features, weights, target, IGNORE, again[0], again[1], group(target, IGNORE))
    assert all(torch.equal(x, y) for x, y in zip(sums, again, strict=True))
