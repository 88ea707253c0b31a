"""The kernels as PyTorch's operators, which torch.compile can hold in a graph without looking inside.

An operator `torch.ops.cid.NAME` has the arguments of the kernel NAME and writes what that writes; on a CPU it calls the
one in Rust, on a CUDA device the one in Triton. It returns nothing: there is nothing to compute on fake tensors. Eager
mode does not come this way, which costs microseconds.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

import cid._native as rust
from cid.backends import kernels
from cid.backends.fused import Fused
from cid.backends.kernels import Kernels


def _define(name: str) -> None:
    operator = f"cid::{name}"
    torch.library.define(operator, kernels.schema(name))
    torch.library.impl(operator, "CPU", getattr(rust, name))
    torch.library.impl(operator, "CUDA", _on_gpu(name))
    torch.library.register_fake(operator, _nothing)


def _on_gpu(name: str) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        from cid.backends import triton

        getattr(triton.backend().kernels, name)(*arguments)

    return call


def _nothing(*_: Any) -> None:
    """The outputs are the caller's, of the right shapes already."""


for _name in kernels.NAMES:
    _define(_name)


def _kernel(name: str) -> Callable[..., None]:
    operator = getattr(torch.ops.cid, name).default

    def call(*arguments: Any) -> None:
        # What autograd should know of is in the nodes; an operator must see nothing to differentiate.
        operator(*(x.detach() if isinstance(x, Tensor) and x.requires_grad else x for x in arguments))

    return call


backend = Fused(cast(Kernels, SimpleNamespace(**{name: _kernel(name) for name in kernels.NAMES})))
