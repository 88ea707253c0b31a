import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cid.propensity import context_power, effective_sample_size, overlap_warnings, propensity_weights
from tests import draws

BELIEFS = st.lists(st.floats(0, 1), min_size=1, max_size=30)
EPSILON = 2.0**-23  # of float32, to which weights are rounded once


def beliefs(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(BELIEFS, st.data(), st.floats(1, 100), st.floats(1e-3, 1))
def test_of_mean_one_clipped_and_of_no_order(
    context: list[float], data: st.DataObject, clip: float, floor: float
) -> None:
    count = len(context)
    full = data.draw(st.none() | st.lists(st.floats(0.01, 1), min_size=count, max_size=count))
    numerator = None if full is None else beliefs(full)
    weight = propensity_weights(beliefs(context), numerator, clip=clip, floor=floor)
    # Each of N values of float64 is rounded, and so are N sums.
    near: dict[str, Any] = {"rtol": 2 * count * 2.0**-52, "atol": 0}
    torch.testing.assert_close(weight.mean(), torch.ones_like(weight.mean()), **near)
    assert bool((weight >= 0).all())
    # After clipping the mean is at most 1, and at least what the clipped one has of it.
    unclipped = (torch.ones(count) if numerator is None else numerator) / beliefs(context).clamp_min(floor)
    clipped = (unclipped / unclipped.mean()).clamp_max(clip)
    torch.testing.assert_close(weight, clipped / clipped.mean(), rtol=4 * count * 2.0**-52, atol=0)
    assert float(weight.max()) <= clip / float(clipped.mean()) * (1 + near["rtol"])
    order = torch.tensor(data.draw(st.permutations(range(count))))
    permuted = propensity_weights(
        beliefs(context)[order], None if numerator is None else numerator[order], clip=clip, floor=floor
    )
    torch.testing.assert_close(permuted, weight[order], **near)


@given(BELIEFS)
def test_a_context_that_knows_as_much_as_all_changes_nothing(context: list[float]) -> None:
    belief = beliefs(context).clamp_min(0.01)
    weight = propensity_weights(belief, belief)
    torch.testing.assert_close(weight, torch.ones_like(weight), rtol=2 * len(context) * 2.0**-52, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_type_and_no_gradient(dtype: torch.dtype) -> None:
    context = torch.tensor([0.5, 0.25, 0.125], dtype=dtype, requires_grad=True)
    weight = propensity_weights(context)
    assert weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not weight.requires_grad
    torch.testing.assert_close(weight, torch.tensor([3, 6, 12], dtype=weight.dtype) / 7, rtol=EPSILON, atol=0)


@pytest.mark.parametrize(
    ("context", "options", "message"),
    [
        ([0.5, 1.5], {}, r"^context_belief: got 1\.5 at index 1, accepted: numbers from 0 to 1$"),
        ([math.nan], {}, r"^context_belief: got nan at index 0, accepted"),
        ([-0.1], {}, r"^context_belief: got -0\.1 at index 0, accepted"),
        ([], {}, r"^context_belief: the batch is empty"),
        ([0.5], {"clip": 0.5}, r"^clip: got 0\.5, accepted: finite, from 1$"),
        ([0.5], {"floor": 0.0}, r"^floor: got 0\.0, accepted: finite, above 0"),
        ([0.5], {"full_belief": torch.tensor([0.5, 0.5])}, r"^full_belief: got shape \(2,\), accepted: \(1\,\)"),
        ([0.5], {"full_belief": torch.tensor([2.0])}, r"^full_belief: got 2 at index 0"),
        ([0.5], {"full_belief": torch.tensor([0.0])}, r"^full_belief: got zeros alone"),
    ],
)
def test_what_is_refused(context: list[float], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        propensity_weights(torch.tensor(context), **options)
    with pytest.raises(ValueError, match=r"^context_belief: got shape \(1, 1\), accepted: \(N,\)$"):
        propensity_weights(torch.ones(1, 1))
    with pytest.raises(TypeError, match=r"^context_belief: got torch\.int64, accepted"):
        propensity_weights(torch.ones(1, dtype=torch.int64))


@given(st.lists(st.just(0.0) | st.floats(1e-30, 1e30), min_size=1, max_size=30).filter(any), st.floats(1e-20, 1e20))
def test_the_effective_size_is_of_the_ratios_alone(weight: list[float], factor: float) -> None:
    size = effective_sample_size(beliefs(weight))
    near = 4 * len(weight) * 2.0**-52
    assert 1 - near <= size <= len(weight) * (1 + near)
    assert effective_sample_size(beliefs(weight) * factor) == pytest.approx(size, rel=4 * near)


def test_each_class_keeps_its_share() -> None:
    belief, target = draws.uniform(40), torch.arange(40) % 3
    belief[target == 2] = 0.99  # no context speaks against it: all together it would nearly vanish
    weight = propensity_weights(belief, target=target)
    for label in range(3):
        assert float(weight[target == label].double().mean()) == pytest.approx(1, rel=1e-6)
    torch.testing.assert_close(weight[target == 2], torch.ones(13))
    alone = propensity_weights(belief[target == 0])
    torch.testing.assert_close(weight[target == 0], alone)
    # A class that the full model takes for wrong throughout counts nothing, and harms no other.
    full = (target != 1).float()
    assert float(propensity_weights(belief, full, target=target)[target == 1].max()) == 0


def test_the_power() -> None:
    belief = draws.uniform(40).clamp_min(0.1)
    assert torch.equal(propensity_weights(belief, power=0.0), torch.ones(40))
    squared = propensity_weights(belief**2, power=0.5, clip=1e9)
    torch.testing.assert_close(squared, propensity_weights(belief, clip=1e9))


def test_what_the_context_tells() -> None:
    target = torch.arange(40) % 4
    assert context_power(torch.full((40,), 0.25), target) == pytest.approx(0, abs=1e-12)
    assert context_power(torch.full((40,), 0.1), target) == 0  # worse than a guess
    assert context_power(torch.ones(40), target) == 0.7
    # Half of log 4 is told: as much as is left.
    assert context_power(torch.full((40,), 0.5), target) == pytest.approx(0.7 * 0.5, rel=1e-6)
    # Three quarters: the odds of 3, squared.
    assert context_power(torch.full((40,), 4**-0.25, dtype=torch.float64), target) == pytest.approx(0.7 * 0.9, rel=1e-9)
    assert context_power(torch.ones(3), torch.zeros(3, dtype=torch.int64)) == 0  # there is nothing to tell
    assert context_power(torch.zeros(40), target) == 0


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (torch.zeros(2), TypeError, r"^target: got torch\.float32, accepted: torch\.int64$"),
        (torch.zeros(3, dtype=torch.int64), ValueError, r"^target: got shape \(3,\), accepted: \(2,\)$"),
        (torch.tensor([0, -1]), ValueError, r"^target: got label -1, accepted: 0 and up$"),
    ],
)
def test_labels_that_are_refused(target: torch.Tensor, error: type[Exception], message: str) -> None:
    belief = torch.tensor([0.5, 0.5])
    for call in (lambda: propensity_weights(belief, target=target), lambda: context_power(belief, target)):
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(ValueError, match=r"^power: got 1\.5, accepted"):
        propensity_weights(belief, power=1.5)


@pytest.mark.parametrize("weight", [[0.0, 0.0], [-1.0, 2.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_no_effective_size(weight: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^weight: got a negative, NaN or infinite number, or zeros alone, accepted"):
        effective_sample_size(torch.tensor(weight))


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ([0.9] * 80 + [0.4] * 20, []),
        ([0.1] * 100, ["only guesses", "near 1"]),
        ([0.9] * 99 + [0.011], ["few samples"]),
        ([0.9] * 98 + [0.00005] * 2, ["few samples", "the floor of 0.0001"]),
        ([0.9] * 100, ["near 1"]),
    ],
)
def test_warnings(context: list[float], words: list[str]) -> None:
    belief = torch.tensor(context)
    found = overlap_warnings(propensity_weights(belief), belief, 10)
    assert len(found) == len(words)
    for sentence, word in zip(found, words, strict=True):
        assert word in sentence
