import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cid.propensity import logit_adjustment
from tests import draws

EPSILON = 2.0**-52


def test_of_independent_experts_that_of_the_context_is_taken_out() -> None:
    """Objects and contexts that are independent given the class, of classes of different sizes."""
    share = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    target = torch.arange(3).repeat_interleave(torch.tensor([2, 3, 5]))
    of_object, of_context = (torch.softmax(draws.normal(10, 3).double(), 1) for _ in range(2))
    both = of_object.log() + of_context.log() - share.log()  # up to a number for each sample
    adjusted = both + logit_adjustment(of_context, target, floor=1e-6)
    torch.testing.assert_close(torch.softmax(adjusted, 1), of_object, rtol=1e-13, atol=0)


@given(st.integers(1, 9), st.integers(2, 5), st.floats(0, 1), st.floats(1e-3, 1))
def test_the_formula(samples: int, classes: int, power: float, floor: float) -> None:
    belief = torch.softmax(3 * draws.normal(samples, classes).double(), 1)
    target = torch.arange(samples) % classes
    found = logit_adjustment(belief, target, power=power, floor=floor)
    for i in range(samples):
        for j in range(classes):
            share = int((target == j).sum()) / samples
            expected = -power * math.log(max(float(belief[i, j]), floor) / share) if share else 0.0
            # A quotient and a logarithm are rounded, the quotient near 1 where its logarithm is near 0.
            assert float(found[i, j]) == pytest.approx(expected, rel=4 * EPSILON, abs=4 * EPSILON)


def test_a_context_that_tells_nothing_changes_nothing() -> None:
    target = torch.tensor([0, 1, 1, 1])
    belief = torch.tensor([0.25, 0.75]).expand(4, 2)
    assert torch.equal(logit_adjustment(belief, target), torch.zeros(4, 2))
    assert torch.equal(logit_adjustment(torch.rand(4, 2), target, power=0), torch.zeros(4, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_type_and_no_gradient(dtype: torch.dtype) -> None:
    belief = torch.tensor([[0.5, 0.5], [0.25, 0.75]], dtype=dtype, requires_grad=True)
    found = logit_adjustment(belief, torch.tensor([0, 1]))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not found.requires_grad
    expected = torch.tensor([[0, 0], [math.log(2), -math.log(1.5)]], dtype=found.dtype)
    torch.testing.assert_close(found, expected, rtol=torch.finfo(found.dtype).eps, atol=0)


HALF = torch.full((2, 3), 0.5)
TARGET = torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("belief", "target", "options", "error", "message"),
    [
        ([[0.5]], TARGET, {}, TypeError, "^context_belief: got list"),
        (torch.ones(2, 3, dtype=torch.int64), TARGET, {}, TypeError, r"^context_belief: got torch\.int64"),
        (torch.ones(2), TARGET, {}, ValueError, "^context_belief: got shape"),
        (torch.ones(0, 3), TARGET[:0], {}, ValueError, "^context_belief: "),
        (torch.ones(2, 0), TARGET, {}, ValueError, "^context_belief: "),
        (HALF * 3, TARGET, {}, ValueError, r"^context_belief: got 1\.5 at index 0, 0, accepted: numbers from 0 to 1$"),
        (HALF * math.nan, TARGET, {}, ValueError, "^context_belief: got nan at index 0, 0"),
        (HALF, TARGET.float(), {}, TypeError, r"^target: got torch\.float32, accepted: torch\.int64$"),
        (HALF, TARGET[:1], {}, ValueError, "^target: got shape"),
        (HALF, TARGET + 1, {}, ValueError, "^target: got label 3, accepted: 0 to 2$"),
        (HALF, TARGET - 1, {}, ValueError, "^target: got label -1, accepted: 0 to 2$"),
        (HALF, TARGET, {"power": 1.5}, ValueError, "^power: "),
        (HALF, TARGET, {"floor": 0}, ValueError, "^floor: "),
        (HALF, TARGET, {"floor": math.nan}, ValueError, "^floor: "),
    ],
)
def test_what_is_refused(
    belief: Tensor, target: Tensor, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        logit_adjustment(belief, target, **options)
