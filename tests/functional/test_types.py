"""Student and teacher each in a type of its own: computed as if converted up, gradients in the student's type."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cid
from cid import functional as F
from cid.backends import fused
from tests.cases import IGNORE, TERMS, Term, features, labels, logits

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MIXTURES = [(student, teacher) for student in TYPES for teacher in TYPES if student != teacher]
mixtures = pytest.mark.parametrize(("student", "teacher"), MIXTURES, ids=lambda x: str(x).removeprefix("torch."))
halves = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
backends = pytest.mark.parametrize("backend", ["native", "reference"])
TWO_SIDED = [TERMS[name] for name in ("kd", "kd_reverse", "kd_js", "kd_labelled", "sample", "class")]
terms = pytest.mark.parametrize("term", TWO_SIDED, ids=lambda term: term.name)


def widest(*dtypes: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else torch.float32


@terms
@mixtures
@backends
@pytest.mark.parametrize("shape", [(33, 3), (9, 37), (5, 2050)])
def test_a_mixture_is_what_it_is_converted_up(
    term: Term, student: torch.dtype, teacher: torch.dtype, backend: str, shape: tuple[int, int]
) -> None:
    """To the bit: conversion up is exact, and what is rounded is the gradient alone, once."""
    s, t, *rest = term.draw(*shape, torch.float64)
    s, t, wide = s.to(student), t.to(teacher), widest(student, teacher)
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
    launch = fused._loss

    def spy(student: Tensor, shape: Any, kernel: Any, teacher: Tensor, *arguments: Any) -> Tensor:
        seen.append(teacher.data_ptr())
        return launch(student, shape, kernel, teacher, *arguments)

    monkeypatch.setattr(fused, "_loss", spy)
    term.value_and_grad((s, t, *rest), "native")
    assert seen == [t.data_ptr()]


def draw(b: int, ds: int, dt: int, c: int) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Leaves of a student, outputs of a teacher, labels and a context, in float64."""
    shapes = ((b, ds), (b, c), (dt, ds), (dt,), (c, 2 * ds), (c,))
    leaves = [torch.randn(*shape, dtype=torch.float64) / shape[-1] ** 0.5 for shape in shapes]
    given = [features(b, dt, torch.float64), logits(b, c, torch.float64)]
    return leaves, given, labels(b, c), features(c, ds, torch.float64)


def whole(
    given_leaves: list[Tensor], given: list[Tensor], y: Tensor, context: Tensor | None, backend: str | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """All values of cid_loss with its context sums, and the gradients of the leaves that have one."""
    f, s, adapter_weight, adapter_bias, head_weight, head_bias = leaves = [
        x.detach().requires_grad_() for x in given_leaves
    ]
    wide = widest(f.dtype)
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
    m = None if warm else context.to(widest(student))
    values, grads = whole(leaves, given, y, m, backend)
    wide = widest(student, teacher)
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
    apply = fused._CID.apply

    def spy(*arguments: Any) -> Any:
        outputs = apply(*arguments)
        nodes.append(type(outputs[0].grad_fn).__name__)
        return outputs

    monkeypatch.setattr(fused._CID, "apply", spy)
    (values, grads), (expected, expected_grads) = (
        whole(leaves, of, y, m) for of in (given, [x.float() for x in given])
    )
    assert nodes == ["_CIDBackward"] * 2
    for mine, theirs in zip((*values, *grads), (*expected, *expected_grads), strict=True):
        assert torch.equal(mine, theirs)


@backends
@pytest.mark.parametrize("of", TYPES)
@pytest.mark.parametrize("weighted", TYPES)
def test_weights_are_added_in_the_type_of_the_sums(backend: str, of: torch.dtype, weighted: torch.dtype) -> None:
    f, w, y = features(40, 9, of), torch.rand(40).to(weighted), labels(40, 3)
    wide = widest(of)
    results = []
    for weights in (w, w.to(wide)):
        sums = torch.zeros(3, 9, dtype=wide), torch.zeros(3, dtype=wide)
        F.accumulate_context(f, weights, y, *sums, backend=backend)
        results.append(sums)
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)


@halves
def test_the_bank_takes_a_teacher_of_another_type(half: torch.dtype) -> None:
    f, q, y = features(40, 9, torch.float32), logits(40, 3, half), labels(40, 3)
    banks = [cid.ContextBank(3, 9) for _ in range(2)]
    for bank, given in zip(banks, (q, q.float()), strict=True):
        bank.update(f, given, y)
    assert torch.equal(banks[0].numerator, banks[1].numerator)
    assert torch.equal(banks[0].denominator, banks[1].denominator)


@halves
@pytest.mark.parametrize("narrow", ["teacher", "student"])
def test_a_distiller_of_models_of_two_types(half: torch.dtype, narrow: str) -> None:
    """Each model gets the batch in its own type, and keeps its weights in it."""
    student = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5))
    teacher = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
    (teacher if narrow == "teacher" else student).to(half)
    x, y = torch.randn(8, 20), torch.arange(8) % 5
    x = x.to(half)  # so that the conversion between the two is exact
    if narrow == "teacher":
        x = x.float()
    distiller = cid.Distiller(student, teacher, num_classes=5, beta=10.0, gamma=1.0, warmup_epochs=0)
    out = distiller(x, y)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in student.parameters())
    with torch.no_grad():
        features_of, logits_of = teacher[:2], teacher
        own = x.to(next(teacher.parameters()).dtype)
        again = distiller(x, y, teacher=(features_of(own), logits_of(own)))
    assert torch.equal(again.loss, out.loss.detach())


def test_what_is_no_float_is_refused_by_name() -> None:
    s, q, y = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([0, 1, IGNORE, 0])
    for given in (q.long(), q.bool(), q.to(torch.complex64)):
        with pytest.raises(TypeError, match=r"^teacher_logits: got torch.*accepted: torch.float32, torch.float64"):
            F.kd_loss(s, given)
        with pytest.raises(TypeError, match=r"^teacher_features: got torch.*accepted: torch.float32, torch.float64"):
            F.class_loss(s, given, y)
