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

Method: X. Deng and Z. Zhang, "Comprehensive Knowledge Distillation with Causal Intervention", NeurIPS 2021.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cid import _checks
from cid.backends import (
    CIDInputs,
    CIDOptions,
    Fused,
    KDOptions,
    dense,
    real,
    select,
    self_checking,
    self_checking_whole,
    takes_beside,
)
from cid.backends.targets import majority

__all__ = [
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

REDUCTIONS = ("none", "mean", "sum")
DIVERGENCE_REDUCTIONS = (*REDUCTIONS, "batchmean")
DIVERGENCES = ("forward", "reverse", "js")


class CIDOutput(NamedTuple):
    """What a step of `cid_loss` yields. `loss` alone carries gradients."""

    loss: Tensor
    """The weighted total, a scalar."""
    ce: Tensor
    """Cross-entropy of the interventional logits, detached; 0 in warm-up."""
    kd: Tensor
    """Divergence of the softened logits, detached."""
    sample: Tensor
    """Distance of the sample representations, detached."""
    class_: Tensor
    """Distance of the class representations, detached."""
    logits: Tensor | None
    """The interventional logits z, (B, C), detached; None in warm-up."""


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float32 where autocast is on, so that a loss of half-precision layers is computed widely."""
    # What is no tensor is refused by the checks that follow.
    if isinstance(tensors[0], Tensor) and _autocast_is_on(tensors[0]):
        return tuple(t.float() if isinstance(t, Tensor) and t.is_floating_point() else t for t in tensors)
    return tensors


def _autocast_is_on(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device; some devices have none, and to ask of them raises."""
    device = tensor.device.type
    # PyTorch 2.11's Dynamo can't trace the question whether there is autocast.
    known = device != "meta" if torch.compiler.is_compiling() else torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    target: Tensor | None = None,
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
        >>> student = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> teacher = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
        >>> kd_loss(student, teacher, temperature=1.0, reduction="none")
        tensor([0.0000, 0.4621])
        >>> tokens, padded = torch.zeros(2, 3, 5), torch.tensor([[1, 4, -100], [0, -100, -100]])
        >>> kd_loss(tokens, tokens, target=padded, divergence="js")
        tensor(0.)

    Source: Deng and Zhang 2021, after Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"; the reverse
    and Jensen-Shannon divergences as in Agarwal et al. 2024, "On-Policy Distillation of Language Models".
    """
    _checks.temperature(temperature)
    _checks.choice("divergence", divergence, DIVERGENCES)
    if divergence == "js":
        _checks.number("beta", beta, low=0.0, high=1.0, open_low=True, open_high=True)
    _checks.integer("ignore_index", ignore_index)
    _checks.choice("reduction", reduction, DIVERGENCE_REDUCTIONS)
    chosen = self_checking(backend, student_logits, teacher_logits)
    samples = None
    if chosen is None or student_logits.ndim != 2 or target is not None:
        student_logits, teacher_logits = _autocast(student_logits, teacher_logits)
        _checks.floats(student_logits=student_logits)
        _checks.beside("student_logits", student_logits, teacher_logits=teacher_logits)
        _checks.classes("student_logits", student_logits)
        _checks.shape("teacher_logits", teacher_logits, student_logits.shape)
        samples = student_logits.shape[:-1]
        if target is not None:
            _checks.labels("target", target, student_logits, student_logits.shape[-1], ignore_index)
            target = target.reshape(samples.numel())
        student_logits, teacher_logits = _by_class(student_logits), _by_class(teacher_logits)
        _checks.not_empty("student_logits", student_logits, reduction)
        chosen = select(backend, student_logits, teacher_logits)
    options = KDOptions(float(temperature), divergence, float(beta), ignore_index, reduction)
    loss = chosen.kd_loss(student_logits, teacher_logits, target, options)
    return loss if samples is None or reduction != "none" else loss.reshape(samples)


def _by_class(logits: Tensor) -> Tensor:
    """Logits of any rank as one row a sample."""
    # Not -1, which can't be told where there are no elements.
    return logits if logits.ndim == 2 else logits.reshape(logits.shape[:-1].numel(), logits.shape[-1])


def sample_loss(
    student_features: Tensor, teacher_features: Tensor, *, reduction: str = "mean", backend: str | None = None
) -> Tensor:
    r"""Distance of the student's sample representations from the teacher's, relative to the teacher's norm.

    .. math:: \|s_i - t_i\|^2 / \|t_i\|^2

    for each sample i. A sample whose teacher representation is all zeros has no scale to compare with: it counts 0
    (the paper's code yields NaN).

    Args:
        student_features: s, shape (B, ...), already adapted to the teacher's size; flattened to rows.
        teacher_features: t, of the same shape; gets no gradient.
        reduction: `"none"`, shape (B,), `"mean"` over the samples, or `"sum"`.
        backend: See the module.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value, or a mean is asked of an empty batch.
        RuntimeError: The named backend can't serve the call.

    Example:
        >>> teacher = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
        >>> sample_loss(torch.zeros(2, 2), teacher, reduction="none")
        tensor([1., 1.])

    Source: Deng and Zhang 2021.
    """
    _checks.choice("reduction", reduction, REDUCTIONS)
    chosen = self_checking(backend, student_features, teacher_features)
    if chosen is None or student_features.ndim != 2 or teacher_features.ndim != 2:
        student_features, teacher_features = _feature_rows(student_features, teacher_features)
        _checks.shape("teacher_features", teacher_features, student_features.shape)
        _checks.not_empty("student_features", student_features, reduction)
        chosen = select(backend, student_features, teacher_features)
    return chosen.sample_loss(student_features, teacher_features, reduction)


def _feature_rows(student_features: Tensor, teacher_features: Tensor) -> tuple[Tensor, Tensor]:
    """Features of any rank as one row a sample, checked."""
    student, teacher = _autocast(student_features, teacher_features)
    _checks.floats(student_features=student)
    _checks.beside("student_features", student, teacher_features=teacher)
    return _rows("student_features", student), _rows("teacher_features", teacher)


def _rows(name: str, features: Tensor) -> Tensor:
    """Features of any rank as one row a sample."""
    if features.ndim < 1:
        raise ValueError(f"{name}: got shape (), accepted: (B, ...)")
    if features.ndim == 2:
        return features
    # Not flatten(1), which can't tell the columns of an empty batch.
    return features.reshape(features.shape[0], features.shape[1:].numel())


def class_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    backend: str | None = None,
) -> Tensor:
    r"""Distance of the student's class representations from the teacher's.

    A class is represented by the cosines between all pairs of its samples in the batch, diagonal included. Over the
    classes k with :math:`n_k \ge 2` samples,

    .. math:: \mathrm{mean}_k \, \|G^t_k - G^s_k\|_F^2 / n_k^2

    and 0 where no class has two. A row is normalised by max(norm, 1e-12). The two sizes Ds and Dt need not agree.

    Args:
        student_features: The student's raw (not adapted) representations, shape (B, Ds); of higher rank, flattened.
        teacher_features: The teacher's, shape (B, Dt); gets no gradient.
        target: Labels, int64, shape (B,): any numbers from 0, one a class. Or shares, shape (B, C): a sample is in the
            class that has more than half of it, or in none.
        ignore_index: A label that marks a sample as in no class.
        backend: See the module.

    Returns:
        A scalar.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value.
        RuntimeError: The named backend can't serve the call.

    Example:
        >>> student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
        >>> teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> class_loss(student, teacher, torch.tensor([0, 0, 1]))
        tensor(0.5000)

    Source: Deng and Zhang 2021.
    """
    _checks.integer("ignore_index", ignore_index)
    chosen = self_checking(backend, student_features, teacher_features)
    if chosen is None or student_features.ndim != 2 or teacher_features.ndim != 2:
        student_features, teacher_features = _feature_rows(student_features, teacher_features)
        _checks.shape("teacher_features", teacher_features, (student_features.shape[0], "Dt"))
        chosen = select(backend, student_features, teacher_features)
    _checks.targets("target", target, student_features, None, ignore_index)
    return chosen.class_loss(student_features, teacher_features, *majority(target, ignore_index))


def context_weights(
    teacher_logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 4.0,
    ignore_index: int = -100,
    backend: str | None = None,
) -> Tensor:
    r"""The teacher's softened belief in each sample's true class, :math:`w_i = \mathrm{softmax}(q_i / T)_{y_i}`.

    Of shares, the belief in each class times its share, :math:`w_{ik} = y_{ik} \, \mathrm{softmax}(q_i / T)_k`.

    Args:
        teacher_logits: q, shape (B, C).
        target: Labels y, int64, shape (B,), or shares, shape (B, C).
        temperature: T, from 1e-30 to 1e30.
        ignore_index: A label that marks a sample as unlabelled: its weight is 0.
        backend: See the module.

    Returns:
        The weights, shape (B,) or (B, C), without gradient; float32 for half-precision logits.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value.
        RuntimeError: The named backend can't serve the call.

    Example:
        >>> context_weights(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor([0.2500, 0.2500])

    Source: Deng and Zhang 2021.
    """
    _checks.temperature(temperature)
    _checks.integer("ignore_index", ignore_index)
    chosen = self_checking(backend, teacher_logits)
    if chosen is None or _checks.holds_shares(target):
        (teacher_logits,) = _autocast(teacher_logits)
        _checks.floats(teacher_logits=teacher_logits)
        _checks.shape("teacher_logits", teacher_logits, ("B", "C"))
        _checks.classes("teacher_logits", teacher_logits)
        chosen = select(backend, teacher_logits)
    _checks.targets("target", target, teacher_logits, teacher_logits.shape[-1], ignore_index)
    return chosen.context_weights(teacher_logits, target, float(temperature), ignore_index)


def accumulate_context(
    features: Tensor,
    weights: Tensor,
    target: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    *,
    ignore_index: int = -100,
    backend: str | None = None,
) -> None:
    r"""Add a batch to the sums of which the classes' contexts are made, in place.

    .. math:: N_k \mathrel{+}= \sum_{i: y_i = k} w_i f_i, \qquad d_k \mathrel{+}= \sum_{i: y_i = k} w_i

    The context of class k over an epoch is then :math:`M_k = N_k / d_k`. With shares each sample adds to each class:

    .. math:: N_k \mathrel{+}= \sum_i w_{ik} f_i, \qquad d_k \mathrel{+}= \sum_i w_{ik}

    Args:
        features: f, shape (B, D); read as detached.
        weights: w, as of `context_weights`, of the target's shape; added in the type of the sums.
        target: Labels y, int64, shape (B,), or shares, shape (B, C), which only tell the samples without a label.
        numerator: N, shape (C, D), contiguous; of the features' type, or float32 for half-precision features.
        denominator: d, shape (C,), of the numerator's type.
        ignore_index: A label that marks a sample as unlabelled: it adds nothing.
        backend: See the module.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value. Nothing has been added.
        RuntimeError: The named backend can't serve the call.

    Example:
        >>> numerator, denominator = torch.zeros(2, 3), torch.zeros(2)
        >>> weights, target = torch.tensor([0.5, 0.25]), torch.tensor([1, 1])
        >>> accumulate_context(torch.ones(2, 3), weights, target, numerator, denominator)
        >>> numerator[1] / denominator[1]
        tensor([1., 1., 1.])

    Source: Deng and Zhang 2021.
    """
    _checks.integer("ignore_index", ignore_index)
    chosen = self_checking(backend, features, weights, numerator, denominator)
    # Beside half precision the sums may have either of two types, which the kernel by itself does not take.
    if chosen is None or features.dtype in _checks.HALVES or _checks.holds_shares(target):
        features, weights = _autocast(features, weights)
        _checks.floats(features=features)
        _checks.beside("features", features, weights=weights)
        _check_sums("features", {"features": features, "weights": weights}, numerator, denominator)
        chosen = select(backend, features, weights, numerator, denominator)
    _checks.targets("target", target, features, numerator.shape[0], ignore_index)
    _checks.shape("weights", weights, target.shape)
    _checks.writable(numerator=numerator, denominator=denominator)
    chosen.accumulate_context(features, weights, target, ignore_index, numerator, denominator)


def _check_sums(lead: str, read: Mapping[str, Tensor], numerator: Tensor, denominator: Tensor) -> None:
    """Check the sums to which the features `lead` are added."""
    features = read[lead]
    _checks.floats(numerator=numerator, denominator=denominator)
    _checks.as_wide(lead, features, numerator=numerator, denominator=denominator)
    _checks.shape("numerator", numerator, ("C", "D"))
    _checks.shape("denominator", denominator, (numerator.shape[0],))
    _checks.shape(lead, features, ("B", numerator.shape[1]))
    _checks.written(read, {"numerator": numerator, "denominator": denominator})


def marginal_context(
    student_logits: Tensor,
    context: Tensor,
    *,
    temperature: float = 4.0,
    differentiable: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""The context of a sample, averaged over the classes by the student's belief.

    .. math:: m_i = \sum_k \mathrm{softmax}(s_i / T)_k \, M_k

    Args:
        student_logits: s, shape (B, C).
        context: M, shape (C, D); gets no gradient. May be float32 beside half-precision logits.
        temperature: T, from 1e-30 to 1e30.
        differentiable: Whether gradients flow through m into s; in the paper's code they do not.
        backend: See the module.

    Returns:
        m, shape (B, D).

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value.
        RuntimeError: The named backend can't serve the call.

    Example:
        >>> context = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> marginal_context(torch.zeros(1, 2), context)
        tensor([[1., 1.]])

    Source: Deng and Zhang 2021.
    """
    _checks.temperature(temperature)
    chosen = self_checking(backend, student_logits, context)
    if chosen is None or not _multiply(student_logits, context) or _autocast_is_on(student_logits):
        student_logits, context = _autocast(student_logits, context)
        _checks.floats(student_logits=student_logits)
        _checks.as_wide("student_logits", student_logits, context=context)
        _checks.shape("student_logits", student_logits, ("B", "C"))
        _checks.classes("student_logits", student_logits)
        _checks.shape("context", context, (student_logits.shape[1], "D"))
        chosen = select(backend, student_logits, context)
    return chosen.marginal_context(student_logits, context, float(temperature), differentiable)


def _multiply(a: Tensor, b: Tensor) -> bool:
    """Whether two matrices have a product."""
    return a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0]


def interventional_logits(
    features: Tensor,
    logits: Tensor,
    context: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    temperature: float = 4.0,
    differentiable: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""The student's logits under the intervention: P(Y | do(X)) by the backdoor adjustment over the contexts.

    .. math:: z_i = W [f_i ; m_i] + b

    with :math:`m_i` as in `marginal_context`. No concatenation is made: with :math:`W = [W_1 ; W_2]` this is
    :math:`W_1 f_i + W_2 m_i + b`.

    Args:
        features: f, shape (B, D), the student's representations.
        logits: s, shape (B, C), the student's own logits.
        context: M, shape (C, D); gets no gradient. May be float32 beside half-precision logits.
        weight: W, shape (C, 2 D).
        bias: b, shape (C,).
        temperature: T, from 1e-30 to 1e30.
        differentiable: Whether gradients flow through m into the logits.
        backend: See the module.

    Returns:
        z, shape (B, C).

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value.
        RuntimeError: The named backend can't serve the call.

    Example:
        >>> context = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> weight = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
        >>> interventional_logits(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), context, weight, torch.zeros(2))
        tensor([[4., 5.]])

    Source: Deng and Zhang 2021.
    """
    features, logits, context, weight, bias = _autocast(features, logits, context, weight, bias)
    _checks.floats(features=features, logits=logits, weight=weight, bias=bias)
    _checks.as_wide("features", features, context=context)
    _checks.shape("features", features, ("B", "D"))
    batch, dim = features.shape
    _checks.shape("logits", logits, (batch, "C"))
    num_classes = logits.shape[1]
    _checks.classes("logits", logits)
    _checks.shape("context", context, (num_classes, dim))
    _checks.shape("weight", weight, (num_classes, 2 * dim))
    _checks.shape("bias", bias, (num_classes,))
    _checks.temperature(temperature)
    chosen = select(backend, logits, context)
    marginal = chosen.marginal_context(logits, context, float(temperature), differentiable)
    return F.linear(features, weight[:, :dim], bias) + F.linear(marginal, weight[:, dim:])


def cid_loss(
    student_features: Tensor,
    student_logits: Tensor,
    teacher_features: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
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
        student_features, student_logits, teacher_features, teacher_logits, target,
        adapter_weight, adapter_bias, head_weight, head_bias, context, context_sums,
    )  # fmt: skip
    options = CIDOptions(alpha, beta, gamma, temperature, ignore_index, label_smoothing)
    chosen = None if differentiable_context else self_checking_whole(backend, inputs, options)
    if chosen is None:
        _check_criterion(inputs, options)
        chosen = None if differentiable_context else _as_whole(backend, inputs)
        if chosen is None:
            return _composed(inputs, options, differentiable_context, backend)
        inputs = dense(inputs)
    loss, terms, logits = chosen.cid_loss(inputs, options)
    ce, kd, sample, class_ = terms.unbind()
    return CIDOutput(loss, ce, kd, sample, class_, logits)


def _check_criterion(inputs: CIDInputs, options: CIDOptions) -> None:
    """Check what the terms, called one by one, would call by other names, or find too late."""
    for name in ("alpha", "beta", "gamma"):
        _checks.number(name, getattr(options, name), low=0.0)
    features, logits, teacher_features, context = (
        inputs.student_features,
        inputs.student_logits,
        inputs.teacher_features,
        inputs.context,
    )
    names = ["student_features", "adapter_weight", "adapter_bias"]
    names += [] if context is None else ["head_weight", "head_bias"]
    _checks.floats(**dict(zip(names, _autocast(*(getattr(inputs, name) for name in names)), strict=True)))
    _checks.tensor("student_logits", logits)
    _checks.tensor("teacher_features", teacher_features)
    _checks.tensor("teacher_logits", inputs.teacher_logits)
    _checks.shape("student_features", features, ("B", "Ds"))
    batch, dim = features.shape
    _checks.shape("student_logits", logits, (batch, "C"))
    num_classes = logits.shape[1]
    _checks.shape("teacher_features", teacher_features, (batch, "Dt"))
    _checks.shape("teacher_logits", inputs.teacher_logits, (batch, num_classes))
    _checks.shape("adapter_weight", inputs.adapter_weight, (teacher_features.shape[1], dim))
    _checks.shape("adapter_bias", inputs.adapter_bias, (teacher_features.shape[1],))
    _checks.temperature(options.temperature)
    _checks.integer("ignore_index", options.ignore_index)
    _checks.number("label_smoothing", options.label_smoothing, low=0.0, high=1.0)
    _checks.targets("target", inputs.target, features, num_classes, options.ignore_index)
    if not inputs.target.is_floating_point() and (context is None or inputs.context_sums is not None):
        # The other terms that see the labels know no number of classes, or come too late.
        _checks.label_range("target", inputs.target, num_classes, options.ignore_index)
    if context is not None:
        _checks.tensor("context", context)
        _checks.shape("context", context, (num_classes, dim))
        _checks.shape("head_weight", inputs.head_weight, (num_classes, 2 * dim))
        _checks.shape("head_bias", inputs.head_bias, (num_classes,))


def _as_whole(backend: str | None, inputs: CIDInputs) -> Fused | None:
    """The backend, if it has the whole criterion as one node and can take these inputs, which have been checked, so."""
    read = {
        name: x for name, x in inputs._asdict().items() if isinstance(x, Tensor) and name not in ("target", "context")
    }
    lead, sums = inputs.student_features, inputs.context_sums
    teacher = inputs.teacher_features.dtype
    if (
        _autocast_is_on(lead)
        # Too much of its gradients, written in the forward, would be lost before a GradScaler's factor could save it.
        or lead.dtype == torch.float16
        or not takes_beside(lead.dtype, teacher)
        or any(
            x.dtype != (teacher if name.startswith("teacher") else lead.dtype)
            or x.device != lead.device
            or x.numel() == 0
            for name, x in read.items()
        )
    ):
        return None
    chosen = select(backend, *read.values())
    if not isinstance(chosen, Fused):
        return None
    wide = real(lead)
    if inputs.context is not None and (
        inputs.context.dtype not in (lead.dtype, wide) or inputs.context.device != lead.device
    ):
        return None
    if sums is not None:
        if any(x.dtype != wide for x in sums):
            return None
        _check_sums("student_features", read, *sums)
        _checks.writable(numerator=sums[0], denominator=sums[1])
    return chosen


def _composed(inputs: CIDInputs, options: CIDOptions, differentiable_context: bool, backend: str | None) -> CIDOutput:
    """The criterion as the sum of its terms."""
    alpha, beta, gamma, temperature, ignore_index, label_smoothing = options
    f, s, t, q, target, adapter_weight, adapter_bias, head_weight, head_bias, context, context_sums = inputs
    kd = kd_loss(s, q, temperature=temperature, backend=backend)
    adapted = F.linear(*_autocast(f, adapter_weight, adapter_bias))
    sample = sample_loss(adapted, t, backend=backend)
    class_ = class_loss(f, t, target, ignore_index=ignore_index, backend=backend)
    if context is None:
        logits, ce = None, torch.zeros_like(kd)
    else:
        logits = interventional_logits(
            f, s, context, head_weight, head_bias,
            temperature=temperature, differentiable=differentiable_context, backend=backend,
        )  # fmt: skip
        (wide,) = _autocast(logits)
        ce = select(backend, wide).cross_entropy(wide, target, ignore_index, label_smoothing)
    if context_sums is not None:
        with torch.no_grad():
            q = q.double() if f.dtype == torch.float64 else q  # the sums are one term, of both
            weights = context_weights(q, target, temperature=temperature, ignore_index=ignore_index, backend=backend)
            accumulate_context(f, weights, target, *context_sums, ignore_index=ignore_index, backend=backend)
    loss = alpha * (ce + kd) + beta * sample + gamma * class_
    return CIDOutput(
        loss,
        ce=ce.detach(),
        kd=kd.detach(),
        sample=sample.detach(),
        class_=class_.detach(),
        logits=None if logits is None else logits.detach(),
    )
