"""What memory a call takes."""

import pytest
import torch

from cid.bench import memory


def test_counted_memory_of_known_calls() -> None:
    x = torch.ones(1000)  # 4000 bytes
    assert memory.counted(lambda: torch.empty(1000)) == 0  # its output alone
    # What must be there at once; beside it PyTorch may have some numbers of its own.
    some = 256
    assert 4000 <= memory.counted(lambda: torch.exp(torch.exp(x))) <= 4000 + some
    assert 3 * 4000 - 4 <= memory.counted(lambda: torch.mul(torch.exp(x), torch.exp(x)).sum()) <= 3 * 4000 + some
    y = torch.ones(1000, requires_grad=True)
    # exp keeps its result for the backward.
    assert 4000 <= memory.counted(lambda: torch.autograd.grad(y.exp().sum(), y)) <= 4000 + some


def test_resident_memory_sees_what_pytorch_does_not_count() -> None:
    def scratch() -> None:
        bytearray(64 << 20)[::4096] = bytes(64 << 8)  # a write to every page

    if (seen := memory.resident(scratch)) is None:
        pytest.skip("no high-water mark that can be reset")
    assert memory.counted(scratch) == 0
    # What else the process takes and gives back meanwhile, and whole huge pages, are no part of it.
    assert 48 << 20 < seen < 96 << 20
