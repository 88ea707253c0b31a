"""Random inputs, the same on every processor and under every version of PyTorch and NumPy.

`torch.randn` takes another path for another instruction set, and both libraries may change what follows from a seed. So
these start from the words of PCG64, which NumPy keeps as they are, and go on in integers and single operations that
IEEE 754 rounds alike everywhere. `CID_TEST_SEED` shifts every seed: what a test claims holds for all of them.
"""

import os

import numpy as np
import torch
from torch import Tensor

SHIFT = int(os.environ.get("CID_TEST_SEED", "0"))
_words = np.random.PCG64(SHIFT)


def shifted(seed: int) -> int:
    """The seed of a generator of PyTorch's, where a test is of what draws from one."""
    return seed + 1_000_003 * SHIFT


def seed(number: int) -> None:
    """Starts all streams anew: ours, and PyTorch's."""
    global _words  # noqa: PLW0603
    _words = np.random.PCG64((SHIFT, number))
    torch.manual_seed(shifted(number))


def _integers(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Evenly from 0 to 2^48 - 1."""
    count = int(np.prod(shape, dtype=np.int64))
    return (np.asarray(_words.random_raw(count)) >> np.uint64(16)).astype(np.int64).reshape(shape)


def uniform(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Evenly from 0 to below 1."""
    return torch.as_tensor(_integers(*shape) * 2.0**-48).to(dtype)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Near enough to normal, of mean 0 and deviation 1: four even ones added up, as each library rounds its own log."""
    return torch.as_tensor((_integers(4, *shape).sum(0) - 2 * 2**48) * (3**0.5 * 2.0**-48)).to(dtype)


def below(limit: int, *shape: int) -> Tensor:
    """Whole numbers from 0 to below `limit`."""
    return torch.as_tensor(_integers(*shape) % limit)
