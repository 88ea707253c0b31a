"""What torch.compile adds to a step that this package has fused already.

    python -m benches.compiled [--seconds 5]

Forward and backward of `kd_loss` and of `CIDLoss`, as they are and compiled, beside an autograd Function that computes
nothing: what compiling adds to that is torch.compile's own. A compiled step first looks whether all that it was traced
from is still the same; it takes less time where it need not look at globals (`guard_filter_fn`).
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import cid
import cid.functional as F
from cid.bench.floor import empty_function
from cid.bench.hardware import hardware
from cid.bench.timing import interleaved

ROWS, CLASSES, FEATURES = 64, 100, 128
INPUTS = 3  # rotated
WAYS: dict[str, dict[str, Any] | None] = {
    "as it is": None,
    "compiled": {},
    "compiled, globals unguarded": {"guard_filter_fn": torch.compiler.skip_guard_on_globals_unsafe},
}


def _kd(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kd_loss(student, teacher)


def _criterion() -> Callable[..., Tensor]:
    criterion = cid.CIDLoss(FEATURES, FEATURES, CLASSES, beta=10.0, gamma=1.0, warmup_epochs=0)
    return lambda f, s, t, q, y: criterion(f, s, t, q, y).loss


def contender(step: Callable[..., Tensor], inputs: list[list[Tensor]], options: dict[str, Any] | None) -> Any:
    """Forward and backward on rotating inputs, compiled unless `options` is None."""
    function = step if options is None else torch.compile(step, fullgraph=True, dynamic=False, options=options)

    def call(i: int) -> None:
        for x in inputs[i % INPUTS]:
            x.grad = None
        function(*inputs[i % INPUTS]).backward()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description="What torch.compile adds to a step that is fused already.")
    parser.add_argument("--seconds", type=float, default=5.0, help="in all (default: 5)")
    seconds: float = parser.parse_args().seconds
    print(", ".join(f"{key} {value}" for key, value in hardware().items()))
    print("Microseconds: median (shortest)")

    def features(trained: bool) -> list[Tensor]:
        return [torch.randn(ROWS, size, requires_grad=trained) for size in (FEATURES, CLASSES)]

    one = [[torch.randn(1, requires_grad=True)] for _ in range(INPUTS)]
    logits = [[features(True)[1], features(False)[1]] for _ in range(INPUTS)]
    batches = [[*features(True), *features(False), torch.randint(CLASSES, (ROWS,))] for _ in range(INPUTS)]
    steps: dict[str, tuple[Callable[..., Tensor], list[list[Tensor]]]] = {
        "empty Function": (empty_function, one),
        "kd": (_kd, logits),
        "CIDLoss": (_criterion(), batches),
    }
    torch._dynamo.config.recompile_limit = 100
    calls = {
        f"{name}, {way}": contender(step, inputs, options)
        for name, (step, inputs) in steps.items()
        for way, options in WAYS.items()
    }
    for name, timing in interleaved(calls, seconds=seconds).items():
        print(f"  {name}: {1e6 * timing.median:,.0f} ({1e6 * timing.best:,.0f})")


if __name__ == "__main__":
    main()
