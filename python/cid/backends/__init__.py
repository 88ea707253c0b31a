"""The backends that compute the formulas, and the choice among them.

`reference` is plain PyTorch and runs everywhere; `native` (Rust) takes float32, float64, bfloat16 and float16 tensors
on the CPU; `triton` float32, bfloat16 and float16 tensors on a CUDA device. The latter two are kernels under the same
autograd nodes, `fused`; torch.compile sees them as the operators of `ops`.
"""

import os
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from cid.backends import native, ops, reference, triton
from cid.backends.fused import Fused, dense, real, takes_beside
from cid.backends.options import CIDInputs, CIDOptions, KDOptions

__all__ = [
    "BACKENDS",
    "Backend",
    "CIDInputs",
    "CIDOptions",
    "Fused",
    "KDOptions",
    "dense",
    "real",
    "select",
    "self_checking",
    "self_checking_whole",
    "takes_beside",
]


class Backend(Protocol):
    """What a backend computes. The arguments have been checked, and are passed by position."""

    def kd_loss(
        self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor | None, options: KDOptions, /
    ) -> Tensor: ...

    def sample_loss(self, student_features: Tensor, teacher_features: Tensor, reduction: str, /) -> Tensor: ...

    def class_loss(
        self, student_features: Tensor, teacher_features: Tensor, target: Tensor, ignore_index: int, /
    ) -> Tensor: ...

    def cross_entropy(
        self, logits: Tensor, target: Tensor, ignore_index: int, label_smoothing: float = 0.0, /
    ) -> Tensor: ...

    def context_weights(
        self, teacher_logits: Tensor, target: Tensor, temperature: float, ignore_index: int, /
    ) -> Tensor: ...

    def accumulate_context(
        self,
        features: Tensor,
        weights: Tensor,
        target: Tensor,
        ignore_index: int,
        numerator: Tensor,
        denominator: Tensor,
        /,
    ) -> None: ...

    def marginal_context(
        self, student_logits: Tensor, context: Tensor, temperature: float, differentiable: bool, /
    ) -> Tensor: ...


BACKENDS = ("native", "triton", "reference")

# Read once: a look into the environment costs as much as a kernel on a small batch.
_DEFAULT = os.environ.get("CID_BACKEND") or "auto"


def self_checking(backend: str | None, *tensors: object) -> Backend | None:
    """The backend for these float tensors, if it is one that checks all arguments by itself.

    None sends the caller through its own checks and `select`: the careful way, for any other backend, for tensors that
    are empty, of several types or of unusual kinds, and for what is not a tensor at all.
    """
    return native.backend if (backend or _DEFAULT) in ("auto", "native") and native.takes(*tensors) else None


def self_checking_whole(backend: str | None, inputs: CIDInputs, options: CIDOptions) -> Fused | None:
    """Likewise for the whole criterion, whatever its arguments are."""
    return native.backend if (backend or _DEFAULT) in ("auto", "native") and native.fits(inputs, options) else None


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
            return reference
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
