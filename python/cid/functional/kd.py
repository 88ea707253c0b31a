"""The divergence of the softened logits."""

from torch import Tensor

import cid._checks as check
from cid.backends import checking, select
from cid.backends.options import KDOptions
from cid.functional._operands import operands

DIVERGENCES = ("forward", "reverse", "js")
DIVERGENCE_REDUCTIONS = ("none", "mean", "sum", "batchmean")


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    temperature: float = 4.0,
    divergence: str = "forward",
    beta: float = 0.5,
    ignore_index: int = -100,
    reduction: str = "batchmean",
    backend: str | None = None,
) -> Tensor:
    r"""Divergence between the student's softened logits and the teacher's.

    With :math:`P_i = \mathrm{softmax}(s_i / T)` of the student and :math:`Q_i = \mathrm{softmax}(q_i / T)` of the
    teacher, for each sample i

    .. math::
        \text{forward:} \quad & T^2 \, \mathrm{KL}(Q_i \,\|\, P_i) \\
        \text{reverse:} \quad & T^2 \, \mathrm{KL}(P_i \,\|\, Q_i) \\
        \text{js:} \quad & T^2 \, (\beta \, \mathrm{KL}(Q_i \,\|\, M_i) + (1 - \beta) \, \mathrm{KL}(P_i \,\|\, M_i)),
        \quad M_i = \beta Q_i + (1 - \beta) P_i

    The factor :math:`T^2` keeps the gradient's size independent of the temperature. A class to which one side gives
    probability 0 adds nothing to that side's sum, so logits of -inf (masked classes) are fine.

    Args:
        student_logits: s, shape (..., C): any number of dimensions, classes last; all others count samples.
        teacher_logits: q, of the same shape; gets no gradient.
        target: Labels, int64, shape (...): only to leave out the samples (say, tokens) whose label is `ignore_index`.
        weight: How many times each sample counts, shape (...); see the module.
        temperature: T, from 1e-30 to 1e30.
        divergence: `"forward"`, the method's; `"reverse"`, which looks for the teacher's modes; or `"js"`, generalised
            Jensen-Shannon.
        beta: The teacher's share in the mixture of `"js"`, above 0 and below 1.
        ignore_index: The label of samples that count nothing.
        reduction: `"none"` gives each sample's divergence, shape (...); `"sum"` their sum; `"batchmean"` and `"mean"`
            their mean over the samples that count, 0 where `target` leaves none. (`torch.nn.functional.kl_div` differs:
            its `"none"` has the shape of the logits, its `"mean"` divides by their number, and its `"batchmean"` by the
            size of the first dimension.)
        backend: See the module.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value, or a mean is asked of an empty batch.
        RuntimeError: The named backend can't serve the call.

    Example:
        >>> import torch
        >>> student = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> teacher = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
        >>> kd_loss(student, teacher, temperature=1.0, reduction="none")
        tensor([0.0000, 0.4621])
        >>> tokens, padded = torch.zeros(2, 3, 5), torch.tensor([[1, 4, -100], [0, -100, -100]])
        >>> kd_loss(tokens, tokens, target=padded, divergence="js")
        tensor(0.)
        >>> kd_loss(student, teacher, weight=torch.tensor([1.0, 3.0]), temperature=1.0, reduction="none")
        tensor([0.0000, 1.3864])

    Source: Deng and Zhang 2021, after Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"; the reverse
    and Jensen-Shannon divergences as in Agarwal et al. 2024, "On-Policy Distillation of Language Models".
    """
    check.temperature(temperature)
    check.choice("divergence", divergence, DIVERGENCES)
    if divergence == "js":
        check.number("beta", beta, low=0.0, high=1.0, open_low=True, open_high=True)
    check.integer("ignore_index", ignore_index)
    check.choice("reduction", reduction, DIVERGENCE_REDUCTIONS)
    s, q, samples = student_logits, teacher_logits, None
    chosen = checking(backend, s, q)
    if chosen is None:
        s, q = operands(student_logits=s, teacher_logits=q)
        check.classes("student_logits", s)
        check.shape("teacher_logits", q, s.shape)
        chosen = select(backend, s, q)
        samples = s.shape[:-1]
    if target is not None:
        check.labels("target", target, s, s.shape[-1], ignore_index)
        target = target.reshape(target.numel())
    if weight is not None:
        check.weights("weight", weight, "student_logits", s)
        weight = weight.reshape(weight.numel())
    options = KDOptions(float(temperature), divergence, float(beta), ignore_index, reduction)
    if samples is None:
        return chosen.kd_loss(s, q, target, options, weight)
    # Not -1, which can't be told where there are no elements.
    s, q = (logits.reshape(samples.numel(), logits.shape[-1]) for logits in (s, q))
    check.not_empty("student_logits", s, reduction)
    loss = chosen.kd_loss(s, q, target, options, weight)
    return loss.reshape(samples) if reduction == "none" else loss
