"""The formulas in Triton, on a GPU: the functions of `cid._native`, one file a formula."""

from cid.backends.triton.kd import kd
from cid.backends.triton.softmax import context_weights, softmax, softmax_backward

__all__ = ["context_weights", "kd", "softmax", "softmax_backward"]
