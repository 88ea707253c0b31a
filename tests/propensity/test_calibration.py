import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cid.propensity import NoisyCalibration, calibrate, calibrate_with_noise, label_belief, right_label_belief
from cid.propensity.calibration import HIGHEST, LOWEST, MOST_NOISE
from tests import draws


@given(st.floats(0.1, 100))
def test_a_known_temperature_is_found(temperature: float) -> None:
    """Each sample as often with each label as the softened logits say, the optimum is that temperature itself."""
    counts = torch.tensor([[1, 2, 3, 10], [5, 5, 1, 1]])
    logits = temperature * counts.double().log()
    rows = logits.repeat_interleave(counts.sum(1), 0)
    target = torch.cat([torch.arange(4).repeat_interleave(count) for count in counts])
    # The bisection ends within 9.9 / 2^40 of log T, and what the derivative's rounding moves is far less.
    assert calibrate(rows, target) == pytest.approx(temperature, rel=1e-9)


def test_no_temperature_near_it_is_better() -> None:
    logits, target = 5 * draws.normal(50, 7), draws.below(7, 50)
    logits[torch.arange(50), target] += 5
    best = calibrate(logits, target)

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits.double() / temperature, target))

    assert LOWEST < best < HIGHEST
    assert loss(best) < min(loss(best * 1.01), loss(best / 1.01))


def test_who_knows_nothing_believes_in_nothing() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0], [0.0, 3.0]])
    assert calibrate(logits, torch.tensor([0, 0, 1, 1])) == HIGHEST
    assert calibrate(logits, torch.tensor([1, 0, 1, 0])) == HIGHEST  # wrong throughout
    assert calibrate(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])) == HIGHEST


def test_who_is_always_right_believes_it() -> None:
    assert calibrate(torch.eye(3), torch.arange(3)) == pytest.approx(LOWEST)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_types_and_gradients(dtype: torch.dtype) -> None:
    logits = torch.tensor([[4.0, 0.0]], dtype=dtype, requires_grad=True).expand(4, 2)
    assert calibrate(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(4 / math.log(3), rel=1e-9)


# --- with a rate of wrong labels ------------------------------------------------------------------------------------

COUNTS = torch.tensor([[1, 2, 3, 10], [5, 5, 1, 1]])


def as_often_as_it_says(temperature: float, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each row with each label, of the weight that the model with these wrong labels gives it."""
    belief = COUNTS.double() / COUNTS.sum(1, keepdim=True)
    weight = (1 - noise) * belief + noise / 4
    return temperature * belief.log().repeat_interleave(4, 0), torch.arange(4).repeat(2), weight.flatten()


def surprise(logits: Tensor, target: Tensor, temperature: float, noise: float, weight: Tensor | None = None) -> float:
    own = torch.softmax(logits.double() / temperature, 1).gather(1, target[:, None])[:, 0]
    each = -((1 - noise) * own + noise / logits.shape[1]).log()
    return float(each.mean() if weight is None else (weight * each).sum() / weight.sum())


def noisy(scale: float, noise: float, count: int = 200) -> tuple[Tensor, Tensor]:
    """Logits that say how often each label is right, times a factor, and labels of which some are any."""
    logits = 2 * draws.normal(count, 7)
    # The largest of the logits and of as many Gumbel draws is a draw of the softmax.
    gumbel = -(-(draws.uniform(count, 7, dtype=torch.float64) + 2.0**-49).log()).log()
    right = (logits + gumbel).argmax(1)
    return scale * logits, torch.where(draws.uniform(count) < noise, draws.below(7, count), right)


# Slopes are rounded to some 1e-15, curvatures in log T and in the rate are 1e-3 and up: to 1e-11, and a bisection ends
# within 1e-11. A ten-thousandfold of both.
NEAR = 1e-7


@given(st.floats(0.1, 100), st.floats(0, 0.8))
def test_a_known_temperature_and_rate_are_found(temperature: float, noise: float) -> None:
    logits, target, weight = as_often_as_it_says(temperature, noise)
    found = calibrate_with_noise(logits, target, weight=weight)
    assert found.temperature == pytest.approx(temperature, rel=NEAR)
    assert found.noise == pytest.approx(noise, abs=NEAR)


def test_where_no_label_is_wrong_it_is_the_plain_one() -> None:
    rows, target = 3 * COUNTS.double().log().repeat_interleave(COUNTS.sum(1), 0), torch.tensor([0, 1, 2, 3] * 2)
    target = target.repeat_interleave(COUNTS.flatten())
    found = calibrate_with_noise(rows, target)
    assert found.temperature == pytest.approx(calibrate(rows, target), rel=NEAR)
    assert found.noise == pytest.approx(0, abs=NEAR)
    # Of who is always right the rate is 0 itself.
    assert calibrate_with_noise(torch.eye(3), torch.arange(3)).noise == 0


@pytest.mark.parametrize("noise", [0, 0.1, 0.4])
@pytest.mark.parametrize("scale", [0.1, 1, 30, 1e4])
def test_no_temperature_and_rate_are_better(scale: float, noise: float) -> None:
    """Neither near it nor anywhere; where the logits are too large for any temperature, at the end of the range."""
    logits, target = noisy(scale, noise)
    found = calibrate_with_noise(logits, target)
    assert LOWEST <= found.temperature <= HIGHEST
    assert 0 <= found.noise <= MOST_NOISE
    assert (found.temperature == pytest.approx(HIGHEST)) == (scale == 1e4)
    least = surprise(logits, target, *found)
    assert math.isfinite(least)
    factors = [1.01, 1, 1 / 1.01]
    near = [(found.temperature * factor, found.noise + step) for factor in factors for step in (-0.01, 0, 0.01)]
    ends = math.log(LOWEST), math.log(HIGHEST)
    far = [(t, e / 20) for t in torch.linspace(*ends, 60).double().exp().tolist() for e in range(19)]
    for temperature, rate in near + far:
        if LOWEST <= temperature <= HIGHEST and 0 <= rate <= MOST_NOISE:
            # Each of 200 logarithms, of 1e-3 to 1e4, is rounded.
            assert least <= surprise(logits, target, temperature, rate) + 1e-11


def test_weights_count_as_copies() -> None:
    logits, target = noisy(3, 0.2)
    weight = draws.below(4, 200)
    copies = calibrate_with_noise(logits.repeat_interleave(weight, 0), target.repeat_interleave(weight))
    assert calibrate_with_noise(logits, target, weight=weight.float()) == pytest.approx(copies, rel=NEAR, abs=NEAR)
    for factor in (1e-300, 1e300):  # the ratios alone count
        scaled = calibrate_with_noise(logits, target, weight=factor * weight.double())
        assert scaled == pytest.approx(copies, rel=NEAR, abs=NEAR)
    ones = calibrate_with_noise(logits, target, weight=torch.ones(200))
    assert ones == pytest.approx(calibrate_with_noise(logits, target), rel=NEAR, abs=NEAR)


def test_what_is_impossible_may_have_no_weight() -> None:
    """Where a softmax rounds a label's belief to 0, its logarithm is none."""
    logits, target = 1e4 * torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
    weight = torch.ones(12)
    weight[0], target[0] = 0, 1
    assert calibrate_with_noise(logits, target, weight=weight).noise == 0
    found = calibrate_with_noise(logits, target)
    # One in twelve is wrong, and of those at random two thirds are.
    assert found.noise == pytest.approx(1 / 8, abs=1e-3)
    assert bool(right_label_belief(logits, target, found).isfinite().all())


def test_it_draws_nothing() -> None:
    logits, target = noisy(1, 0.2)
    state = torch.get_rng_state()
    found = calibrate_with_noise(logits, target)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.inference_mode():
        assert calibrate_with_noise(logits.clone().requires_grad_(), target) == found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_types_and_gradients_with_noise(dtype: torch.dtype) -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64).repeat_interleave(3, 0)
    target, noise = torch.tensor([0, 1, 2]).repeat(2), 0.25
    weight = torch.softmax(logits, 1).gather(1, target[:, None])[:, 0] * (1 - noise) + noise / 3
    given_logits = logits.to(dtype).requires_grad_()
    found = calibrate_with_noise(given_logits, target, weight=weight.requires_grad_())
    assert found == pytest.approx((1, noise), abs=NEAR)
    belief = right_label_belief(given_logits, target, found)
    assert belief.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not belief.requires_grad
    assert given_logits.grad is weight.grad is None


CALIBRATIONS = st.builds(NoisyCalibration, st.floats(LOWEST, HIGHEST), st.floats(0, MOST_NOISE))
ROWS = st.integers(1, 6).flatmap(lambda n: st.lists(st.floats(-1e4, 1e4), min_size=n, max_size=n))


@given(ROWS, CALIBRATIONS)
def test_the_belief_that_a_label_is_right(row: list[float], calibration: NoisyCalibration) -> None:
    """Of one sample with each label."""
    classes = len(row)
    logits, target = torch.tensor([row] * classes, dtype=torch.float64), torch.arange(classes)
    belief = right_label_belief(logits, target, calibration)
    assert bool(((belief >= 0) & (belief <= 1)).all())
    temperature, noise = calibration
    assert bool((right_label_belief(logits, target, NoisyCalibration(temperature, 0.0)) == 1).all())
    # Of all labels that there may be, 1 - noise are right.
    own = torch.softmax(logits[0] / temperature, 0)
    assert float((((1 - noise) * own + noise / classes) * belief).sum()) == pytest.approx(1 - noise, abs=1e-12)
    # The more the model believes in it, the more; a quotient of a sum is rounded twice.
    in_order = belief[own.argsort()]
    assert bool((in_order.diff() >= -(2.0**-51)).all())


def test_the_belief_by_hand() -> None:
    logits = 2 * torch.tensor([8.0, 1.0, 1.0]).log().expand(2, 3)
    belief = right_label_belief(logits, torch.tensor([0, 1]), NoisyCalibration(2.0, 0.3))
    # 0.7 of 0.8, beside a third of 0.3; 0.7 of 0.1 beside the same. The logits are rounded to 2^-22.
    torch.testing.assert_close(belief, torch.tensor([0.56 / 0.66, 0.07 / 0.17]), rtol=2.0**-20, atol=0)


@given(ROWS, CALIBRATIONS)
def test_the_belief_in_a_label(row: list[float], calibration: NoisyCalibration) -> None:
    classes = len(row)
    logits = torch.tensor([row], dtype=torch.float64)
    (belief,) = label_belief(logits, calibration)
    # A sum of C numbers, each rounded three times.
    assert float(belief.sum()) == pytest.approx(1, abs=4 * classes * 2.0**-52)
    assert bool((belief >= calibration.noise / classes).all())
    right = right_label_belief(logits.expand(classes, classes), torch.arange(classes), calibration)
    expected = (1 - calibration.noise) * torch.softmax(logits[0] / calibration.temperature, 0)
    torch.testing.assert_close(right * belief, expected, rtol=8 * 2.0**-52, atol=1e-300)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_belief_in_a_label_has_no_gradient(dtype: torch.dtype) -> None:
    logits = torch.tensor([[4.0, 0.0]], dtype=dtype, requires_grad=True)
    belief = label_belief(logits, NoisyCalibration(1.0, 0.1))
    assert belief.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not belief.requires_grad
    with pytest.raises(ValueError, match=r"^calibration\.noise: got 1, accepted"):
        label_belief(logits, NoisyCalibration(1.0, 1))
    with pytest.raises(ValueError, match=r"^calibration\.temperature: got 0\.01, accepted"):
        label_belief(logits, NoisyCalibration(0.01, 0.1))


def test_labels_that_are_impossible_are_not_right() -> None:
    logits = torch.tensor([[1e4, -1e4], [1e4, -1e4]])
    belief = right_label_belief(logits, torch.tensor([0, 1]), NoisyCalibration(0.05, 0.5))
    torch.testing.assert_close(belief, torch.tensor([0.5 / 0.75, 0]))


def believe(logits: Tensor, target: Tensor) -> Tensor:
    return right_label_belief(logits, target, NoisyCalibration(1.0, 0.1))


@pytest.mark.parametrize("function", [calibrate, calibrate_with_noise, believe])
def test_what_is_refused(function: Callable[[Tensor, Tensor], Any]) -> None:
    logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
    for bad, message in ((torch.zeros(3), r"\(3,\), accepted: \(N, C\)"), (torch.zeros(0, 3), "batch is empty")):
        with pytest.raises(ValueError, match=f"^logits: .*{message}"):
            function(bad, target)
    with pytest.raises(ValueError, match=r"^logits: got a NaN or an infinity"):
        function(logits + math.inf, target)
    with pytest.raises(TypeError, match=r"^logits: got torch\.int64"):
        function(logits.long(), target)
    with pytest.raises(TypeError, match=r"^target: got torch\.float32, accepted: torch\.int64"):
        function(logits, target.float())
    with pytest.raises(ValueError, match=r"^target: got shape \(1,\)"):
        function(logits, target[:1])
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=rf"^target: got label {wrong}, accepted: 0 to 2"):
            function(logits, torch.tensor([0, wrong]))


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        ([1.0], ValueError, r"got shape \(1,\), accepted: \(2,\)"),
        (
            [0.0, 0.0],
            ValueError,
            "got a negative, NaN or infinite number, or zeros alone, accepted: finite numbers >= 0",
        ),
        ([-1.0, 2.0], ValueError, "got a negative"),
        ([math.nan, 2.0], ValueError, "got a negative, NaN"),
        ([math.inf, 2.0], ValueError, "got a negative, NaN or inf"),
        ([1, 2], TypeError, r"got torch\.int64"),
    ],
)
def test_weights_that_are_refused(weight: list[float], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^weight: {message}"):
        calibrate_with_noise(torch.zeros(2, 3), torch.tensor([0, 1]), weight=torch.tensor(weight))


@pytest.mark.parametrize(
    ("temperature", "noise", "message"),
    [
        (0.0, 0.1, r"temperature: got 0\.0, accepted: finite, from 0\.05 to 1000"),
        (math.nan, 0.1, "temperature: got nan, accepted"),
        (1.0, -0.1, r"noise: got -0\.1, accepted: finite, from 0 to 0\.9"),
        (1.0, 1.0, r"noise: got 1\.0, accepted"),
    ],
)
def test_calibrations_that_are_refused(temperature: float, noise: float, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^calibration\.{message}"):
        right_label_belief(torch.zeros(2, 3), torch.tensor([0, 1]), NoisyCalibration(temperature, noise))
