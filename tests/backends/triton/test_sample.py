"""The sample term's kernel against the reference in float64."""

import pytest
import torch

from tests import bounds
from tests.cases import features

pytest.importorskip("triton", reason="needs triton")
from cid.backends.triton import kernels
from tests.backends.triton.rows import INF, NAN, both_close, by_pieces, cases, run, sample_truth


@by_pieces
@cases
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_sample(shape: tuple[int, int], dtype: torch.dtype, reduction: str) -> None:
    s, t = features(*shape, dtype), features(*shape, dtype)
    t[0] = 0  # counts nothing
    ours = run(kernels.sample, s, t, None, reduction == "mean", each=reduction == "none")
    both_close(ours, sample_truth(s, t, reduction), bounds.sample(s, t, reduction))


@by_pieces
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_sample_of_extreme_features(dtype: torch.dtype, factor: float) -> None:
    s, t = (factor * features(3, 37, dtype) for _ in range(2))
    t[1, :20], t[2, 20:], s[2, 20:] = 0, 0, 0
    both_close(run(kernels.sample, s, t, None, True), sample_truth(s, t, "mean"), bounds.sample(s, t, "mean"))


@by_pieces
def test_sample_of_odd_teachers() -> None:
    s, t = features(5, 37, torch.float32), torch.zeros(5, 37)
    t[1, -1], t[2, -1], t[3] = 1e-30, NAN, NAN
    t[4], s[4, 0] = 1, INF
    loss, grad = run(kernels.sample, s, t, None, False, each=True)
    assert loss[0] == 0
    assert (grad[0] == 0).all()
    assert loss[1] == INF  # about 1e60
    assert loss[2:4].isnan().all()
    assert loss[4] == INF
