"""Method dkd by the definition of its two parts, and its warm-up."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cid.functional import kd_loss
from cid.train.config import resolve
from cid.train.data import Batch
from cid.train.methods import Ingredients, Training
from cid.train.methods.dkd import DKD
from cid.train.models import InputSpec
from tests import draws

SAMPLES, CLASSES = 9, 5
TARGET = torch.arange(SAMPLES) % CLASSES


def make(options: DKD, classes: int = CLASSES) -> tuple[Training, Batch, Tensor]:
    """A training whose student is the identity, so that inputs are its logits; the batch, and the teacher's logits."""
    draws.seed(0)
    spec = InputSpec(1, (classes, 1), classes)
    training = Training(options, Ingredients(nn.Identity(), nn.Identity(), spec, TARGET % classes)).double()
    logits, teacher = (4 * draws.normal(SAMPLES, classes, dtype=torch.float64) for _ in range(2))
    batch = Batch(logits, TARGET % classes, torch.arange(SAMPLES), (torch.zeros(SAMPLES, 1), teacher))
    return training, batch, teacher


def parts(logits: Tensor, teacher: Tensor, target: int, temperature: float) -> tuple[float, float]:
    """Of one sample, by loops over the classes' probabilities."""
    p, q = ([math.exp(z / temperature) for z in each.tolist()] for each in (logits, teacher))
    p, q = ([value / sum(each) for value in each] for each in (p, q))
    others = [j for j in range(len(p)) if j != target]
    rest_p, rest_q = (sum(each[j] for j in others) for each in (p, q))  # 1 - p would cancel
    tckd = q[target] * math.log(q[target] / p[target]) + rest_q * math.log(rest_q / rest_p)
    nckd = sum(q[j] / rest_q * math.log((q[j] / rest_q) / (p[j] / rest_p)) for j in others)
    return temperature**2 * tckd, temperature**2 * nckd


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("classes", [2, CLASSES])
def test_the_two_parts_by_their_definition(temperature: float, classes: int) -> None:
    training, batch, teacher = make(DKD(temperature=temperature, dkd_warmup=0), classes)
    weight = draws.uniform(SAMPLES).double()
    expected = torch.tensor(
        [parts(z, q, int(y), temperature) for z, q, y in zip(batch.inputs, teacher, batch.target, strict=True)],
        dtype=torch.float64,
    )
    ce = nn.functional.cross_entropy(batch.inputs, batch.target, reduction="none")
    for w in (None, weight):
        output = training(batch._replace(weight=w))
        counts = torch.ones(SAMPLES, dtype=torch.float64) if w is None else w
        tckd, nckd = (counts[:, None] * expected).mean(0)
        # Sums of some tens of values of up to some tens, in float64.
        near: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-13}
        torch.testing.assert_close(output.terms["tckd"], tckd, **near)
        torch.testing.assert_close(output.terms["nckd"], nckd, **near)
        torch.testing.assert_close(output.loss, (counts * ce).mean() + tckd + 8 * nckd, **near)


def test_with_the_teachers_rest_as_weight_it_is_plain_distillation() -> None:
    training, batch, teacher = make(DKD(dkd_warmup=0))
    rest = 1 - (teacher / 4).softmax(1).gather(1, batch.target[:, None])[:, 0]
    terms = training(batch).terms
    weighted = training(batch._replace(weight=rest)).terms
    torch.testing.assert_close(terms["tckd"] + weighted["nckd"], kd_loss(batch.inputs, teacher), rtol=1e-12, atol=0)


def test_the_parts_grow_over_the_first_epochs() -> None:
    training, batch, _ = make(DKD(dkd_warmup=4))
    found = []
    for epoch in range(6):
        training.epoch.fill_(epoch)
        output = training(batch)
        found.append(float((output.loss - output.terms["ce"]) / (output.terms["tckd"] + 8 * output.terms["nckd"])))
    assert found == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert resolve({"optim.epochs": 240}).method.options("dkd").dkd_warmup == 20  # type: ignore[attr-defined]


def test_a_class_that_is_sure_and_half_precision() -> None:
    """A label of probability 1 leaves the others a share that is 0 in float32, and no NaN."""
    logits = torch.full((2, 3), -200.0).scatter(1, torch.tensor([[0], [1]]), 200.0).requires_grad_()
    training, _, _ = make(DKD(), 3)
    batch = Batch(logits, torch.tensor([0, 2]), torch.arange(2), (torch.zeros(2, 1), torch.randn(2, 3)))
    for given in (batch, batch._replace(inputs=logits.bfloat16())):
        output = training(given)
        output.loss.backward()
        assert torch.isfinite(output.loss)
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()
