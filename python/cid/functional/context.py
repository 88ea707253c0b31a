"""The contexts of the classes: the samples' weights, and the sums of which a bank is made."""

from collections.abc import Mapping

from torch import Tensor

import cid._checks as check
from cid.backends import checking, select
from cid.functional._operands import operands


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
        >>> import torch
        >>> context_weights(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor([0.2500, 0.2500])

    Source: Deng and Zhang 2021.
    """
    check.temperature(temperature)
    check.integer("ignore_index", ignore_index)
    q = teacher_logits
    chosen = checking(backend, q)
    if chosen is None:
        (q,) = operands(teacher_logits=q)
        check.shape("teacher_logits", q, ("B", "C"))
        check.classes("teacher_logits", q)
        chosen = select(backend, q)
    check.targets("target", target, q, q.shape[1], ignore_index)
    return chosen.context_weights(q, target, float(temperature), ignore_index)


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
        >>> import torch
        >>> numerator, denominator = torch.zeros(2, 3), torch.zeros(2)
        >>> weights, target = torch.tensor([0.5, 0.25]), torch.tensor([1, 1])
        >>> accumulate_context(torch.ones(2, 3), weights, target, numerator, denominator)
        >>> numerator[1] / denominator[1]
        tensor([1., 1., 1.])

    Source: Deng and Zhang 2021.
    """
    check.integer("ignore_index", ignore_index)
    f, w = features, weights
    chosen = checking(backend, f, w, numerator, denominator, rank=None)
    # The sums of halves may be of two types, and those of shares are made by no kernel.
    if chosen is None or f.dtype in check.HALVES or check.holds_shares(target):
        f, w = operands(features=f, weights=w)
        check_sums("features", {"features": f, "weights": w}, numerator, denominator)
        chosen = select(backend, f, w, numerator, denominator)
    check.targets("target", target, f, numerator.shape[0], ignore_index)
    check.shape("weights", w, target.shape)
    check.writable(numerator=numerator, denominator=denominator)
    chosen.accumulate_context(f, w, target, numerator, denominator, ignore_index)


def check_sums(lead: str, read: Mapping[str, Tensor], numerator: Tensor, denominator: Tensor) -> None:
    """Check the sums to which the features `lead`, of all that is `read`, are added."""
    features = read[lead]
    check.floats(numerator=numerator, denominator=denominator)
    check.as_wide(lead, features, numerator=numerator, denominator=denominator)
    check.shape("numerator", numerator, ("C", "D"))
    check.shape("denominator", denominator, (numerator.shape[0],))
    check.shape(lead, features, ("B", numerator.shape[1]))
    check.written(read, {"numerator": numerator, "denominator": denominator})
