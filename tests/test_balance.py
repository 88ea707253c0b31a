"""Weights that choose themselves: by the formula, from the first batches, then fixed; and nothing else is changed."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cid
from cid.balance import BATCHES, SCALE, SHARES, gradient_norms
from cid.functional import class_loss, kd_loss, sample_loss
from tests import draws

SAMPLES, CLASSES, ALPHA, T = 12, 3, 0.5, 3.0


def student() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, CLASSES))


def distiller(beta: float | str = "auto", gamma: float | str = "auto", model: nn.Module | None = None) -> cid.Distiller:
    draws.seed(3)
    model = student() if model is None else model
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, CLASSES))
    options: dict[str, Any] = {"alpha": ALPHA, "temperature": T, "warmup_epochs": 0}
    return cid.Distiller(model, teacher, num_classes=CLASSES, beta=beta, gamma=gamma, **options).double()


def batch(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    draws.seed(seed)
    return draws.normal(SAMPLES, *(shape or (6,)), dtype=torch.float64), torch.arange(SAMPLES) % CLASSES


def norms(made: cid.Distiller, x: Tensor, y: Tensor) -> list[float]:
    """Of the gradients of kd, sample and class in the body of the student, by their formulas; as it is now."""
    made = copy.deepcopy(made)
    model, teacher = made.student_model, made.teacher_model
    assert isinstance(model, nn.Sequential)
    assert isinstance(teacher, nn.Sequential)
    f = model[:-1](x)
    t, q = teacher[:-1](x).detach(), teacher(x).detach()
    terms = (
        kd_loss(model[-1](f), q, temperature=T, backend="reference"),
        sample_loss(made.criterion.adapter(f), t, backend="reference"),
        class_loss(f, t, y, backend="reference"),
    )
    body = list(model[:-1].parameters())
    gradients = [torch.autograd.grad(term, body, retain_graph=True) for term in terms]
    return [math.sqrt(sum(float(each.square().sum()) for each in found)) for found in gradients]


def weights(made: cid.Distiller) -> tuple[float, float]:
    return made.criterion.beta, made.criterion.gamma


def test_by_the_formula_over_the_batches_until_then() -> None:
    made = distiller()
    sums = [0.0, 0.0, 0.0]
    for seed in range(3):
        x, y = batch(seed)
        sums = [total + norm for total, norm in zip(sums, norms(made, x, y), strict=True)]
        output = made(x, y)
        expected = [ALPHA * share * sums[0] / total for share, total in zip(SHARES, sums[1:], strict=True)]
        # The norms are summed in float32.
        assert weights(made) == pytest.approx(expected, rel=1e-5)
        assert float(output.loss.detach()) == pytest.approx(
            float(ALPHA * (output.ce + output.kd) + expected[0] * output.sample + expected[1] * output.class_), rel=1e-5
        )


def test_one_may_be_given() -> None:
    both, beta, gamma = distiller(), distiller(gamma=2.0), distiller(beta=2.0)
    for made in (both, beta, gamma):
        made(*batch(0))
    assert weights(beta) == (weights(both)[0], 2.0)
    assert weights(gamma) == (2.0, weights(both)[1])


def test_then_they_stay() -> None:
    made = distiller().eval()
    made(*batch(0))
    assert made.balance is not None
    assert made.balance.batches == 0  # not in eval mode
    made.train()
    seen = set()
    for seed in range(BATCHES + 3):
        made(*batch(seed))
        seen.add(weights(made))
    assert made.balance.batches == BATCHES
    assert len(seen) == BATCHES
    assert made.balance.settled


def test_nothing_else_is_changed() -> None:
    """With the weights that were found, given as numbers, all is the same: outputs, gradients, buffers."""
    auto = distiller()
    output = auto(*batch(0))
    given = distiller(*weights(auto))
    expected = given(*batch(0))
    for made, losses in ((auto, output), (given, expected)):
        losses.loss.backward()
        made.epoch_end()
    assert torch.equal(output.loss, expected.loss)
    gradients = [{name: value.grad for name, value in made.named_parameters()} for made in (auto, given)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    state = {name: value for name, value in auto.state_dict().items() if not name.startswith("balance.")}
    torch.testing.assert_close(state, dict(given.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("done", [1, BATCHES])
def test_a_training_that_goes_on_keeps_them(done: int) -> None:
    first = distiller()
    for seed in range(done):
        first(*batch(seed))
    second = distiller()
    second.load_state_dict(first.state_dict())
    third = pickle.loads(pickle.dumps(first))
    assert weights(second) == weights(third) == weights(first)
    for made in (first, second, third):
        made(*batch(99))
    assert weights(second) == weights(third) == weights(first)


def test_a_representation_that_is_pooled_beside_the_logits() -> None:
    """Of a 1 x 1 convolution f is a mean that the logits are not computed from."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Conv2d(4, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    made = distiller(model=model)
    made(*batch(0, 1, 2, 3))
    assert all(weight > 0 for weight in weights(made))


def test_what_reaches_no_parameter_weighs_nothing() -> None:
    model = student()
    model[:-1].requires_grad_(False)  # type: ignore[index]
    made = distiller(model=model)
    made(*batch(0)).loss.backward()
    assert weights(made) == (0.0, 0.0)
    used, other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(3))
    features = 2 * used
    assert gradient_norms(features, [features.sum(), other.sum()], [used, other]).tolist() == [4 * SCALE, 0.0]


def test_a_batch_that_is_not_finite_does_not_count() -> None:
    made = distiller()
    x, y = batch(0)
    made(x * math.inf, y)
    assert weights(made) == (0.0, 0.0)
    assert made.balance is not None
    assert made.balance.batches == 0


def test_a_batch_that_is_refused_changes_nothing() -> None:
    made = distiller()
    state = copy.deepcopy(made.state_dict())
    x, y = batch(0)
    with pytest.raises(ValueError, match="target: label 7 at index 0"):
        made(x, torch.where(torch.arange(SAMPLES) == 0, 7, y))
    torch.testing.assert_close(dict(made.state_dict()), dict(state), rtol=0, atol=0)


def test_a_batch_without_pairs_of_a_class_leaves_class_to_the_next() -> None:
    made = distiller()
    x, y = batch(0)
    made(x[:3], y[:3])
    assert weights(made)[1] == 0.0
    made(x, y)
    assert weights(made)[1] > 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision(dtype: torch.dtype) -> None:
    x, y = batch(0)
    plain, mixed, half = distiller().float(), distiller().float(), distiller().float().to(dtype)
    heard = plain.ask_teacher(x.float())
    plain(x.float(), y, heard)
    with torch.autocast("cpu", dtype):
        mixed(x.float(), y, heard)
    # Some ten operations are rounded to 8 bits.
    assert weights(mixed) == pytest.approx(weights(plain), rel=12 * 2**-8)
    half(x.to(dtype), y)
    before = weights(half)
    assert weights(half.float()) == weights(half.to(dtype)) == before
    assert all(math.isfinite(weight) and weight > 0 for weight in weights(half))


def test_compiled() -> None:
    torch._dynamo.reset()
    made, plain = distiller(), distiller()
    compiled = torch.compile(made, backend="eager")
    for seed in range(BATCHES + 2):
        x, y = batch(seed)
        assert torch.equal(compiled(x, y).loss, plain(x, y).loss)
    assert weights(made) == weights(plain)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="first batches"):
        torch.compile(distiller(), backend="eager", fullgraph=True)(*batch(0))


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="beta: got 'best', accepted: a finite number of at least 0, or 'auto'"):
        distiller(beta="best")
    with pytest.raises(TypeError, match="gamma: got str"):
        cid.CIDLoss(4, 4, 3, beta=1.0, gamma="auto")  # type: ignore[arg-type]
