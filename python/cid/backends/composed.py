"""What is made of a backend's terms, by PyTorch's own operations beside them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cid.backends import autocast
from cid.backends.backend import Backend
from cid.backends.options import CIDInputs, CIDOptions, CIDOutput, KDOptions, Whole
from cid.backends.targets import majority


def interventional_logits(
    terms: Backend,
    features: Tensor,
    logits: Tensor,
    context: Tensor,
    weight: Tensor,
    bias: Tensor,
    temperature: float,
    differentiable: bool,
) -> Tensor:
    """`z = W_1 f + W_2 m + b`."""
    dim = features.shape[1]
    marginal = terms.marginal_context(logits, context, temperature, differentiable)
    return F.linear(features, weight[:, :dim], bias) + F.linear(marginal, weight[:, dim:])


def cid_loss(
    terms: Backend, inputs: CIDInputs, options: CIDOptions, whole: Callable[[], Whole] | None = None
) -> CIDOutput:
    """`alpha (ce + kd) + beta sample + gamma class`; `whole` makes the batch that the samples are a part of."""
    alpha, beta, gamma, temperature, differentiable_context, ignore_index, label_smoothing = options
    f, s, t, q, target, weight, adapter_weight, adapter_bias, head_weight, head_bias, context, context_sums = inputs
    kd = terms.kd_loss(s, q, None, KDOptions(temperature, "forward", 0.5, -100, "batchmean"), weight)
    # Autocast makes half precision of a product, whatever goes in.
    (adapted,) = autocast.widened(F.linear(f, adapter_weight, adapter_bias))
    sample = terms.sample_loss(adapted, t, "mean", weight)
    logits, ce = None, torch.zeros_like(kd)
    if context is not None:
        logits = interventional_logits(
            terms, f, s, context, head_weight, head_bias, temperature, differentiable_context
        )
        (z,) = autocast.widened(logits)
        ce = terms.cross_entropy(z, target, ignore_index, label_smoothing, weight)
    if context_sums is not None:
        with torch.no_grad():
            q = q.double() if f.dtype == torch.float64 else q  # the sums are one term, of both
            weights = terms.context_weights(q, target, temperature, ignore_index)
            terms.accumulate_context(f, weights, target, *context_sums, ignore_index)
    if whole is None:
        class_ = pulled = terms.class_loss(f, t, *majority(target, ignore_index))
    else:
        of = whole()  # waits for other ranks: after all that does without them
        ce, kd, sample = of.labelled_share * ce, of.share * kd, of.share * sample
        class_ = terms.class_loss(of.student_features, of.teacher_features, of.labels, of.ignore_index)
        pulled = class_.detach() + of.pulls * (class_ - class_.detach())
    loss = alpha * (ce + kd) + beta * sample + gamma * pulled
    return CIDOutput(
        loss,
        ce=ce.detach(),
        kd=kd.detach(),
        sample=sample.detach(),
        class_=class_.detach(),
        logits=None if logits is None else logits.detach(),
    )
