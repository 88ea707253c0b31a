"""The formulas in Rust: each loss and its gradient in one pass over the data, on PyTorch's own threads.

Float32, float64, bfloat16 and float16 on the CPU; halves are read and written as they are, and computed in float32.
"""

import ctypes
import os
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from cid import _checks, _native
from cid.backends import fused
from cid.backends.options import CIDInputs, CIDOptions


def _join_torch_threads() -> None:
    """Hand PyTorch's parallel loop to the kernels, by address: no second pool, no linking against libtorch."""
    library = ctypes.PyDLL(torch._C.__file__)
    try:
        addresses = [
            cast(int, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
            for name in ("torch_parallel_for", "torch_get_num_threads")
        ]
    except AttributeError:  # not exported on this platform: serial, with the same results
        return
    _native.use_torch_threads(*addresses)
    # A forked child inherits the pool's state without its threads, and would wait for them for ever.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_native.run_serially)


_join_torch_threads()


def refusal(tensors: Iterable[Tensor]) -> str | None:
    """Why these tensors can't be taken, or None if they can."""
    return fused.refusal(tensors, "cpu", _checks.FLOATS)


def takes(*tensors: object) -> bool:
    """Whether these are float tensors that the kernels can read as they are, and may."""
    return not torch.compiler.is_compiling() and fused.transform() is None and _native.plain(*tensors)


def fits(inputs: CIDInputs, options: CIDOptions) -> bool:
    """Whether `Fused.cid_loss` can take these arguments, whatever they are: all is well that its kernels do not check.

    Not float16, of whose gradients, written in the forward, too much would be lost before a `GradScaler`'s factor could
    save it; nor under autocast.
    """
    if torch.compiler.is_compiling() or fused.transform() is not None or torch.is_autocast_enabled("cpu"):
        return False
    factors, context_sums = (options.alpha, options.beta, options.gamma), inputs.context_sums
    return (
        _native.cid_fits(*inputs[:10], factors, options.temperature, options.ignore_index)
        and inputs.student_features.dtype != torch.float16
        and type(options.label_smoothing) is float
        and 0.0 <= options.label_smoothing <= 1.0
        and (context_sums is None or not any(x.requires_grad or x.is_neg() for x in context_sums))
    )


backend = fused.Fused(_native)
