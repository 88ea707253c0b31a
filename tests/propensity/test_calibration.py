import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cid.propensity import calibrate
from cid.propensity.calibration import HIGHEST, LOWEST
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


def test_what_is_refused() -> None:
    logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
    for bad, message in ((torch.zeros(3), r"\(3,\), accepted: \(N, C\)"), (torch.zeros(0, 3), "batch is empty")):
        with pytest.raises(ValueError, match=f"^logits: .*{message}"):
            calibrate(bad, target)
    with pytest.raises(ValueError, match=r"^logits: got a NaN or an infinity"):
        calibrate(logits + math.inf, target)
    with pytest.raises(TypeError, match=r"^logits: got torch\.int64"):
        calibrate(logits.long(), target)
    with pytest.raises(TypeError, match=r"^target: got torch\.float32, accepted: torch\.int64"):
        calibrate(logits, target.float())
    with pytest.raises(ValueError, match=r"^target: got shape \(1,\)"):
        calibrate(logits, target[:1])
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=rf"^target: got label {wrong}, accepted: 0 to 2"):
            calibrate(logits, torch.tensor([0, wrong]))
