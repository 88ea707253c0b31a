"""The divergence of softened logits: what masks, padding and NaN make of it, by both backends."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cid import functional as F
from tests.cases import KD, backends, logits, types


@backends
def test_divergences_are_what_pytorch_makes_of_their_formulas(backend: str) -> None:
    s, q, temperature, beta = logits(9, 17, torch.float64), logits(9, 17, torch.float64), 2.0, 0.3
    p, q_ = (torch.log_softmax(x / temperature, 1) for x in (s, q))

    def kl(of: Tensor, to: Tensor) -> Tensor:
        return torch.nn.functional.kl_div(to, of, reduction="none", log_target=True).sum(1)

    mixture = (beta * q_.exp() + (1 - beta) * p.exp()).log()
    expected = {
        "forward": kl(q_, p),
        "reverse": kl(p, q_),
        "js": beta * kl(q_, mixture) + (1 - beta) * kl(p, mixture),
    }
    for divergence, rows in expected.items():
        got = F.kd_loss(
            s, q, temperature=temperature, divergence=divergence, beta=beta, reduction="none", backend=backend
        )
        torch.testing.assert_close(got, temperature**2 * rows, rtol=1e-12, atol=1e-12)


@backends
@types
@pytest.mark.parametrize("options", KD.values(), ids=KD)
def test_kd_of_any_rank_with_padding(options: dict[str, Any], backend: str, dtype: torch.dtype) -> None:
    """Token by token, where what stands in the padding does not matter."""
    s, q = logits(15, 37, dtype), logits(15, 37, dtype)
    y = torch.arange(15) % 37
    rows = F.kd_loss(s, q, reduction="none", backend=backend, **options)
    ignored = torch.arange(15) % 4 == 1
    y[ignored] = 7
    s[ignored], q[ignored] = torch.nan, torch.inf
    leaf = s.reshape(3, 5, 37).requires_grad_()
    given = dict[str, Any](target=y.reshape(3, 5), ignore_index=7, backend=backend, **options)
    got = F.kd_loss(leaf, q.reshape(3, 5, 37), reduction="none", **given)
    assert got.shape == (3, 5)
    expected = torch.where(ignored | (y == 7), 0.0, rows)
    torch.testing.assert_close(got.flatten().detach(), expected.to(got.dtype))
    counted = (y != 7).sum()
    for reduction, scale in (("sum", 1.0), ("mean", 1 / counted), ("batchmean", 1 / counted)):
        loss = F.kd_loss(leaf, q.reshape(3, 5, 37), reduction=reduction, **given)
        (grad,) = torch.autograd.grad(loss, leaf)
        torch.testing.assert_close(loss.detach(), scale * expected.sum().to(loss.dtype))
        assert grad.isfinite().all()
        assert (grad.reshape(15, 37)[y == 7] == 0).all()
    nothing = torch.full((3, 5), 7)
    assert F.kd_loss(leaf, q.reshape(3, 5, 37), **(given | {"target": nothing})) == 0


@backends
@types
def test_nan_stays_in_its_row(backend: str, dtype: torch.dtype) -> None:
    s, q = logits(4, 37, dtype), logits(4, 37, dtype)
    s[1, 5], q[2, 36] = float("nan"), float("nan")
    s.requires_grad_()
    rows = F.kd_loss(s, q, reduction="none", backend=backend)
    (grad,) = torch.autograd.grad(rows.sum(), s)
    assert rows.isnan().tolist() == [False, True, True, False]
    assert grad.isnan().all(1).tolist() == [False, True, True, False]


@backends
@types
def test_masked_classes(backend: str, dtype: torch.dtype) -> None:
    """A class that both rule out adds nothing; one that the student alone rules out is infinitely wrong."""
    s, q = logits(3, 10, dtype), logits(3, 10, dtype)
    q[0, 4] = s[0, 4] = q[1, 2] = s[2, 7] = -torch.inf
    s.requires_grad_()
    rows = F.kd_loss(s, q, reduction="none", backend=backend)
    assert rows[:2].isfinite().all()
    assert rows[2] == torch.inf
    (grad,) = torch.autograd.grad(rows[:2].sum(), s)
    assert grad[:2].isfinite().all()
    assert grad[0, 4] == 0


@backends
@types
@pytest.mark.parametrize("divergence", ["reverse", "js"])
def test_masked_classes_in_other_divergences(backend: str, dtype: torch.dtype, divergence: str) -> None:
    """What both rule out adds nothing; what one of them does is finite but for the reverse divergence."""
    s, q = logits(3, 10, dtype), logits(3, 10, dtype)
    q[0, 4] = s[0, 4] = s[1, 7] = -torch.inf
    q[2, 2] = -torch.inf if divergence == "js" else 0
    s.requires_grad_()
    rows = F.kd_loss(s, q, divergence=divergence, reduction="none", backend=backend)
    (grad,) = torch.autograd.grad(rows.sum(), s)
    assert rows.isfinite().all()
    assert grad.isfinite().all()
    assert grad[0, 4] == grad[1, 7] == 0
