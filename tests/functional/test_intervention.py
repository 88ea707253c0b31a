"""The context of a sample, and the logits under the intervention, by their formulas."""

import pytest
import torch
from torch import Tensor

from cid import functional as F
from tests import draws
from tests.cases import backends

B, C, D, T = 7, 5, 6, 3.0


def inputs() -> list[Tensor]:
    """f, s, M, W and b."""
    return [draws.normal(*shape).double() for shape in ((B, D), (B, C), (C, D), (C, 2 * D), (C,))]


def rounding(a: Tensor, b: Tensor) -> float:
    """Of a product in float64, whose factors are off by a few units in the last place: a softmax may be one."""
    return float((a.abs() @ b.abs()).max()) * (a.shape[1] + C + 20) * torch.finfo(torch.float64).eps


@backends
@pytest.mark.parametrize("differentiable", [False, True])
def test_marginal_context(backend: str, differentiable: bool) -> None:
    _, s, m, _, _ = inputs()
    belief = (s / T).exp() / (s / T).exp().sum(1, keepdim=True)
    found = F.marginal_context(s, m, temperature=T, differentiable=differentiable, backend=backend)
    torch.testing.assert_close(found, belief @ m, rtol=0, atol=rounding(belief, m))


@backends
def test_interventional_logits(backend: str) -> None:
    """Without a concatenation, what a concatenation gives."""
    f, s, m, weight, bias = inputs()
    both = torch.cat([f, torch.softmax(s / T, 1) @ m], 1)
    found = F.interventional_logits(f, s, m, weight, bias, temperature=T, backend=backend)
    atol = rounding(both, weight.T) + float(bias.abs().max()) * torch.finfo(torch.float64).eps
    torch.testing.assert_close(found, both @ weight.T + bias, rtol=0, atol=atol)


@backends
@pytest.mark.parametrize("differentiable", [False, True])
def test_gradients_reach_the_logits_where_that_is_asked_for(backend: str, differentiable: bool) -> None:
    leaves = [x.requires_grad_() for x in inputs()]
    options = {"temperature": T, "differentiable": differentiable, "backend": backend}
    F.interventional_logits(*leaves, **options).square().sum().backward()  # type: ignore[arg-type]
    f, s, m, weight, bias = leaves
    assert m.grad is None
    assert (s.grad is not None) == differentiable
    assert all(x.grad is not None and x.grad.any() for x in (f, weight, bias))
