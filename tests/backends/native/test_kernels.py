"""The kernels of `cid._native` themselves."""

import pytest
import torch

from cid import _native
from tests.cases import IGNORE, halves, labels, logits


@halves
def test_kernels_write_gradients_of_halves(dtype: torch.dtype) -> None:
    """Of float16 too, though its losses go by way of float32: the same, rounded once."""
    s, q, y = logits(9, 37, dtype), logits(9, 37, dtype), labels(9, 37)
    results = []
    for cast in (dtype, torch.float32):
        a, b, loss = s.to(cast), q.to(cast), torch.empty(5)
        grads = [torch.empty_like(a) for _ in range(5)]
        total = loss.unbind()
        _native.kd(a, b, None, None, 4.0, "forward", 0.5, IGNORE, True, total[0], grads[0])
        _native.sample(a, b, None, True, total[1], grads[1])
        _native.class_(a, b, y % 3, IGNORE, total[2], grads[2])
        _native.cross_entropy(a, y, None, IGNORE, total[3], grads[3])
        _native.softmax(a, 4.0, grads[4])
        total[4].zero_()
        results.append((loss, grads))
    (loss, grads), (expected, wide_grads) = results
    assert torch.equal(loss, expected)
    for grad, expected in zip(grads, wide_grads, strict=True):
        assert torch.equal(grad, expected.to(dtype))
    with pytest.raises(TypeError, match=r"^loss: got torch\.(bfloat16|float16), accepted: torch\.float32"):
        _native.kd(s, q, None, None, 4.0, "forward", 0.5, IGNORE, True, torch.empty((), dtype=dtype), None)
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    with pytest.raises(TypeError, match=r"^teacher_logits: got torch"):
        _native.kd(s, q.to(other), None, None, 4.0, "forward", 0.5, IGNORE, True, torch.empty(()), None)


def test_kernels_refuse_what_does_not_fit() -> None:
    z, y, loss = torch.zeros(6, 4), torch.full((6, 4), 0.25), torch.zeros(())
    for wrong, error in ((y[:, :3].contiguous(), ValueError), (y.double(), TypeError), (y[0], ValueError)):
        with pytest.raises(error, match=r"^target: "):
            _native.soft_cross_entropy(z, wrong, None, loss, None)
        with pytest.raises(error, match=r"^target: "):
            _native.soft_context_weights(z, wrong, 4.0, torch.zeros(6, 4))
    with pytest.raises(ValueError, match=r"^temperature: "):
        _native.soft_context_weights(z, y, 0.0, torch.zeros(6, 4))
