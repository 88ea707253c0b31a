"""The weights of samples in the kernels that go row by row, against each row's formula in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from cid.backends import reference
from cid.backends.options import KDOptions
from tests import bounds, draws
from tests.bounds import EPS, Bound, growth
from tests.cases import IGNORE, features, labels, logits
from tests.gpu import DEVICE

pytest.importorskip("triton", reason="needs triton")
from cid.backends.triton import kernels
from tests.backends.triton.rows import DIVERGENCES, INF, NAN, TYPES, both_close, by_pieces, run, shares, truth, types


@dataclass(frozen=True)
class Weighed:
    """A kernel that takes weights."""

    kernel: Callable[..., None]
    draw: Callable[[int, int, torch.dtype], tuple[Tensor, ...]]
    """What comes before the weight: the student's tensor is the first."""
    options: Callable[[bool], tuple[Any, ...]]
    """What comes after it, by whether the mean is asked for."""
    formula: Callable[..., Tensor]
    """Of one row, in float64."""
    bound: Callable[..., Bound]
    """Likewise: how far the kernel may be from it."""
    counts: Callable[..., Tensor]
    """The rows that the mean is over."""
    reductions: tuple[str, ...] = ("none", "sum", "mean")

    def run(self, inputs: tuple[Tensor, ...], weight: Tensor | None, reduction: str) -> tuple[Tensor, Tensor]:
        """The loss and its derivative."""
        options = self.options(reduction == "mean")
        return run(self.kernel, *inputs, weight, *options, each=reduction == "none")


def _kd(divergence: str, beta: float) -> Weighed:
    options = KDOptions(4.0, divergence, beta, IGNORE, "mean")
    return Weighed(
        kernels.kd,
        lambda b, c, t: (logits(b, c, t), logits(b, c, t), labels(b, c)),
        lambda mean: (4.0, divergence, beta, IGNORE, mean),
        lambda s, q, y: reference.kd_loss(s, q.double(), y, options),
        partial(bounds.kd, options=options),
        lambda s, q, y: y != IGNORE,
    )


TERMS = {
    **{f"kd-{divergence}-{beta}": _kd(divergence, beta) for divergence, beta in DIVERGENCES},
    "sample": Weighed(
        kernels.sample,
        lambda b, d, t: (features(b, d, t), features(b, d, t)),
        lambda mean: (mean,),
        lambda s, t: reference.sample_loss(s, t.double(), "mean"),
        partial(bounds.sample, reduction="mean"),
        lambda s, t: torch.ones(len(s), dtype=torch.bool),
    ),
    "cross-entropy": Weighed(
        kernels.cross_entropy,
        lambda b, c, t: (logits(b, c, t), labels(b, c)),
        lambda mean: (IGNORE,),
        lambda z, y: reference.cross_entropy(z, y, IGNORE),
        partial(bounds.cross_entropy, ignore_index=IGNORE),
        lambda z, y: y != IGNORE,
        ("mean",),
    ),
    "soft-cross-entropy": Weighed(
        kernels.soft_cross_entropy,
        lambda b, c, t: (logits(b, c, t), shares(b, c)),
        lambda mean: (),
        lambda z, y: reference.cross_entropy(z, y.double(), IGNORE),
        bounds.soft_cross_entropy,
        lambda z, y: (y != 0).any(1),
        ("mean",),
    ),
}
terms = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)


def weights(rows: int) -> Tensor:
    """From 0 to 3, and the first 0."""
    weight = 3 * draws.uniform(rows)
    weight[0] = 0
    return weight


def expected(
    term: Weighed, inputs: tuple[Tensor, ...], weight: Tensor
) -> Callable[[str], tuple[tuple[Tensor, Tensor], Bound]]:
    """From a reduction: the rows' values, each by itself and times its weight, and their sum or mean; with the bound.

    A row is rounded twice more than without a weight: the share that it has in the mean, and the product with it.
    """
    counts = term.counts(*inputs)
    each, grads, each_bound, grad_bounds = [], [], [], []
    for row in range(len(weight)):
        student, *others = (x[row : row + 1] for x in inputs)
        value, grad = truth(student, lambda s, others=others: term.formula(s, *others))  # type: ignore[misc]
        bound = term.bound(student, *others)
        each.append(value)
        grads.append(grad)
        each_bound.append(bound.value + 2 * EPS * value)
        grad_bounds.append(bound.grad + 2 * EPS * grad.abs())

    def reduced(reduction: str) -> tuple[tuple[Tensor, Tensor], Bound]:
        scale = torch.where(counts, weight.double(), 0.0) / (counts.sum().clamp(min=1) if reduction == "mean" else 1)
        rows, rows_bound = scale * torch.stack(each), scale * torch.stack(each_bound)
        grad, grad_bound = scale[:, None] * torch.cat(grads), scale[:, None] * torch.cat(grad_bounds)
        if reduction == "none":
            return (rows, grad), Bound(rows_bound, grad_bound)
        return (rows.sum(), grad), Bound(rows_bound.sum() + growth(len(rows)) * rows.sum(), grad_bound)

    return reduced


@by_pieces
@pytest.mark.parametrize(("shape", "dtype"), [((9, 37), "f32"), ((17, 10), "bf16")])
@terms
def test_each_row_is_times_its_weight(term: Weighed, shape: tuple[int, int], dtype: str) -> None:
    inputs, weight = term.draw(*shape, TYPES[dtype]), weights(shape[0])
    reduced = expected(term, inputs, weight)
    for reduction in term.reductions:
        both_close(term.run(inputs, weight, reduction), *reduced(reduction))


@types
@terms
def test_weights_of_1_change_no_bit(term: Weighed, dtype: torch.dtype) -> None:
    inputs = term.draw(7, 37, dtype)
    for reduction in term.reductions:
        without, ones = (term.run(inputs, weight, reduction) for weight in (None, torch.ones(7)))
        assert torch.equal(without[0], ones[0])
        assert torch.equal(without[1], ones[1])


@by_pieces
@terms
def test_a_row_of_weight_0_may_hold_anything(term: Weighed) -> None:
    """It adds nothing, and is still one of those that the mean is over: what is 0, of shares, stays that."""
    inputs, weight = term.draw(9, 37, torch.float32), weights(9)
    weight[3] = weight[7] = 0
    clean = [term.run(inputs, weight, reduction) for reduction in term.reductions]
    for x in inputs:
        for row, anything in ((0, NAN), (3, INF), (7, -INF)):
            if x.is_floating_point():
                x[row] = torch.where(x[row] == 0, 0.0, anything)
    for reduction, (loss, grad) in zip(term.reductions, clean, strict=True):
        found, found_grad = term.run(inputs, weight, reduction)
        assert torch.equal(found, loss)
        assert torch.equal(found_grad, grad)
        assert (grad[weight == 0] == 0).all()


@terms
def test_what_is_no_weight_counts_0(term: Weighed) -> None:
    inputs, weight = term.draw(6, 10, torch.float32), weights(6)
    bad = weight.clone()
    bad[:4] = torch.tensor([-1.0, NAN, INF, -INF])
    weight[:4] = 0
    for reduction in term.reductions:
        for ours, zeros in zip(term.run(inputs, bad, reduction), term.run(inputs, weight, reduction), strict=True):
            assert torch.equal(ours, zeros)


@terms
def test_weights_without_a_gradient(term: Weighed) -> None:
    """The loss is the same."""
    inputs, weight = term.draw(5, 10, torch.float32), weights(5)
    for reduction in term.reductions:
        loss = torch.empty((5,) if reduction == "none" else (), device=DEVICE)
        given = [x.to(DEVICE) for x in (*inputs, weight)]
        term.kernel(*given, *term.options(reduction == "mean"), loss, None)
        assert torch.equal(loss, term.run(inputs, weight, reduction)[0])


def test_no_rows() -> None:
    for term in TERMS.values():
        inputs = tuple(x[:0] for x in term.draw(1, 4, torch.float32))
        for reduction in term.reductions:
            assert term.run(inputs, torch.empty(0), reduction)[0].sum() == 0
