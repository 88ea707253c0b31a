"""What holds of the gradient of each term: of whom, of which factor, how often."""

import pytest
import torch

from cid import functional as F
from tests import draws
from tests.cases import TERMS, Term, backends, fused_terms, logits, terms, wide


@terms
@backends
def test_gradcheck(term: Term, backend: str) -> None:
    inputs = term.draw(7, 5, torch.float64)
    student = inputs[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda s: term.call(s, *inputs[1:], backend=backend), (student,))


@terms
def test_second_order_is_refused_not_wrong(term: Term) -> None:
    inputs = term.draw(7, 5, torch.float64)
    student = inputs[0].requires_grad_()
    loss = term.call(student, *inputs[1:], backend="native").sum()
    with pytest.raises(RuntimeError, match=r"'native' and 'triton' have no second derivative.*backend='reference'"):
        torch.autograd.grad(loss, student, create_graph=True)


@terms
def test_a_gradient_that_was_changed_does_not_change_the_next(term: Term) -> None:
    """A backward of 1 hands out the saved gradient itself: nobody may reach it through what was handed out."""
    inputs = term.draw(9, 17, torch.float64)
    student = inputs[0].requires_grad_()
    expected = term.value_and_grad(inputs, "reference")[1]
    loss = term.call(student, *inputs[1:], backend="native").sum()
    for _ in range(3):
        loss.backward(retain_graph=True)
        assert student.grad is not None
        torch.testing.assert_close(student.grad, expected)
        student.grad.zero_()
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(student.grad, 2 * expected)


@terms
def test_backward_scales_and_repeats(term: Term) -> None:
    """Any `grad_output`, and a second backward over the same graph gives the same again."""
    inputs = term.draw(9, 17, torch.float64)
    student = inputs[0].requires_grad_()
    loss = term.call(student, *inputs[1:], backend="native").sum()
    first, second = (torch.autograd.grad(-2.5 * loss, student, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, -2.5 * term.value_and_grad(inputs, "reference")[1])


@backends
@pytest.mark.parametrize("name", ["kd", "sample"])
def test_reductions(name: str, backend: str) -> None:
    term = TERMS[name]
    s, t = term.draw(9, 17, torch.float64)
    weights = draws.uniform(9, dtype=torch.float64)
    leaf = s.clone().requires_grad_()
    rows = term.call(leaf, t, reduction="none", backend=backend)
    assert rows.shape == (9,)
    (by_row,) = torch.autograd.grad(rows, leaf, weights)
    for reduction, factor in (("sum", 1.0), ("mean", 1 / 9), *([("batchmean", 1 / 9)] if name == "kd" else [])):
        leaf = s.clone().requires_grad_()
        value = term.call(leaf, t, reduction=reduction, backend=backend)
        torch.testing.assert_close(value, factor * rows.detach().sum())
        (grad,) = torch.autograd.grad(value, leaf)
        torch.testing.assert_close(grad * weights[:, None], factor * by_row)


@terms
def test_only_the_student_gets_a_gradient(term: Term) -> None:
    inputs = term.draw(9, 17, torch.float64)
    for backend in ("native", "reference"):
        leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
        term.call(*leaves, backend=backend).sum().backward()
        assert leaves[0].grad is not None
        assert all(x.grad is None for x in leaves[1:])
        with torch.no_grad():
            assert not term.call(*leaves, backend=backend).requires_grad
        frozen = [x.detach() for x in leaves]
        assert not term.call(*frozen, backend=backend).requires_grad


def test_no_grad_and_inference_mode() -> None:
    s, q = logits(4, 9, torch.float32).requires_grad_(), logits(4, 9, torch.float32)
    expected = F.kd_loss(s, q, backend="native").detach()
    with torch.no_grad():
        assert torch.equal(F.kd_loss(s, q, backend="native"), expected)
    with torch.inference_mode():
        assert torch.equal(F.kd_loss(s, q, backend="native"), expected)


@fused_terms
def test_scaling_the_loss_saves_small_gradients_of_float16(term: Term) -> None:
    """What a scaled loss is to save must not have been rounded before the scale comes."""
    inputs = term.draw(300, 100, torch.float16)
    grads = []
    for backend, tensors in (("native", inputs), ("reference", wide(inputs))):
        leaf = tensors[0].detach().requires_grad_()
        loss = term.call(leaf, *tensors[1:], backend=backend)
        grads.append(torch.autograd.grad(1024 * loss, leaf)[0])
    ours, truth = grads
    assert ours.dtype == torch.float16
    atol = 2**-25 + 1e-5 * float(truth.abs().max())
    torch.testing.assert_close(ours.double(), truth, rtol=2**-11, atol=atol)
