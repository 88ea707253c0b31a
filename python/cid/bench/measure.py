"""Time and memory of one term at one size, against its contenders and its floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

import cid._native as rust
from cid.backends import reference, select
from cid.bench import floor, liger, memory
from cid.bench.plan import DEVICES, INPUT_SETS, Case
from cid.bench.terms import TERMS, Step, Tensors, Term, copies
from cid.bench.timing import DeviceClock, HostClock, Timing, interleaved

Row = dict[str, Any]
"""What is known of a case, as JSON holds it."""


def measure(case: Case, *, seconds: float, against: str, count_memory: bool) -> Row:
    """Measures a row.

    Args:
        case: what to measure.
        seconds: see `cid.bench.timing.interleaved`.
        against: one of `cid.bench.plan.AGAINST`.
        count_memory: whether to count the peak memory of each contender.

    Returns:
        `times` (seconds by contender and part of the floor), `floor` (seconds) and `x_floor` (cid / floor), of the
        medians and of the shortest; `speed_up` over the fastest other contender; `bandwidth` of cid and the floor's
        copy, in bytes a second of those that must be moved; `host` (seconds that the host takes to queue a call on a
        device; None on a CPU); `memory` (bytes by contender, see `cid.bench.memory`); `moved_bytes` and `product_flops`
        of the floor; and where it ran.
    """
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    term, dtype = TERMS[case.term], getattr(torch, case.dtype)
    device = torch.device(case.device)
    with device:  # only here: it would cost each call microseconds
        state = term.state(case.size, dtype)
        inputs = [term.draw(case.size, dtype) for _ in range(INPUT_SETS)]
        moved = floor.moved(term, inputs[0], state)
        products = floor.products(case.term, case.size, inputs[0])
        parts = floor.contenders(moved, products, dtype, backward=term.backward)
        ours = term.ours(state, None)

    calls = {"cid": _call(ours, term, inputs, state)}
    if against in ("eager", "all"):
        calls["eager"] = _call(lambda *x: term.eager(*x, *state), term, inputs, state)
    if against in ("compile", "all"):
        torch._dynamo.reset()
        compiled: Step = torch.compile(term.eager, fullgraph=True, dynamic=False)
        calls["compile"] = _call(lambda *x: compiled(*x, *state), term, inputs, state)
    if against in ("liger", "all") and case.device == "cuda" and liger.installed():
        step = liger.steps().get(case.term)
        own = [copies(x) for x in inputs] if case.term in liger.OVERWRITES else inputs
        if step is not None:
            calls["liger"] = _call(step, term, own, state)
    contenders = {**calls, **parts}
    clock = DeviceClock(contenders, device) if case.device == "cuda" else HostClock()
    times = interleaved(contenders, seconds=seconds, clock=clock)
    del parts, contenders  # the copy's tensors are the largest

    floors = {"median": _floor(times, lambda t: t.median), "best": _floor(times, lambda t: t.best)}
    others = [times[name].median for name in calls if name != "cid"]
    floats = [x for x in inputs[0] if x.is_floating_point()]
    return {
        **case.to_json(),
        "simd": rust.build_info()["simd"],
        "backend": "reference" if select(None, *floats) is reference else DEVICES[case.device],
        "times": {name: asdict(timing) for name, timing in times.items()},
        "host": clock.host if isinstance(clock, DeviceClock) else None,
        "floor": floors,
        "x_floor": {
            "median": times["cid"].median / floors["median"],
            "best": times["cid"].best / floors["best"],
        },
        "speed_up": min(others) / times["cid"].median if others else None,
        "bandwidth": {name: moved / times[name].median for name in ("cid", "copy")},
        "memory": {name: _memory(call, case.device) for name, call in calls.items()} if count_memory else None,
        "moved_bytes": moved,
        "product_flops": sum(2 * m * k * n for m, k, n in products),
    }


def _memory(call: Callable[[int], object], device: str) -> dict[str, int | None]:
    if device == "cuda":
        return {"counted": memory.on_device(lambda: call(0)), "resident": None}
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
