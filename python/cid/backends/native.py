"""The formulas in Rust: each loss and its gradient in one pass over the data, on PyTorch's own threads.

Float32, float64, bfloat16 and float16 on the CPU; halves are read and written as they are, and computed in float32.
"""

import ctypes
import os
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

import cid._checks as check
import cid._native as rust
from cid.backends.fused import Fused, tensors
from cid.backends.options import CIDInputs, CIDOptions, CIDOutput


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
    rust.use_torch_threads(*addresses)
    # A forked child inherits the pool's state without its threads, and would wait for them for ever.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=rust.run_serially)


_join_torch_threads()


backend = Fused(rust)


def refusal(found: Iterable[Tensor]) -> str | None:
    """Why these tensors can't be taken, or None if they can."""
    return tensors.refusal(found, "cpu", check.FLOATS)


def takes(found: tuple[object, ...], rank: int | None) -> bool:
    """Whether these are float tensors, of so many dimensions if that is given, that the kernels can read, and may."""
    if torch.compiler.is_compiling() or tensors.transform() is not None or not rust.plain(*found):
        return False
    for tensor in cast(tuple[Tensor, ...], found) if rank is not None else ():  # noqa: SIM110  # `all` takes twice as long
        if tensor.ndim != rank:
            return False
    return True


def cid_loss_if_it_fits(inputs: CIDInputs, options: CIDOptions) -> CIDOutput | None:
    """The criterion, of whatever the arguments are: None where anything is not as the kernels and products take it.

    Not float16, of whose gradients, written in the forward, too much would be lost before a `GradScaler`'s factor could
    save it; nor under autocast.
    """
    if torch.compiler.is_compiling() or tensors.transform() is not None or torch.is_autocast_enabled("cpu"):
        return None
    context_sums, smoothing = inputs.context_sums, options.label_smoothing
    factors = options.alpha, options.beta, options.gamma
    fits = (
        rust.cid_fits(*inputs[:-1], factors, options.temperature, options.ignore_index)
        and not options.differentiable_context
        and inputs.student_features.dtype != torch.float16
        and type(smoothing) is float
        and 0.0 <= smoothing <= 1.0
        and (context_sums is None or not any(x.requires_grad or x.is_neg() for x in context_sums))
    )
    return backend.cid_loss_as_one(inputs, options) if fits else None
