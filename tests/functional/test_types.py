"""Types: half precision is computed in float32, a mixture as if converted up; gradients are in the student's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cid
from cid import functional as F
from cid.backends import fused
from cid.backends.fused import criterion
from tests import draws
from tests.cases import FUSED, TYPES, Term, backends, features, labels, logits, real
from tests.functional.calls import CALLS, FS, FT, C, D, Q, S, Y, call

MIXTURES = [(student, teacher) for student in TYPES.values() for teacher in TYPES.values() if student != teacher]
mixtures = pytest.mark.parametrize(("student", "teacher"), MIXTURES, ids=lambda x: str(x).removeprefix("torch."))
halves = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
TWO_SIDED = [term for term in FUSED.values() if term.draw(1, 1, torch.float32)[1].is_floating_point()]
terms = pytest.mark.parametrize("term", TWO_SIDED, ids=lambda term: term.name)


@terms
@mixtures
@backends
@pytest.mark.parametrize("shape", [(33, 3), (9, 37), (5, 2050)])
def test_a_mixture_is_what_it_is_converted_up(
    term: Term, student: torch.dtype, teacher: torch.dtype, backend: str, shape: tuple[int, int]
) -> None:
    """To the bit: conversion up is exact, and what is rounded is the gradient alone, once."""
    s, t, *rest = term.draw(*shape, torch.float64)
    s, t, wide = s.to(student), t.to(teacher), real(student, teacher)
    loss, grad = term.value_and_grad((s, t, *rest), backend)
    assert loss.dtype == wide
    assert grad.dtype == student
    expected, expected_grad = term.value_and_grad((s.to(wide), t.to(wide), *rest), backend)
    assert torch.equal(loss, expected)
    assert torch.equal(grad, expected_grad.to(student))


@terms
@halves
def test_a_teacher_in_half_precision_is_not_copied(
    term: Term, half: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel gets is the teacher's own memory, beside a student in float32."""
    s, t, *rest = term.draw(9, 37, torch.float32)
    t = t.to(half)
    seen: list[int] = []
    launch = vars(fused)["loss_of"]

    def spy(student: Tensor, by_row: bool, kernel: Any, scale: Any, teacher: Tensor, *arguments: Any) -> Tensor:
        seen.append(teacher.data_ptr())
        return launch(student, by_row, kernel, scale, teacher, *arguments)

    monkeypatch.setattr(fused, "loss_of", spy)
    term.value_and_grad((s, t, *rest), "native")
    assert seen == [t.data_ptr()]


def draw(b: int, ds: int, dt: int, c: int) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Leaves of a student, outputs of a teacher, labels and a context, in float64."""
    shapes = ((b, ds), (b, c), (dt, ds), (dt,), (c, 2 * ds), (c,))
    leaves = [draws.normal(*shape, dtype=torch.float64) / shape[-1] ** 0.5 for shape in shapes]
    given = [features(b, dt, torch.float64), logits(b, c, torch.float64)]
    return leaves, given, labels(b, c), features(c, ds, torch.float64)


def whole(
    given_leaves: list[Tensor], given: list[Tensor], y: Tensor, context: Tensor | None, backend: str | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """All values of cid_loss with its context sums, and the gradients of the leaves that have one."""
    f, s, adapter_weight, adapter_bias, head_weight, head_bias = leaves = [
        x.detach().requires_grad_() for x in given_leaves
    ]
    wide = real(f.dtype)
    sums = torch.zeros(s.shape[1], f.shape[1], dtype=wide), torch.zeros(s.shape[1], dtype=wide)
    t, q = given
    out = F.cid_loss(
        f, s, t, q, y,
        adapter_weight=adapter_weight, adapter_bias=adapter_bias, head_weight=head_weight, head_bias=head_bias,
        context=context, context_sums=sums, beta=3.0, gamma=0.5, backend=backend,
    )  # fmt: skip
    grads = torch.autograd.grad(out.loss, leaves, allow_unused=True)
    assert all(g is None or g.dtype == x.dtype for g, x in zip(grads, leaves, strict=True))
    return [x.detach() for x in (*out, *sums) if x is not None], [g for g in grads if g is not None]


@mixtures
@backends
@pytest.mark.parametrize("warm", [False, True])
def test_the_whole_criterion(student: torch.dtype, teacher: torch.dtype, backend: str, warm: bool) -> None:
    leaves, given, y, context = draw(32, 24, 40, 10)
    leaves, given = [x.to(student) for x in leaves], [x.to(teacher) for x in given]
    m = None if warm else context.to(real(student))
    values, grads = whole(leaves, given, y, m, backend)
    wide = real(student, teacher)
    assert values[0].dtype == wide
    (f, s, *_), (t, q) = ([x.to(wide) for x in of] for of in (leaves, given))
    assert torch.equal(values[2], F.kd_loss(s, q, backend=backend))
    assert torch.equal(values[4], F.class_loss(f, t, y, backend=backend))
    if student in (torch.bfloat16, torch.float16) or teacher == torch.float64:
        return  # its own products round
    expected, expected_grads = whole(leaves, [t, q], y, m, backend)
    for mine, theirs in zip((*values, *grads), (*expected, *expected_grads), strict=True):
        # Gradients of several terms are added in the student's type, in an order of their own.
        rounding = 4 * torch.finfo(mine.dtype).eps
        torch.testing.assert_close(mine, theirs, rtol=rounding, atol=rounding * float(theirs.abs().max()))


@halves
@pytest.mark.parametrize("warm", [False, True])
def test_the_whole_criterion_beside_half_precision_is_one_node(
    half: torch.dtype, warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit what its conversion gives, by the same kernels."""
    leaves, given, y, context = draw(32, 24, 40, 10)
    leaves, given = [x.float() for x in leaves], [x.to(half) for x in given]
    m = None if warm else context.float()
    nodes: list[str] = []
    apply = criterion._CID.apply

    def spy(*arguments: Any) -> Any:
        outputs = apply(*arguments)
        nodes.append(type(outputs[0].grad_fn).__name__)
        return outputs

    monkeypatch.setattr(criterion._CID, "apply", spy)
    (values, grads), (expected, expected_grads) = (
        whole(leaves, of, y, m) for of in (given, [x.float() for x in given])
    )
    assert nodes == ["_CIDBackward"] * 2
    for mine, theirs in zip((*values, *grads), (*expected, *expected_grads), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    for name in ("kd_loss", "sample_loss", "class_loss"):
        half = {k: x.to(dtype) if x.is_floating_point() else x for k, x in CALLS[name].items()}
        student = next(iter(half))
        half[student] = half[student].requires_grad_()
        loss = call(name, **half)
        assert loss.dtype == torch.float32
        (grad,) = torch.autograd.grad(loss, half[student])
        assert grad.dtype == dtype
        wide = {k: x.float() if x.is_floating_point() else x for k, x in half.items()}
        assert torch.equal(loss, call(name, **wide))


@pytest.mark.parametrize("dense", [True, False])
@backends
def test_autocast_leaves_float64_alone(backend: str, dense: bool) -> None:
    """As it does everywhere: whether a tensor is dense or not."""
    wide = {name: x.double() for name, x in (("s", S), ("q", Q), ("f", FS), ("t", FT))}
    s, q, f, t = (x if dense else x.t().contiguous().t() for x in wide.values())
    criterion = cid.CIDLoss(D, D, C, beta=1.0, gamma=1.0, warmup_epochs=0, backend=backend).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.kd_loss(s, q, backend=backend).dtype == torch.float64
        assert F.sample_loss(f, t, backend=backend).dtype == torch.float64
        assert F.context_weights(q, Y, backend=backend).dtype == torch.float64
        out = criterion(f.requires_grad_(), s, t, q, Y)
    out.loss.backward()
    assert out.loss.dtype == torch.float64
    assert criterion.bank.denominator.sum() > 0


def test_autocast_is_computed_in_float32() -> None:
    """As PyTorch's losses: layers in bfloat16, the loss of their outputs in float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.kd_loss(S.bfloat16(), Q)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, F.kd_loss(S.bfloat16().float(), Q))
        criterion = cid.CIDLoss(D, D, C, beta=1.0, gamma=1.0, warmup_epochs=0)
        leaf = FS.clone().requires_grad_()
        layer = nn.Linear(D, C)
        out = criterion(leaf.bfloat16(), layer(leaf), FT, Q, Y)
        out.loss.backward()
        assert out.loss.dtype == torch.float32
        assert leaf.grad is not None
        assert criterion.bank.denominator.sum() > 0
