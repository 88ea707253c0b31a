"""CID without one of its parts is CID's formula without that part."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cid.functional import class_loss, kd_loss, sample_loss
from cid.train.data import Batch
from cid.train.methods import Ingredients, Training, registry
from cid.train.models import InputSpec
from tests import draws

SAMPLES, CLASSES = 12, 3
PARTS = {"cid-no-sample": "sample", "cid-no-class": "class"}


def networks() -> tuple[nn.Module, nn.Module]:
    draws.seed(3)
    student = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, CLASSES))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, CLASSES))
    return student, teacher


def training(name: str, **options: Any) -> Training:
    student, teacher = networks()
    labels = torch.arange(SAMPLES) % CLASSES
    method = registry()[name](**options)
    return Training(method, Ingredients(student, teacher, InputSpec(1, (4, 4), CLASSES), labels)).double()


@pytest.fixture
def batch() -> Batch:
    draws.seed(4)
    inputs = draws.normal(SAMPLES, 1, 4, 4, dtype=torch.float64)
    return Batch(inputs, torch.arange(SAMPLES) % CLASSES, torch.arange(SAMPLES))


def gradients(trained: Training) -> Iterator[Tensor | None]:
    return (parameter.grad for parameter in trained.parameters())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", PARTS)
def test_without_a_term_is_with_weight_0(name: str, weighted: bool, batch: Batch) -> None:
    if weighted:
        batch = batch._replace(weight=torch.linspace(0, 2, SAMPLES, dtype=torch.float64))
    dropped = "beta" if PARTS[name] == "sample" else "gamma"
    given = {"beta": 10.0, "gamma": 2.0, "warmup_epochs": 0}
    without, zero = training(name, **given), training("cid", **{**given, dropped: 0.0})
    outputs = [each(batch) for each in (without, zero)]
    for output in outputs:
        output.loss.backward()
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    assert list(outputs[0].terms) == [term for term in outputs[1].terms if term != PARTS[name]]
    for one, other in zip(gradients(without), gradients(zero), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)  # type: ignore[arg-type]


@pytest.mark.parametrize("weighted", [False, True])
def test_without_head_is_the_formula_by_the_students_own_logits(weighted: bool, batch: Batch) -> None:
    weight = torch.linspace(0, 2, SAMPLES, dtype=torch.float64) if weighted else None
    if weighted:
        batch = batch._replace(weight=weight)
    made = training("cid-no-head", alpha=0.5, beta=10.0, gamma=2.0, temperature=3.0)
    output = made(batch)
    f = made.student[:3](batch.inputs)
    with torch.no_grad():
        t, q = made.teacher[:3](batch.inputs), made.teacher(batch.inputs)
    s, y = made.student[3](f), batch.target
    ce = nn.functional.cross_entropy(s, y, reduction="none")
    ce = (ce if weight is None else weight * ce).mean()
    kd = kd_loss(s, q, weight=weight, temperature=3.0, backend="reference")
    sample = sample_loss(made.adapter(f), t, weight=weight, backend="reference")
    class_ = class_loss(f, t, y, backend="reference")
    expected = 0.5 * (ce + kd) + 10 * sample + 2 * class_
    # In float64 backends differ by the rounding of sums of some hundred terms.
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=0)
    for name, value in zip(made.method.terms, (ce, kd, sample, class_), strict=True):
        torch.testing.assert_close(output.terms[name], value.detach(), rtol=1e-12, atol=1e-15)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in (*made.student.parameters(), *made.adapter.parameters()))
    assert all(parameter.grad is None for parameter in made.teacher.parameters())


def test_the_adapter_has_no_decay() -> None:
    made = training("cid-no-head", beta=1.0, gamma=1.0)
    decayed, free = made.param_groups(0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in free["params"]} == {id(p) for p in made.adapter.parameters()}
    assert {id(p) for p in decayed["params"]} == {id(p) for p in made.student.parameters()}


def test_all_choose_the_same_weights_and_those_without_a_term_none_for_it(batch: Batch) -> None:
    auto = {"beta": "auto", "gamma": "auto"}
    found = {}
    for name in ("cid", "cid-no-head", *PARTS):
        made = training(name, **auto, **({} if name == "cid-no-head" else {"warmup_epochs": 0}))
        made(batch)
        found[name] = made.found()
    beta, gamma = found["cid"]["beta"], found["cid"]["gamma"]
    assert beta > 0 < gamma
    # Of other networks' float64, summed up in float32.
    assert found["cid-no-head"] == pytest.approx({"beta": beta, "gamma": gamma}, rel=1e-6)
    assert found["cid-no-sample"] == {"beta": 0.0, "gamma": gamma}
    assert found["cid-no-class"] == {"beta": beta, "gamma": 0.0}
    assert training("cid", beta=1.0, gamma=1.0, warmup_epochs=0).found() == {}
