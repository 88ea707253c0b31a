"""The scaling of a gradient."""

import pytest
import torch

from tests import draws
from tests.gpu import DEVICE

pytest.importorskip("triton", reason="needs triton")
from cid.backends.triton import kernels
from tests.backends.triton.rows import TYPES


def test_scale() -> None:
    """A factor of 1 leaves every bit, and NaN is a factor as others are."""
    for dtype in TYPES.values():
        grad = draws.normal(37, 333, dtype=dtype).to(DEVICE)
        for factor in (1.0, 0.5, 1024.0, float("nan")):
            scaled = grad.clone()
            kernels.scale(scaled, torch.tensor(factor, device=DEVICE))
            torch.testing.assert_close(scaled, (grad.float() * factor).to(dtype), rtol=0, atol=0, equal_nan=True)
    kernels.scale(torch.empty(0, 3, device=DEVICE), torch.ones((), device=DEVICE))
