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
from cid.backends.triton import kernels

compile_only()
dtype = torch.bfloat16
rows, classes, students, teachers = 64, 1000, 512, 2048
f, s, t, z = (torch.zeros(rows, n, dtype=dtype) for n in (students, classes, teachers, classes))
y, x, terms = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, 2 * students, dtype=dtype), torch.zeros(4)
numerator, denominator = torch.zeros(classes, students), torch.zeros(classes)
kernels.cid_before(f, s, t, z, y, 4.0, -100, terms, s.clone(), f.clone(), x, s.clone(), numerator, denominator)
kernels.cid_after(t, t.clone(), z, y, -100, 1.0, 1.0, 1.0, terms, torch.zeros(()), t.clone(), z.clone())
kernels.column_sums(torch.zeros(600, classes, dtype=dtype), 1.0, torch.zeros(classes, dtype=dtype))
kernels.scale(f, torch.ones(()))
kernels.soft_cross_entropy(z, s.float(), torch.zeros(()), z.clone())
kernels.soft_context_weights(z, s.float(), 4.0, torch.zeros(rows, classes))
narrow = t, z
f, s, t = f.float(), s.float(), t.float()  # a student in float32 beside a teacher in bfloat16
kernels.cid_before(f, s, *narrow, y, 4.0, -100, terms, s.clone(), f.clone(), x.float(), s.clone(), None, None)
kernels.cid_after(t, narrow[0], z.float(), s, -100, 1.0, 1.0, 1.0, terms, torch.zeros(()), t.clone(), s.clone())
"""
ROWS = """
import json, sys
from dataclasses import asdict, replace
from benches.resources import CASES, DTYPES, compile_only, compiled
from cid.backends.triton import tiles

made, (columns, cluster) = compile_only(), map(int, sys.argv[1:])
for name, choice in tiles.ROWS.items():
    tiles.ROWS[name] = replace(choice, cluster=cluster)
print(json.dumps([asdict(compiled(case, (64, columns), dtype, made)) for dtype in DTYPES for case in CASES]))
"""


def run(program: str, cache: Path, *arguments: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def compiled(cache: Path, columns: int, cluster: int = 1) -> dict[str, list[dict[str, Any]]]:
    """What became of each kernel that goes row by row, in both types."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(run(ROWS, cache, str(columns), str(cluster))):
        assert row["widest"] == row["narrowest"] == 128, row  # bits: as wide as there are accesses
        found.setdefault(row["kernel"], []).append(row)
    return found


def test_all_kernels_compile_for_hopper(tmp_path: Path) -> None:
    run(ALL, tmp_path)


def test_rows_of_1000_are_read_once_and_kept_in_registers(tmp_path: Path) -> None:
    """To the compiler each loop over a row reads it anew; where the row fits, it must find that it need not."""
    for rows in compiled(tmp_path, 1000).values():
        for row in rows:
            assert row["moved"] == row["least"], row
            assert row["spilled"] == 0, row


# Maxima and sums first, then what needs them; the mean of the logarithms in between, where the derivative has one.
ONCE = {"context-weights": 1}
TWICE = {"kd-forward": 5, "cross-entropy": 3, "softmax": 3, "softmax-backward": 5, "sample": 5}
SHARES = {"soft-cross-entropy": 6, "soft-context-weights": 4}
THRICE = {"kd-reverse": 7, "kd-js": 7}


def test_rows_of_128256_are_read_once_a_loop(tmp_path: Path) -> None:
    for name, rows in compiled(tmp_path, 128256).items():
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
