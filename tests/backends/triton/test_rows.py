"""The Triton kernels that go row by row, against the reference in float64."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cid import functional as F
from cid.backends import reference
from tests import bounds, draws
from tests.bounds import Bound, close
from tests.cases import IGNORE, features, labels, logits
from tests.gpu import DEVICE

pytest.importorskip("triton", reason="needs triton")
from cid.backends.options import KDOptions
from cid.backends.triton import kernels, tiles

DIVERGENCES = [("forward", 0.5), ("reverse", 0.5), ("js", 0.5), ("js", 0.1)]
divergences = pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
types = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
CASES = [  # few, as the interpreter is slow
    ((1, 1), "f32"),
    ((5, 2), "bf16"),
    ((7, 37), "f32"),
    ((33, 10), "f16"),
    ((3, 333), "bf16"),
    ((2, 129), "f32"),
]
cases = pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, TYPES[name]) for shape, name in CASES],
    ids=[f"{name}-{shape}" for shape, name in CASES],
)
NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=[False, True], ids=["whole", "pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether rows go in pieces; as if 37 columns were many, for the interpreter's sake."""
    if request.param:
        for name, choice in tiles.ROWS.items():
            monkeypatch.setitem(tiles.ROWS, name, replace(choice, whole=16, piece=32, piece_warps=4))
    return bool(request.param)


by_pieces = pytest.mark.usefixtures("pieces")


def truth(student: Tensor, formula: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The value of the reference in float64, and the derivative of its sum."""
    student = student.double().requires_grad_()
    value = formula(student)
    (grad,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), grad


def run(kernel: Callable[..., None], student: Tensor, *arguments: object, each: bool = False) -> tuple[Tensor, Tensor]:
    """What a kernel writes over what was there before."""
    student = student.to(DEVICE)
    on_device = [x.to(DEVICE) if isinstance(x, Tensor) else x for x in arguments]
    loss = torch.full((len(student),) if each else (), 7.0, device=DEVICE)
    grad = torch.full_like(student, 7.0)
    kernel(student, *on_device, loss, grad)
    return loss, grad


def both_close(ours: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor], bound: Bound) -> None:
    """The value and the derivative."""
    close(ours[0], truth[0], bound.value)
    close(ours[1], truth[1], bound.grad)


def kd(
    s: Tensor,
    q: Tensor,
    y: Tensor | None = None,
    *,
    temperature: float = 4.0,
    divergence: str = "forward",
    beta: float = 0.5,
    reduction: str = "none",
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Bound]:
    """Ours, the truth, and how far they may be apart."""
    mean = reduction == "mean"
    ours = run(kernels.kd, s, q, y, temperature, divergence, beta, IGNORE, mean, each=reduction == "none")
    options = KDOptions(temperature, divergence, beta, IGNORE, reduction)
    return ours, truth(s, lambda s: reference.kd_loss(s, q.double(), y, options)), bounds.kd(s, q, y, options)


@cases
@divergences
def test_kd(shape: tuple[int, int], dtype: torch.dtype, divergence: str, beta: float) -> None:
    s, q = logits(*shape, dtype), logits(*shape, dtype)
    both_close(*kd(s, q, divergence=divergence, beta=beta, reduction="mean"))


@by_pieces
@types
@divergences
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_kd_of_extreme_logits(dtype: torch.dtype, divergence: str, beta: float, factor: float) -> None:
    if dtype == torch.float16:
        factor **= 0.1  # what it can hold
    s, q = (factor * logits(5, 37, dtype) for _ in range(2))
    both_close(*kd(s, q, temperature=3.0, divergence=divergence, beta=beta))


@by_pieces
@divergences
def test_kd_of_close_distributions_does_not_cancel(divergence: str, beta: float) -> None:
    """The bound is of the derivative, which is as small as the distributions are close."""
    q = logits(2, 37, torch.float32)
    s = q + 1e-3 * draws.normal(2, 37)
    both_close(*kd(s, q, divergence=divergence, beta=beta))
    (loss, grad), *_ = kd(q, q, divergence=divergence, beta=beta)
    assert (loss == 0).all()
    assert (grad == 0).all()


@by_pieces
@divergences
def test_kd_is_as_accurate_as_eager(divergence: str, beta: float) -> None:
    """About where the series for ratios close to 1 ends: what it leaves out is far below what the bounds allow."""
    q = draws.normal(32, 37)
    s = q + 4.0 * 0.8 * (draws.uniform(32, 37) < 1 / 3)
    (loss, _), (expected, _), _ = kd(s, q, divergence=divergence, beta=beta)
    eager = reference.kd_loss(s, q, None, KDOptions(4.0, divergence, beta, IGNORE, "none"))
    ours, theirs = (float((x.cpu() - expected).square().mean().sqrt()) for x in (loss, eager))
    assert ours <= theirs


@divergences
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_kd_leaves_out_rows(divergence: str, beta: float, reduction: str) -> None:
    """By their label; they may hold anything."""
    s, q, y = logits(9, 10, torch.float32), logits(9, 10, torch.float32), labels(9, 10)
    y[2], y[4] = IGNORE, 3
    s[2], q[2, 1] = NAN, INF
    (loss, grad), expected, bound = kd(s, q, y, divergence=divergence, beta=beta, reduction=reduction)
    both_close((loss, grad), expected, bound)
    y[2], y[y == IGNORE] = 2**40, -1
    other, other_grad = run(
        kernels.kd, s, q, y, 4.0, divergence, beta, IGNORE, reduction == "mean", each=reduction == "none"
    )
    assert torch.equal(other, loss)
    assert torch.equal(other_grad, grad)


@by_pieces
@divergences
def test_kd_of_masked_and_missing_logits(divergence: str, beta: float) -> None:
    s, q = logits(6, 37, torch.float32), logits(6, 37, torch.float32)
    s[0, 4] = q[0, 4] = -INF  # ruled out by both
    s[1, :20] = q[1, :20] = -INF
    one_alone = s if divergence == "reverse" else q  # ruled out by one, not infinitely wrong
    one_alone[2, 7] = -INF
    s[3, 5], q[4, 6], s[5] = NAN, NAN, -INF
    (loss, grad), *_ = kd(s, q, divergence=divergence, beta=beta)
    assert loss[3:].isnan().all()
    assert grad[3:].isnan().all()
    # The reference's gradient of the Jensen-Shannon divergence has no place for -inf.
    _, expected, bound = kd(*(x[:3].clamp(min=-1e6) for x in (s, q)), divergence=divergence, beta=beta)
    both_close((loss[:3], grad[:3]), expected, bound)
    if divergence != "js":
        (s if divergence == "forward" else q)[0, 1] = -INF
        assert kd(s, q, divergence=divergence)[0][0][0] == INF


@by_pieces
@cases
def test_softmax(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, g = logits(*shape, dtype).to(DEVICE), features(*shape, dtype).to(DEVICE)
    out, grad = torch.full_like(x, 7.0), torch.full_like(x, 7.0)
    kernels.softmax(x, 3.0, out)
    close(out, *bounds.softmax(x, 3.0))
    kernels.softmax_backward(g, out, 3.0, grad)
    p = out.double()
    close(grad, p * (g - (p * g).sum(1, keepdim=True)) / 3.0, bounds.softmax_backward(p, g, 3.0))


@by_pieces
def test_softmax_of_masked_and_missing_logits() -> None:
    x = logits(4, 37, torch.float32).to(DEVICE)
    x[0, :-1], x[1, 2], x[2], x[3, 0] = -INF, NAN, -INF, INF
    out = torch.empty_like(x)
    kernels.softmax(x, 1.0, out)
    assert (out[0, :-1] == 0).all()
    assert out[0, -1] == 1
    assert out[1:].isnan().all()


@cases
def test_context_weights(shape: tuple[int, int], dtype: torch.dtype) -> None:
    q, y = logits(*shape, dtype), labels(*shape)
    expected, part = reference.context_weights(q.double(), y, 2.0, IGNORE), bounds.exponentials(q.double() / 2.0)
    q[y == IGNORE] = NAN
    out = torch.full((len(q),), 7.0, device=DEVICE)
    kernels.context_weights(q.to(DEVICE), y.to(DEVICE), 2.0, IGNORE, out)
    close(out, expected, part.squeeze(1) * expected)
    kernels.context_weights(q.to(DEVICE), torch.full_like(y, shape[1]).to(DEVICE), 2.0, IGNORE, out)
    assert (out == 0).all()


def sample_truth(s: Tensor, t: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    return truth(s, lambda s: reference.sample_loss(s, t.double(), reduction))


def ce_truth(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return truth(z, lambda z: reference.cross_entropy(z, y, IGNORE))


@by_pieces
@cases
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_sample(shape: tuple[int, int], dtype: torch.dtype, reduction: str) -> None:
    s, t = features(*shape, dtype), features(*shape, dtype)
    t[0] = 0  # counts nothing
    ours = run(kernels.sample, s, t, reduction == "mean", each=reduction == "none")
    both_close(ours, sample_truth(s, t, reduction), bounds.sample(s, t, reduction))


@by_pieces
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_sample_of_extreme_features(dtype: torch.dtype, factor: float) -> None:
    s, t = (factor * features(3, 37, dtype) for _ in range(2))
    t[1, :20], t[2, 20:], s[2, 20:] = 0, 0, 0
    both_close(run(kernels.sample, s, t, True), sample_truth(s, t, "mean"), bounds.sample(s, t, "mean"))


@by_pieces
def test_sample_of_odd_teachers() -> None:
    s, t = features(5, 37, torch.float32), torch.zeros(5, 37)
    t[1, -1], t[2, -1], t[3] = 1e-30, NAN, NAN
    t[4], s[4, 0] = 1, INF
    loss, grad = run(kernels.sample, s, t, False, each=True)
    assert loss[0] == 0
    assert (grad[0] == 0).all()
    assert loss[1] == INF  # about 1e60
    assert loss[2:4].isnan().all()
    assert loss[4] == INF


@by_pieces
@cases
def test_cross_entropy(shape: tuple[int, int], dtype: torch.dtype) -> None:
    z, y = logits(*shape, dtype), labels(*shape)
    expected, bound = ce_truth(z, y), bounds.cross_entropy(z, y, IGNORE)
    z[y == IGNORE] = NAN
    loss, grad = run(kernels.cross_entropy, z, y, IGNORE)
    both_close((loss, grad), expected, bound)
    other, other_grad = run(kernels.cross_entropy, z, torch.where(y == IGNORE, shape[1], y), IGNORE)
    assert torch.equal(other, loss)
    assert torch.equal(other_grad, grad)


def shares(rows: int, classes: int) -> Tensor:
    """About every other class has one, and about one row in six none; that of a row may be other than 1."""
    y = torch.where(draws.uniform(rows, classes) < 0.5, 0.0, draws.uniform(rows, classes))
    y[:, 0] += 0.1
    return torch.where(draws.uniform(rows, 1) < 1 / 6, 0.0, y * (0.5 + draws.uniform(rows, 1)) / y.sum(1, keepdim=True))


@by_pieces
@cases
def test_soft_cross_entropy(shape: tuple[int, int], dtype: torch.dtype) -> None:
    z, y = logits(*shape, dtype), shares(*shape)
    expected = truth(z, lambda z: reference.cross_entropy(z, y.double(), IGNORE))
    bound = bounds.soft_cross_entropy(z, y)
    z[(y == 0).all(1)] = NAN
    both_close(run(kernels.soft_cross_entropy, z, y), expected, bound)


@by_pieces
def test_a_class_without_a_share_may_be_ruled_out() -> None:
    z, y = logits(5, 37, torch.float32), shares(5, 37)
    z[y == 0] = -INF
    z[(y == 0).all(1)] = 0.0
    expected = truth(z, lambda z: reference.cross_entropy(z, y.double(), IGNORE))
    found = run(kernels.soft_cross_entropy, z, y)
    assert found[0].isfinite()
    both_close(found, expected, bounds.soft_cross_entropy(z, y))


@by_pieces
@cases
def test_soft_context_weights(shape: tuple[int, int], dtype: torch.dtype) -> None:
    q, y = logits(*shape, dtype), shares(*shape)
    expected, (belief, rounding) = reference.context_weights(q.double(), y, 2.0, IGNORE), bounds.softmax(q, 2.0)
    q[(y == 0).all(1)] = NAN
    out = torch.full(shape, 7.0, device=DEVICE)
    kernels.soft_context_weights(q.to(DEVICE), y.to(DEVICE), 2.0, out)
    bounds.close(out, expected, y * (rounding + bounds.EPS * belief))


@cases
@divergences
@pytest.mark.parametrize("student", [torch.float32, torch.bfloat16])
def test_kd_of_two_types(
    shape: tuple[int, int], dtype: torch.dtype, divergence: str, beta: float, student: torch.dtype
) -> None:
    """As it is where the teacher's logits are converted before."""
    s, q = logits(*shape, torch.float32).to(student), logits(*shape, dtype)
    results = [run(kernels.kd, s, x, None, 4.0, divergence, beta, IGNORE, True) for x in (q, q.float())]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@by_pieces
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_cross_entropy_of_extreme_logits(factor: float) -> None:
    z, y = factor * logits(5, 37, torch.float32), labels(5, 37)
    y[0], y[1] = 0, 2
    z[0, 3] = z[1, 1] = -INF
    both_close(run(kernels.cross_entropy, z, y, IGNORE), ce_truth(z, y), bounds.cross_entropy(z, y, IGNORE))


@by_pieces
def test_what_is_left_of_a_belief_close_to_1() -> None:
    z = torch.zeros(1, 37)
    z[0, 1] = 15
    y = torch.tensor([1])
    both_close(run(kernels.cross_entropy, z, y, IGNORE), ce_truth(z, y), bounds.cross_entropy(z, y, IGNORE))


def test_without_a_gradient() -> None:
    """The loss is the same."""
    s, q, y = (x.to(DEVICE) for x in (logits(5, 10, torch.float32), logits(5, 10, torch.float32), labels(5, 10)))
    calls: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        (kernels.cross_entropy, (y, IGNORE)),
        *((kernels.kd, (q, y, 4.0, name, beta, IGNORE, True)) for name, beta in DIVERGENCES),
        (kernels.sample, (q, True)),
    ]
    for kernel, arguments in calls:
        loss = torch.empty((), device=DEVICE)
        kernel(s, *arguments, loss, None)
        assert torch.equal(loss, run(kernel, s, *arguments)[0])


def test_no_rows_that_count() -> None:
    z, y = logits(3, 4, torch.float32), torch.full((3,), IGNORE)
    for loss, grad in (
        run(kernels.cross_entropy, z, y, IGNORE),
        *(run(kernels.kd, z, z, y, 4.0, name, beta, IGNORE, True) for name, beta in DIVERGENCES),
    ):
        assert loss == 0
        assert (grad == 0).all()


def test_no_rows() -> None:
    x, y = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
    for loss, _ in (
        run(kernels.cross_entropy, x, y, IGNORE),
        run(kernels.kd, x, x, y, 4.0, "forward", 0.5, IGNORE, True),
        run(kernels.kd, x, x, None, 4.0, "js", 0.5, IGNORE, False),
        run(kernels.sample, x, x, False),
    ):
        assert loss == 0
    assert run(kernels.sample, x, x, False, each=True)[0].shape == (0,)
    assert run(kernels.sample, torch.empty(2, 0), torch.empty(2, 0), True)[0] == 0
    x = x.to(DEVICE)
    kernels.softmax(x, 1.0, x.clone())
    kernels.softmax_backward(x, x, 1.0, x.clone())
    kernels.context_weights(x, y.to(DEVICE), 1.0, IGNORE, torch.empty(0, device=DEVICE))
    kernels.soft_context_weights(x, x, 1.0, x.clone())
    assert run(kernels.soft_cross_entropy, x, x)[0] == 0


@types
@pytest.mark.parametrize("shape", [(1, 1), (0, 5), (3, 37), (130, 129), (1100, 10), (513, 300)], ids=str)
def test_column_sums(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = features(*shape, dtype).to(DEVICE)
    out = torch.full(shape[1:], 7.0, dtype=dtype, device=DEVICE)
    kernels.column_sums(matrix, 0.3, out)
    wide = 0.3 * matrix.double()
    close(out, wide.sum(0), bounds.growth(len(wide)) * wide.abs().sum(0))


def test_long_rows() -> None:
    """More columns than a program holds, as they are."""
    s, q, y = logits(1, 20_001, torch.float32), logits(1, 20_001, torch.float32), torch.tensor([20_000])
    for divergence in ("forward", "reverse", "js"):
        both_close(*kd(s, q, divergence=divergence))
    both_close(run(kernels.cross_entropy, s, y, IGNORE), ce_truth(s, y), bounds.cross_entropy(s, y, IGNORE))
    both_close(run(kernels.sample, s, q, True), sample_truth(s, q, "mean"), bounds.sample(s, q, "mean"))


def test_kd_agrees_with_the_function() -> None:
    """That of the user, on the CPU."""
    s, q = logits(8, 10, torch.float32), logits(8, 10, torch.float32)
    (loss, _), _, bound = kd(s, q, reduction="mean")
    close(loss, F.kd_loss(s, q, temperature=4.0), 2 * bound.value)


def test_scale() -> None:
    """A factor of 1 leaves every bit, and NaN is a factor as others are."""
    for dtype in TYPES.values():
        grad = draws.normal(37, 333, dtype=dtype).to(DEVICE)
        for factor in (1.0, 0.5, 1024.0, float("nan")):
            scaled = grad.clone()
            kernels.scale(scaled, torch.tensor(factor, device=DEVICE))
            torch.testing.assert_close(scaled, (grad.float() * factor).to(dtype), rtol=0, atol=0, equal_nan=True)
    kernels.scale(torch.empty(0, 3, device=DEVICE), torch.ones((), device=DEVICE))
