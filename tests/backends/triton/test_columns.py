"""The sums of columns."""

import pytest
import torch

from tests import bounds
from tests.bounds import close
from tests.cases import features
from tests.gpu import DEVICE

pytest.importorskip("triton", reason="needs triton")
from cid.backends.triton import kernels
from tests.backends.triton.rows import types


@types
@pytest.mark.parametrize("shape", [(1, 1), (0, 5), (3, 37), (130, 129), (1100, 10), (513, 300)], ids=str)
def test_column_sums(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = features(*shape, dtype).to(DEVICE)
    out = torch.full(shape[1:], 7.0, dtype=dtype, device=DEVICE)
    kernels.column_sums(matrix, 0.3, out)
    wide = 0.3 * matrix.double()
    close(out, wide.sum(0), bounds.growth(len(wide)) * wide.abs().sum(0))
