"""Weights of samples: what each loss makes of them, and which are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import cid
from cid import functional as F
from cid.backends import native
from cid.backends.options import CIDInputs, CIDOptions
from cid.bench import memory
from tests import draws
from tests.cases import (
    IGNORE,
    KD,
    SIZES,
    TYPES,
    backends,
    cross_entropy,
    features,
    labels,
    logits,
    one_hot,
    shares,
    types,
    weights,
)
from tests.functional.calls import CALLS, B, C, D, call

Loss = Callable[..., Tensor]
"""Of the student's tensor, the teacher's or None, labels, and `weight`, `reduction` and `backend`."""


def _kd(**options: Any) -> Loss:
    return lambda s, q, y, **given: F.kd_loss(s, q, target=y, **options, **given)


def _sample(s: Tensor, t: Tensor, y: Tensor, **given: Any) -> Tensor:
    return F.sample_loss(s, t, **given)


def _ce(soft: bool, smoothing: float) -> Loss:
    def loss(z: Tensor, _: Tensor, y: Tensor, reduction: str = "mean", **given: Any) -> Tensor:
        return cross_entropy(z, one_hot(y, z.shape[1], torch.float64) if soft else y, smoothing, **given)

    return loss


BY_ROW: dict[str, Loss] = {name: _kd(**options) for name, options in KD.items()} | {"sample": _sample}
OF_MEANS = {f"ce{'_soft' * soft}{'_smoothed' * bool(x)}": _ce(soft, x) for soft in (False, True) for x in (0.0, 0.1)}
losses = pytest.mark.parametrize("loss", (BY_ROW | OF_MEANS).values(), ids=BY_ROW | OF_MEANS)


def value_and_grad(loss: Loss, s: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = s.detach().clone().requires_grad_()
    value = loss(leaf, *arguments, **options)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


@backends
@pytest.mark.parametrize("loss", BY_ROW.values(), ids=BY_ROW)
@given(rows=SIZES, columns=SIZES, seed=st.integers(0, 2**32))
def test_a_sample_counts_so_many_times(loss: Loss, backend: str, rows: int, columns: int, seed: int) -> None:
    """Of each its loss and gradient, w times; of a mean the number of samples stays what it was."""
    draws.seed(seed)
    s, t, w = logits(rows, columns, torch.float64), logits(rows, columns, torch.float64), weights(rows, torch.float64)
    y = labels(rows, columns)
    each, slopes = value_and_grad(loss, s, t, y, reduction="none", backend=backend)
    counted = rows if loss is _sample else max(int((y != IGNORE).sum()), 1)
    for reduction, factor in (("none", 1.0), ("sum", 1.0), ("mean", 1 / counted)):
        value, grad = value_and_grad(loss, s, t, y, weight=w, reduction=reduction, backend=backend)
        expected = factor * w * each
        torch.testing.assert_close(value, expected if reduction == "none" else expected.sum(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad, factor * w[:, None] * slopes, rtol=1e-12, atol=1e-12)


@backends
@pytest.mark.parametrize("loss", OF_MEANS.values(), ids=OF_MEANS)
@given(rows=SIZES, columns=SIZES, seed=st.integers(0, 2**32))
def test_a_sample_counts_so_many_times_in_ce(loss: Loss, backend: str, rows: int, columns: int, seed: int) -> None:
    """Each by itself is a mean of one; together they are divided by the number of those with a label."""
    draws.seed(seed)
    z, y, w = logits(rows, columns, torch.float64), labels(rows, columns), weights(rows, torch.float64)
    alone = [value_and_grad(loss, z[i : i + 1], None, y[i : i + 1], backend=backend) for i in range(rows)]
    values, grads = torch.stack([value for value, _ in alone]), torch.cat([grad for _, grad in alone])
    value, grad = value_and_grad(loss, z, None, y, weight=w, backend=backend)
    counted = max(int((y != IGNORE).sum()), 1)
    torch.testing.assert_close(value, (w * values).sum() / counted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, w[:, None] * grads / counted, rtol=1e-12, atol=1e-12)


@losses
@backends
@types
@pytest.mark.parametrize("shape", [(9, 3), (64, 37), (7, 2050)])
def test_weights_of_1_are_none(loss: Loss, backend: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """To the bit, of whatever type they are."""
    s, t, y = logits(*shape, dtype), logits(*shape, dtype), labels(*shape)
    expected = value_and_grad(loss, s, t, y, backend=backend)
    for of in TYPES.values():
        ours = value_and_grad(loss, s, t, y, weight=torch.ones(shape[0], dtype=of), backend=backend)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, expected, strict=True))


@losses
@backends
@types
@pytest.mark.parametrize("shape", [(6, 3), (6, 37), (6, 2050)])
def test_a_sample_of_weight_0_may_hold_anything(
    loss: Loss, backend: str, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    s, t, y = logits(*shape, dtype), logits(*shape, dtype), torch.arange(6) % shape[1]
    w = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.5, 0.0])
    expected = value_and_grad(loss, s, t, y, weight=w, backend=backend)
    s[1], t[1], s[3, 1], t[3, 2], s[5], t[5] = torch.nan, torch.nan, torch.inf, -torch.inf, torch.inf, 0.0
    value, grad = value_and_grad(loss, s, t, y, weight=w, backend=backend)
    assert torch.equal(value, expected[0])
    assert torch.equal(grad, expected[1])
    assert (grad[[1, 3, 5]] == 0).all()
    assert value_and_grad(loss, s, t, y, weight=0 * w, backend=backend)[0] == 0


@backends
def test_tokens_have_weights_of_the_shape_of_their_labels(backend: str) -> None:
    s, q, w = logits(15, 9, torch.float64), logits(15, 9, torch.float64), weights(15, torch.float64)
    expected = F.kd_loss(s, q, weight=w, reduction="none", backend=backend)
    s, q, w = s.reshape(3, 5, 9), q.reshape(3, 5, 9), w.reshape(3, 5)
    assert torch.equal(F.kd_loss(s, q, weight=w, reduction="none", backend=backend), expected.reshape(3, 5))
    for wrong in (w.flatten(), w[0], w.T):
        with pytest.raises(ValueError, match=r"^weight: got shape .*, accepted: \(3, 5\)"):
            F.kd_loss(s, q, weight=wrong, backend=backend)
    with pytest.raises(ValueError, match=r"^weight: got -1.0 at index 7, accepted: finite numbers >= 0"):
        F.kd_loss(s, q, weight=changed(-1.0, at=7, of=15).reshape(3, 5), backend=backend)
    assert F.kd_loss(s[0, 0], q[0, 0], weight=torch.tensor(2.0), backend=backend) == 2 * F.kd_loss(
        s[0, 0], q[0, 0], backend=backend
    )


def test_one_voice_in_the_types_of_weights() -> None:
    """Of any float type, strided, negated, with a gradient that they do not get: what they are worth."""
    w = torch.tensor([0.0, 0.5, 1.0, 2.0, 0.25, 3.0])
    apart = torch.zeros(B, 2)
    apart[:, 0] = w
    for name in ("kd_loss", "sample_loss", "cid_loss"):
        for backend in ("native", "reference"):
            expected = call(name, backend, weight=w)
            for other in (
                w.double(),
                w.bfloat16(),
                w.half(),
                apart[:, 0],
                torch._neg_view(-w),
                w.clone().requires_grad_(),
            ):
                found = call(name, backend, weight=other)
                pairs = zip(found, expected, strict=True) if name == "cid_loss" else [(found, expected)]
                assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
                assert not (found.loss if name == "cid_loss" else found).requires_grad


def changed(value: float, at: int = 2, of: int = B) -> Tensor:
    return torch.ones(of).index_fill(0, torch.tensor(at), value)


BAD = {"negative": (-0.5, "-0.5"), "nan": (torch.nan, "nan"), "inf": (torch.inf, "inf"), "-inf": (-torch.inf, "-inf")}


@pytest.mark.parametrize("backend", ["reference", "native", None])
@pytest.mark.parametrize(("value", "said"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
def test_what_is_no_weight_is_refused(backend: str | None, value: float, said: str, dtype: torch.dtype) -> None:
    """By name, and before anything is changed."""
    weight, message = changed(value).to(dtype), rf"^weight: got {said} at index 2, accepted: finite numbers >= 0$"
    for name in ("kd_loss", "sample_loss"):
        for reduction in ("none", "mean", "sum"):
            with pytest.raises(ValueError, match=message):
                call(name, backend, weight=weight, reduction=reduction)
    y = CALLS["cid_loss"]["target"]
    options: tuple[dict[str, Any], ...] = (
        {},
        {"context": None},
        {"differentiable_context": True},
        {"target": one_hot(y, C, torch.float32)},
        {"label_smoothing": 0.1},
    )
    for changes in options:
        sums = torch.zeros(C, D), torch.zeros(C)
        with pytest.raises(ValueError, match=message):
            call("cid_loss", backend, weight=weight, context_sums=sums, **changes)
        assert not any(x.any() for x in sums)


@backends
def test_weights_of_cross_entropy_are_checked(backend: str) -> None:
    z, y = logits(B, C, torch.float32), torch.arange(B) % C
    for soft in (False, True):
        with pytest.raises(ValueError, match=r"^weight: got nan at index 2"):
            _ce(soft, 0.0)(z, None, y, weight=changed(torch.nan), backend=backend)


@backends
def test_an_empty_batch_has_no_weights(backend: str) -> None:
    s, w = torch.zeros(0, C), torch.zeros(0)
    for loss in (F.kd_loss, F.sample_loss):
        assert loss(s, s, weight=w, reduction="sum", backend=backend) == 0
        assert loss(s, s, weight=w, reduction="none", backend=backend).shape == (0,)
        with pytest.raises(ValueError, match=r"the batch is empty"):
            loss(s, s, weight=w, reduction="mean", backend=backend)


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("options", [{}, {"differentiable_context": True}], ids=["one node", "term by term"])
def test_the_criterion_weighs_kd_ce_and_sample(backend: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """And neither class nor the contexts."""
    given = {
        name: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in CALLS["cid_loss"].items()
    }
    w = given["weight"]
    y = given["target"] = labels(B, C).index_fill(0, torch.tensor(0), 0)
    results, summed = [], []
    for weight in (w, None):
        summed.append((torch.zeros(C, D, dtype=dtype), torch.zeros(C, dtype=dtype)))
        changes = options | {"weight": weight, "context_sums": summed[-1]}
        results.append(call("cid_loss", backend, **(given | changes)))
    (loss, ce, kd, sample, class_, z), without = results
    assert torch.equal(kd, F.kd_loss(given["student_logits"], given["teacher_logits"], weight=w, backend=backend))
    assert torch.equal(ce, cross_entropy(z, y, weight=w, backend=backend))
    adapted = torch.nn.functional.linear(given["student_features"], given["adapter_weight"], given["adapter_bias"])
    assert torch.equal(sample, F.sample_loss(adapted, given["teacher_features"], weight=w, backend=backend))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(loss, ce + kd + sample + class_, rtol=4 * eps, atol=0.0)
    assert torch.equal(class_, without.class_)
    assert torch.equal(z, without.logits)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*summed, strict=True))


@backends
@types
@pytest.mark.parametrize("target", ["labels", "shares"])
@pytest.mark.parametrize("warmup", [0, 1])
def test_weights_of_1_are_none_in_the_criterion(backend: str, dtype: torch.dtype, target: str, warmup: int) -> None:
    results = []
    for weight in (None, torch.ones(16)):
        draws.seed(0)
        criterion = cid.CIDLoss(D, D, C, beta=2.0, gamma=1.0, warmup_epochs=warmup, backend=backend).to(dtype)
        f, s = features(16, D, dtype).requires_grad_(), logits(16, C, dtype).requires_grad_()
        y = labels(16, C) if target == "labels" else shares(16, C)
        out = criterion(f, s, features(16, D, dtype), logits(16, C, dtype), y, weight)
        trained = f, s, *criterion.parameters()
        grads = torch.autograd.grad(out.loss, trained, allow_unused=True)
        results.append([x for x in (*out, *criterion.bank.buffers(), *grads) if x is not None])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*results, strict=True))


def test_the_criterion_with_weights_is_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they come in another type."""
    taken: list[torch.dtype] = []
    one = native.backend.cid_loss_as_one

    def spy(inputs: CIDInputs, options: CIDOptions) -> cid.functional.CIDOutput:
        assert inputs.weight is not None
        taken.append(inputs.weight.dtype)
        return one(inputs, options)

    monkeypatch.setattr(native.backend, "cid_loss_as_one", spy)
    expected = call("cid_loss", weight=changed(0.5))
    assert torch.equal(call("cid_loss", weight=changed(0.5).double()).loss, expected.loss)
    assert taken == [torch.float32] * 2


def test_weights_take_no_matrix_more() -> None:
    s, q, w = logits(64, 1000, torch.float32).requires_grad_(), logits(64, 1000, torch.float32), draws.uniform(64)

    def step(weight: Tensor | None) -> Tensor:
        return torch.autograd.grad(F.kd_loss(s, q, weight=weight, backend="native"), s)[0]

    step(w)
    assert memory.counted(lambda: step(w)) <= memory.counted(lambda: step(None)) + 4 * len(w)


def test_the_modules_pass_weights_on() -> None:
    s, q, w = logits(B, C, torch.float32), logits(B, C, torch.float32), weights(B, torch.float32)
    assert torch.equal(cid.KDLoss(temperature=2.0)(s, q, None, w), F.kd_loss(s, q, weight=w, temperature=2.0))
    assert torch.equal(cid.SampleLoss()(s, q, w), F.sample_loss(s, q, weight=w))
