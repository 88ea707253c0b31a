"""Liger-Kernel's terms, which `cid bench` compares with on a GPU, are ours: there, or in Triton's interpreter."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs triton")

LIGER = """
import torch
from cid.bench import eager, liger
from tests import draws
from tests.gpu import DEVICE

draws.seed(0)
for beta in (0.5, 0.1):
    for name, step in liger.steps(beta).items():
        if name == "kd" and DEVICE == "cpu":
            continue  # its kernel asks a number for its type, which the interpreter's has not
        s, q = torch.randn(5, 7, device=DEVICE), torch.randn(5, 7, device=DEVICE)
        other = torch.randint(7, (5,), device=DEVICE) if name == "cross-entropy" else q
        options = {"beta": beta} if name == "kd-js" else {}
        results = []
        for run in (lambda s: getattr(eager, name.replace("-", "_"))(s, other, **options), lambda s: step(s, other)):
            leaf = s.clone().requires_grad_()
            loss = run(leaf)
            results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
            overwritten = not torch.equal(leaf, s)
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
        assert overwritten == (name in liger.OVERWRITES), name
"""


def test_liger_has_the_same_terms() -> None:
    if importlib.util.find_spec("liger_kernel") is None:
        pytest.skip("needs liger-kernel")
    # In a process of its own: it brings warnings and many modules.
    subprocess.run([sys.executable, "-c", LIGER], check=True, cwd=Path(__file__).parents[2])
