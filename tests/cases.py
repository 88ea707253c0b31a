"""Each loss as a function of named tensors, so that one test can run them all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cid import functional as F
from cid.backends import select

IGNORE = -100


@dataclass(frozen=True)
class Term:
    """A differentiable function of one student tensor, and the draw of its inputs."""

    name: str
    draw: Callable[[int, int, torch.dtype], tuple[Tensor, ...]]
    """From (rows, columns, dtype); the student's tensor is the first."""
    call: Callable[..., Tensor]

    def value_and_grad(self, inputs: Sequence[Tensor], backend: str) -> tuple[Tensor, Tensor]:
        student = inputs[0].detach().clone().requires_grad_()
        value = self.call(student, *inputs[1:], backend=backend)
        (grad,) = torch.autograd.grad(value.sum(), student)
        return value.detach(), grad


def logits(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return 5 * torch.randn(rows, columns, dtype=dtype)


def features(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, columns, dtype=dtype)


def labels(rows: int, classes: int) -> Tensor:
    """Labels of which about one in six is ignored."""
    target = torch.randint(classes, (rows,))
    return torch.where(torch.rand(rows) < 1 / 6, IGNORE, target)


def _cross_entropy(z: Tensor, y: Tensor, *, backend: str) -> Tensor:
    return select(backend, z).cross_entropy(z, y, IGNORE)


KD: dict[str, dict[str, Any]] = {
    "kd": {},
    "kd_reverse": {"divergence": "reverse"},
    "kd_js": {"divergence": "js", "beta": 0.3},
}
TERMS = {
    term.name: term
    for term in (
        *(
            Term(name, lambda b, c, t: (logits(b, c, t), logits(b, c, t)), partial(F.kd_loss, **options))
            for name, options in KD.items()
        ),
        Term(
            "kd_labelled",
            lambda b, c, t: (logits(b, c, t), logits(b, c, t), labels(b, c)),
            lambda s, q, y, *, backend, **options: F.kd_loss(s, q, target=y, backend=backend, **options),
        ),
        Term("sample", lambda b, d, t: (features(b, d, t), features(b, d, t)), F.sample_loss),
        Term(
            "class",
            lambda b, d, t: (features(b, d, t), features(b, 2 * d + 1, t), labels(b, max(b // 5, 1))),
            F.class_loss,
        ),
        Term("cross_entropy", lambda b, c, t: (logits(b, c, t), labels(b, c)), _cross_entropy),
        Term(
            "marginal",
            lambda b, c, t: (logits(b, c, t), features(c, 7, t)),
            lambda s, m, *, backend: F.marginal_context(s, m, differentiable=True, backend=backend).tanh(),
        ),
    )
}
