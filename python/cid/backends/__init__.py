"""The backends that compute the formulas, and the choice among them.

A backend is a module with the functions of `Backend`. `reference` is plain PyTorch and runs everywhere; `native` (Rust)
takes float32, float64, bfloat16 and float16 tensors on the CPU.
"""

import os
from typing import Protocol

from torch import Tensor

from cid.backends import native, reference
from cid.backends.options import CIDOptions, KDOptions

__all__ = ["BACKENDS", "Backend", "CIDOptions", "Fused", "KDOptions", "fused", "select", "self_checking"]


class Backend(Protocol):
    """What a backend computes. The arguments have been checked, and are passed by position."""

    def kd_loss(
        self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor | None, options: KDOptions, /
    ) -> Tensor: ...

    def sample_loss(self, student_features: Tensor, teacher_features: Tensor, reduction: str, /) -> Tensor: ...

    def class_loss(
        self, student_features: Tensor, teacher_features: Tensor, target: Tensor, ignore_index: int, /
    ) -> Tensor: ...

    def cross_entropy(self, logits: Tensor, target: Tensor, ignore_index: int, /) -> Tensor: ...

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


class Fused(Backend, Protocol):
    """A backend that has the whole criterion as one function."""

    def cid_fits(
        self,
        student: tuple[Tensor, Tensor],
        teacher: tuple[Tensor, Tensor],
        target: Tensor,
        adapter: tuple[Tensor, Tensor],
        head: tuple[Tensor, Tensor],
        context: Tensor | None,
        context_sums: tuple[Tensor, Tensor] | None,
        options: CIDOptions,
        /,
    ) -> bool: ...

    def cid_loss(
        self,
        student: tuple[Tensor, Tensor],
        teacher: tuple[Tensor, Tensor],
        target: Tensor,
        adapter: tuple[Tensor, Tensor],
        head: tuple[Tensor, Tensor],
        context: Tensor | None,
        context_sums: tuple[Tensor, Tensor] | None,
        options: CIDOptions,
        /,
    ) -> tuple[Tensor, Tensor, Tensor | None]: ...


BACKENDS: dict[str, Backend] = {"native": native, "reference": reference}


# Read once: a look into the environment costs as much as a kernel on a small batch.
_DEFAULT = os.environ.get("CID_BACKEND") or "auto"


def self_checking(backend: str | None, *tensors: object) -> Backend | None:
    """The backend for these float tensors, if it is one that checks all arguments by itself.

    None sends the caller through its own checks and `select`: the careful way, for any other backend, for tensors that
    are empty, of several types or of unusual kinds, and for what is not a tensor at all.
    """
    return native if (backend or _DEFAULT) in ("auto", "native") and native.takes(*tensors) else None


def fused(backend: str | None) -> Fused | None:
    """The backend, if it is one that has the whole criterion as one function."""
    return native if (backend or _DEFAULT) in ("auto", "native") else None


def select(backend: str | None, *tensors: Tensor) -> Backend:
    """The backend called `backend`, or by the environment's `CID_BACKEND`, or else the fastest that takes `tensors`.

    Raises:
        ValueError: The name is unknown.
        RuntimeError: The named backend can't take these tensors; the message says why.
    """
    name = backend or _DEFAULT
    if name == "auto":
        return reference if native.refusal(tensors) else native
    if name not in BACKENDS:
        source = "backend" if backend else "CID_BACKEND"
        raise ValueError(f"{source}: got {name!r}; accepted: 'auto', {', '.join(map(repr, BACKENDS))}")
    if name == "native" and (reason := native.refusal(tensors)):
        raise RuntimeError(f"backend 'native' can't take this call: {reason}; backend='reference' can")
    return BACKENDS[name]
