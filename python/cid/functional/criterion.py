"""All terms of interventional distillation at once."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

import cid._checks as check
from cid.backends import autocast, checking_cid_loss, composed, select
from cid.backends.options import CIDInputs, CIDOptions, CIDOutput, Whole
from cid.functional.context import check_sums


def cid_loss(
    student_features: Tensor,
    student_logits: Tensor,
    teacher_features: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    adapter_weight: Tensor,
    adapter_bias: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    context: Tensor | None,
    beta: float,
    gamma: float,
    alpha: float = 1.0,
    temperature: float = 4.0,
    differentiable_context: bool = False,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    context_sums: tuple[Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> CIDOutput:
    r"""All terms of interventional distillation at once.

    .. math:: \alpha (\mathrm{ce} + \mathrm{kd}) + \beta \, \mathrm{sample} + \gamma \, \mathrm{class}

    with ce the cross-entropy of `interventional_logits`, kd as `kd_loss`, sample as `sample_loss` of the adapted
    features :math:`A f_i + a`, and class as `class_loss` of the raw ones. Each is a mean over the batch (ce: over its
    labelled samples, 0 where there is none). Of shares y, ce is :math:`-\sum_k y_{ik} \log \mathrm{softmax}(z_i)_k`;
    class and the contexts are as `class_loss`, `context_weights` and `accumulate_context` have them.

    Memory: on the native backend, beyond inputs, results and gradients, one (B, C) matrix (first the student's belief,
    then the gradient in z), [f ; m] of shape (B, 2 Ds), the adapted features and the gradient in them, both (B, Dt),
    and the gradient of class, (B, Ds); of these [f ; m] and the gradients are kept for the backward.
    Shares add their weights, and label smoothing the smoothed target, both (B, C).

    Args:
        student_features: f, shape (B, Ds): the input of the student's last linear layer.
        student_logits: s, shape (B, C).
        teacher_features: t, shape (B, Dt); gets no gradient.
        teacher_logits: q, shape (B, C); gets no gradient.
        target: Labels, int64, shape (B,), or shares, shape (B, C).
        weight: How many times the kd, ce and sample of each sample count; see the module. Class and the contexts are
            not weighed: they, and the products, read a sample of weight 0 too.
        adapter_weight: A, shape (Dt, Ds).
        adapter_bias: a, shape (Dt,).
        head_weight: W, shape (C, 2 Ds).
        head_bias: b, shape (C,).
        context: M, shape (C, Ds), the bank of the epoch before; gets no gradient. None in warm-up: no ce.
        beta: Weight of the sample representation. The paper takes 8 to 65, by pair of models.
        gamma: Weight of the class representation. The paper takes 0.1 to 2.
        alpha: Weight of ce and kd.
        temperature: T of the softened logits and of the intervention.
        differentiable_context: Whether gradients flow through m into the student's logits.
        ignore_index: A label that marks a sample as unlabelled: it counts in kd and sample alone.
        label_smoothing: From 0 to 1: how much of ce goes to all classes alike, as in
            `torch.nn.functional.cross_entropy`. Class and the contexts take the target as it is.
        context_sums: Numerator and denominator of `accumulate_context`, to which the batch is added in passing.
        backend: See the module.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value, or the batch is empty. Nothing has been added.
        RuntimeError: The named backend can't serve the call.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> f, t = torch.randn(8, 16), torch.randn(8, 32)
        >>> s, q, y = torch.randn(8, 5), torch.randn(8, 5), torch.arange(8) % 5
        >>> adapter, head = torch.nn.Linear(16, 32), torch.nn.Linear(32, 5)
        >>> out = cid_loss(
        ...     f, s, t, q, y,
        ...     adapter_weight=adapter.weight, adapter_bias=adapter.bias,
        ...     head_weight=head.weight, head_bias=head.bias,
        ...     context=torch.zeros(5, 16), beta=10.0, gamma=1.0,
        ... )
        >>> out.logits.shape
        torch.Size([8, 5])
        >>> bool(out.loss.detach().isclose(out.ce + out.kd + 10 * out.sample + out.class_))
        True

    Source: Deng and Zhang 2021.
    """
    inputs = CIDInputs(
        student_features, student_logits, teacher_features, teacher_logits, target, weight,
        adapter_weight, adapter_bias, head_weight, head_bias, context, context_sums,
    )  # fmt: skip
    options = CIDOptions(alpha, beta, gamma, temperature, differentiable_context, ignore_index, label_smoothing)
    return cid_loss_of(inputs, options, backend)


def cid_loss_of(
    inputs: CIDInputs, options: CIDOptions, backend: str | None, whole: Callable[[], Whole] | None = None
) -> CIDOutput:
    """`cid_loss` of its arguments; where they are a part of a batch, `whole` makes that of the class representations.

    The mean of the ranks' losses has then the gradients that the whole batch's has, and that of each term its value.
    """
    if whole is None and (output := checking_cid_loss(backend, inputs, options)) is not None:
        return output
    floats = _check(inputs, options)
    inputs, options = inputs._replace(**floats), options._replace(temperature=float(options.temperature))
    chosen = select(backend, *floats.values())
    return chosen.cid_loss(inputs, options) if whole is None else composed.cid_loss(chosen, inputs, options, whole)


def _check(inputs: CIDInputs, options: CIDOptions) -> dict[str, Any]:
    """Check all arguments, and give the float tensors as the terms are to see them."""
    for name in ("alpha", "beta", "gamma"):
        check.number(name, getattr(options, name), low=0.0)
    check.temperature(options.temperature)
    check.integer("ignore_index", options.ignore_index)
    check.number("label_smoothing", options.label_smoothing, low=0.0, high=1.0)

    # In warm-up nothing looks at the head.
    student = ["student_features", "student_logits", "adapter_weight", "adapter_bias"]
    student += [] if inputs.context is None else ["head_weight", "head_bias"]
    others = ["teacher_features", "teacher_logits"] + ([] if inputs.context is None else ["context"])
    names = student + others
    floats: dict[str, Any] = dict(zip(names, autocast.widened(*(getattr(inputs, name) for name in names)), strict=True))
    check.floats(**{name: floats[name] for name in student})
    f, s, t = floats["student_features"], floats["student_logits"], floats["teacher_features"]
    check.beside("student_features", f, **{name: floats[name] for name in others})

    check.shape("student_features", f, ("B", "Ds"))
    batch, dim = f.shape
    check.shape("student_logits", s, (batch, "C"))
    check.classes("student_logits", s)
    check.not_empty("student_logits", s, "mean")
    num_classes = s.shape[1]
    check.shape("teacher_features", t, (batch, "Dt"))
    check.shape("teacher_logits", floats["teacher_logits"], (batch, num_classes))
    check.shape("adapter_weight", floats["adapter_weight"], (t.shape[1], dim))
    check.shape("adapter_bias", floats["adapter_bias"], (t.shape[1],))
    if inputs.context is not None:
        check.as_wide("student_features", f, context=floats["context"])
        check.shape("context", floats["context"], (num_classes, dim))
        check.shape("head_weight", floats["head_weight"], (num_classes, 2 * dim))
        check.shape("head_bias", floats["head_bias"], (num_classes,))
    check.targets("target", inputs.target, f, num_classes, options.ignore_index)
    if not inputs.target.is_floating_point():
        # Not all terms that see the labels know how many classes there are, and some come too late.
        check.label_range("target", inputs.target, num_classes, options.ignore_index)
    if inputs.weight is not None:
        check.weights("weight", inputs.weight, "student_features", f)
    if inputs.context_sums is not None:
        numerator, denominator = inputs.context_sums
        check_sums("student_features", floats, numerator, denominator)
        check.writable(numerator=numerator, denominator=denominator)
    return floats
