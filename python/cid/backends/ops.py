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

from cid import _native
from cid.backends.fused import Fused, Kernels

# Mutated arguments carry a letter each.
SCHEMAS = {
    "kd": "Tensor student_logits, Tensor teacher_logits, Tensor? target, float temperature, str divergence, float beta,"
    " int ignore_index, bool mean, Tensor(a!) loss, Tensor(b!)? grad",
    "cross_entropy": "Tensor logits, Tensor target, int ignore_index, Tensor(a!) loss, Tensor(b!)? grad",
    "soft_cross_entropy": "Tensor logits, Tensor target, Tensor(a!) loss, Tensor(b!)? grad",
    "sample": "Tensor student_features, Tensor teacher_features, bool mean, Tensor(a!) loss, Tensor(b!)? grad",
    "class_": "Tensor student_features, Tensor teacher_features, Tensor target, int ignore_index,"
    " Tensor(a!) loss, Tensor(b!)? grad",
    "softmax": "Tensor logits, float temperature, Tensor(a!) out",
    "softmax_backward": "Tensor grad_output, Tensor probabilities, float temperature, Tensor(a!) grad",
    "context_weights": "Tensor teacher_logits, Tensor target, float temperature, int ignore_index, Tensor(a!) out",
    "soft_context_weights": "Tensor teacher_logits, Tensor target, float temperature, Tensor(a!) out",
    "accumulate_context": "Tensor features, Tensor weights, Tensor target, int ignore_index,"
    " Tensor(a!) numerator, Tensor(b!) denominator",
    "column_sums": "Tensor matrix, float factor, Tensor(a!) out",
    "cid_before": "Tensor student_features, Tensor student_logits, Tensor teacher_features, Tensor teacher_logits,"
    " Tensor target, float temperature, int ignore_index, Tensor(a!) terms, Tensor(b!)? kd_grad,"
    " Tensor(c!)? class_grad, Tensor(d!)? inputs, Tensor(e!)? belief, Tensor(f!)? numerator, Tensor(g!)? denominator",
    "cid_after": "Tensor adapted, Tensor teacher_features, Tensor? logits, Tensor target, int ignore_index,"
    " float alpha, float beta, float gamma, Tensor(a!) terms, Tensor(b!) loss, Tensor(c!)? sample_grad,"
    " Tensor(d!)? ce_grad",
}


def _define(name: str, schema: str) -> None:
    operator = f"cid::{name}"
    torch.library.define(operator, f"({schema}) -> ()")
    torch.library.impl(operator, "CPU", getattr(_native, name))
    torch.library.impl(operator, "CUDA", _on_gpu(name))
    torch.library.register_fake(operator, _nothing)


def _on_gpu(name: str) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        from cid.backends import triton

        getattr(triton.backend().kernels, name)(*arguments)

    return call


def _nothing(*_: Any) -> None:
    """The outputs are the caller's, of the right shapes already."""


for _name, _schema in SCHEMAS.items():
    _define(_name, _schema)


def _kernel(name: str) -> Callable[..., None]:
    operator = getattr(torch.ops.cid, name).default

    def call(*arguments: Any) -> None:
        # What autograd should know of is in the nodes; an operator must see nothing to differentiate.
        operator(*(x.detach() if isinstance(x, Tensor) and x.requires_grad else x for x in arguments))

    return call


backend = Fused(cast(Kernels, SimpleNamespace(**{name: _kernel(name) for name in SCHEMAS})))
