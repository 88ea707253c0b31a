"""What nobody can avoid: bytes that are moved, products that are computed."""

import math

import torch

from cid.bench import floor, plan
from cid.bench.terms import TERMS

F64 = torch.float64


def _moved(name: str, size: plan.Size, dtype: torch.dtype) -> int:
    term = TERMS[name]
    return floor.moved(term, term.draw(size, dtype), term.state(size, dtype))


def test_bytes_of_the_floor() -> None:
    assert _moved("kd", (10, 100), torch.float32) == 3 * 10 * 100 * 4  # two read, a gradient written
    assert _moved("kd", (10, 100), torch.bfloat16) == 3 * 10 * 100 * 2
    assert _moved("context-weights", (10, 100), torch.float32) == 10 * 100 * 4 + 10 * 8 + 10 * 4  # and labels, weights
    assert _moved("marginal", (10, 100, 7), F64) == (10 * 100 + 100 * 7 + 10 * 7) * 8
    # With one class, one row of the bank is read and written.
    assert _moved("accumulate", (10, 7, 1), torch.float32) == (10 * 7 + 10) * 4 + 10 * 8 + 2 * (7 + 1) * 4
    read = 5 * 2 + 5 * 3 + 5 * 4 + 5 * 3 + 4 * 2 + 4 + 3 * 4 + 3 + 3 * 2  # f, s, t, q, A, a, W, b, M
    written = 5 * 2 + 5 * 3 + 4 * 2 + 4 + 3 * 4 + 3
    term = TERMS["cid"]
    inputs = (*term.draw((5, 2, 4, 3), F64)[:4], torch.tensor([0, 0, 2, 2, 2]))
    bank = 2 * 2 * (2 + 1)
    assert floor.moved(term, inputs, term.state((5, 2, 4, 3), F64)) == (read + written + bank) * 8 + 5 * 8


def test_products_of_the_floor() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])  # classes of 3, 2 and 1
    inputs = (torch.empty(0), torch.empty(0), labels)
    (product,) = floor.products("class", (6, 10, 3), inputs)
    assert product == (6, 10, round(2 * (9 + 4) / 6))
    assert floor.products("class", (3, 10, 9), (*inputs[:2], torch.arange(3))) == []
    assert floor.products("kd", (6, 10), ()) == []
    flops = sum(math.prod(product) for product in floor.products("cid", (5, 2, 4, 3), ()))
    assert flops == 5 * (3 * 2 * 4 + 2 * 3 * 2 + 2 * (2 * 2 * 3))
