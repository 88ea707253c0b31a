"""What the tests walk: each term, each kernel, each type, with inputs for all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from cid import functional as F
from cid.backends import select
from cid.backends.kernels import NAMES
from cid.backends.options import KDOptions
from tests import bounds, draws
from tests.bounds import Bound

IGNORE = -100
SIZES = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 37, 129, 333]))
HALVES = {"bf16": torch.bfloat16, "f16": torch.float16}
TYPES = {"f32": torch.float32, "f64": torch.float64} | HALVES
types = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
halves = pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
backends = pytest.mark.parametrize("backend", ["reference", "native"])


def real(*dtypes: torch.dtype) -> torch.dtype:
    """The type that these are computed in."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def wide(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


@dataclass(frozen=True)
class Term:
    """A differentiable function of one student tensor, and the draw of its inputs."""

    name: str
    draw: Callable[[int, int, torch.dtype], tuple[Tensor, ...]]
    """From (rows, columns, dtype); the student's tensor is the first."""
    call: Callable[..., Tensor]
    bound: Callable[..., Bound]
    """From the inputs: how far a kernel may be from the truth, before it rounds to the type of a result."""

    def value_and_grad(self, inputs: Sequence[Tensor], backend: str) -> tuple[Tensor, Tensor]:
        student = inputs[0].detach().clone().requires_grad_()
        value = self.call(student, *inputs[1:], backend=backend)
        (grad,) = torch.autograd.grad(value.sum(), student)
        return value.detach(), grad


def logits(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return 5 * draws.normal(rows, columns, dtype=dtype)


def features(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return draws.normal(rows, columns, dtype=dtype)


def labels(rows: int, classes: int) -> Tensor:
    """Labels of which about one in six is ignored."""
    target = draws.below(classes, rows)
    return torch.where(draws.uniform(rows) < 1 / 6, IGNORE, target)


def shares(rows: int, classes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of two classes, as mixup makes them; of all classes; and about one row in six without any."""
    y = [one_hot(draws.below(classes, rows), classes, torch.float64) for _ in range(2)]
    part = draws.uniform(rows, 1, dtype=torch.float64)
    mixed = part * y[0] + (1 - part) * y[1]
    of_all = draws.uniform(rows, classes, dtype=torch.float64).softmax(1)
    mixed = torch.where(draws.uniform(rows, 1) < 0.5, mixed, of_all)
    return torch.where(draws.uniform(rows, 1) < 1 / 6, 0.0, mixed).to(dtype)


def one_hot(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    return torch.where((y == IGNORE)[:, None], 0, nn.functional.one_hot(y.clamp(min=0), classes)).to(dtype)


def weights(rows: int, dtype: torch.dtype) -> Tensor:
    """Weights of samples up to 3, of which about one in six is 0."""
    return torch.where(draws.uniform(rows) < 1 / 6, 0.0, 3 * draws.uniform(rows)).to(dtype)


def cross_entropy(
    z: Tensor, y: Tensor, smoothing: float = 0.0, *, weight: Tensor | None = None, backend: str
) -> Tensor:
    """A term that has no function of its own."""
    return select(backend, z).cross_entropy(z, y, IGNORE, smoothing, weight)


KD: dict[str, dict[str, Any]] = {
    "kd": {},
    "kd_reverse": {"divergence": "reverse"},
    "kd_js": {"divergence": "js", "beta": 0.3},
}


def _kd_bound(
    options: dict[str, Any], s: Tensor, q: Tensor, target: Tensor | None = None, weight: Tensor | None = None
) -> Bound:
    given: dict[str, Any] = {"divergence": "forward", "beta": 0.5} | options
    return bounds.kd(s, q, target, KDOptions(4.0, given["divergence"], given["beta"], IGNORE, "mean"), weight)


def _marginal_bound(s: Tensor, m: Tensor) -> Bound:
    """Of the tanh of a product in the type of the logits, and of `p (h - sum_k p_k h_k) / T`, `h = (1 - y^2) M^T`."""
    eps = torch.finfo(s.dtype).eps
    value, bound = bounds.marginal(s, m, 4.0)
    bound = bound + eps * value.abs()
    belief, _ = bounds.softmax(s, 4.0)
    sizes = m.double().abs().T

    def through_softmax(h: Tensor) -> Tensor:
        return belief * (h + (belief * h).sum(1, keepdim=True)) / 4.0

    part = bounds.exponentials(s.double() / 4.0) + bounds.growth(m.shape[1]) + eps
    slopes = 1 - value.tanh().square()
    return Bound(bound, through_softmax((2 * bound + eps) @ sizes) + part * through_softmax(slopes @ sizes))


TERMS = {
    term.name: term
    for term in (
        *(
            Term(
                name,
                lambda b, c, t: (logits(b, c, t), logits(b, c, t)),
                partial(F.kd_loss, **options),
                partial(_kd_bound, options),
            )
            for name, options in KD.items()
        ),
        Term(
            "kd_labelled",
            lambda b, c, t: (logits(b, c, t), logits(b, c, t), labels(b, c)),
            lambda s, q, y, *, backend, **options: F.kd_loss(s, q, target=y, backend=backend, **options),
            partial(_kd_bound, {}),
        ),
        Term(
            "kd_weighted",
            lambda b, c, t: (logits(b, c, t), logits(b, c, t), weights(b, t), labels(b, c)),
            lambda s, q, w, y, *, backend, **options: F.kd_loss(s, q, target=y, weight=w, backend=backend, **options),
            lambda s, q, w, y: _kd_bound({}, s, q, y, w),
        ),
        Term(
            "sample",
            lambda b, d, t: (features(b, d, t), features(b, d, t)),
            F.sample_loss,
            partial(bounds.sample, reduction="mean"),
        ),
        Term(
            "sample_weighted",
            lambda b, d, t: (features(b, d, t), features(b, d, t), weights(b, t)),
            lambda s, t, w, *, backend, **options: F.sample_loss(s, t, weight=w, backend=backend, **options),
            lambda s, t, w: bounds.sample(s, t, "mean", w),
        ),
        Term(
            "class",
            lambda b, d, t: (features(b, d, t), features(b, 2 * d + 1, t), labels(b, max(b // 5, 1))),
            F.class_loss,
            partial(bounds.class_, ignore_index=IGNORE),
        ),
        Term(
            "cross_entropy",
            lambda b, c, t: (logits(b, c, t), labels(b, c)),
            cross_entropy,
            partial(bounds.cross_entropy, ignore_index=IGNORE),
        ),
        Term(
            "cross_entropy_weighted",
            lambda b, c, t: (logits(b, c, t), labels(b, c), weights(b, t)),
            lambda z, y, w, *, backend: cross_entropy(z, y, weight=w, backend=backend),
            lambda z, y, w: bounds.cross_entropy(z, y, IGNORE, w),
        ),
        Term(
            "marginal",
            lambda b, c, t: (logits(b, c, t), features(c, 7, t)),
            lambda s, m, *, backend: F.marginal_context(s, m, differentiable=True, backend=backend).tanh(),
            _marginal_bound,
        ),
    )
}
terms = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
FUSED = {name: term for name, term in TERMS.items() if name != "marginal"}
"""The terms that a kernel computes whole: the marginal's product is PyTorch's."""
fused_terms = pytest.mark.parametrize("term", FUSED.values(), ids=FUSED)

KERNELS = NAMES
"""The names of all kernels, which those in Rust and in Triton share."""
kernels = pytest.mark.parametrize("name", KERNELS)


def kernel_arguments(
    rows: int = 8,
    classes: int = 5,
    students: int = 6,
    teachers: int = 7,
    student: torch.dtype = torch.float32,
    teacher: torch.dtype = torch.float32,
) -> dict[str, tuple[Any, ...]]:
    """Of each kernel arguments that it takes: its inputs, options, and outputs of zeros."""
    f, s, a = (draws.normal(rows, n, dtype=student) for n in (students, classes, teachers))
    t, q = (draws.normal(rows, n, dtype=teacher) for n in (teachers, classes))
    y, soft, w = labels(rows, classes), draws.uniform(rows, classes).softmax(1), draws.uniform(rows)
    loss, terms = torch.zeros(()), torch.zeros(4)
    new, like = torch.zeros, torch.zeros_like
    inputs, sums = new(rows, 2 * students, dtype=student), (new(classes, students), new(classes))
    return {
        "kd": (s, q, y, w, 4.0, "js", 0.5, IGNORE, True, loss, like(s)),
        "cross_entropy": (s, y, w, IGNORE, loss, like(s)),
        "soft_cross_entropy": (s, soft, w, loss, like(s)),
        "sample": (a, t, w, True, loss, like(a)),
        "class_": (f, t, y, IGNORE, loss, like(f)),
        "softmax": (s, 4.0, like(s)),
        "softmax_backward": (draws.normal(rows, classes, dtype=student), s.softmax(1), 4.0, like(s)),
        "context_weights": (q, y, 4.0, IGNORE, new(rows)),
        "soft_context_weights": (q, soft, 4.0, like(soft)),
        "accumulate_context": (f, w, y, IGNORE, *sums),
        "column_sums": (s, 2.0, new(classes, dtype=student)),
        "cid_before": (f, s, t, q, y, w, 4.0, IGNORE, terms, like(s), like(f), inputs, like(s), *sums),
        "cid_after": (a, t, s, y, w, IGNORE, 1.0, 10.0, 1.0, terms, loss, like(a), like(s)),
    }
