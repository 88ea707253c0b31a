"""Tile sizes of the Triton kernels: a few choices of each measured, the best printed as the lines to commit.

    python -m benches.tiles [--device cuda] [--out FILE.json] [KERNEL ...]

A line for each kernel, size and type: the bytes that it must move a second, with the choice as it stands and with the
best, and a copy's. Then the entries of `cid.backends.triton.tiles` that were better by more than the spread of a
measurement: of a kernel that goes row by row, the one for short rows and the one for long rows side by side.

On a CPU (in Triton's interpreter, TRITON_INTERPRET=1) it goes through the motions on small matrices.
"""

import argparse
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cid.backends.triton import kernels, tiles
from cid.backends.triton.rows import reduces_across_programs
from cid.bench.hardware import hardware
from cid.bench.plan import Size, text
from cid.bench.report import write_json
from cid.bench.timing import Call, DeviceClock, HostClock, interleaved

DTYPES = ("float32", "bfloat16")
SETS = 3
"""Sets of inputs that the calls rotate through."""
LEAST_GAIN = 0.03
"""What a choice must save to be worth a line."""
STANDS = "{}"
"""The choice that replaces nothing."""

SHORT = tuple(
    {"tile": tile, "per_warp": elements}
    for tile, elements in ((1024, 256), (1024, 512), (2048, 256), (4096, 512), (8192, 512))
)
LONG = (
    *({"piece": piece, "piece_warps": warps} for piece, warps in ((2048, 4), (4096, 16), (8192, 16), (16384, 32))),
    {"cluster": 8, "whole": 16384},
)
CLASS = tuple({"small": s, "large": n, "columns": c} for s, n, c in ((32, 128, 64), (16, 32, 64), (32, 64, 128)))
BLOCKS = tuple({"rows": r, "columns": c} for r, c in ((32, 128), (16, 128), (64, 64), (32, 64), (8, 256)))


@dataclass(frozen=True)
class Subject:
    """A kernel and what of its tiles is to be chosen.

    Attributes:
        entry: the name of its choice in `tiles`, and the key there, if it is one of several.
        sizes: at which it is measured, with small ones for the interpreter.
        choices: what to replace in its entry.
        matrices: how many of the size it must read and write.
        draw: its inputs, from a size and a type.
        call: the kernel on these.
    """

    entry: tuple[str, str | None]
    sizes: tuple[Size, Size]
    choices: tuple[Mapping[str, int], ...]
    matrices: float
    draw: Callable[[Size, torch.dtype], Sequence[Tensor]]
    call: Callable[..., None]


def _rows(size: Size, dtype: torch.dtype) -> Sequence[Tensor]:
    s, q = (torch.randn(size, dtype=dtype) for _ in range(2))
    return s, q, torch.randint(size[1], size[:1]), torch.empty(size[0]), torch.empty_like(s)


def _kd(divergence: str, s: Tensor, q: Tensor, y: Tensor, each: Tensor, out: Tensor) -> None:
    kernels.kd(s, q, None, None, 4.0, divergence, 0.5, -100, False, each, out)


BY_ROWS: dict[str, tuple[int, Callable[..., None]]] = {
    **{f"kd-{divergence}": (3, partial(_kd, divergence)) for divergence in ("forward", "reverse", "js")},
    "cross-entropy": (2, lambda s, q, y, each, out: kernels.cross_entropy(s, y, None, -100, each[0], out)),
    "soft-cross-entropy": (3, lambda s, q, y, each, out: kernels.soft_cross_entropy(s, q, None, each[0], out)),
    "softmax": (2, lambda s, q, y, each, out: kernels.softmax(s, 4.0, out)),
    "softmax-backward": (3, lambda s, q, y, each, out: kernels.softmax_backward(s, q, 4.0, out)),
    "context-weights": (1, lambda s, q, y, each, out: kernels.context_weights(s, y, 4.0, -100, each)),
    "soft-context-weights": (3, lambda s, q, y, each, out: kernels.soft_context_weights(s, q, 4.0, out)),
    "sample": (3, lambda s, q, y, each, out: kernels.sample(s, q, None, False, each, out)),
}


def _labelled(size: Size, dtype: torch.dtype) -> Sequence[Tensor]:
    rows, columns = size
    f, t = (torch.randn(size, dtype=dtype) for _ in range(2))
    classes = max(rows // 16, 1)
    sums = torch.zeros(classes, columns), torch.zeros(classes)
    return f, t, torch.randint(classes, (rows,)), torch.rand(rows), *sums, torch.empty_like(f)


def _class(f: Tensor, t: Tensor, y: Tensor, w: Tensor, numerator: Tensor, denominator: Tensor, out: Tensor) -> None:
    kernels.class_(f, t, y, -100, w[0], out)


def _accumulate(
    f: Tensor, t: Tensor, y: Tensor, w: Tensor, numerator: Tensor, denominator: Tensor, out: Tensor
) -> None:
    kernels.accumulate_context(f, w, y, -100, numerator, denominator)


def _column_sums(s: Tensor, q: Tensor, y: Tensor, each: Tensor, out: Tensor) -> None:
    kernels.column_sums(s, 1.0, out[0])


SUBJECTS = {
    **{
        f"{name} {kind}": Subject(("ROWS", name), sizes, choices, matrices, _rows, call)
        for name, (matrices, call) in BY_ROWS.items()
        for kind, sizes, choices in (
            ("short", ((16384, 1000), (6, 40)), SHORT),
            ("long", ((4096, 128256), (2, 20000)), LONG),
        )
    },
    "class": Subject(("CLASS", None), ((16384, 512), (20, 5)), CLASS, 3, _labelled, _class),
    "context": Subject(("CONTEXT", None), ((16384, 512), (20, 5)), BLOCKS, 1, _labelled, _accumulate),
    "column-sums": Subject(("COLUMN_SUMS", None), ((16384, 1000), (20, 5)), BLOCKS, 1, _rows, _column_sums),
}


def entry(subject: Subject) -> Any:
    """A kernel's choice as it stands."""
    name, key = subject.entry
    return getattr(tiles, name) if key is None else getattr(tiles, name)[key]


@contextmanager
def chosen(subject: Subject, choice: Mapping[str, int]) -> Iterator[None]:
    """A kernel with another choice."""
    (name, key), before = subject.entry, entry(subject)

    def put(value: Any) -> None:
        if key is None:
            setattr(tiles, name, value)
        else:
            getattr(tiles, name)[key] = value

    put(replace(before, **choice))
    try:
        yield
    finally:
        put(before)


def calls(subject: Subject, size: Size, dtype: str, device: str) -> dict[str, Call]:
    """A call for each choice that compiles here, the first of them with what stands."""
    with torch.device(device):
        inputs = [subject.draw(size, getattr(torch, dtype)) for _ in range(SETS)]

    def call(choice: Mapping[str, int], i: int) -> None:
        with chosen(subject, choice):
            subject.call(*inputs[i % SETS])

    found: dict[str, Call] = {}
    for choice in ({}, *subject.choices):
        if "cluster" in choice and not reduces_across_programs(torch.device(device)):
            continue
        try:
            call(choice, 0)
        except Exception as error:  # say, more shared memory than there is
            print(f"{subject.entry}, {choice}, {dtype}: {error}"[:200], flush=True)
        else:
            found[str(choice)] = partial(call, choice)
    return found


def compile_all(name: str, dtype: str, device: str) -> None:
    """Compiles a kernel with all its choices into the cache that processes share: rows are not compiled in."""
    subject = SUBJECTS[name]
    calls(subject, (2, *_size(subject, device)[1:]), dtype, device)


def _size(subject: Subject, device: str) -> Size:
    return subject.sizes[device != "cuda"]


def measure(name: str, dtype: str, device: str, seconds: float) -> dict[str, Any] | None:
    """A row: seconds by choice, and the bytes a second that the best must move, beside a copy's; None if none runs."""
    subject = SUBJECTS[name]
    size = _size(subject, device)
    contenders = calls(subject, size, dtype, device)
    if STANDS not in contenders:
        return None
    moved = int(subject.matrices * math.prod(size) * getattr(torch, dtype).itemsize)
    with torch.device(device):
        source, target = (torch.zeros(moved // 2, dtype=torch.uint8) for _ in range(2))
    contenders["copy"] = lambda i: target.copy_(source)
    clock = DeviceClock(contenders, torch.device(device)) if device == "cuda" else HostClock()
    times = interleaved(contenders, seconds=seconds, clock=clock)
    copy = times.pop("copy")
    best = min(times, key=lambda choice: times[choice].median)
    return {
        "kernel": name,
        "size": text(size),
        "dtype": dtype,
        "times": {choice: asdict(timing) for choice, timing in times.items()},
        "best": best,
        "bandwidth": {
            "as it stands": moved / times[STANDS].median,
            "best": moved / times[best].median,
            "copy": moved / copy.median,
        },
    }


def best_of(rows: Sequence[dict[str, Any]]) -> Mapping[str, int]:
    """The choice with the least time over a kernel's rows, each in the unit of its own; none if it saves too little."""

    def cost(choice: Mapping[str, int]) -> float:
        times = [row["times"].get(str(choice)) for row in rows]
        if None in times:
            return math.inf
        ratios = [time["median"] / row["times"][STANDS]["median"] for time, row in zip(times, rows, strict=True)]
        return math.prod(ratios) ** (1 / len(ratios))

    choice = min(SUBJECTS[rows[0]["kernel"]].choices, key=cost)
    return choice if cost(choice) < 1 - LEAST_GAIN else {}


def lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The entries of `tiles` to commit; what is best for short rows and for long ones goes into one."""
    by_kernel: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_kernel.setdefault(row["kernel"], []).append(row)
    better: dict[tuple[str, str | None], Any] = {}
    for name, its in by_kernel.items():
        subject = SUBJECTS[name]
        if choice := best_of(its):
            better[subject.entry] = replace(better.get(subject.entry, entry(subject)), **choice)
    for (name, key), value in better.items():
        written = ", ".join(
            f"{f.name}={getattr(value, f.name)}" for f in fields(value) if getattr(value, f.name) != f.default
        )
        made = f"{type(value).__name__}({written})"
        yield f"{name} = {made}" if key is None else f'    "{key}": {made},'


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"default: all of {', '.join(SUBJECTS)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="default: both; repeatable")
    parser.add_argument("--seconds", type=float, default=0.8, help="for a row (default: 0.8)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile (default: one a core)")
    parser.add_argument("--out", type=Path, help="a file for the JSON")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.kernels if name not in SUBJECTS]:
        parser.error(f"KERNEL: got {unknown[0]!r}, accepted: {', '.join(SUBJECTS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: got cuda, accepted: cpu (PyTorch sees no CUDA device)")
    names = options.kernels or list(SUBJECTS)
    dtypes = options.dtype or DTYPES
    where, rows = hardware(options.device), []
    if options.device == "cuda":  # the interpreter compiles nothing
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
            done = [pool.submit(compile_all, name, dtype, options.device) for name in names for dtype in dtypes]
        for failed in filter(None, (each.exception() for each in done)):
            print(f"does not compile: {failed}", flush=True)
    print(f"{'GB/s':>34} {'as it stands':>14} {'best':>8} {'copy':>8}  choice")
    for name in names:
        for dtype in dtypes:
            row = measure(name, dtype, options.device, options.seconds)
            if row is None:
                continue
            speeds = row["bandwidth"]
            cells = (speeds["as it stands"], speeds["best"], speeds["copy"])
            print(f"{name:>25} {dtype:>8}", *(f"{cell / 1e9:11.0f}" for cell in cells), "", row["best"], flush=True)
            rows.append(row)
            if options.out:
                write_json(options.out, where, rows)
    print("\nWorth committing, in cid/backends/triton/tiles.py:")
    print("\n".join(lines(rows)) or "nothing")


if __name__ == "__main__":
    main()
