"""The formulas in Triton, for CUDA devices: float32, bfloat16 and float16, computed in float32.

Triton is imported when the first tensor on a GPU comes, not before: it is not everywhere where PyTorch is. It compiles
each kernel when it is first called with a type and a number of columns, which takes the better part of a second of one
core, and keeps the result on disk; the number of rows is compiled into none.
"""

import functools
import importlib.util
import os
from collections.abc import Iterable

import torch
from torch import Tensor

from cid.backends.fused import Fused
from cid.backends.fused import tensors as taken

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
# Asked once, not at each call.
_INSTALLED = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether the kernels run on a CPU, to test them."""


def refusal(tensors: Iterable[Tensor]) -> str | None:
    """Why these tensors can't be taken, or None if they can."""
    if not _INSTALLED:
        return "the package triton is not installed"
    if _INTERPRETED and torch.compiler.is_compiling():
        return "Triton's interpreter can't be traced"
    return taken.refusal(tensors, "cpu" if _INTERPRETED else "cuda", _TYPES)


@functools.cache
def backend() -> Fused:
    """The backend; imports Triton."""
    from cid.backends.triton import kernels

    return Fused(kernels, kernels.scale)
