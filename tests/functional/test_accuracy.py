"""The native backend against the reference, which is the truth in float64."""

import math
import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cid import _native
from cid import functional as F
from cid.backends import reference, select
from tests import bounds, draws
from tests.cases import IGNORE, KD, TERMS, Term, features, labels, logits

SIZES = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 37, 129, 333]))
terms = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
LOSSES = KERNELS = {name: term for name, term in TERMS.items() if name != "marginal"}  # its product is PyTorch's
HALVES = {"bf16": torch.bfloat16, "f16": torch.float16}
TYPES = {"f32": torch.float32, "f64": torch.float64} | HALVES
types = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
halves = pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
backends = pytest.mark.parametrize("backend", ["reference", "native"])


def real(dtype: torch.dtype) -> torch.dtype:
    """The type that a type is computed in."""
    return torch.promote_types(dtype, torch.float32)


def wide(inputs: tuple[Tensor, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def squared_error(ours: Tensor, truth: Tensor) -> float:
    """The mean squared error, relative to the mean square."""
    return float((ours.double() - truth).square().mean() / truth.square().mean().clamp(min=1e-300))


@terms
@given(rows=SIZES, columns=SIZES, seed=st.integers(0, 2**32))
def test_float64_equals_the_reference(term: Term, rows: int, columns: int, seed: int) -> None:
    draws.seed(seed)
    inputs = term.draw(rows, columns, torch.float64)
    ours, truth = (term.value_and_grad(inputs, backend) for backend in ("native", "reference"))
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@terms
@pytest.mark.parametrize("shape", [(64, 100), (37, 129), (16, 5000), (1000, 10), (3, 2048), (3, 2049)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES.values()], ids=["f32", *HALVES])
def test_at_least_as_accurate_as_eager(
    term: Term, shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss within its bound; the gradient by root mean square errors, as a largest is the luck of one element."""
    count = 20 if dtype == torch.float32 else 5
    errors = {"native": 0.0, "reference": 0.0, "eager": 0.0}
    for seed in range(count):
        draws.seed(seed)
        inputs = term.draw(*shape, dtype)
        truth = term.value_and_grad(wide(inputs), "reference")
        for name in errors:
            with monkeypatch.context() as patch:
                if name == "eager":  # the same formulas, in the type of the inputs
                    patch.setattr(reference, "_wide", lambda *tensors: tensors)
                value, grad = term.value_and_grad(inputs, "native" if name == "native" else "reference")
            errors[name] += squared_error(grad, truth[1]) / count
            if name == "native":
                bounds.close(value, truth[0], term.bound(*inputs).value)
    ours, *others = (error**0.5 for error in errors.values())
    for theirs in others:
        if math.isnan(theirs):  # class in float16: the floor of a norm, 1e-12, is 0
            continue
        # PyTorch's own sums go another way on each processor. Below half a unit in the last place nothing is better.
        assert ours <= max(1.5 * theirs, torch.finfo(dtype).eps / 2), errors


@terms
@types
@pytest.mark.parametrize("factor", [1e-30, 1e-10, 1e10, 1e30])
def test_extreme_factors(term: Term, dtype: torch.dtype, factor: float) -> None:
    """Wherever the float64 truth is representable the result is it, not an overflow or a NaN."""
    if dtype == torch.float16:
        factor **= 0.1  # what it can hold
    inputs = tuple(x * factor if x.is_floating_point() else x for x in term.draw(33, 129, dtype))
    ours, truth = term.value_and_grad(inputs, "native"), term.value_and_grad(wide(inputs), "reference")
    bound = term.bound(*inputs)
    # Of float64 the truth is off by as much; and where the divergence of close distributions is 0, by what cancels.
    eps = torch.finfo(torch.float64).eps
    scale = 2 * eps / bounds.EPS if dtype == torch.float64 else 1.0
    bounds.close(ours[0], truth[0], scale * bound.value + (4.0**2 * 4 * eps if term.name.startswith("kd") else 0.0))
    bounds.close(ours[1], truth[1], scale * bound.grad)


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


@backends
@types
def test_a_teacher_row_of_zeros_counts_nothing(backend: str, dtype: torch.dtype) -> None:
    s, t = features(3, 9, dtype).requires_grad_(), features(3, 9, dtype)
    t[1] = 0
    rows = F.sample_loss(s, t, reduction="none", backend=backend)
    (grad,) = torch.autograd.grad(rows.sum(), s)
    assert rows[1] == 0
    assert (grad[1] == 0).all()
    assert (rows[[0, 2]] > 0).all()


@backends
@types
@pytest.mark.parametrize("target", [[0, 1, 2, 3], [IGNORE] * 4, [2, IGNORE, 3, IGNORE]])
def test_no_pairs_no_class_loss(backend: str, dtype: torch.dtype, target: list[int]) -> None:
    s = features(4, 9, dtype).requires_grad_()
    loss = F.class_loss(s, features(4, 5, dtype), torch.tensor(target), backend=backend)
    loss.backward()
    assert loss == 0
    assert s.grad is not None
    assert (s.grad == 0).all()


@backends
@types
def test_ignored_samples_may_hold_anything(backend: str, dtype: torch.dtype) -> None:
    f, t, q = features(6, 9, dtype), features(6, 5, dtype), logits(6, 4, dtype)
    y = torch.tensor([0, 1, 0, IGNORE, 1, 0])
    keep = y != IGNORE
    for x in (f, t, q):
        x[3] = torch.nan
    f.requires_grad_()
    loss = F.class_loss(f, t, y, backend=backend)
    (grad,) = torch.autograd.grad(loss, f)
    torch.testing.assert_close(loss, F.class_loss(f[keep], t[keep], y[keep], backend=backend))
    assert (grad[3] == 0).all()
    w = F.context_weights(q, y, backend=backend)
    assert w[3] == 0
    numerator, denominator = torch.zeros(4, 9, dtype=w.dtype), torch.zeros(4, dtype=w.dtype)
    F.accumulate_context(f, torch.full_like(w, torch.nan).where(~keep, w), y, numerator, denominator, backend=backend)
    assert numerator.isfinite().all()
    torch.testing.assert_close(denominator[0], w[[0, 2, 5]].sum())


@backends
@types
def test_all_ignored_cross_entropy_is_zero(backend: str, dtype: torch.dtype) -> None:
    z = logits(3, 4, dtype).requires_grad_()
    loss = select(backend, z).cross_entropy(z, torch.full((3,), IGNORE), IGNORE)
    loss.backward()
    assert loss == 0
    assert z.grad is not None
    assert (z.grad == 0).all()


@types
@given(rows=SIZES, classes=SIZES, dim=SIZES, seed=st.integers(0, 2**32))
def test_context(dtype: torch.dtype, rows: int, classes: int, dim: int, seed: int) -> None:
    """Weights and sums; they add to what is there."""
    draws.seed(seed)
    f, q, y = features(rows, dim, dtype), logits(rows, classes, dtype), labels(rows, classes)
    start = features(classes, dim + 1, real(dtype))
    results = []
    for backend in ("native", "reference"):
        numerator, denominator = start[:, 1:].contiguous(), start[:, 0].contiguous()
        w = F.context_weights(q, y, temperature=2.0, backend=backend)
        F.accumulate_context(f, w, y, numerator, denominator, backend=backend)
        assert w.dtype == numerator.dtype
        results.append((w, numerator, denominator))
    # Each is off by the rounding of its exponentials, in the type that it is computed in, and then of its sums.
    part = bounds.exponentials(q.double() / 2.0).squeeze(1)
    sums = bounds.contexts(f, results[1][0], y, (start[:, 1:], start[:, 0]), bounds.growth(rows) + float(part.max()))
    scale = 2 * torch.finfo(real(dtype)).eps / bounds.EPS
    for mine, theirs, bound in zip(*results, (part * results[1][0], *sums), strict=True):
        bounds.close(mine, theirs, scale * bound)


@halves
@backends
@pytest.mark.parametrize("half_weights", [False, True])
@pytest.mark.parametrize("half_sums", [False, True])
def test_context_sums_of_halves(dtype: torch.dtype, backend: str, half_weights: bool, half_sums: bool) -> None:
    """Sums are of the features' type or of float32; what is refused has added nothing."""
    f, y = features(40, 9, dtype), labels(40, 3)
    w = draws.uniform(40).to(dtype if half_weights else torch.float32)
    sums = [torch.ones(*shape, dtype=dtype if half_sums else torch.float32) for shape in ((3, 9), (3,))]
    before, expected = [x.clone() for x in sums], [x.double() for x in sums]
    F.accumulate_context(f.double(), w.double(), y, expected[0], expected[1], backend="reference")
    F.accumulate_context(f, w, y, sums[0], sums[1], backend=backend)
    # The reference adds in the type of the sums.
    part = bounds.growth(40) * torch.finfo(sums[0].dtype).eps / bounds.EPS
    for mine, theirs, bound in zip(sums, expected, bounds.contexts(f, w, y, before, part), strict=True):
        bounds.close(mine, theirs, bound)
    before = [x.clone() for x in sums]
    for change in ({"weights": w.long()}, {"target": y + 3}, {"numerator": sums[0].double()}):
        arguments: dict[str, Any] = {"weights": w, "target": y, "numerator": sums[0], "denominator": sums[1]}
        with pytest.raises((TypeError, ValueError), match=rf"^{next(iter(change))}|^denominator"):
            F.accumulate_context(f, backend=backend, **(arguments | change))
    assert all(torch.equal(x, y) for x, y in zip(sums, before, strict=True))


@pytest.mark.parametrize("term", KERNELS.values(), ids=KERNELS)
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


@halves
def test_kernels_write_gradients_of_halves(dtype: torch.dtype) -> None:
    """Of float16 too, though its losses go by way of float32: the same, rounded once."""
    s, q, y = logits(9, 37, dtype), logits(9, 37, dtype), labels(9, 37)
    results = []
    for cast in (dtype, torch.float32):
        a, b, loss = s.to(cast), q.to(cast), torch.empty(5)
        grads = [torch.empty_like(a) for _ in range(5)]
        total = loss.unbind()
        _native.kd(a, b, None, 4.0, "forward", 0.5, IGNORE, True, total[0], grads[0])
        _native.sample(a, b, True, total[1], grads[1])
        _native.class_(a, b, y % 3, IGNORE, total[2], grads[2])
        _native.cross_entropy(a, y, IGNORE, total[3], grads[3])
        _native.softmax(a, 4.0, grads[4])
        total[4].zero_()
        results.append((loss, grads))
    (loss, grads), (expected, wide_grads) = results
    assert torch.equal(loss, expected)
    for grad, expected in zip(grads, wide_grads, strict=True):
        assert torch.equal(grad, expected.to(dtype))
    with pytest.raises(TypeError, match=r"^loss: dtype torch\.(bfloat16|float16) \(accepted: torch\.float32\)"):
        _native.kd(s, q, None, 4.0, "forward", 0.5, IGNORE, True, torch.empty((), dtype=dtype), None)
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    with pytest.raises(TypeError, match=r"^teacher_logits: dtype"):
        _native.kd(s, q.to(other), None, 4.0, "forward", 0.5, IGNORE, True, torch.empty(()), None)


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


@pytest.mark.parametrize("term", KERNELS.values(), ids=KERNELS)
@types
def test_same_bits_for_any_number_of_threads(term: Term, dtype: torch.dtype) -> None:
    inputs = term.draw(517, 333, dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(term.value_and_grad(inputs, "native"))
    finally:
        torch.set_num_threads(before)
    for value, grad in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_no_grad_and_inference_mode() -> None:
    s, q = logits(4, 9, torch.float32).requires_grad_(), logits(4, 9, torch.float32)
    expected = F.kd_loss(s, q, backend="native").detach()
    with torch.no_grad():
        assert torch.equal(F.kd_loss(s, q, backend="native"), expected)
    with torch.inference_mode():
        assert torch.equal(F.kd_loss(s, q, backend="native"), expected)


def _whole(
    backend: str, seed: int, sizes: tuple[int, int, int, int], wanted: list[bool], **options: Any
) -> list[Tensor]:
    """Everything that comes out of cid_loss and its backward, run twice."""
    draws.seed(seed)
    b, ds, dt, c = sizes
    shapes = ((b, ds), (b, c), (dt, ds), (dt,), (c, 2 * ds), (c,))
    drawn = [draws.normal(*shape, dtype=torch.float64) for shape in shapes]
    leaves = [x.requires_grad_(want) for x, want in zip(drawn, wanted, strict=True)]
    f, s, adapter_weight, adapter_bias, head_weight, head_bias = leaves
    t, q, m = features(b, dt, torch.float64), logits(b, c, torch.float64), features(c, ds, torch.float64)
    out = F.cid_loss(
        f,
        s,
        t,
        q,
        labels(b, c),
        adapter_weight=adapter_weight,
        adapter_bias=adapter_bias,
        head_weight=head_weight,
        head_bias=head_bias,
        backend=backend,
        **(dict[str, Any](context=m, beta=3.0, gamma=0.5) | options),
    )
    results = [x.detach() for x in out if x is not None]
    asked = [x for x, want in zip(leaves, wanted, strict=True) if want]
    results.append(torch.tensor(float(out.loss.requires_grad)))
    for factor in (1.0, -2.5, 1.0) if out.loss.requires_grad else ():
        grads = torch.autograd.grad(factor * out.loss, asked, retain_graph=True, allow_unused=True)
        results += [torch.zeros_like(x) if g is None else g.clone() for g, x in zip(grads, asked, strict=True)]
    return results


@given(
    sizes=st.tuples(SIZES, SIZES, SIZES, st.integers(1, 40)),
    wanted=st.lists(st.booleans(), min_size=6, max_size=6),
    seed=st.integers(0, 2**32),
    options=st.sampled_from(
        [{}, {"context": None}, {"alpha": 0.25}, {"alpha": 0.0}, {"beta": 0.0, "gamma": 0.0}, {"temperature": 0.7}]
    ),
)
def test_the_whole_criterion_equals_the_reference(
    sizes: tuple[int, int, int, int], wanted: list[bool], seed: int, options: dict[str, Any]
) -> None:
    ours, truth = (_whole(backend, seed, sizes, wanted, **options) for backend in ("native", "reference"))
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@halves
@pytest.mark.parametrize("bank", ["half", "float32", "none"])
def test_the_whole_criterion_of_halves(dtype: torch.dtype, bank: str) -> None:
    """As accurate as the reference: its products are PyTorch's, in the model's type."""
    b, ds, dt, c = 32, 24, 40, 10
    errors: dict[str, float] = {"native": 0.0, "reference": 0.0}
    for seed in range(5):
        draws.seed(seed)
        shapes = ((b, ds), (b, c), (dt, ds), (dt,), (c, 2 * ds), (c,))
        leaves = [(draws.normal(*shape) / shape[-1] ** 0.5).to(dtype) for shape in shapes]
        given = [features(b, dt, dtype), logits(b, c, dtype), labels(b, c)]
        context = None if bank == "none" else features(c, ds, dtype if bank == "half" else torch.float32)
        results = {}
        for name in ("truth", *errors):
            # Leaves of the truth are double; of the halves' results, those of the type.
            cast = [x.double() if name == "truth" else x for x in leaves]
            cast = [x.detach().requires_grad_() for x in cast]
            f, s, adapter_weight, adapter_bias, head_weight, head_bias = cast
            t, q, y = wide(tuple(given)) if name == "truth" else tuple(given)
            out = F.cid_loss(
                f, s, t, q, y,
                adapter_weight=adapter_weight, adapter_bias=adapter_bias,
                head_weight=head_weight, head_bias=head_bias,
                context=context.double() if name == "truth" and context is not None else context,
                beta=3.0, gamma=0.5, backend="reference" if name == "truth" else name,
            )  # fmt: skip
            if name != "truth":
                assert out.loss.dtype == out.ce.dtype == out.kd.dtype == torch.float32
                assert out.logits is None or out.logits.dtype == dtype
            grads = torch.autograd.grad(out.loss, cast, allow_unused=True)
            results[name] = [x.detach() for x in (out.loss, *grads) if x is not None]
            assert all(g is None or g.dtype == x.dtype for g, x in zip(grads, cast, strict=True))
        for name in errors:
            for mine, theirs in zip(results[name], results["truth"], strict=True):
                errors[name] += squared_error(mine, theirs)
    assert errors["native"] ** 0.5 <= 1.5 * errors["reference"] ** 0.5, errors


def test_the_whole_criterion_without_gradients() -> None:
    sizes, wanted = (16, 9, 12, 5), [True] * 6
    expected = _whole("native", 0, sizes, [False] * 6)
    with torch.no_grad():
        for mine, theirs in zip(expected, _whole("native", 0, sizes, [False] * 6), strict=True):
            assert torch.equal(mine, theirs)
    for mine, theirs in zip(expected[:-1], _whole("native", 0, sizes, wanted), strict=False):
        assert torch.equal(mine, theirs)


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_does_not_hang() -> None:
    done = _run(
        "import os, torch, warnings; warnings.simplefilter('ignore')\n"
        "from cid.functional import kd_loss\n"
        "torch.set_num_threads(2)\n"
        "s, q = torch.randn(512, 1000), torch.randn(512, 1000)\n"
        "a = kd_loss(s, q, backend='native')\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0 if torch.equal(a, kd_loss(s, q, backend='native')) else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert done.returncode == 0, done.stderr


def test_calls_from_many_threads() -> None:
    """The lock of the interpreter is free while a kernel runs, and threads do not disturb each other."""
    s, q = logits(512, 1000, torch.float32), logits(512, 1000, torch.float32)
    expected = F.kd_loss(s, q, backend="native")
    wrong: list[Tensor] = []

    def work() -> None:
        for _ in range(20):
            loss = F.kd_loss(s, q, backend="native")
            if not torch.equal(loss, expected):
                wrong.append(loss)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 60
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    assert not any(worker.is_alive() for worker in workers)
    assert not wrong
