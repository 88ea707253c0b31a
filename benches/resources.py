"""What Triton's compiler makes of the kernels for a GPU that need not be there.

    python -m benches.resources [--capability 90]

One line a kernel: the warps of a program, the registers of a thread and the bytes of its own that it spills to memory,
the shared memory of a program, the bits of its widest and narrowest access to a matrix, and how many matrices it reads
and writes, beside the least that it could.

A count of accesses in the machine's code is that of one tile, and a loop over the tiles of a row has the code once: so
what a thread reads, times the threads, over the bytes of a tile, is how many matrices a program reads.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from cid.backends.triton import kernels
from cid.bench.plan import Size, text

GOALS: tuple[Size, ...] = ((4096, 1000), (16384, 1000), (4096, 128256))
DTYPES = ("float32", "bfloat16")
SPARE = 64
"""Rows that are passed for many: they are not compiled in."""


@dataclass(frozen=True)
class Compiled:
    """A kernel as it was compiled."""

    kernel: str
    size: str
    dtype: str
    warps: int
    registers: int
    spilled: int
    shared: int
    widest: int
    narrowest: int
    moved: float
    least: int


@dataclass(frozen=True)
class _Case:
    """A call of a kernel on matrices of one size, and how many of them it must read or write."""

    name: str
    least: int
    call: Callable[[Tensor, Tensor, Tensor, Tensor], None]


def _kd(divergence: str) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
    return lambda s, q, y, out: kernels.kd(s, q, None, None, 4.0, divergence, 0.5, -100, True, torch.zeros(()), out)


CASES = (
    *(_Case(f"kd-{name}", 3, _kd(name)) for name in ("forward", "reverse", "js")),
    _Case("cross-entropy", 2, lambda s, q, y, out: kernels.cross_entropy(s, y, None, -100, torch.zeros(()), out)),
    _Case("soft-cross-entropy", 3, lambda s, q, y, out: kernels.soft_cross_entropy(s, q, None, torch.zeros(()), out)),
    _Case("softmax", 2, lambda s, q, y, out: kernels.softmax(s, 4.0, out)),
    _Case("softmax-backward", 3, lambda s, q, y, out: kernels.softmax_backward(s, q, 4.0, out)),
    _Case("context-weights", 1, lambda s, q, y, out: kernels.context_weights(s, y, 4.0, -100, torch.zeros(len(s)))),
    _Case("soft-context-weights", 3, lambda s, q, y, out: kernels.soft_context_weights(s, q, 4.0, out)),
    _Case("sample", 3, lambda s, q, y, out: kernels.sample(s, q, None, True, torch.zeros(()), out)),
)
"""The kernels that go row by row, which memory bounds; by their names in `cid.backends.triton.tiles.ROWS`."""


class _Driver:
    """What the compiler asks of a GPU."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", self.capability, 32)


def compile_only(capability: int = 90) -> list[tuple[str, Any]]:
    """From now on a call of a kernel in this process compiles it for such a GPU (90: Hopper), and runs nothing.

    Returns:
        A list to which each call adds the kernel's name and what the compiler made of it.
    """
    made: list[tuple[str, Any]] = []
    triton.runtime.driver.set_active(_Driver(capability))
    run = JITFunction.run

    def compile_alone(kernel: Any, *arguments: Any, warmup: bool, **options: Any) -> None:
        made.append((kernel.fn.__name__, run(kernel, *arguments, warmup=True, **options)))

    JITFunction.run = compile_alone
    return made


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes that it keeps in memory for want of them, by the machine's code."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    assert found is not None, said
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def accesses(ptx: str) -> list[int]:
    """The bits of each access to a matrix in global memory: those of more than one number at a time."""
    found = re.findall(r"\b(?:ld|st)\.global(?:\.\w+)*?\.v(\d)\.b(\d+)", ptx)
    return [int(numbers) * int(bits) for numbers, bits in found]


def compiled(case: _Case, size: Size, dtype: str, made: list[tuple[str, Any]]) -> Compiled:
    """A kernel for matrices of a size and type, with the list of `compile_only`."""
    s, q, out = (torch.zeros(SPARE, size[1], dtype=getattr(torch, dtype)) for _ in range(3))
    y = torch.zeros(SPARE, dtype=torch.int64)
    case.call(s, q, y, out)
    _, kernel = made[-1]  # what counts labels comes before
    constants = {kernel.src.fn.arg_names[at]: value for (at, *_), value in kernel.src.constants.items()}
    tile = constants["ROWS"] * constants["BLOCK"] * s.element_size() * 8
    threads = 32 * kernel.metadata.num_warps * kernel.metadata.num_ctas
    accessed = accesses(kernel.asm["ptx"])
    registers, spilled = usage(kernel.asm["cubin"])
    return Compiled(
        case.name,
        text(size),
        dtype,
        kernel.metadata.num_warps,
        registers,
        spilled,
        kernel.metadata.shared,
        max(accessed),
        min(accessed),
        sum(accessed) * threads / tile,
        case.least,
    )


_WIDTHS = (20, 10, 8, 5, 9, 7, 6, 6, 9, 5, 5)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90, help="of the GPU (default: 90, Hopper)")
    options = parser.parse_args(arguments)
    made = compile_only(options.capability)
    print(f"Triton {triton.__version__}, capability {options.capability}")
    print(_line([field.name for field in fields(Compiled)]))
    for size in dict.fromkeys((SPARE, columns) for _, columns in GOALS):
        for dtype in DTYPES:
            for case in CASES:
                print(_line(astuple(compiled(case, size, dtype, made))), flush=True)


def _line(cells: Sequence[object]) -> str:
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


if __name__ == "__main__":
    main()
