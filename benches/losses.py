"""Each term and the whole criterion, forward and backward, against eager and compiled PyTorch.

    python -m benches.losses [--seconds 5] [--threads N] [--out FILE.json]

Medians over interleaved rounds with rotated random inputs. A row's floor is what no implementation can avoid on this
machine: the larger of an empty autograd Function and a copy of the bytes that the term must read and write.
"""

import argparse
import json
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import cid
from benches import eager
from benches.timing import Timing, interleaved
from cid import _native
from cid import functional as F

INPUTS = 3  # sets of inputs that the rounds rotate through
Step = Callable[..., object]


@dataclass(frozen=True)
class Case:
    """A term at one size."""

    name: str
    size: str
    draw: Callable[[], tuple[Any, ...]]
    """Its inputs; those that require gradients get them."""
    ours: Step
    theirs: Step
    backward: bool = True
    parameters: tuple[Tensor, ...] = ()
    """What gets gradients beside the inputs."""


class _Empty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.new_empty(1).expand(1)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape).requires_grad_()


def labels(rows: int, classes: int) -> Tensor:
    return torch.randint(classes, (rows,))


def terms(b: int, c: int) -> list[Case]:
    """The terms on b rows of c columns; for the terms over features these are the feature's."""
    size, classes = f"{b} x {c}", min(c, 1000)
    return [
        Case("kd", size, lambda: (leaf(b, c), torch.randn(b, c)), F.kd_loss, eager.kd),
        Case("sample", size, lambda: (leaf(b, c), torch.randn(b, c)), F.sample_loss, eager.sample),
        Case("class", size, lambda: (leaf(b, c), torch.randn(b, c), labels(b, classes)), F.class_loss, eager.class_),
        Case(
            "cross-entropy",
            size,
            lambda: (leaf(b, c), labels(b, classes)),
            lambda z, y: cid.backends.native.cross_entropy(z, y, -100),
            eager.cross_entropy,
        ),
        Case(
            "context weights",
            size,
            lambda: (torch.randn(b, c), labels(b, classes)),
            F.context_weights,
            eager.weights,
            False,
        ),
        Case(
            "accumulate",
            size,
            lambda: (
                torch.randn(b, c),
                torch.rand(b),
                labels(b, classes),
                torch.zeros(classes, c),
                torch.zeros(classes),
            ),
            F.accumulate_context,
            eager.accumulate,
            False,
        ),
        Case(
            "marginal context",
            size,
            lambda: (torch.randn(b, c), torch.randn(c, 128)),
            F.marginal_context,
            eager.marginal,
            False,
        ),
    ]


def whole(b: int, ds: int, dt: int, c: int) -> Case:
    criterion = cid.CIDLoss(ds, dt, c, beta=65.0, gamma=1.0, warmup_epochs=0)
    criterion.bank.context.normal_()
    adapter = criterion.adapter.weight, criterion.adapter.bias
    head = criterion.head.weight, criterion.head.bias
    bank = torch.zeros(c, ds), torch.zeros(c)

    def theirs(f: Tensor, s: Tensor, t: Tensor, q: Tensor, y: Tensor) -> Tensor:
        return eager.whole(f, s, t, q, y, adapter, head, criterion.bank.context, bank)

    def draw() -> tuple[Tensor, ...]:
        return leaf(b, ds), leaf(b, c), torch.randn(b, dt), torch.randn(b, c), labels(b, c)

    return Case(
        "CIDLoss",
        f"B{b} Ds{ds} Dt{dt} C{c}",
        draw,
        lambda *x: criterion(*x).loss,
        theirs,
        parameters=(*adapter, *head),
    )


def contender(step: Step, case: Case, inputs: list[tuple[Any, ...]]) -> Callable[[int], None]:
    def run(i: int) -> None:
        args = inputs[i % INPUTS]
        out = step(*args)
        if case.backward:
            assert isinstance(out, Tensor)
            leaves = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
            torch.autograd.grad(out, [*leaves, *case.parameters])

    return run


def measure(case: Case, seconds: float) -> dict[str, Timing]:
    torch._dynamo.reset()
    compiled = torch.compile(case.theirs, fullgraph=True, dynamic=False)
    inputs = [case.draw() for _ in range(INPUTS)]
    empty = leaf(1)
    # Read every input, write every gradient; a copy reads and writes each byte it is given.
    moved = sum(x.numel() * (2 if x.requires_grad else 1) for x in inputs[0] if x.is_floating_point())
    source = torch.randn(max(moved // 2, 1))
    target = torch.empty_like(source)
    return interleaved(
        {
            "cid": contender(case.ours, case, inputs),
            "eager": contender(case.theirs, case, inputs),
            "compile": contender(compiled, case, inputs),
            "copy": lambda i: target.copy_(source),
            "empty Function": lambda i: torch.autograd.grad(_Empty.apply(empty), empty),
        },
        seconds=seconds,
    )


def hardware() -> dict[str, object]:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    ) if Path("/proc/cpuinfo").exists() else platform.processor()  # fmt: skip
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "cpu": cpu,
        "simd": _native.build_info()["simd"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cid": cid.__version__,
        "commit": commit.stdout.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="also write the rows there, as JSON")
    args = parser.parse_args()
    if _native.build_info()["profile"] != "release":
        raise SystemExit("a debug build measures nothing: build with `maturin develop --release`")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cases = [
        *terms(64, 100),
        *terms(4096, 1000),
        whole(64, 128, 128, 100),
        whole(256, 512, 2048, 1000),
        whole(4096, 128, 256, 1000),
    ]
    print(", ".join(f"{key} {value}" for key, value in hardware().items()))
    print(f"{'us, median':34}{'cid':>10}{'eager':>10}{'compile':>10}{'floor':>10}  {'speed-up':>8}")
    rows = []
    for case in cases:
        times = measure(case, args.seconds)
        t = {name: timing.median * 1e6 for name, timing in times.items()}
        floor = max(t["copy"], t["empty Function"] if case.backward else 0.0)
        speedup = min(t["eager"], t["compile"]) / t["cid"]
        print(
            f"{case.name:16}{case.size:18}{t['cid']:10.1f}{t['eager']:10.1f}{t['compile']:10.1f}{floor:10.1f}"
            f"  {speedup:7.2f}x",
            flush=True,
        )
        rows.append({"term": case.name, "size": case.size, **{k: asdict(v) for k, v in times.items()}})
    if args.out:
        args.out.write_text(json.dumps({"hardware": hardware(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
