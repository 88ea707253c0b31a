"""What it costs to hand tensors to Rust.

    python benches/boundary.py [--seconds 5]

Calls kernels with two to five tiny tensors, and fits a line: a cost a call, which holds the kernel's own work on one
element, and a cost a tensor. Beside it, what other ways to reach a tensor's memory cost from Python.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
import torch.utils.dlpack

import cid._native as rust
from cid.bench.timing import Timing, interleaved

CALLS = 1000  # in a sample, as one call is too short for the clock


def kernels() -> dict[str, tuple[int, Callable[[], object]]]:
    """Kernels on one element, each with the number of tensors that it is handed."""
    s, q, grad, out = torch.randn(1, 1), torch.randn(1, 1), torch.empty(1, 1), torch.empty(1)
    y, w, loss = torch.zeros(1, dtype=torch.int64), torch.zeros(1), torch.empty(())
    return {
        "softmax": (2, lambda: rust.softmax(s, 4.0, grad)),
        "context_weights": (3, lambda: rust.context_weights(q, y, 4.0, -100, out)),
        "kd": (4, lambda: rust.kd(s, q, None, None, 4.0, "forward", 0.5, -100, True, loss, grad)),
        "cross_entropy": (4, lambda: rust.cross_entropy(s, y, None, -100, loss, grad)),
        "class_": (5, lambda: rust.class_(s, q, y, -100, loss, grad)),
        "accumulate_context": (5, lambda: rust.accumulate_context(s, w, y, -100, grad, out)),
    }


def ways() -> dict[str, Callable[[], object]]:
    """Other ways to a tensor's memory and shape, for one tensor."""
    x = torch.randn(4, 5)
    return {
        "data_ptr(), shape": lambda: (x.data_ptr(), x.shape),
        "__dlpack__()": x.__dlpack__,
        "from_dlpack": lambda: torch.utils.dlpack.from_dlpack(x),
    }


def repeated(call: Callable[[], object]) -> Callable[[int], None]:
    """A contender that calls many times."""

    def many(_: int) -> None:
        for _ in range(CALLS):
            call()

    return many


def nanoseconds(timing: Timing) -> float:
    """Of one call, the median."""
    return timing.median / CALLS * 1e9


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="in all")
    seconds = parser.parse_args().seconds
    calls, others = kernels(), ways()
    contenders = {name: repeated(call) for name, (_, call) in calls.items()}
    contenders |= {name: repeated(call) for name, call in others.items()}
    contenders["nothing"] = repeated(lambda: None)
    times = {name: nanoseconds(timing) for name, timing in interleaved(contenders, seconds=seconds).items()}
    nothing = times.pop("nothing")  # the loop and the call of a lambda

    print("ns a call, median")
    for name, (tensors, _) in calls.items():
        print(f"  {name:20}{times[name] - nothing:8.0f}  {tensors} tensors")
    counts, costs = zip(*((tensors, times[name] - nothing) for name, (tensors, _) in calls.items()), strict=True)
    slope, base = np.polyfit(counts, costs, 1)
    twelve = (base + 12 * slope) / 1000
    print(f"fit: {base:.0f} + {slope:.0f} a tensor; twelve tensors {twelve:.2f} us (goal: under 1.5)")
    print("ns a tensor, from Python")
    for name in others:
        print(f"  {name:20}{times[name] - nothing:8.0f}")


if __name__ == "__main__":
    main()
