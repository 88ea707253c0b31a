"""Threads, forks and errors: right results, to the bit, and nothing hangs."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import Tensor

from cid import functional as F
from tests.cases import Term, fused_terms, logits, types


@fused_terms
@types
def test_same_bits_for_any_number_of_threads(term: Term, dtype: torch.dtype) -> None:
    inputs = term.draw(517, 333, dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(term.value_and_grad(inputs, "native"))
    finally:
        torch.set_num_threads(before)
    for value, grad in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(grad, results[0][1])


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_does_not_hang() -> None:
    done = _run(
        "import os, torch, warnings; warnings.simplefilter('ignore')\n"
        "from cid.functional import kd_loss\n"
        "torch.set_num_threads(2)\n"
        "s, q = torch.randn(512, 1000), torch.randn(512, 1000)\n"
        "a = kd_loss(s, q, backend='native')\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0 if torch.equal(a, kd_loss(s, q, backend='native')) else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert done.returncode == 0, done.stderr


def test_calls_from_many_threads() -> None:
    """The lock of the interpreter is free while a kernel runs, and threads do not disturb each other."""
    s, q = logits(512, 1000, torch.float32), logits(512, 1000, torch.float32)
    expected = F.kd_loss(s, q, backend="native")
    wrong: list[Tensor] = []

    def work() -> None:
        for _ in range(20):
            loss = F.kd_loss(s, q, backend="native")
            if not torch.equal(loss, expected):
                wrong.append(loss)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 60
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    assert not any(worker.is_alive() for worker in workers)
    assert not wrong


PRELUDE = """
import ctypes, os, signal, threading, time, warnings
import torch
from torch import nn
from cid import _native, functional as F
warnings.simplefilter("ignore")
torch.set_num_threads(3)
torch.manual_seed(int(os.environ.get("CID_TEST_SEED", "0")))
# Below and above the size from which other Python threads may run meanwhile, and that of several tasks.
SIZES = [(8, 16), (16, 1023), (17, 1024), (300, 1000)]
INPUTS = [(torch.randn(n, c), torch.randn(n, c), torch.arange(n) % min(n // 2, c)) for n, c in SIZES]

@torch.enable_grad()  # in hooks too
def losses(i):
    # Of PyTorch's own operations none that would take its pool.
    s, t, y = INPUTS[i]
    leaf = s.detach().requires_grad_()
    kd, sample = F.kd_loss(leaf, t, backend="native"), F.sample_loss(leaf, t, backend="native")
    class_ = F.class_loss(leaf, t, y, backend="native")
    grads = [torch.autograd.grad(loss, leaf)[0] for loss in (kd, sample, class_)]
    return [x.detach() for x in (kd, sample, class_, *grads)]

EXPECTED = [losses(i) for i in range(len(SIZES))]

def check(i):
    assert all(torch.equal(a, b) for a, b in zip(losses(i), EXPECTED[i], strict=True)), SIZES[i]

def check_all():
    for i in range(len(SIZES)):
        check(i)

errors = []
def thread(function, *arguments):
    def body():
        try:
            function(*arguments)
        except BaseException as error:
            errors.append(error)
    made = threading.Thread(target=body, daemon=True)
    made.start()
    return made
"""
SCENARIOS = {
    "threads": """
stop = threading.Event()
holding = ctypes.PyDLL(None)  # as ctypes.pythonapi: the lock is held during a call
def loop():
    while not stop.is_set():
        sum(range(2000))
def hold():
    while not stop.is_set():
        holding.usleep(500)
        ctypes.pythonapi.PyGILState_Check()
        time.sleep(0.002)
def pytorch():
    a = torch.randn(400, 400)
    while not stop.is_set():
        torch.softmax(a @ a, 1).sum().item()
others = [thread(f) for f in (loop, hold, pytorch)]
def calls(i):
    for _ in range(5):
        check(i)
callers = [thread(calls, i) for i in range(len(SIZES))] + [thread(calls, 3)]
for caller in callers:
    caller.join()
stop.set()
for other in others:
    other.join()
""",
    "hooks": """
# The backward runs in the engine's frame, here in several threads at once, and hooks call in again.
def backward():
    seen = []
    s, t, _ = INPUTS[3]
    leaf = s.clone().requires_grad_()
    hidden = leaf * 1
    hidden.register_hook(lambda grad: (check_all(), seen.append(grad))[:0] or None)
    leaf.register_post_accumulate_grad_hook(lambda x: check_all())
    F.kd_loss(hidden, t, backend="native").backward()
    assert len(seen) == 1
backward()
for worker in [thread(backward) for _ in range(2)]:
    worker.join()
""",
    "workers": """
from torch.utils.data import DataLoader, Dataset
class Checked(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        check_all()
        return i
stop = threading.Event()
def calls():
    while not stop.is_set():
        check_all()
# Forked while another thread is in a kernel.
busy = thread(calls)
for i, batch in enumerate(DataLoader(Checked(), batch_size=2, num_workers=2, multiprocessing_context="fork")):
    assert batch.tolist() == [2 * i, 2 * i + 1]
    check(3)
stop.set()
busy.join()
""",
    "forks": """
stop = threading.Event()
def calls(i):
    while not stop.is_set():
        check(i)
busy = [thread(calls, i) for i in (1, 2, 3)]
for _ in range(8):
    time.sleep(0.003)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        code = 1
        try:
            found = [losses(i) for i in range(len(SIZES))]
            torch.set_num_threads(1)  # PyTorch's own operations do hang in a fork with its pool
            code = int(not all(torch.equal(a, b) for x, y in zip(found, EXPECTED) for a, b in zip(x, y)))
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    check(3)
stop.set()
for worker in busy:
    worker.join()
""",
    "errors": """
def refused(*types, **changed):
    s, t, y = INPUTS[3]
    call = {"student_logits": s, "teacher_logits": t, "target": y} | changed
    try:
        F.kd_loss(**call, backend="native")
    except types:
        check_all()
    else:
        raise SystemExit(f"{changed} was accepted")
s, t, y = INPUTS[3]
for _ in range(3):
    refused(ValueError, target=y + 900)
    refused(ValueError, teacher_logits=t[1:])
    refused(TypeError, teacher_logits=t.long())
    refused(TypeError, teacher_logits=None)
    refused(RuntimeError, teacher_logits=t.to("meta"), student_logits=s.to("meta"), target=None)
    refused(TypeError, target=y.int())
""",
    "panics": """
# A pool that fails makes a kernel panic in the thread that called it; one that fails late, after it has done its work.
from cid.backends import native
Callback = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
Pool = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, Callback, ctypes.c_void_p)
Count = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_uint32))
@Count
def count(out):
    out[0] = 3
    return 0
def pool(status, threaded):
    @Pool
    def parallel_for(begin, end, grain, callback, context):
        ranges = [(i, min(i + 7, end)) for i in range(begin, end, 7)]
        workers = [thread(callback, *r, context) for r in ranges] if threaded else []
        for worker in workers:
            worker.join()
        return status
    _native.use_torch_threads(*(ctypes.cast(f, ctypes.c_void_p).value for f in (parallel_for, count)))
    return parallel_for  # kept alive by whoever holds it
for _ in range(3):
    for threaded in (False, True):
        failing = pool(7, threaded)
        try:
            check(3)
        except RuntimeError as error:
            assert str(error) == "panic in a kernel: torch_parallel_for failed with status 7", error
        else:
            raise SystemExit("no error")
        check(0)  # too small for a pool
        native._join_torch_threads()
        check_all()
    # As PyTorch's: Python threads, and the interpreter's lock, can be had while a kernel runs.
    working = pool(0, True)
    check_all()
    native._join_torch_threads()
""",
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_hangs(scenario: str) -> None:
    """In a process by itself, which a hang would otherwise stop for ever; right results, to the bit."""
    if scenario in ("workers", "forks") and not hasattr(os, "fork"):
        pytest.skip("no fork on this platform")
    if scenario == "threads" and sys.platform == "win32":
        pytest.skip("no usleep on this platform")
    if scenario == "panics" and sys.platform != "linux":
        pytest.skip("only where PyTorch's pool is known to be used")
    code = PRELUDE + SCENARIOS[scenario] + "\nif errors: raise errors[0]\nprint('done')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "done\n", done.stderr
    assert done.returncode == 0, done.stderr
