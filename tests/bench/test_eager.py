"""Eager PyTorch's terms are the reference's."""

import pytest
import torch
from torch import Tensor

from cid.bench import eager, plan
from cid.bench.terms import TERMS, Tensors
from tests import draws

F64 = torch.float64
SMALL = plan.chosen((), (), "small")


@pytest.mark.parametrize(("name", "size"), SMALL)
def test_eager_is_the_reference(name: str, size: plan.Size) -> None:
    term = TERMS[name]
    results = []
    inputs = term.draw(size, F64)
    for backend in (None, "reference"):
        draws.seed(0)
        state = term.state(size, F64)
        step = term.ours(state, backend) if backend else lambda *x, state=state: term.eager(*x, *state)
        result, leaves = step(*inputs), term.leaves(inputs, state)
        values = state[-term.bank :] if result is None else (result,)
        gradients: Tensors = torch.autograd.grad(values, leaves) if leaves else ()
        results.append((*(value.detach() for value in values), *gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum() / len(p)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_eager_divergences_are_the_textbook_ones(beta: float) -> None:
    s, q = torch.randn(7, 5, dtype=F64), torch.randn(7, 5, dtype=F64)
    student, teacher = (torch.softmax(x / 4, 1) for x in (s, q))
    torch.testing.assert_close(eager.kd(s, q), 16 * _divergence(teacher, student))
    torch.testing.assert_close(eager.kd_reverse(s, q), 16 * _divergence(student, teacher))
    middle = beta * teacher + (1 - beta) * student
    generalised = beta * _divergence(teacher, middle) + (1 - beta) * _divergence(student, middle)
    torch.testing.assert_close(eager.kd_js(s, q, beta), 16 * generalised)
