"""Targets that hold the share of each class (mixup, CutMix, smoothing), against formulas written out in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import cid
from cid import _native
from cid import functional as F
from cid.backends import select
from tests import draws
from tests.cases import IGNORE, features, labels, logits
from tests.functional.test_accuracy import SIZES, real, types

backends = pytest.mark.parametrize("backend", ["native", "reference"])
SMOOTHINGS = [0.0, 0.1, 0.6, 1.0]
smoothings = pytest.mark.parametrize("smoothing", SMOOTHINGS)


def shares(rows: int, classes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of two classes, as mixup makes them; of all classes; and about one row in six without any."""
    y = [TF.one_hot(torch.randint(classes, (rows,)), classes).double() for _ in range(2)]
    part = torch.rand(rows, 1, dtype=torch.float64)
    mixed = part * y[0] + (1 - part) * y[1]
    mixed = torch.where(torch.rand(rows, 1) < 0.5, mixed, torch.rand(rows, classes).double().softmax(1))
    return torch.where(torch.rand(rows, 1) < 1 / 6, 0.0, mixed).to(dtype)


def one_hot(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    return torch.where((y == IGNORE)[:, None], 0, TF.one_hot(y.clamp(min=0), classes)).to(dtype)


def cross_entropy(z: Tensor, y: Tensor, smoothing: float) -> Tensor:
    """Row by row, as it is written."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for z_i, y_i in zip(z.double(), y.double(), strict=True):
        if (y_i == 0).all():
            continue
        count += 1
        of = (1 - smoothing) * y_i + smoothing / len(y_i)
        log_p = z_i - z_i.logsumexp(0)
        total = total - (of * log_p)[of != 0].sum()
    return total / max(count, 1)


def cross_entropy_of(z: Tensor, y: Tensor, smoothing: float, backend: str) -> Tensor:
    return select(backend, z).cross_entropy(z, y, IGNORE, smoothing)


@types
@backends
@given(rows=SIZES, classes=SIZES, smoothing=st.sampled_from(SMOOTHINGS), seed=st.integers(0, 2**32))
def test_cross_entropy(dtype: torch.dtype, backend: str, rows: int, classes: int, smoothing: float, seed: int) -> None:
    """Errors are those of float32 (or float64) sums of terms of one sign, and of the gradient's own rounding."""
    draws.seed(seed)
    z, y = logits(rows, classes, dtype), shares(rows, classes, real(dtype))
    leaf, truth = z.clone().requires_grad_(), z.double().requires_grad_()
    loss, expected = cross_entropy_of(leaf, y, smoothing, backend), cross_entropy(truth, y, smoothing)
    assert loss.dtype == real(dtype)
    eps = torch.finfo(real(dtype)).eps
    # A term is of the size of the logits, up to 5 * 6, and a logarithm of the sum.
    torch.testing.assert_close(loss.double(), expected, rtol=32 * eps, atol=32 * eps * 40)
    ((grad,),) = [torch.autograd.grad(loss, leaf)]
    (slope,) = torch.autograd.grad(expected, truth) if expected.requires_grad else (torch.zeros_like(truth),)
    assert grad.dtype == dtype
    # Of p - y, each up to 1, over the number of rows that count.
    count = max(int((y != 0).any(1).sum()), 1)
    rounding = torch.finfo(dtype)
    torch.testing.assert_close(
        grad.double(), slope, rtol=rounding.eps, atol=32 * eps / count + rounding.smallest_normal * rounding.eps
    )


@types
@backends
@given(rows=SIZES, classes=SIZES, dim=SIZES, seed=st.integers(0, 2**32))
def test_contexts(dtype: torch.dtype, backend: str, rows: int, classes: int, dim: int, seed: int) -> None:
    draws.seed(seed)
    f, q, y = features(rows, dim, dtype), logits(rows, classes, dtype), shares(rows, classes, real(dtype))
    w = F.context_weights(q, y, temperature=2.0, backend=backend)
    expected = y.double() * torch.softmax(q.double() / 2, 1)
    eps = torch.finfo(real(dtype)).eps
    assert w.shape == (rows, classes)
    assert w.dtype == real(dtype)
    torch.testing.assert_close(w.double(), expected, rtol=64 * eps, atol=eps)
    sums = torch.ones(classes, dim, dtype=real(dtype)), torch.ones(classes, dtype=real(dtype))
    F.accumulate_context(f, w, y, *sums, backend=backend)
    bound = eps * (rows + 2)  # of a sum of so many terms, relative to the sum of their magnitudes
    w = w.double()
    magnitude = 1 + w.T @ f.double().abs()
    assert ((sums[0].double() - (1 + w.T @ f.double())).abs() <= bound * magnitude).all()
    torch.testing.assert_close(sums[1].double(), 1 + w.sum(0), rtol=bound, atol=0)


@backends
def test_the_class_term_takes_the_class_with_more_than_half(backend: str) -> None:
    f, t = features(6, 9, torch.float64), features(6, 5, torch.float64)
    y = torch.tensor([[0.6, 0.4], [0.51, 0.49], [0.5, 0.5], [0.2, 0.8], [0.0, 1.0], [0.0, 0.0]])
    expected = F.class_loss(f, t, torch.tensor([0, 0, IGNORE, 1, 1, IGNORE]), backend=backend)
    assert torch.equal(F.class_loss(f, t, y, backend=backend), expected)
    assert expected > 0


@backends
def test_a_number_to_ignore_names_no_class_of_shares(backend: str) -> None:
    """`ignore_index` is for labels, and shares have none."""
    f, t = features(4, 9, torch.float64), features(4, 5, torch.float64)
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    expected = F.class_loss(f, t, y.argmax(1), backend=backend)
    assert torch.equal(F.class_loss(f, t, y, ignore_index=0, backend=backend), expected)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"context": None},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0, "alpha": 0.25},
    {"beta": 0.0, "gamma": 0.0},
    {"differentiable_context": True},
]


def whole(
    backend: str | None, seed: int, sizes: tuple[int, int, int, int], target: Any, **options: Any
) -> list[Tensor]:
    """Everything that comes out of cid_loss, its context sums and its gradients."""
    draws.seed(seed)
    b, ds, dt, c = sizes
    shapes = ((b, ds), (b, c), (dt, ds), (dt,), (c, 2 * ds), (c,))
    leaves = [torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    f, s, adapter_weight, adapter_bias, head_weight, head_bias = leaves
    t, q, m = features(b, dt, torch.float64), logits(b, c, torch.float64), features(c, ds, torch.float64)
    sums = torch.zeros(c, ds, dtype=torch.float64), torch.zeros(c, dtype=torch.float64)
    out = F.cid_loss(
        f, s, t, q, target(b, c),
        adapter_weight=adapter_weight, adapter_bias=adapter_bias, head_weight=head_weight, head_bias=head_bias,
        context_sums=sums, backend=backend, **(dict[str, Any](context=m, beta=3.0, gamma=0.5) | options),
    )  # fmt: skip
    grads = torch.autograd.grad(-2.5 * out.loss, leaves, allow_unused=True)
    return [x.detach() for x in (*out, *sums, *grads) if x is not None]


sizes = st.tuples(SIZES, SIZES, SIZES, st.integers(1, 40))


@given(sizes=sizes, seed=st.integers(0, 2**32), options=st.sampled_from(SETTINGS))
def test_the_whole_criterion_equals_the_reference(
    sizes: tuple[int, int, int, int], seed: int, options: dict[str, Any]
) -> None:
    ours, truth = (whole(backend, seed, sizes, shares, **options) for backend in ("native", "reference"))
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@backends
@given(sizes=sizes, seed=st.integers(0, 2**32), options=st.sampled_from(SETTINGS))
def test_one_hot_shares_give_what_the_labels_give(
    backend: str, sizes: tuple[int, int, int, int], seed: int, options: dict[str, Any]
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
    shapes = ((b, ds), (b, c), (dt, ds), (dt,), (c, 2 * ds), (c,))
    f, s, a, a0, w, w0 = (torch.randn(*shape, dtype=torch.float64) for shape in shapes)
    t, q, m = features(b, dt, torch.float64), logits(b, c, torch.float64), features(c, ds, torch.float64)
    y = shares(b, c)
    belief = torch.softmax(q / 4, 1)
    torch.testing.assert_close(z, torch.cat([f, torch.softmax(s / 4, 1) @ m], 1) @ w.T + w0)
    torch.testing.assert_close(ce, cross_entropy(z, y, 0.0))
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
@pytest.mark.parametrize("options", SETTINGS)
def test_gradcheck(backend: str, options: dict[str, Any]) -> None:
    b, ds, dt, c = 7, 4, 5, 3
    shapes = ((b, ds), (b, c), (dt, ds), (dt,), (c, 2 * ds), (c,))
    leaves = [torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    t, q, y, m = features(b, dt, torch.float64), logits(b, c, torch.float64), shares(b, c), torch.randn(c, ds).double()
    given = dict[str, Any](context=None if "context" in options else m, beta=3.0, gamma=0.5) | options
    # What the paper's code does not differentiate, finite differences would.
    given["differentiable_context"] = True

    def loss(*x: Tensor) -> Tensor:
        names = ("adapter_weight", "adapter_bias", "head_weight", "head_bias")
        layers: dict[str, Any] = dict(zip(names, x[2:], strict=True))
        return F.cid_loss(x[0], x[1], t, q, y, backend=backend, **layers, **given).loss

    assert torch.autograd.gradcheck(loss, leaves)
    z = logits(b, c, torch.float64).requires_grad_()
    smoothing = options.get("label_smoothing", 0.0)
    assert torch.autograd.gradcheck(lambda z: cross_entropy_of(z, y, smoothing, backend), (z,))


@backends
@types
def test_a_sample_without_shares_may_hold_anything(backend: str, dtype: torch.dtype) -> None:
    f, t, q, z = (draw(6, n, dtype) for draw, n in ((features, 9), (features, 5), (logits, 4), (logits, 4)))
    y = shares(6, 4)
    y[:] = torch.where((y == 0).all(1, keepdim=True), 0.25, y)
    y[3] = 0
    keep = torch.arange(6) != 3
    for x in (f, t, q, z):
        x[3] = torch.nan
    f.requires_grad_(), z.requires_grad_()
    loss = F.class_loss(f, t, y, backend=backend) + cross_entropy_of(z, y, 0.1, backend)
    grads = torch.autograd.grad(loss, (f, z), allow_unused=True)
    expected = F.class_loss(f[keep], t[keep], y[keep], backend=backend)
    expected = expected + cross_entropy_of(z[keep], y[keep], 0.1, backend)
    torch.testing.assert_close(loss, expected)
    assert all((g[3] == 0).all() and g.isfinite().all() for g in grads)
    w = F.context_weights(q, y, backend=backend)
    sums = torch.zeros(4, 9, dtype=real(dtype)), torch.zeros(4, dtype=real(dtype))
    F.accumulate_context(f, w, y, *sums, backend=backend)
    assert (w[3] == 0).all()
    assert sums[0].isfinite().all()
    assert cross_entropy_of(z, torch.zeros(6, 4), 0.0, backend) == 0


@backends
def test_a_class_without_a_share_may_be_ruled_out(backend: str) -> None:
    """`0 log 0` is 0, as of labels; what has a share and is ruled out is infinitely wrong."""
    z = torch.tensor([[1.0, 1.0, -torch.inf]]).requires_grad_()
    loss = cross_entropy_of(z, torch.tensor([[0.5, 0.5, 0.0]]), 0.0, backend)
    (grad,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(loss.detach(), torch.tensor(2.0).log())
    assert torch.equal(grad, torch.zeros(1, 3))
    assert cross_entropy_of(z, torch.tensor([[0.5, 0.25, 0.25]]), 0.0, backend) == torch.inf


@backends
@smoothings
@pytest.mark.parametrize("soft", [False, True])
def test_label_smoothing_is_pytorchs(backend: str, smoothing: float, soft: bool) -> None:
    z = logits(40, 9, torch.float64).requires_grad_()
    y = labels(40, 9)
    given = torch.rand(40, 9).double().softmax(1) if soft else y
    expected = TF.cross_entropy(z, given, label_smoothing=smoothing)
    loss = cross_entropy_of(z, given, smoothing, backend)
    torch.testing.assert_close(loss, expected)
    grads = [torch.autograd.grad(value, z)[0] for value in (loss, expected)]
    torch.testing.assert_close(*grads)


def criterion(**options: Any) -> cid.CIDLoss:
    draws.seed(0)
    return cid.CIDLoss(9, 9, 4, **({"beta": 1.0, "gamma": 1.0, "warmup_epochs": 0} | options))


def batch() -> tuple[Tensor, ...]:
    return (
        features(6, 9, torch.float32),
        logits(6, 4, torch.float32),
        features(6, 9, torch.float32),
        logits(6, 4, torch.float32),
    )


def bad(row: int, *values: float) -> Tensor:
    y = torch.full((6, 4), 0.25)
    y[row] = torch.tensor(values)
    return y


@backends
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            bad(2, 0.5, 0.5, 0.5, 0.0),
            r"^target: row 2 adds up to 1.5, accepted: shares from 0 that add up to 1, or zeros",
        ),
        (bad(1, 1.0, 1.0, 0.0, 0.0), r"^target: row 1 adds up to 2, "),
        (bad(0, 1.5, -0.5, 0.0, 0.0), r"^target: row 0 holds -0.5, "),
        (bad(5, torch.nan, 0.5, 0.5, 0.0), r"^target: row 5 holds nan, "),
        (bad(4, torch.inf, 0.0, 0.0, 0.0), r"^target: row 4 adds up to inf, "),
        (torch.full((6, 5), 0.2), r"^target: got shape \(6, 5\), accepted: \(6, 4\)"),
        (torch.full((5, 4), 0.25), r"^target: got shape \(5, 4\), accepted: \(6, 4\)"),
        (torch.rand(6), r"^target: got shape \(6,?\), accepted: \(6, 4\)"),
        (torch.ones(6, 4, dtype=torch.int64), r"^target: got shape \(6, 4\), accepted: \(6\)"),
        (torch.full((6, 4), 0.25, device="meta"), r"^target: is on meta, accepted: cpu"),
    ],
    ids=["sum", "several", "negative", "nan", "inf", "classes", "rows", "flat", "int", "device"],
)
def test_what_is_no_share_is_refused(backend: str, target: Tensor, message: str) -> None:
    """By name, and before anything is changed."""
    loss, given = criterion(backend=backend), batch()
    with pytest.raises(ValueError, match=message):
        loss(*given, target)
    assert (loss.bank.denominator == 0).all()
    for call in (
        lambda: F.context_weights(given[3], target, backend=backend),
        lambda: F.accumulate_context(
            given[0], torch.zeros(target.shape), target, loss.bank.numerator, loss.bank.denominator, backend=backend
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"^target: got torch.complex64, accepted: torch.int64"):
        loss(*given, torch.zeros(6, 4, dtype=torch.complex64))


@backends
def test_weights_have_the_shape_of_the_target(backend: str) -> None:
    sums = torch.zeros(4, 9), torch.zeros(4)
    for weights, target in ((torch.rand(6), bad(0, 1, 0, 0, 0)), (torch.rand(6, 4), torch.zeros(6, dtype=torch.int64))):
        with pytest.raises(ValueError, match=r"^weights: got shape"):
            F.accumulate_context(features(6, 9, torch.float32), weights, target, *sums, backend=backend)
    assert all((x == 0).all() for x in sums)


@types
def test_what_half_precision_rounds_still_adds_up(dtype: torch.dtype) -> None:
    """Mixed, and smoothed over a thousand classes, in any type."""
    y = [TF.one_hot(torch.randint(1000, (64,)), 1000).to(dtype) for _ in range(2)]
    y = [0.9 * x + 0.1 / 1000 for x in y]
    out = F.context_weights(logits(64, 1000, dtype), 0.7 * y[0] + 0.3 * y[1])
    assert out.isfinite().all()


def test_the_types_of_targets_change_nothing() -> None:
    """Neither the type of the loss nor that of what is computed; numpy's shares are float64."""
    given, y = batch(), bad(0, 0.5, 0.5, 0.0, 0.0)
    expected = criterion()(*given, y)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        out = criterion()(*given, y.to(dtype))
        assert out.loss.dtype == torch.float32
        assert torch.equal(out.loss, expected.loss)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.1", None])
def test_label_smoothing_is_checked(value: Any) -> None:
    for make in (
        lambda: criterion(label_smoothing=value),
        lambda: cid.Distiller(
            nn.Linear(3, 4), nn.Linear(3, 4), num_classes=4, beta=1.0, gamma=1.0, label_smoothing=value
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=r"^label_smoothing: got .*accepted: "):
            make()
    loss = criterion()
    loss.label_smoothing = value
    with pytest.raises((ValueError, TypeError), match=r"^label_smoothing: got .*accepted: "):
        loss(*batch(), torch.zeros(6, dtype=torch.int64))


@backends
def test_modules_take_shares_and_smoothing(backend: str) -> None:
    given, y = batch(), bad(0, 0.0, 0.7, 0.3, 0.0)
    loss = criterion(label_smoothing=0.1, backend=backend)
    loss.bank.context.normal_()
    out = loss(*given, y)
    assert out.logits is not None
    torch.testing.assert_close(out.ce, TF.cross_entropy(out.logits, y, label_smoothing=0.1))
    other = cid.ContextBank(4, 9, backend=backend)
    other.update(given[0], given[3], y)
    torch.testing.assert_close(other.numerator, loss.bank.numerator)
    torch.testing.assert_close(other.denominator, (y * torch.softmax(given[3] / 4, 1)).sum(0))


def test_a_target_gets_no_gradient() -> None:
    given, y = batch(), bad(0, 0.0, 0.7, 0.3, 0.0).requires_grad_()
    for backend in ("native", "reference"):
        criterion(backend=backend)(*given, y).loss.backward()
        assert y.grad is None


def test_distiller_with_timms_mixup() -> None:
    """In a loop: mixup, CutMix and smoothing by timm, which keeps shares in the type of its own."""
    timm_data = pytest.importorskip("timm.data")
    mixup = timm_data.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=5)
    draws.seed(0)
    student = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    teacher = nn.Sequential(nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    distiller = cid.Distiller(student, teacher, num_classes=5, beta=1.0, gamma=1.0, warmup_epochs=1)
    optimizer = torch.optim.SGD(distiller.param_groups(weight_decay=0.0), lr=0.05)
    images, y = torch.randn(8, 3, 8, 8), torch.arange(8) % 5
    for epoch in range(2):
        for _ in range(2):
            x, target = mixup(images.clone(), y)
            assert target.shape == (8, 5)
            out = distiller(x, target)
            if epoch:
                torch.testing.assert_close(out.ce, TF.cross_entropy(out.logits, target))
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
        distiller.epoch_end()
    assert distiller.criterion.bank.context.isfinite().all()
    assert (distiller.criterion.bank.context != 0).any(1).all()  # all classes have a share of each smoothed sample


def test_kernels_refuse_what_does_not_fit() -> None:
    z, y, loss = torch.zeros(6, 4), torch.full((6, 4), 0.25), torch.zeros(())
    for wrong, error in ((y[:, :3].contiguous(), ValueError), (y.double(), TypeError), (y[0], ValueError)):
        with pytest.raises(error, match=r"^target: "):
            _native.soft_cross_entropy(z, wrong, loss, None)
        with pytest.raises(error, match=r"^target: "):
            _native.soft_context_weights(z, wrong, 4.0, torch.zeros(6, 4))
    with pytest.raises(ValueError, match=r"^temperature: "):
        _native.soft_context_weights(z, y, 0.0, torch.zeros(6, 4))
