"""A 1 x 1 convolution that classifies, and what may be done to its output."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.capture.models import CONVOLUTIONS, IMAGES, Convolutional, distils, labels, make, read


@pytest.mark.parametrize("use", CONVOLUTIONS)
def test_convolutions(use: str) -> None:
    x = torch.randn(IMAGES)
    model = Convolutional(CONVOLUTIONS[use])
    distiller = distils(model, x, teacher=Convolutional(CONVOLUTIONS[use]))
    f, s = read(distiller, x)
    torch.testing.assert_close(f, model.body(x).relu().mean((2, 3)))
    if use != "rectified":
        torch.testing.assert_close(s, F.linear(f, model.classifier.weight[..., 0, 0], model.classifier.bias))


@pytest.mark.parametrize(
    "use",
    [
        lambda c, x: F.avg_pool2d(c(x), 5).flatten(1),  # of 6 x 6: not all positions
        lambda c, x: c(x).amax((2, 3)),
        lambda c, x: c(x).mean((2, 3)).log_softmax(1),
        lambda c, x: F.silu(c(x)).mean((2, 3)),
    ],
)
def test_other_pooling_is_refused(use: Callable[[Any, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"^student: what it yields is not the output of its layer 'classifier'"):
        make(Convolutional(use), Convolutional(CONVOLUTIONS["mean"]))(torch.randn(IMAGES), labels())
    distils(Convolutional(use), torch.randn(IMAGES), teacher=Convolutional(use), student_layer=("classifier",),
            teacher_layer=("classifier",))  # fmt: skip


@pytest.mark.parametrize("export", [True, False])
def test_what_is_shipped_of_a_convolution_is_traced(export: bool) -> None:
    x = torch.randn(IMAGES)
    distiller = make(Convolutional(CONVOLUTIONS["rectified"]), Convolutional(CONVOLUTIONS["mean"])).eval()
    expected = distiller.predict(x)
    student = distiller.student().requires_grad_(False)
    if export:
        program = torch.export.export(student, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
        traced: Any = program.module()
    else:
        traced = torch.compile(student, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(student(x), expected, rtol=1e-4, atol=1e-5)
