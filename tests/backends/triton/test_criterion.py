"""The criterion's two calls in Triton, before the products and after them, against the reference in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cid.backends import reference
from cid.backends.options import KDOptions
from tests import bounds, draws
from tests.bounds import close
from tests.cases import IGNORE, features, labels, logits
from tests.gpu import DEVICE

pytest.importorskip("triton", reason="needs triton")
from cid.backends.triton import kernels

cid_before: Any = kernels.cid_before  # of many arguments, given as groups
T = 4.0
SIZES = [(37, 10, 9, 20), (1, 1, 1, 1), (5, 130, 3, 2)]
sizes = pytest.mark.parametrize(("rows", "classes", "students", "teachers"), SIZES)
types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])


def draw(rows: int, classes: int, students: int, teachers: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """f, s, t, q and y."""
    f, t = features(rows, students, dtype), features(rows, teachers, dtype)
    return f, logits(rows, classes, dtype), t, logits(rows, classes, dtype), labels(rows, classes)


@types
@sizes
def test_before(rows: int, classes: int, students: int, teachers: int, dtype: torch.dtype) -> None:
    given = draw(rows, classes, students, teachers, dtype)
    f, s, t, q, y = (x.double() if x.is_floating_point() else x for x in given)
    terms = torch.full((4,), 7.0, device=DEVICE)
    kd_grad, class_grad, belief = (torch.full_like(x, 7.0, device=DEVICE) for x in (given[1], given[0], given[1]))
    inputs = torch.full((rows, 2 * students), 7.0, dtype=dtype, device=DEVICE)
    numerator, denominator = torch.ones(classes, students, device=DEVICE), torch.ones(classes, device=DEVICE)
    cid_before(
        *(x.to(DEVICE) for x in given), None, T, IGNORE,
        terms, kd_grad, class_grad, inputs, belief, numerator, denominator,
    )  # fmt: skip

    f.requires_grad_()
    s.requires_grad_()
    kd = reference.kd_loss(s, q, None, KDOptions(T, "forward", 0.5, IGNORE, "mean"))
    class_ = reference.class_loss(f, t, y, IGNORE)
    (kd + class_).backward()
    assert s.grad is not None
    assert f.grad is not None
    kd_bound = bounds.kd(s, q, None, KDOptions(T, "forward", 0.5, IGNORE, "mean"))
    class_bound = bounds.class_(given[0], given[2], y, IGNORE)
    close(terms[1], kd, kd_bound.value)
    close(terms[3], class_, class_bound.value)
    close(kd_grad, s.grad, kd_bound.grad)
    close(class_grad, f.grad, class_bound.grad)
    close(belief, *bounds.softmax(s.detach(), T))
    assert torch.equal(inputs[:, :students].cpu(), given[0])
    assert (inputs[:, students:] == 7).all()
    before = torch.ones(classes, students, dtype=torch.float64), torch.ones(classes, dtype=torch.float64)
    sums, weights = tuple(x.clone() for x in before), reference.context_weights(q, y, T, IGNORE)
    reference.accumulate_context(f.detach(), weights, y, sums[0], sums[1], IGNORE)
    part = bounds.growth(rows) + float(bounds.exponentials(q / T).max())  # of the weights
    for ours, truth, bound in zip(
        (numerator, denominator), sums, bounds.contexts(f.detach(), weights, y, before, part), strict=True
    ):
        close(ours, truth, bound)


@sizes
def test_after_with_shares(rows: int, classes: int, students: int, teachers: int) -> None:
    """Of ce alone there is another target."""
    a, t, z = (features(rows, n, torch.float32) for n in (teachers, teachers, classes))
    y = draws.uniform(rows, classes).softmax(1)
    y[0] = 0
    ce_bound, sample_bound = bounds.soft_cross_entropy(z, y), bounds.sample(a, t, "mean").value
    terms, loss = torch.tensor([7.0, 2.0, 7.0, 3.0], device=DEVICE), torch.full((), 7.0, device=DEVICE)
    sample_grad, ce_grad = (torch.full_like(x, 7.0, device=DEVICE) for x in (a, z))
    adapted, teacher, logits_, target = (x.to(DEVICE) for x in (a, t, z, y))
    kernels.cid_after(
        adapted, teacher, logits_, target, None, IGNORE, 0.5, 10.0, 2.0, terms, loss, sample_grad, ce_grad
    )

    z, a = z.double().requires_grad_(), a.double()
    sample, ce = reference.sample_loss(a, t.double(), "mean"), reference.cross_entropy(z, y, IGNORE)
    ce.backward()
    assert z.grad is not None
    none = torch.zeros(())
    close(
        terms,
        torch.stack([ce.detach(), none + 2.0, sample, none + 3.0]),
        torch.stack([ce_bound.value, none, sample_bound, none]),
    )
    total = 0.5 * (ce.detach() + 2.0) + 10.0 * sample + 2.0 * 3.0
    close(loss, total, 0.5 * ce_bound.value + 10.0 * sample_bound + bounds.growth(4) * total)
    close(ce_grad, z.grad, ce_bound.grad)


@types
@sizes
def test_after(rows: int, classes: int, students: int, teachers: int, dtype: torch.dtype) -> None:
    given = features(rows, teachers, dtype), features(rows, teachers, dtype), logits(rows, classes, dtype)
    a, t, z = (x.double() for x in given)
    y = labels(rows, classes)
    terms = torch.tensor([7.0, 2.0, 7.0, 3.0], device=DEVICE)
    loss = torch.full((), 7.0, device=DEVICE)
    sample_grad, ce_grad = (torch.full_like(x, 7.0, device=DEVICE) for x in (given[0], given[2]))
    adapted, teacher, logits_, target = (x.to(DEVICE) for x in (*given, y))
    kernels.cid_after(
        adapted, teacher, logits_, target, None, IGNORE, 0.5, 10.0, 2.0, terms, loss, sample_grad, ce_grad
    )

    a.requires_grad_()
    z.requires_grad_()
    sample, ce = reference.sample_loss(a, t, "mean"), reference.cross_entropy(z, y, IGNORE)
    (sample + ce).backward()
    sample, ce = sample.detach(), ce.detach()
    assert a.grad is not None
    assert z.grad is not None
    sample_bound, ce_bound = bounds.sample(a, t, "mean"), bounds.cross_entropy(z, y, IGNORE)
    close(terms[0], ce, ce_bound.value)
    close(terms[2], sample, sample_bound.value)
    assert terms[1::2].tolist() == [2.0, 3.0]
    total = 0.5 * (ce + 2.0) + 10.0 * sample + 2.0 * 3.0
    rest = bounds.growth(4) * total  # all positive
    close(loss, total, 0.5 * ce_bound.value + 10 * sample_bound.value + rest)
    close(sample_grad, a.grad, sample_bound.grad)
    close(ce_grad, z.grad, ce_bound.grad)

    # In the warm-up there is no ce, and in an evaluation no gradient.
    kernels.cid_after(adapted, teacher, None, target, None, IGNORE, 0.5, 10.0, 2.0, terms, loss, None, None)
    assert terms[0] == 0
    close(terms[2], sample, sample_bound.value)
    close(loss, total - 0.5 * ce, 10 * sample_bound.value + rest)


def test_before_with_weights() -> None:
    """They are of kd alone, in which all rows count; the rest stays as it is."""
    given = tuple(x.to(DEVICE) for x in draw(9, 5, 4, 7, torch.float32))
    f, s, t, q, y = given
    weight = torch.where(draws.uniform(9) < 1 / 3, 0.0, 2 * draws.uniform(9)).to(DEVICE)
    found: list[tuple[Tensor, ...]] = []
    for each in (weight, torch.ones_like(weight), None):
        terms, inputs = torch.full((4,), 7.0, device=DEVICE), torch.full((9, 8), 7.0, device=DEVICE)
        kd_grad, class_grad, belief = (torch.full_like(x, 7.0) for x in (s, f, s))
        sums = torch.ones(5, 4, device=DEVICE), torch.ones(5, device=DEVICE)
        cid_before(f, s, t, q, y, each, T, IGNORE, terms, kd_grad, class_grad, inputs, belief, *sums)
        found.append((terms[1], kd_grad, terms[3], class_grad, belief, inputs, *sums))
    loss, grad = torch.full((), 7.0, device=DEVICE), torch.full_like(s, 7.0)
    kernels.kd(s, q, None, weight, T, "forward", 0.5, IGNORE, True, loss, grad)
    weighed, ones, none = found
    for ours, others in zip((*weighed, *ones), (loss, grad, *none[2:], *none), strict=True):
        assert torch.equal(ours, others)


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "shares"])
def test_after_with_weights(soft: bool) -> None:
    """Of sample and ce each row is times its weight, as in their own kernels."""
    rows = 9
    a, t, z = (features(rows, n, torch.float32).to(DEVICE) for n in (7, 7, 5))
    y = (draws.uniform(rows, 5).softmax(1) if soft else labels(rows, 5)).to(DEVICE)
    weight = torch.where(draws.uniform(rows) < 1 / 3, 0.0, 2 * draws.uniform(rows)).to(DEVICE)
    found: list[tuple[Tensor, ...]] = []
    for each in (weight, torch.ones_like(weight), None):
        terms, loss = torch.tensor([7.0, 2.0, 7.0, 3.0], device=DEVICE), torch.full((), 7.0, device=DEVICE)
        sample_grad, ce_grad = torch.full_like(a, 7.0), torch.full_like(z, 7.0)
        kernels.cid_after(a, t, z, y, each, IGNORE, 0.5, 10.0, 2.0, terms, loss, sample_grad, ce_grad)
        found.append((terms, loss, sample_grad, ce_grad))
    for ones, none in zip(*found[1:], strict=True):
        assert torch.equal(ones, none)

    terms, loss, sample_grad, ce_grad = found[0]
    (sample, a_grad), (ce, z_grad) = ((torch.full((), 7.0, device=DEVICE), torch.full_like(x, 7.0)) for x in (a, z))
    kernels.sample(a, t, weight, True, sample, a_grad)
    if soft:
        kernels.soft_cross_entropy(z, y, weight, ce, z_grad)
    else:
        kernels.cross_entropy(z, y, weight, IGNORE, ce, z_grad)
    assert torch.equal(sample_grad, a_grad)
    assert torch.equal(ce_grad, z_grad)
    # The same rows, added up in another order: both sums are of what is positive.
    close(terms, torch.stack([ce, sample.new_tensor(2.0), sample, sample.new_tensor(3.0)]), bounds.growth(rows) * terms)
    total = 0.5 * (ce.double() + 2.0) + 10.0 * sample.double() + 2.0 * 3.0
    close(loss, total, (bounds.growth(rows) + bounds.growth(4)) * total)


def test_only_what_is_asked_for() -> None:
    given = tuple(x.to(DEVICE) for x in draw(5, 3, 4, 2, torch.float32))
    each = []
    for outputs in ([None] * 6, [torch.empty_like(x) for x in (given[1], given[0])] + [None] * 4):
        terms = torch.zeros(4, device=DEVICE)
        cid_before(*given, None, T, IGNORE, terms, *outputs)
        each.append(terms)
    assert torch.equal(*each)


def test_no_rows() -> None:
    given = tuple(x.to(DEVICE) for x in draw(0, 3, 4, 2, torch.float32))
    f, s, t, _, y = given
    terms, loss = torch.full((4,), 7.0, device=DEVICE), torch.full((), 7.0, device=DEVICE)
    numerator, denominator = torch.ones(3, 4, device=DEVICE), torch.ones(3, device=DEVICE)
    outputs = torch.empty_like(s), torch.empty_like(f), f.new_empty(0, 8), torch.empty_like(s)
    cid_before(*given, None, T, IGNORE, terms, *outputs, numerator, denominator)
    kernels.cid_after(t, t, s, y, None, IGNORE, 1.0, 1.0, 1.0, terms, loss, torch.empty_like(t), torch.empty_like(s))
    assert (terms == 0).all()
    assert loss == 0
    assert (numerator == 1).all()
    assert (denominator == 1).all()
