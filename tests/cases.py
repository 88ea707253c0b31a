"""Each loss as a function of named tensors, so that one test can run them all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cid import functional as F
from cid.backends import select
from cid.backends.options import KDOptions
from tests import bounds, draws
from tests.bounds import Bound

IGNORE = -100


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


def _cross_entropy(z: Tensor, y: Tensor, *, backend: str) -> Tensor:
    return select(backend, z).cross_entropy(z, y, IGNORE)


KD: dict[str, dict[str, Any]] = {
    "kd": {},
    "kd_reverse": {"divergence": "reverse"},
    "kd_js": {"divergence": "js", "beta": 0.3},
}


def _kd_bound(options: dict[str, Any], s: Tensor, q: Tensor, target: Tensor | None = None) -> Bound:
    given: dict[str, Any] = {"divergence": "forward", "beta": 0.5} | options
    return bounds.kd(s, q, target, KDOptions(4.0, given["divergence"], given["beta"], IGNORE, "mean"))


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
            "sample",
            lambda b, d, t: (features(b, d, t), features(b, d, t)),
            F.sample_loss,
            partial(bounds.sample, reduction="mean"),
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
            _cross_entropy,
            partial(bounds.cross_entropy, ignore_index=IGNORE),
        ),
        Term(
            "marginal",
            lambda b, c, t: (logits(b, c, t), features(c, 7, t)),
            lambda s, m, *, backend: F.marginal_context(s, m, differentiable=True, backend=backend).tanh(),
            _marginal_bound,
        ),
    )
}
