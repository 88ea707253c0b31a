"""That the Triton kernels compile for a GPU, be there one or not: the interpreter takes what the compiler refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs triton")

# In a process by itself, as here the kernels may belong to the interpreter.
COMPILE = """
import json
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from cid.backends.triton import kernels

class Driver:  # what the compiler asks of a GPU
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)

def compile_only(kernel, *arguments, grid, warmup, **options):
    compiled = run(kernel, *arguments, grid=grid, warmup=True, **options)
    name = kernel.fn.__name__
    loads[name] = max(loads.get(name, 0), compiled.asm["ptx"].count("ld.global.v4.b32"))

triton.runtime.driver.set_active(Driver())
run, JITFunction.run = JITFunction.run, compile_only
loads = {}

dtype = torch.bfloat16
rows, classes, students, teachers = 64, 1000, 512, 2048
f, s, t, z = (torch.zeros(rows, n, dtype=dtype) for n in (students, classes, teachers, classes))
y, x, terms = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, 2 * students, dtype=dtype), torch.zeros(4)
numerator, denominator = torch.zeros(classes, students), torch.zeros(classes)
kernels.cid_before(f, s, t, z, y, 4.0, -100, terms, s.clone(), f.clone(), x, s.clone(), numerator, denominator)
kernels.cid_after(t, t.clone(), z, y, -100, 1.0, 1.0, 1.0, terms, torch.zeros(()), t.clone(), z.clone())
kernels.softmax(s, 4.0, s.clone())
kernels.softmax_backward(s, s.clone(), 4.0, s.clone())
kernels.context_weights(s, y, 4.0, -100, torch.zeros(rows))
kernels.column_sums(torch.zeros(600, classes, dtype=dtype), 1.0, torch.zeros(classes, dtype=dtype))
kernels.sample(f, f.clone(), True, torch.zeros(()), None)
kernels.scale(f, torch.ones(()))
for divergence in ("reverse", "js"):
    kernels.kd(s, z, y, 4.0, divergence, 0.5, -100, True, torch.zeros(()), s.clone())
print(json.dumps(loads))
"""


def test_compiled_for_hopper(tmp_path: Path) -> None:
    """Rows that fit are read once, 16 bytes at a time: to the compiler each loop over a row reads it anew."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    loads = json.loads(done.stdout)
    matrix = 2048 // 128 // 8  # loads by each of 128 threads, for a tile of 2048 elements
    assert loads["_kd"] == loads["_softmax_backward"] == loads["_sample_and_count"] == 2 * matrix
    assert loads["_cross_entropy"] == loads["_softmax"] == loads["_context_weights"] == matrix
