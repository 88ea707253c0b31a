"""Tensors that are not dense, in each term."""

import torch
from torch import Tensor

from tests import bounds
from tests.cases import Term, terms, types


@terms
@types
def test_layouts(term: Term, dtype: torch.dtype) -> None:
    """Transposed, strided, negated and expanded tensors give what their dense copies give."""
    inputs = term.draw(12, 10, dtype)
    expected = term.value_and_grad(inputs, "native")

    def strided(x: Tensor) -> Tensor:
        wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
        wide[..., ::2] = x
        return wide[..., ::2]

    for change in (
        strided,
        lambda x: x.mT.contiguous().mT if x.ndim == 2 else x,
        lambda x: torch._neg_view(-x) if x.is_floating_point() else x,
    ):
        changed = [change(x) for x in inputs]
        leaf = changed[0].requires_grad_()
        value = term.call(leaf, *changed[1:], backend="native")
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        if term.name == "marginal":  # its product is PyTorch's
            bound = term.bound(*inputs)
            bounds.close(value, expected[0], 2 * bound.value)
            bounds.close(grad, expected[1], 2 * bound.grad)
        else:
            assert torch.equal(value, expected[0])
            assert torch.equal(grad, expected[1])
    row = inputs[0][:1].expand(12, *inputs[0].shape[1:])
    assert torch.equal(
        term.call(row, *inputs[1:], backend="native"), term.call(row.clone(), *inputs[1:], backend="native")
    )
