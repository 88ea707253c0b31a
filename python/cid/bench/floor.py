"""What no implementation of a term can avoid on this machine, measured beside it.

The floor of a row is the sum of

* an empty autograd Function, forward and backward (for terms that have a backward),
* a copy that moves as many bytes as the term must read and write, into an output that is there already,
* the matrix products that the term can't do without, `torch.mm(out=)`.

A copy into a fresh output is measured too, since PyTorch's own losses allocate theirs; it is not part of the floor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from cid.bench.plan import INPUT_SETS, Size
from cid.bench.terms import Tensors, Term

Product = tuple[int, int, int]
"""Rows, inner size and columns of a matrix product."""


def moved(term: Term, inputs: Tensors, state: Tensors) -> int:
    """Bytes that a call must read and write.

    Every input and parameter is read once, every gradient written once, and the result of a term without gradients.
    Of a bank, the rows of the labels that occur are read and written. The few bytes of a loss are left out.
    """
    fixed, bank = state[: len(state) - term.bank], state[len(state) - term.bank :]
    read = sum(x.nbytes for x in (*inputs, *fixed))
    written = sum(x.nbytes for x in term.leaves(inputs, fixed))
    if bank:
        labels = next(x for x in inputs if x.dtype == torch.int64)
        touched = int(labels.bincount().count_nonzero()) * sum(x[0].nbytes for x in bank)
        read, written = read + touched, written + touched
    elif not term.backward:
        result = term.eager(*inputs, *state)
        assert result is not None
        written += result.nbytes
    return read + written


def products(name: str, size: Size, inputs: Tensors) -> list[Product]:
    """The matrix products of a term.

    For the class term, with n samples in a class: two symmetric matrices of cosines, of which half suffices each, and
    the product of their difference with the student's rows, so n^2 (D/2 + D/2 + D) multiplications and additions, over
    the classes with two samples; counted together as one product of as many. The whole criterion counts the seven
    products of its linear layers and its context, not those of its class term.
    """
    if name == "marginal":
        return [size]  # type: ignore[list-item]
    if name == "class":
        rows, features, _ = size
        counts = inputs[2].bincount()
        pairs = int(counts[counts > 1].square().sum())
        return [(rows, features, round(2 * pairs / rows))] if pairs else []
    if name == "cid":
        rows, student, teacher, classes = size
        return [
            (rows, student, teacher),  # F A^T
            (rows, teacher, student),  # its backward into the features
            (teacher, rows, student),  # and into the adapter
            (rows, classes, student),  # P M
            (rows, 2 * student, classes),  # [f ; m] W^T
            (rows, classes, student),  # its backward into the features, through W1
            (classes, rows, 2 * student),  # and into the head
        ]
    return []


class _Empty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.new_empty(1).expand(1)


def empty_function(x: Tensor) -> Tensor:
    """An autograd Function of one element that computes nothing, forward and backward."""
    return cast(Tensor, _Empty.apply(x))


def contenders(
    moved_bytes: int, multiplied: list[Product], dtype: torch.dtype, *, backward: bool
) -> dict[str, Callable[[int], object]]:
    """The parts of the floor, by name, to be timed: see `cid.bench.timing.interleaved`."""
    # A copy reads and writes each byte it is given. The sources rotate, as a term's inputs do.
    elements = max(moved_bytes // (2 * dtype.itemsize), 1)
    sources = [torch.ones(elements, dtype=dtype) for _ in range(INPUT_SETS)]
    target = torch.empty_like(sources[0])
    parts: dict[str, Callable[[int], object]] = {
        "copy": lambda i: target.copy_(sources[i % INPUT_SETS]),
        "fresh copy": lambda i: sources[i % INPUT_SETS].clone(),
    }
    if backward:
        element = torch.randn(1, requires_grad=True)
        parts["empty function"] = lambda i: torch.autograd.grad(empty_function(element), element)
    if multiplied:
        operands = [
            (torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype), torch.empty(m, n, dtype=dtype))
            for m, k, n in multiplied
        ]

        def multiply(_: int) -> None:
            for a, b, out in operands:
                torch.mm(a, b, out=out)

        parts["products"] = multiply
    return parts


FLOOR = ("empty function", "copy", "products")
"""The parts that add up to the floor."""
