"""What the student predicts under the intervention."""

from torch import Tensor

import cid._checks as check
from cid.backends import autocast, checking, composed, select
from cid.functional._operands import operands


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
        >>> import torch
        >>> context = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> marginal_context(torch.zeros(1, 2), context)
        tensor([[1., 1.]])

    Source: Deng and Zhang 2021.
    """
    check.temperature(temperature)
    s, m = student_logits, context
    chosen = checking(backend, s, m)
    if chosen is None or autocast.is_on(s):  # the product is PyTorch's, which autocast makes half precision of
        s, m = operands(student_logits=s, context=m)
        check.as_wide("student_logits", s, context=m)
        check.shape("student_logits", s, ("B", "C"))
        check.classes("student_logits", s)
        chosen = select(backend, s, m)
    check.shape("context", m, (s.shape[1], "D"))
    return chosen.marginal_context(s, m, float(temperature), differentiable)


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
        >>> import torch
        >>> context = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> weight = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
        >>> interventional_logits(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), context, weight, torch.zeros(2))
        tensor([[4., 5.]])

    Source: Deng and Zhang 2021.
    """
    check.temperature(temperature)
    tensors = operands(features=features, logits=logits, context=context, weight=weight, bias=bias)
    f, s, m, w, b = tensors
    check.floats(features=f, logits=s, weight=w, bias=b)
    check.shape("features", f, ("B", "D"))
    batch, dim = f.shape
    check.shape("logits", s, (batch, "C"))
    check.classes("logits", s)
    check.as_wide("features", f, context=m)
    check.shape("context", m, (s.shape[1], dim))
    check.shape("weight", w, (s.shape[1], 2 * dim))
    check.shape("bias", b, (s.shape[1],))
    chosen = select(backend, s, m)
    return composed.interventional_logits(chosen, f, s, m, w, b, float(temperature), differentiable)
