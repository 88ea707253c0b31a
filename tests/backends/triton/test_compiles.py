"""That the Triton kernels compile for a GPU, be there one or not: the interpreter takes what the compiler refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="needs triton")

# In a process by itself, as here the kernels may belong to the interpreter.
ALL = """
import torch
from benches.resources import compile_only
from cid.backends.kernels import signature
from cid.backends.triton import kernels
from tests.cases import KERNELS, kernel_arguments

compile_only()
for student in (torch.bfloat16, torch.float32):  # beside a teacher in bfloat16
    arguments = kernel_arguments(64, 1000, 512, 2048, student, torch.bfloat16)
    for name in KERNELS:
        given = dict(zip(signature(name).parameters, arguments[name], strict=True))
        for weights in ({"weight": None}, {"weight": torch.ones(64)}) if "weight" in given else ({},):
            getattr(kernels, name)(**given | weights)
kernels.column_sums(torch.zeros(600, 1000, dtype=torch.bfloat16), 1.0, torch.zeros(1000, dtype=torch.bfloat16))
kernels.scale(torch.zeros(64, 512, dtype=torch.bfloat16), torch.ones(()))
"""
ROWS = """
import json, sys
from dataclasses import asdict, replace
import torch
from benches.resources import CASES, DTYPES, SPARE, compile_only, compiled
from cid.backends.kernels import signature
from cid.backends.triton import kernels, tiles

made, (columns, cluster, weights) = compile_only(), map(int, sys.argv[1:])
for name, choice in tiles.ROWS.items():
    tiles.ROWS[name] = replace(choice, cluster=cluster)


def with_weights(kernel, at):
    return lambda *given: kernel(*given[:at], torch.ones(SPARE), *given[at + 1:])


if weights:  # as the cases call the kernels, but for that
    CASES = [case for case in CASES if case.name.startswith(("kd", "sample", "cross", "soft-cross"))]
    for name in ("kd", "sample", "cross_entropy", "soft_cross_entropy"):
        setattr(kernels, name, with_weights(getattr(kernels, name), list(signature(name).parameters).index("weight")))
print(json.dumps([asdict(compiled(case, (64, columns), dtype, made)) for dtype in DTYPES for case in CASES]))
"""


with_and_without_weights = pytest.mark.parametrize("weights", [False, True], ids=["unweighted", "weighted"])


def run(program: str, cache: Path, *arguments: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def compiled(cache: Path, columns: int, cluster: int = 1, weights: bool = False) -> dict[str, list[dict[str, Any]]]:
    """What became of each kernel that goes row by row, in both types; of those that take weights, with them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(run(ROWS, cache, str(columns), str(cluster), str(int(weights)))):
        assert row["widest"] == row["narrowest"] == 128, row  # bits: as wide as there are accesses
        found.setdefault(row["kernel"], []).append(row)
    return found


def test_all_kernels_compile_for_hopper(tmp_path: Path) -> None:
    run(ALL, tmp_path)


@with_and_without_weights
def test_rows_of_1000_are_read_once_and_kept_in_registers(tmp_path: Path, weights: bool) -> None:
    """To the compiler each loop over a row reads it anew; where the row fits, it must find that it need not."""
    for rows in compiled(tmp_path, 1000, weights=weights).values():
        for row in rows:
            assert row["moved"] == row["least"], row
            assert row["spilled"] == 0, row


# Maxima and sums first, then what needs them; the mean of the logarithms in between, where the derivative has one.
ONCE = {"context-weights": 1}
TWICE = {"kd-forward": 5, "cross-entropy": 3, "softmax": 3, "softmax-backward": 5, "sample": 5}
SHARES = {"soft-cross-entropy": 6, "soft-context-weights": 4}
THRICE = {"kd-reverse": 7, "kd-js": 7}


@with_and_without_weights
def test_rows_of_128256_are_read_once_a_loop(tmp_path: Path, weights: bool) -> None:
    for name, rows in compiled(tmp_path, 128256, weights=weights).items():
        for row in rows:
            assert row["moved"] == (ONCE | TWICE | SHARES | THRICE)[name], row
            assert row["spilled"] == 0, row


@pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9), reason="needs a compiler that reduces across programs"
)
def test_a_cluster_of_programs_reads_rows_of_128256_once(tmp_path: Path) -> None:
    for name, rows in compiled(tmp_path, 128256, cluster=8).items():
        if name != "kd-js":  # of which less fits in a program
            assert all(row["moved"] == row["least"] for row in rows), rows
