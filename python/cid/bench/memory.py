"""Peak memory of a call beyond its inputs and what it returns (outputs and gradients), in two ways.

`counted` follows every allocation and release of PyTorch's CPU allocator: exact, but blind to what other code allocates
by itself, the Rust kernels and the library of the matrix products. `resident` watches the process from outside: it
sees all that, in whole pages, along with what the libraries keep for later calls. On large inputs the two agree to 1%
for eager PyTorch without matrix products (kd on 4096 x 8000: both 500 MiB). `on_device` is what `counted` is, on a CUDA
device.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would tell that there is no GPU


def counted(call: Callable[[], object]) -> int:
    """Bytes, by PyTorch's own account.

    Args:
        call: run once; it should have run before, so that caches are filled.
    """
    # To accumulate events, though there is one cycle, spares PyTorch 2.10's warning that the next would clear them.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        returned = call()
    del returned  # alive until here, so that all that is still allocated in the end belongs to it
    recorded = profiler.profiler
    assert recorded is not None
    assert recorded.kineto_results is not None
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most - now


def on_device(call: Callable[[], object]) -> int:
    """Bytes on the CUDA device, by PyTorch's own account.

    Args:
        call: run once; it should have run before.
    """
    torch.cuda.reset_peak_memory_stats()
    returned = call()
    most, now = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    del returned
    return most - now


def resident(call: Callable[[], object]) -> int | None:
    """Bytes, by the process's high-water mark; None where the system has none that can be reset (all but Linux).

    Args:
        call: run once; it should have run before.
    """
    reset = Path("/proc/self/clear_refs")
    try:
        trim = ctypes.CDLL(None).malloc_trim  # glibc keeps released memory, which would hide that it is used again
        trim(0)
        reset.write_text("5", encoding="ascii")
    except (AttributeError, OSError, TypeError):
        return None
    returned = call()
    most = _status("VmHWM")
    trim(0)
    now = _status("VmRSS")
    del returned
    return max(most - now, 0)


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024
