"""Each tier of vector instructions that this CPU has, by `CID_SIMD`. It is read once, so each is a process's own."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

TIERS = ("avx512", "avx2", "baseline", "fallback")
# Few, but telling: what the published code computed, extremes, and accuracy of rows with a tail.
SELECTED = "native and single_batch or extreme and (f32 or bf16) or accurate and shape1"

CHECKED = """
import sys, pytest
from cid import _native
tier, *arguments = sys.argv[1:]
used = _native.build_info()["simd"]
assert used == tier, used
sys.exit(pytest.main(arguments))
"""
ALONE = """
from cid import _native
for _ in range(2):
    try:
        print(_native.build_info()["simd"])
    except RuntimeError as error:
        print(error)
"""
LOSS = """
import torch
from cid import functional as F
F.kd_loss(torch.zeros(2, 3), torch.zeros(2, 3), backend="native")
"""


def run(code: str, *arguments: str, tier: str | None = None) -> subprocess.CompletedProcess[str]:
    """In a process by itself, and in one thread: others may be at work beside it."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("CID_", "PYTEST_"))} | {"OMP_NUM_THREADS": "1"}
    if tier is not None:
        env["CID_SIMD"] = tier
    command = [sys.executable, "-c", code, *arguments]
    root = Path(__file__).parents[3]
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=300, check=False)


def answers(tier: str | None) -> list[str]:
    """What the module answers twice when it is asked for its tier."""
    done = run(ALONE, tier=tier)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@cache
def best() -> str:
    """The tier that is chosen where none is forced."""
    first, second = answers(None)
    assert first == second
    return first


def lacks(tier: str) -> bool:
    return tier in TIERS[:2] and best() not in TIERS[: TIERS.index(tier) + 1]


def test_the_best_is_chosen() -> None:
    """Where PyTorch finds AVX2, it is not left unused."""
    assert best() in ("avx512", "avx2", "baseline")
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert best() in ("avx512", "avx2")


@pytest.mark.parametrize("tier", TIERS)
def test_a_forced_tier_passes(tier: str) -> None:
    if lacks(tier):
        pytest.skip(f"this CPU lacks {tier}")
    tests = [f"tests/{name}.py" for name in ("backends/test_vectors", "functional/test_accuracy")]
    done = run(CHECKED, tier, "-q", "-n", "0", "-p", "no:cacheprovider", *tests, "-k", SELECTED, tier=tier)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(done.stdout.rpartition(" passed")[0].split()[-1]) > 80  # the selection still selects


@pytest.mark.parametrize("tier", [*TIERS[:2], "sse9", "AVX2", ""])
def test_a_tier_that_is_not_there_is_refused(tier: str) -> None:
    """By a message that says what there is, and every time."""
    if tier in TIERS and not lacks(tier):
        pytest.skip(f"this CPU has {tier}")
    why = ", which this CPU lacks" if tier in TIERS else ""
    there = [repr(tier) for tier in TIERS if not lacks(tier)]
    assert answers(tier) == [f"CID_SIMD: got '{tier}'{why}, accepted: {', '.join(there)}"] * 2


def test_a_loss_is_refused_too() -> None:
    done = run(LOSS, tier="sse9")
    assert done.returncode == 1
    assert "RuntimeError: CID_SIMD: got 'sse9', accepted: " in done.stderr
