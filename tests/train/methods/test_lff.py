"""Method lff by a plain loop over samples, and where a weight would be 0/0."""

import math

import pytest
import torch
from torch import Tensor, nn

from cid._errors import ConfigError
from cid.train.config import resolve
from cid.train.data import Batch
from cid.train.methods import Ingredients, Training
from cid.train.methods._difficulty import RelativeDifficulty
from cid.train.methods.lff import LfF
from cid.train.models import InputSpec
from tests import draws

SAMPLES, CLASSES, RATE = 14, 3, 0.5
LABELS = torch.arange(SAMPLES) % CLASSES
# Orders of three epochs in batches of 5, 5 and 4.
EPOCHS = [[(3 * i + shift) % SAMPLES for i in range(SAMPLES)] for shift in (0, 5, 1)]
STEPS = [order[start : start + 5] for order in EPOCHS for start in (0, 5, 10)]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()


def make(options: LfF) -> tuple[Training, Tensor]:
    draws.seed(0)
    x = draws.normal(SAMPLES, 6, dtype=torch.float64)
    given = Ingredients(network(), None, InputSpec(1, (6, 1), CLASSES), LABELS, fresh_student=network)
    return Training(options, given).double(), x


def belief(model: nn.Module, x: Tensor, label: int) -> Tensor:
    """The softmax of one sample, by its definition."""
    powers: Tensor = model(x[None])[0].exp()
    return powers[label] / powers.sum()


def descend(model: nn.Module, loss: Tensor) -> None:
    parameters = list(model.parameters())
    with torch.no_grad():
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.sub_(RATE * gradient)


def by_a_plain_loop(networks: dict[str, nn.Module], x: Tensor, q: float, memory: float) -> list[float]:
    """Trains both networks, sample by sample; returns the weights of all steps."""
    averages: dict[str, dict[int, float]] = {name: {} for name in networks}
    weights: list[float] = []
    for step in STEPS:
        beliefs = {name: {i: belief(model, x[i], int(LABELS[i])) for i in step} for name, model in networks.items()}
        for name, average in averages.items():
            for i in step:
                loss = -math.log(beliefs[name][i].item())
                average[i] = memory * average[i] + (1 - memory) * loss if i in average else loss
        biased = student = torch.zeros((), dtype=torch.float64)
        for i in step:
            hard = {
                name: average[i] / max(value for j, value in average.items() if LABELS[j] == LABELS[i])
                for name, average in averages.items()
            }
            weights.append(hard["biased"] / (hard["biased"] + hard["student"]))
            biased = biased + (1 - beliefs["biased"][i] ** q) / q / len(step)
            student = student - weights[-1] * beliefs["student"][i].log() / len(step)
        descend(networks["biased"], biased)
        descend(networks["student"], student)
    return weights


@pytest.mark.parametrize(("q", "memory"), [(0.7, 0.7), (1.0, 0.0), (0.2, 0.95)])
def test_it_is_what_a_plain_loop_computes(q: float, memory: float) -> None:
    options = LfF(lff_q=q, lff_ema=memory)
    training, x = make(options)
    weights: list[Tensor] = []
    training.difficulty.register_forward_hook(lambda module, given, weight: weights.append(weight))
    for step in STEPS:
        indices = torch.tensor(step)
        output = training(Batch(x[indices], LABELS[indices], indices))
        torch.testing.assert_close(output.loss.detach(), output.terms["ce"] + output.terms["gce"])
        descend(training, output.loss)
    plain = {name: getattr(make(options)[0], name) for name in ("biased", "student")}
    expected = by_a_plain_loop(plain, x, q, memory)
    # Some hundred roundings of 1e-16 each, in 9 steps of a smooth function.
    torch.testing.assert_close(torch.cat(weights), torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-11)
    for name, model in plain.items():
        torch.testing.assert_close(getattr(training, name).state_dict(), model.state_dict(), rtol=1e-11, atol=1e-11)


def test_the_networks_start_apart_and_the_student_predicts() -> None:
    training, x = make(LfF())
    assert not torch.equal(training.student[0].weight, training.biased[0].weight)
    assert training.predictor() is training.student
    assert torch.equal(training.predict(x), training.student(x))


def test_a_hard_sample_of_a_hard_class_weighs_as_one_of_an_easy_class() -> None:
    difficulty = RelativeDifficulty(torch.tensor([0, 0, 1, 1]), 2, 0.7)
    weights = difficulty(torch.arange(4), torch.tensor([[1.0, 8.0, 0.1, 0.8], [1.0, 1.0, 0.1, 0.1]]))
    torch.testing.assert_close(weights, torch.tensor([1 / 9, 1 / 2, 1 / 9, 1 / 2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_no_weight_is_nan(dtype: torch.dtype) -> None:
    """Of samples that are right to the last digit, alone or beside others, in classes of which most is not seen yet."""
    difficulty = RelativeDifficulty(torch.tensor([0, 0, 1, 1, 2, 3]), 5, 0.7).to(dtype)
    nothing, tiny = 0.0, float(torch.finfo(dtype).tiny) / 4
    losses = torch.tensor([[nothing, nothing, tiny, 2.0], [nothing, 1.0, nothing, nothing]], dtype=dtype)
    weights = difficulty(torch.tensor([0, 2, 4, 5]), losses)
    assert weights.dtype == dtype
    assert torch.isfinite(weights).all()
    assert ((weights >= 0) & (weights <= 1)).all()
    assert weights[[0, 1, 3]].tolist() == [0.0, 0.0, 1.0]
    # Never seen is not the same as no loss: from now on the average moves slowly.
    difficulty(torch.tensor([0, 1]), torch.ones(2, 2, dtype=dtype))
    torch.testing.assert_close(difficulty.averages[0, :4], torch.tensor([0.3, 1.0, 0.0, -1.0], dtype=dtype))


def test_perfect_networks_have_no_loss_and_no_gradient() -> None:
    training, x = make(LfF())
    with torch.no_grad():
        for model in (training.student, training.biased):
            model[2].weight.zero_()
            model[2].bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    indices = torch.arange(0, SAMPLES, CLASSES)
    output = training(Batch(x[indices], LABELS[indices], indices))
    output.loss.backward()
    assert output.loss == 0
    gradients = [parameter.grad for parameter in training.parameters()]
    assert all(gradient is not None and not gradient.count_nonzero() for gradient in gradients)


def test_the_labels_are_no_state() -> None:
    state = make(LfF())[0].trained_state()
    assert state["difficulty.averages"].shape == (2, SAMPLES)
    assert "difficulty.labels" not in state


def test_options() -> None:
    assert (LfF().lff_q, LfF().lff_ema) == (0.7, 0.7)
    for value in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=rf"^--lff-q: got {value}, accepted: a number above 0, up to 1$"):
            resolve({"method.lff_q": value})
    with pytest.raises(ConfigError, match=r"^--lff-ema: got 1\.0, accepted: a number from 0 to below 1$"):
        resolve({"method.lff_ema": 1.0})


def test_it_needs_another_student() -> None:
    given = Ingredients(network(), None, InputSpec(1, (6, 1), CLASSES), LABELS)
    with pytest.raises(ValueError, match=r"^fresh_student: got None, accepted: "):
        Training(LfF(), given)
