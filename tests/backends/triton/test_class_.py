"""The class term's kernels against the formula in float64."""

import pytest
import torch
from torch import Tensor

from cid.backends import reference
from tests import bounds, draws
from tests.cases import IGNORE
from tests.gpu import DEVICE

pytest.importorskip("triton", reason="needs triton")
from cid.backends.triton import class_ as module
from cid.backends.triton import tiles
from cid.backends.triton.class_ import class_
from cid.backends.triton.grouping import group


@pytest.fixture(autouse=True)
def _one_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one program after the other, and slowly."""
    monkeypatch.setattr(tiles, "CLASS", tiles.Class(programs=1))


def run(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    loss = torch.full((), 7.0, device=DEVICE)
    grad = torch.full_like(student, 7.0)
    class_(student, teacher, target, IGNORE, loss, grad)
    return loss, grad


def truth(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    s = student.double().requires_grad_()
    loss = reference.class_loss(s, teacher.double(), torch.where(target < 0, IGNORE, target), IGNORE)
    loss.backward()
    assert s.grad is not None
    return loss.detach(), s.grad


def check(student: Tensor, teacher: Tensor, target: Tensor) -> None:
    loss, grad = run(student, teacher, target)
    expected, slope = truth(student, teacher, target)
    labels = torch.where(target < 0, IGNORE, target)
    bound = bounds.class_(student.cpu(), teacher.cpu(), labels.cpu(), IGNORE)
    bounds.close(loss, expected, bound.value)
    bounds.close(grad, slope, bound.grad)


def draw(samples: int, students: int, teachers: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    target = draws.below(classes, samples) * 1_000_003
    if samples > 5:
        target[5], target[3] = IGNORE, -7
    s, t = draws.normal(samples, students), draws.normal(samples, teachers)
    return s.to(DEVICE), t.to(DEVICE), target.to(DEVICE)


@pytest.mark.parametrize(
    ("samples", "students", "teachers", "classes"),
    [(1, 3, 2, 1), (2, 2, 1, 1), (3, 17, 5, 2), (37, 129, 333, 3), (70, 65, 7, 60), (129, 9, 3, 1)],
)
def test_odd_sizes(samples: int, students: int, teachers: int, classes: int) -> None:
    check(*draw(samples, students, teachers, classes))


def test_a_large_batch() -> None:
    check(*draw(1030, 3, 2, 200))


def test_long_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiles.ROWS, "class", tiles.Rows(whole=1024, piece=1024))
    check(*draw(3, 2, 2100, 1))


@pytest.mark.parametrize("samples", [5, 40])
def test_without_gradient(samples: int) -> None:
    inputs = draw(samples, 3, 5, 2)
    alone = torch.full((), 7.0, device=DEVICE)
    class_(*inputs, IGNORE, alone, None)
    assert torch.equal(alone, run(*inputs)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    s, t, y = draw(40, 37, 70, 4)
    check(s.to(dtype), t.to(dtype), y)


def test_splits_and_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw(80, 5, 4, 2)
    whole = run(*inputs)
    monkeypatch.setattr(module, "_SCRATCH", 1)
    for x, y in zip(run(*inputs), whole, strict=True):
        assert torch.equal(x, y)
    monkeypatch.setattr(tiles, "CLASS", tiles.Class(programs=6))
    check(*inputs)


@pytest.mark.parametrize("factor", [1e30, 3e37, 1e-10])
def test_squares_beyond_float32(factor: float) -> None:
    s, t, y = draw(20, 6, 5, 2)
    check(s * factor, t * factor, y)


def test_small_norms_are_raised() -> None:
    s, t, y = draw(12, 5, 4, 1)
    s[0] *= 1e-13
    s[1] = 0
    t[2] = 0
    t[4] *= 1e-13
    check(s, t, y)


def test_equal_features_have_no_loss() -> None:
    s, _, y = draw(40, 20, 1, 3)
    loss, grad = run(s, s, y)
    assert loss == 0
    assert not grad.any()


@pytest.mark.parametrize("target", [[0, 1, 2, IGNORE], [IGNORE] * 4, [-5] * 4])
def test_no_pairs(target: list[int]) -> None:
    s = draws.normal(4, 5).to(DEVICE)
    loss, grad = run(s, s.flip(0), torch.tensor(target, device=DEVICE))
    assert loss == 0
    assert not grad.any()


def test_no_samples() -> None:
    loss, _ = run(
        torch.empty(0, 5, device=DEVICE), torch.empty(0, 3, device=DEVICE), torch.empty(0, device=DEVICE).long()
    )
    assert loss == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_class(bad: float) -> None:
    s, t, _ = draw(5, 5, 3, 1)
    s[0, 3] = bad
    t[2, 1] = bad
    loss, grad = run(s, t, torch.tensor([0, 0, IGNORE, 1, 1], device=DEVICE))
    assert loss.isnan()
    assert grad[:2].isnan().all()
    assert not grad[2:].isnan().any()
    alone = torch.tensor([2, 0, IGNORE, 1, 1], device=DEVICE)
    loss, grad = run(s, t, alone)
    s[0], t[2] = 0, 0
    for ours, without in zip((loss, grad), run(s, t, alone), strict=True):
        assert torch.equal(ours, without)


def test_an_ignored_label_amid_the_others() -> None:
    s, t, _ = draw(12, 4, 3, 1)
    target = torch.tensor([2, 1, 0] * 4, device=DEVICE)
    loss = torch.empty((), device=DEVICE)
    class_(s, t, target, 1, loss, None)
    others = torch.where(target == 1, IGNORE, target)
    bounds.close(loss, truth(s, t, others)[0], bounds.class_(s.cpu(), t.cpu(), others.cpu(), IGNORE).value)


def test_groups() -> None:
    target = torch.tensor([7, -1, 2**62, 7, IGNORE, 0, 7, 2**62], device=DEVICE)
    groups = group(target, IGNORE)
    assert groups.label.tolist() == sorted(target.tolist())
    assert groups.order.tolist() == [4, 1, 5, 0, 3, 6, 2, 7]
    assert groups.start.tolist() == [0, 1, 2, 3, 3, 3, 6, 6]
    assert groups.end.tolist() == [0, 1, 3, 6, 6, 6, 8, 8]
    assert groups.pairs.sum() == 2
