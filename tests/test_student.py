"""A student that was taken out: a model of its own, whose logits are the interventional ones."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cid
from tests.capture.models import differ, replica

B, C = 6, 5


class Pooled(nn.Module):
    """A 1 x 1 convolution, averaged: the head needs the model's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(3, C, 1)
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        s: Tensor = self.classifier(x).mean((2, 3))
        if self.fails:
            raise RuntimeError("half-way")
        return s


def shipped() -> Pooled:
    torch.manual_seed(0)
    student = cid.Distiller(Pooled(), Pooled(), num_classes=C, beta=1.0, gamma=1.0, warmup_epochs=0).student()
    assert isinstance(student, Pooled)
    return student


@pytest.mark.parametrize("replicated", [True, False])
def test_a_student_serves_several_threads(replicated: bool) -> None:
    student = shipped()
    models = [replica(student) if replicated else student for _ in range(4)]
    inputs = [torch.randn(B, 3, 4, 4) for _ in models]
    expected = [student(x) for x in inputs]
    assert not differ(lambda i: models[i](inputs[i]), expected)


def test_a_replica_has_a_head_of_its_own() -> None:
    student, x = shipped(), torch.randn(B, 3, 4, 4)
    made: Any = replica(student)
    made.classifier.intervention._parameters["bias"] = student.get_parameter("classifier.intervention.bias") + 1
    torch.testing.assert_close(made(x), student(x) + 1)


def test_a_copy_takes_nothing_of_a_forward_that_failed() -> None:
    student, x = shipped(), torch.randn(B, 3, 4, 4)
    expected = student(x)
    student.fails = True
    with pytest.raises(RuntimeError, match="half-way"):
        student(2 * x.requires_grad_())
    student.fails = False
    for other in (copy.deepcopy(student), pickle.loads(pickle.dumps(student)), student):
        assert torch.equal(other(x), expected)


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


def test_the_layer_with_the_head_may_be_wrapped() -> None:
    student, x = shipped(), torch.randn(B, 3, 4, 4)
    expected = student(x)
    student.add_module("classifier", Wrapped(student.classifier))
    assert torch.equal(student(x), expected)
