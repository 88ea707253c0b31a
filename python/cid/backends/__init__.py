"""The backends that compute the formulas, and the choice among them.

`reference` is plain PyTorch and runs everywhere; `native` (Rust) takes float32, float64, bfloat16 and float16 tensors
on the CPU; `triton` float32, bfloat16 and float16 tensors on a CUDA device. The latter two are kernels under the same
autograd nodes, `fused`; torch.compile sees them as the operators of `ops`.
"""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from cid.backends import native, ops, reference, triton
from cid.backends.backend import Backend
from cid.backends.options import CIDInputs, CIDOptions, CIDOutput

__all__ = ["BACKENDS", "Backend", "checking", "checking_cid_loss", "select"]

BACKENDS = ("native", "triton", "reference")

# Read once: a look into the environment costs as much as a kernel on a small batch.
_DEFAULT = os.environ.get("CID_BACKEND") or "auto"


def checking(backend: str | None, *tensors: object, rank: int | None = 2) -> Backend | None:
    """The backend whose kernels read these tensors as they lie in memory, and check their sizes by themselves.

    None, which sends the caller through its own checks and `select`, if that is another backend, or if not all are
    tensors of one float type, on the CPU, with elements, of `rank` dimensions and of no unusual kind: the objects may
    be anything.
    """
    return native.backend if (backend or _DEFAULT) in ("auto", "native") and native.takes(tensors, rank) else None


def checking_cid_loss(backend: str | None, inputs: CIDInputs, options: CIDOptions) -> CIDOutput | None:
    """The criterion by a backend that checks all arguments itself; None, as from `checking`, if the caller has to."""
    return native.cid_loss_if_it_fits(inputs, options) if (backend or _DEFAULT) in ("auto", "native") else None


def select(backend: str | None, *tensors: Tensor) -> Backend:
    """The backend called `backend`, or by the environment's `CID_BACKEND`, or else the fastest that takes `tensors`.

    Raises:
        ValueError: The name is unknown.
        RuntimeError: The named backend can't take these tensors; the message says why.
    """
    name = backend or _DEFAULT
    if name == "auto":
        name = "triton" if tensors[0].is_cuda else "native"
        if _refusal(name, tensors):
            name = "reference"
    elif name not in BACKENDS:
        source = "backend" if backend else "CID_BACKEND"
        raise ValueError(f"{source}: got {name!r}; accepted: 'auto', {', '.join(map(repr, BACKENDS))}")
    elif name != "reference" and (reason := _refusal(name, tensors)):
        raise RuntimeError(f"backend {name!r} can't take this call: {reason}; backend='reference' can")
    if name == "reference":
        return reference
    if torch.compiler.is_compiling():
        return ops.backend
    return native.backend if name == "native" else triton.backend()


def _refusal(name: str, tensors: Sequence[Tensor]) -> str | None:
    return native.refusal(tensors) if name == "native" else triton.refusal(tensors)
