"""The kernels that `cid.backends.kernels` lists, and `scale`: one file a formula."""

from cid.backends.triton.class_ import class_
from cid.backends.triton.columns import column_sums
from cid.backends.triton.context import accumulate_context, context_weights, soft_context_weights
from cid.backends.triton.criterion import cid_after, cid_before
from cid.backends.triton.cross_entropy import cross_entropy, soft_cross_entropy
from cid.backends.triton.kd import kd
from cid.backends.triton.sample import sample
from cid.backends.triton.scale import scale
from cid.backends.triton.softmax import softmax, softmax_backward

__all__ = [
    "accumulate_context",
    "cid_after",
    "cid_before",
    "class_",
    "column_sums",
    "context_weights",
    "cross_entropy",
    "kd",
    "sample",
    "scale",
    "soft_context_weights",
    "soft_cross_entropy",
    "softmax",
    "softmax_backward",
]
