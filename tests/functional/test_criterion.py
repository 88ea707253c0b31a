"""The whole criterion against the reference, its terms, sums and gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cid import functional as F
from tests import bounds, draws
from tests.cases import SIZES, backends, cross_entropy, features, halves, labels, logits, one_hot, shares, weights, wide
from tests.functional.calls import CALLS, call

SETTINGS: list[dict[str, Any]] = [
    {},
    {"context": None},
    {"alpha": 0.25},
    {"alpha": 0.0},
    {"beta": 0.0, "gamma": 0.0},
    {"temperature": 0.7},
    {"weighted": True},
    {"weighted": True, "context": None},
]
OF_SHARES: list[dict[str, Any]] = [
    {},
    {"context": None},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0, "alpha": 0.25},
    {"beta": 0.0, "gamma": 0.0},
    {"differentiable_context": True},
    {"weighted": True, "label_smoothing": 0.1},
    {"weighted": True, "differentiable_context": True},
]
Sizes = tuple[int, int, int, int]
all_sizes = st.tuples(SIZES, SIZES, SIZES, st.integers(1, 40))


def trained(b: int, ds: int, dt: int, c: int) -> list[Tensor]:
    """The student's outputs, and the layers' weights and biases."""
    shapes = ((b, ds), (b, c), (dt, ds), (dt,), (c, 2 * ds), (c,))
    return [draws.normal(*shape, dtype=torch.float64) for shape in shapes]


def whole(
    backend: str,
    seed: int,
    sizes: Sizes,
    target: Callable[[int, int], Tensor] = labels,
    wanted: Sequence[bool] = (True,) * 6,
    weighted: bool = False,
    **options: Any,
) -> list[Tensor]:
    """Everything that comes out of cid_loss: its values, its context sums, and the gradients of three backwards."""
    draws.seed(seed)
    b, ds, dt, c = sizes
    leaves = [x.requires_grad_(want) for x, want in zip(trained(*sizes), wanted, strict=True)]
    f, s, adapter_weight, adapter_bias, head_weight, head_bias = leaves
    t, q, m = features(b, dt, torch.float64), logits(b, c, torch.float64), features(c, ds, torch.float64)
    sums = torch.zeros(c, ds, dtype=torch.float64), torch.zeros(c, dtype=torch.float64)
    out = F.cid_loss(
        f, s, t, q, target(b, c), weight=weights(b, torch.float64) if weighted else None,
        adapter_weight=adapter_weight, adapter_bias=adapter_bias, head_weight=head_weight, head_bias=head_bias,
        context_sums=sums, backend=backend, **(dict[str, Any](context=m, beta=3.0, gamma=0.5) | options),
    )  # fmt: skip
    results = [x.detach() for x in (*out, *sums) if x is not None]
    asked = [x for x, want in zip(leaves, wanted, strict=True) if want]
    results.append(torch.tensor(float(out.loss.requires_grad)))
    for factor in (1.0, -2.5, 1.0) if out.loss.requires_grad else ():
        grads = torch.autograd.grad(factor * out.loss, asked, retain_graph=True, allow_unused=True)
        results += [torch.zeros_like(x) if g is None else g.clone() for g, x in zip(grads, asked, strict=True)]
    return results


@given(
    sizes=all_sizes,
    wanted=st.lists(st.booleans(), min_size=6, max_size=6),
    seed=st.integers(0, 2**32),
    options=st.sampled_from(SETTINGS),
)
def test_the_whole_criterion_equals_the_reference(
    sizes: Sizes, wanted: list[bool], seed: int, options: dict[str, Any]
) -> None:
    ours, truth = (whole(backend, seed, sizes, wanted=wanted, **options) for backend in ("native", "reference"))
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
                errors[name] += bounds.squared_error(mine, theirs)
    assert errors["native"] ** 0.5 <= 1.5 * errors["reference"] ** 0.5, errors


def test_the_whole_criterion_without_gradients() -> None:
    sizes = (16, 9, 12, 5)
    expected = whole("native", 0, sizes, wanted=[False] * 6)
    with torch.no_grad():
        for mine, theirs in zip(expected, whole("native", 0, sizes, wanted=[False] * 6), strict=True):
            assert torch.equal(mine, theirs)
    for mine, theirs in zip(expected[:-1], whole("native", 0, sizes), strict=False):
        assert torch.equal(mine, theirs)


@given(sizes=all_sizes, seed=st.integers(0, 2**32), options=st.sampled_from(OF_SHARES))
def test_the_whole_criterion_of_shares_equals_the_reference(sizes: Sizes, seed: int, options: dict[str, Any]) -> None:
    ours, truth = (whole(backend, seed, sizes, shares, **options) for backend in ("native", "reference"))
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@backends
@given(sizes=all_sizes, seed=st.integers(0, 2**32), options=st.sampled_from(OF_SHARES))
def test_one_hot_shares_give_what_the_labels_give(
    backend: str, sizes: Sizes, seed: int, options: dict[str, Any]
) -> None:
    def hot(rows: int, classes: int) -> Tensor:
        return one_hot(labels(rows, classes), classes, torch.float32)

    soft, hard = (whole(backend, seed, sizes, target, **options) for target in (hot, labels))
    for mine, theirs in zip(soft, hard, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def test_the_whole_criterion_written_out() -> None:
    """Of shares, term by term, in float64."""
    b, ds, dt, c = 40, 7, 9, 5  # many enough for a class with two samples, whatever is drawn
    ce, kd, sample, class_, z, numerator, denominator, *_ = values = whole("native", 3, (b, ds, dt, c), shares)[1:]
    draws.seed(3)
    f, s, a, a0, w, w0 = trained(b, ds, dt, c)
    t, q, m = features(b, dt, torch.float64), logits(b, c, torch.float64), features(c, ds, torch.float64)
    y = shares(b, c)
    belief = torch.softmax(q / 4, 1)
    torch.testing.assert_close(z, torch.cat([f, torch.softmax(s / 4, 1) @ m], 1) @ w.T + w0)
    torch.testing.assert_close(ce, -(y * torch.log_softmax(z, 1)).sum(1)[y.any(1)].mean())
    torch.testing.assert_close(kd, 16 * TF.kl_div(torch.log_softmax(s / 4, 1), belief, reduction="batchmean"))
    torch.testing.assert_close(sample, ((f @ a.T + a0 - t).square().sum(1) / t.square().sum(1)).mean())
    torch.testing.assert_close(numerator, (y * belief).T @ f)
    torch.testing.assert_close(denominator, (y * belief).sum(0))
    cosines = [TF.normalize(x) @ TF.normalize(x).T for x in (t, f)]
    of = [[i for i in range(b) if y[i, k] > 0.5] for k in range(c)]
    terms = [(cosines[0] - cosines[1])[i][:, i].square().sum() / len(i) ** 2 for i in of if len(i) > 1]
    torch.testing.assert_close(class_, torch.stack(terms).mean())
    assert len(values) > 7


@backends
@pytest.mark.parametrize("options", OF_SHARES)
def test_gradcheck(backend: str, options: dict[str, Any]) -> None:
    b, ds, dt, c = 7, 4, 5, 3
    leaves = [x.requires_grad_() for x in trained(b, ds, dt, c)]
    t, q, y = features(b, dt, torch.float64), logits(b, c, torch.float64), shares(b, c)
    m = features(c, ds, torch.float64)
    given = dict[str, Any](context=None if "context" in options else m, beta=3.0, gamma=0.5) | options
    w = given["weight"] = weights(b, torch.float64) if given.pop("weighted", False) else None
    # What the paper's code does not differentiate, finite differences would.
    given["differentiable_context"] = True

    def loss(*x: Tensor) -> Tensor:
        names = ("adapter_weight", "adapter_bias", "head_weight", "head_bias")
        layers: dict[str, Any] = dict(zip(names, x[2:], strict=True))
        return F.cid_loss(x[0], x[1], t, q, y, backend=backend, **layers, **given).loss

    assert torch.autograd.gradcheck(loss, leaves)
    z = logits(b, c, torch.float64).requires_grad_()
    smoothing = options.get("label_smoothing", 0.0)
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, y, smoothing, weight=w, backend=backend), (z,))


@backends
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("head", [None, "sparse"])
def test_in_warm_up_nothing_looks_at_the_head(backend: str, dense: bool, head: str | None) -> None:
    features = CALLS["cid_loss"]["student_features"]
    given = {"context": None, "student_features": features if dense else features.t().contiguous().t()}
    weight = None if head is None else CALLS["cid_loss"]["head_weight"].to_sparse()
    found = call("cid_loss", backend, **given, head_weight=weight, head_bias=None)
    expected = call("cid_loss", backend, **given)
    assert all(torch.equal(a, b) for a, b in zip(found[:5], expected[:5], strict=True))


@pytest.mark.parametrize("differentiable_context", [True, False])
@backends
def test_numbers_may_be_large_ints(backend: str, differentiable_context: bool) -> None:
    options = {"differentiable_context": differentiable_context, "temperature": 10**10}
    found = call("cid_loss", backend, **options)
    assert found.loss == call("cid_loss", backend, **(options | {"temperature": 1e10})).loss
    with pytest.raises(ValueError, match=r"^ignore_index: got 1180591620717411303424, accepted: -2\^63 to 2\^63 - 1"):
        call("cid_loss", backend, ignore_index=2**70)
