"""The hardware's counters for the kernels that are furthest from a copy's bandwidth, by Nsight Compute.

    python -m benches.counters GOALS.json [--worst 3]    # of the rows that `cid bench --device cuda --out` wrote
    python -m benches.counters --once kd 16384x1000 float32

Of each row: bytes moved and rates, occupancy, and what the warps wait for, one section a kernel of this package. The
second form is what runs under the profiler: the term once, after a call that compiles it.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cid.bench import plan
from cid.bench.terms import TERMS

SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "LaunchStats", "Occupancy", "WarpStateStats")
MEMORY_BOUND = ("kd", "kd-reverse", "kd-js", "cross-entropy", "context-weights", "sample", "accumulate")


def furthest(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The rows of terms that memory bounds whose bandwidth is the least part of a copy's; one a term."""
    bound = [row for row in rows if row["term"] in MEMORY_BOUND]
    bound.sort(key=lambda row: row["bandwidth"]["cid"] / row["bandwidth"]["copy"])
    first: dict[str, dict[str, Any]] = {}
    for row in bound:
        first.setdefault(row["term"], row)
    return list(first.values())[:count]


def once(term: str, size: plan.Size, dtype: str, device: str = "cuda") -> None:
    """A call, and before it one that compiles; only the second is profiled."""
    its = TERMS[term]
    with torch.device(device):
        state = its.state(size, getattr(torch, dtype))
        inputs = its.draw(size, getattr(torch, dtype))
        ours = its.ours(state, None)
    for profiled in (False, True):
        if device == "cuda":
            torch.cuda.synchronize()
            if profiled:
                torch.cuda.profiler.start()
        loss = ours(*inputs)
        if its.backward and loss is not None:
            torch.autograd.grad(loss, its.leaves(inputs, state))
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def command(row: dict[str, Any]) -> list[str]:
    """What profiles a row."""
    profiler = ["ncu", "--profile-from-start", "off", "--clock-control", "none", "--kernel-name", "regex:^_"]
    sections = [word for name in SECTIONS for word in ("--section", name)]
    call = [sys.executable, "-m", "benches.counters", "--once", row["term"], row["size"], row["dtype"]]
    return [*profiler, *sections, *call]


def main(arguments: Sequence[str] | None = None) -> None:
    """Profiles and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("goals", nargs="?", type=Path, metavar="GOALS.json")
    parser.add_argument("--worst", type=int, default=3, help="how many terms (default: 3)")
    parser.add_argument("--once", nargs=3, metavar=("TERM", "SIZE", "DTYPE"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="for --once")
    options = parser.parse_args(arguments)
    if options.once:
        term, size, dtype = options.once
        once(term, plan.parse(size), dtype, options.device)
        return
    if options.goals is None:
        parser.error("GOALS.json: got none, accepted: what `cid bench --device cuda --out` wrote")
    rows = furthest(json.loads(options.goals.read_text(encoding="utf-8"))["rows"], options.worst)
    for row in rows:
        part = row["bandwidth"]["cid"] / row["bandwidth"]["copy"]
        print(f"\n== {row['term']} {row['size']} {row['dtype']}: {part:.2f} of a copy's bandwidth", flush=True)
        if shutil.which("ncu"):
            subprocess.run(command(row), check=False)
    if not shutil.which("ncu"):
        sys.exit("ncu: not found on the PATH, accepted: Nsight Compute's")


if __name__ == "__main__":
    main()
