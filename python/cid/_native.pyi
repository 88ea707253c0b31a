"""The compiled module, used by `cid.backends` alone: the kernels as `cid.backends.kernels` has them, and its own state.

A kernel checks everything before it writes anything.
"""

from cid.backends.kernels import Kernels

def build_info() -> dict[str, str]:
    """`version`, `profile` ("release" or "debug") and `simd` (the tier in use) of this build."""

def use_torch_threads(parallel_for: int, get_num_threads: int) -> None:
    """Run on PyTorch's thread pool: the addresses of `torch_parallel_for` and `torch_get_num_threads`."""

def run_serially() -> None:
    """Stay in the calling thread from now on: a forked child has no thread pool that works."""

def plain(*tensors: object) -> bool:
    """Whether all are contiguous CPU tensors of one float type, of PyTorch's own classes, with elements."""

def cid_fits(
    student_features: object,
    student_logits: object,
    teacher_features: object,
    teacher_logits: object,
    target: object,
    weight: object,
    adapter_weight: object,
    adapter_bias: object,
    head_weight: object,
    head_bias: object,
    context: object,
    factors: tuple[object, object, object],
    temperature: object,
    ignore_index: object,
) -> bool:
    """Whether all arguments of the criterion are as its kernels and its products take them.

    Without a context the head may be anything.
    """

_kernels: Kernels
accumulate_context = _kernels.accumulate_context
cid_after = _kernels.cid_after
cid_before = _kernels.cid_before
class_ = _kernels.class_
column_sums = _kernels.column_sums
context_weights = _kernels.context_weights
cross_entropy = _kernels.cross_entropy
kd = _kernels.kd
sample = _kernels.sample
soft_context_weights = _kernels.soft_context_weights
soft_cross_entropy = _kernels.soft_cross_entropy
softmax = _kernels.softmax
softmax_backward = _kernels.softmax_backward
