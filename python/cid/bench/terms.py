"""The terms: how their inputs are drawn, and who computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

import cid.functional as F
from cid.backends import select
from cid.bench import eager
from cid.bench.plan import Size
from cid.losses import CIDLoss

Tensors = tuple[Tensor, ...]
Step = Callable[..., Tensor | None]
"""From inputs to a loss, or to the result of a term without one; None where the result is in the bank."""


@dataclass(frozen=True)
class Term:
    """A term of the method.

    Attributes:
        draw: the inputs of one call, from size and type; those that require gradients get them.
        ours: the package's step on the inputs, from the state and the name of a backend.
        eager: the same in plain PyTorch, on inputs and state.
        backward: whether the step ends with a backward.
        state: what all calls share: parameters, contexts, and last the bank.
        bank: how many of the last tensors in the state are sums that a call adds to, a row for each label.
    """

    draw: Callable[[Size, torch.dtype], Tensors]
    ours: Callable[[Tensors, str | None], Step]
    eager: Step
    backward: bool = True
    state: Callable[[Size, torch.dtype], Tensors] = lambda size, dtype: ()
    bank: int = 0

    def leaves(self, inputs: Tensors, state: Tensors) -> list[Tensor]:
        """What gets gradients."""
        return [x for x in (*inputs, *state) if x.requires_grad] if self.backward else []


def copies(tensors: Tensors, dtype: torch.dtype | None = None) -> Tensors:
    """Tensors of their own, in another type where they are floats and it is given."""

    def copy(x: Tensor) -> Tensor:
        values = x.detach().to(dtype if dtype and x.is_floating_point() else x.dtype, copy=True)
        return nn.Parameter(values) if isinstance(x, nn.Parameter) else values.requires_grad_(x.requires_grad)

    return tuple(map(copy, tensors))


def _normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def _leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def _labels(rows: int, classes: int) -> Tensor:
    return torch.randint(classes, (rows,))


def _pair(size: Size, dtype: torch.dtype) -> Tensors:
    return _leaf(*size, dtype=dtype), _normal(*size, dtype=dtype)


def _bank(classes: int, features: int, dtype: torch.dtype) -> Tensors:
    """Sums, which half precision could not hold."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.zeros(classes, features, dtype=wide), torch.zeros(classes, dtype=wide)


def _draw_class(size: Size, dtype: torch.dtype) -> Tensors:
    rows, features, classes = size
    return *_pair((rows, features), dtype), _labels(rows, classes)


def _draw_accumulate(size: Size, dtype: torch.dtype) -> Tensors:
    rows, features, classes = size
    return _normal(rows, features, dtype=dtype), torch.rand(rows, dtype=dtype), _labels(rows, classes)


def _draw_criterion(size: Size, dtype: torch.dtype) -> Tensors:
    rows, student, teacher, classes = size
    f, s = _leaf(rows, student, dtype=dtype), _leaf(rows, classes, dtype=dtype)
    t, q = _normal(rows, teacher, dtype=dtype), _normal(rows, classes, dtype=dtype)
    return f, s, t, q, _labels(rows, classes)


def _state_criterion(size: Size, dtype: torch.dtype) -> Tensors:
    _, student, teacher, classes = size
    adapter, head = nn.Linear(student, teacher, dtype=dtype), nn.Linear(2 * student, classes, dtype=dtype)
    context = _normal(classes, student, dtype=dtype)
    return adapter.weight, adapter.bias, head.weight, head.bias, context, *_bank(classes, student, dtype)


def _of(function: Callable[..., Any], **options: Any) -> Callable[[Tensors, str | None], Step]:
    """A function of the package as a step."""
    return lambda state, backend: lambda *inputs: function(*inputs, *state, **options, backend=backend)


def _cross_entropy(z: Tensor, y: Tensor, *, backend: str | None) -> Tensor:
    return select(backend, z).cross_entropy(z, y, -100)


def _criterion(state: Tensors, backend: str | None) -> Step:
    """The module itself, with the parameters and buffers of `state`."""
    adapter_weight, _, _, _, context, _, _ = state
    (teacher, student), classes = adapter_weight.shape, len(context)
    criterion = CIDLoss(student, teacher, classes, beta=eager.BETA, gamma=1.0, warmup_epochs=0, backend=backend)
    adapter, head, bank = criterion.adapter, criterion.head, criterion.bank
    adapter.weight, adapter.bias, head.weight, head.bias = cast(tuple[nn.Parameter, ...], state[:4])
    bank.context, bank.numerator, bank.denominator = state[4:]

    def step(*inputs: Tensor) -> Tensor:
        loss: Tensor = criterion(*inputs).loss
        return loss

    return step


TERMS = {
    "kd": Term(_pair, _of(F.kd_loss), eager.kd),
    "kd-reverse": Term(_pair, _of(F.kd_loss, divergence="reverse"), eager.kd_reverse),
    "kd-js": Term(_pair, _of(F.kd_loss, divergence="js", beta=0.5), eager.kd_js),
    "sample": Term(_pair, _of(F.sample_loss), eager.sample),
    "class": Term(_draw_class, _of(F.class_loss), eager.class_),
    "cross-entropy": Term(
        lambda size, dtype: (_leaf(*size, dtype=dtype), _labels(*size)), _of(_cross_entropy), eager.cross_entropy
    ),
    "context-weights": Term(
        lambda size, dtype: (_normal(*size, dtype=dtype), _labels(*size)),
        _of(F.context_weights),
        eager.context_weights,
        backward=False,
    ),
    "accumulate": Term(
        _draw_accumulate,
        _of(F.accumulate_context),
        eager.accumulate_context,
        backward=False,
        state=lambda size, dtype: _bank(size[2], size[1], dtype),
        bank=2,
    ),
    "marginal": Term(
        lambda size, dtype: (_normal(*size[:2], dtype=dtype), _normal(*size[1:], dtype=dtype)),
        _of(F.marginal_context),
        eager.marginal_context,
        backward=False,
    ),
    "cid": Term(_draw_criterion, _criterion, eager.criterion, state=_state_criterion, bank=2),
}
