"""The formulas of interventional distillation as pure functions.

Student tensors get gradients; teacher tensors, contexts and weights never do. All share one device. The student's
tensors of one call share one type, float32, float64, bfloat16 or float16; each of the teacher's has its own, as a
teacher in half precision beside a student in float32. Half precision, and whatever comes under autocast, is computed in
float32, as PyTorch's losses are, and a term in float64 where one of its tensors is. A loss has the type that it is
computed in, a gradient that of its tensor.

Every function takes `backend`: `None` for the fastest that can serve the call (or the one that the environment variable
`CID_BACKEND` names), `"native"` (Rust; on the CPU), `"triton"` (on a CUDA device) or `"reference"` (plain PyTorch, any
device).
A named backend that can't serve the call raises `RuntimeError`.

A `target` is a label a sample, int64, shape (B,), or, as mixup and CutMix make it, the share of each class, floats of
any type, shape (B, C): numbers from 0 that add up to 1. One-hot shares give what the label gives. A sample has no
label where that is `ignore_index`, and where all shares are 0. A target gets no gradient.

Labels out of range, and shares that are none (negative, NaN, or adding up to 1 by more than 0.01 too much or too
little), raise on the CPU. On another device nobody can look at them without waiting for it: there such labels count as
ignored (`"triton"`) or trip PyTorch's own assertions (`"reference"`), and such shares are computed with as they are;
with `CID_CHECK_LABELS=1` in the environment both stop the device, at the cost of a few launches a call.

A `weight` is a factor w a sample, floats of any type, shape (B,): finite numbers from 0. It gets no gradient. The
losses of sample i count w_i times, and a mean still divides by the number of samples that count, not by the sum of the
weights: those of mean 1 keep the scale. A sample of weight 0 counts in that number; it adds 0 and gets a gradient of 0,
whatever it holds. All weights 1 give what no weights give. Other values raise on the CPU; on another device they count
as 0, or stop the device with `CID_CHECK_LABELS=1`.

Method: X. Deng and Z. Zhang, "Comprehensive Knowledge Distillation with Causal Intervention", NeurIPS 2021.
"""

from cid.backends.options import CIDOutput
from cid.functional.class_ import class_loss
from cid.functional.context import accumulate_context, context_weights
from cid.functional.criterion import cid_loss
from cid.functional.intervention import interventional_logits, marginal_context
from cid.functional.kd import DIVERGENCE_REDUCTIONS, DIVERGENCES, kd_loss
from cid.functional.sample import REDUCTIONS, sample_loss

__all__ = [
    "DIVERGENCES",
    "DIVERGENCE_REDUCTIONS",
    "REDUCTIONS",
    "CIDOutput",
    "accumulate_context",
    "cid_loss",
    "class_loss",
    "context_weights",
    "interventional_logits",
    "kd_loss",
    "marginal_context",
    "sample_loss",
]
