"""The kernels that go row by row: what holds of all of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests import bounds
from tests.cases import IGNORE, labels, logits
from tests.gpu import DEVICE

pytest.importorskip("triton", reason="needs triton")
from cid.backends.triton import kernels
from tests.backends.triton.rows import DIVERGENCES, both_close, ce_truth, kd, run, sample_truth


def test_without_a_gradient() -> None:
    """The loss is the same."""
    s, q, y = (x.to(DEVICE) for x in (logits(5, 10, torch.float32), logits(5, 10, torch.float32), labels(5, 10)))
    calls: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        (kernels.cross_entropy, (y, None, IGNORE)),
        *((kernels.kd, (q, y, None, 4.0, name, beta, IGNORE, True)) for name, beta in DIVERGENCES),
        (kernels.sample, (q, None, True)),
    ]
    for kernel, arguments in calls:
        loss = torch.empty((), device=DEVICE)
        kernel(s, *arguments, loss, None)
        assert torch.equal(loss, run(kernel, s, *arguments)[0])


def test_no_rows_that_count() -> None:
    z, y = logits(3, 4, torch.float32), torch.full((3,), IGNORE)
    for loss, grad in (
        run(kernels.cross_entropy, z, y, None, IGNORE),
        *(run(kernels.kd, z, z, y, None, 4.0, name, beta, IGNORE, True) for name, beta in DIVERGENCES),
    ):
        assert loss == 0
        assert (grad == 0).all()


def test_no_rows() -> None:
    x, y = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
    for loss, _ in (
        run(kernels.cross_entropy, x, y, None, IGNORE),
        run(kernels.kd, x, x, y, None, 4.0, "forward", 0.5, IGNORE, True),
        run(kernels.kd, x, x, None, None, 4.0, "js", 0.5, IGNORE, False),
        run(kernels.sample, x, x, None, False),
    ):
        assert loss == 0
    assert run(kernels.sample, x, x, None, False, each=True)[0].shape == (0,)
    assert run(kernels.sample, torch.empty(2, 0), torch.empty(2, 0), None, True)[0] == 0
    x = x.to(DEVICE)
    kernels.softmax(x, 1.0, x.clone())
    kernels.softmax_backward(x, x, 1.0, x.clone())
    kernels.context_weights(x, y.to(DEVICE), 1.0, IGNORE, torch.empty(0, device=DEVICE))
    kernels.soft_context_weights(x, x, 1.0, x.clone())
    assert run(kernels.soft_cross_entropy, x, x, None)[0] == 0


def test_long_rows() -> None:
    """More columns than a program holds, as they are."""
    s, q, y = logits(1, 20_001, torch.float32), logits(1, 20_001, torch.float32), torch.tensor([20_000])
    for divergence in ("forward", "reverse", "js"):
        both_close(*kd(s, q, divergence=divergence))
    both_close(run(kernels.cross_entropy, s, y, None, IGNORE), ce_truth(s, y), bounds.cross_entropy(s, y, IGNORE))
    both_close(run(kernels.sample, s, q, None, True), sample_truth(s, q, "mean"), bounds.sample(s, q, "mean"))
