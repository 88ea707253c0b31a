"""Compiled models, and the check in a trace."""

import copy

import pytest
import torch

from tests.capture.models import CONVOLUTIONS, IMAGES, REFUSED, Convolutional, Heads, distils, labels, make, net, rows


def test_the_check_sees_into_compiled_models() -> None:
    torch._dynamo.reset()
    student = net()
    student.compile(backend="eager", fullgraph=True)
    distils(student, rows())
    refused = Heads(REFUSED["mean of two"])
    refused.compile(backend="eager")
    with pytest.raises(ValueError, match=r"^student: what it yields"):
        make(refused)(rows(), labels())
    torch._dynamo.reset()


@pytest.mark.parametrize("use", ["mean of two", "another made last", "log-probabilities", "temperature in place"])
def test_refused_in_a_trace(use: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(make(Heads(REFUSED[use])), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="what it yields is not the output"):
        compiled(rows(), labels())
    torch._dynamo.reset()


@pytest.mark.parametrize("use", CONVOLUTIONS)
def test_convolutions_in_a_trace(use: str) -> None:
    torch._dynamo.reset()
    distiller = make(Convolutional(CONVOLUTIONS[use]), Convolutional(CONVOLUTIONS["mean"]))
    expected = copy.deepcopy(distiller)(x := torch.randn(IMAGES), labels()).loss
    if use == "average of all":  # that the window is as large as the image is a number, which no trace has
        with pytest.raises(Exception, match="what it yields is not the output"):
            torch.compile(copy.deepcopy(distiller), fullgraph=True, backend="eager")(x, labels())
        distiller.eval()(x, labels())
        distiller.train()(x, labels())
        distiller.criterion.bank.numerator.zero_()
        distiller.criterion.bank.denominator.zero_()
    compiled = torch.compile(distiller, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, labels()).loss, expected)
    torch._dynamo.reset()
