"""Time and memory of one term at one size, against its contenders and its floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from cid import _native
from cid.backends import native, select
from cid.bench import floor, memory
from cid.bench.plan import INPUT_SETS, Case
from cid.bench.terms import TERMS, Step, Tensors, Term
from cid.bench.timing import Timing, interleaved

Row = dict[str, Any]
"""What is known of a case, as JSON holds it."""


def measure(case: Case, *, seconds: float, against: str, count_memory: bool) -> Row:
    """Measures a row.

    Args:
        case: what to measure.
        seconds: see `cid.bench.timing.interleaved`.
        against: `"eager"`, `"compile"`, `"both"` or `"none"`.
        count_memory: whether to count the peak memory of each contender.

    Returns:
        `times` (seconds by contender and part of the floor), `floor` (seconds) and `x_floor` (cid / floor), of the
        medians and of the shortest; `speed_up` over the fastest other contender; `memory` (bytes by contender, see
        `cid.bench.memory`); `moved_bytes` and `product_flops` of the floor; and where it ran.
    """
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    term, dtype = TERMS[case.term], getattr(torch, case.dtype)
    state = term.state(case.size, dtype)
    inputs = [term.draw(case.size, dtype) for _ in range(INPUT_SETS)]
    moved = floor.moved(term, inputs[0], state)
    products = floor.products(case.term, case.size, inputs[0])

    steps: dict[str, Step] = {"cid": term.ours(state, None)}
    if against in ("eager", "both"):
        steps["eager"] = lambda *x: term.eager(*x, *state)
    if against in ("compile", "both"):
        torch._dynamo.reset()
        compiled: Step = torch.compile(term.eager, fullgraph=True, dynamic=False)
        steps["compile"] = lambda *x: compiled(*x, *state)
    calls = {name: _call(step, term, inputs, state) for name, step in steps.items()}
    parts = floor.contenders(moved, products, dtype, backward=term.backward)
    times = interleaved({**calls, **parts}, seconds=seconds)
    del parts

    floors = {"median": _floor(times, lambda t: t.median), "best": _floor(times, lambda t: t.best)}
    others = [times[name].median for name in calls if name != "cid"]
    floats = [x for x in inputs[0] if x.is_floating_point()]
    return {
        **case.to_json(),
        "simd": _native.build_info()["simd"],
        "backend": "native" if select(None, *floats) is native.backend else "reference",
        "times": {name: asdict(timing) for name, timing in times.items()},
        "floor": floors,
        "x_floor": {
            "median": times["cid"].median / floors["median"],
            "best": times["cid"].best / floors["best"],
        },
        "speed_up": min(others) / times["cid"].median if others else None,
        "memory": {name: _memory(call) for name, call in calls.items()} if count_memory else None,
        "moved_bytes": moved,
        "product_flops": sum(2 * m * k * n for m, k, n in products),
    }


def _memory(call: Callable[[int], object]) -> dict[str, int | None]:
    return {"counted": memory.counted(lambda: call(0)), "resident": memory.resident(lambda: call(0))}


def _floor(times: dict[str, Timing], of: Callable[[Timing], float]) -> float:
    return sum(of(times[part]) for part in floor.FLOOR if part in times)


def _call(step: Step, term: Term, inputs: list[Tensors], state: Tensors) -> Callable[[int], object]:
    """A contender: the step on rotating inputs, with its backward; returns all that it yields."""
    if not term.backward:
        return lambda i: step(*inputs[i % INPUT_SETS])
    leaves = [term.leaves(x, state) for x in inputs]

    def call(i: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = step(*inputs[i % INPUT_SETS])
        assert loss is not None
        return loss, torch.autograd.grad(loss, leaves[i % INPUT_SETS])

    return call
