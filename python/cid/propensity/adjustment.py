"""What a teacher's logits say without what the context alone says."""

from __future__ import annotations

import torch
from torch import Tensor

import cid._checks as check
from cid.propensity import _checks


def logit_adjustment(context_belief: Tensor, target: Tensor, *, power: float = 1.0, floor: float = 1e-4) -> Tensor:
    r"""What to add to a teacher's logits so that they no longer say what the context foretells.

    .. math:: a_{ij} = \lambda \, \log \frac{P(j)}{\max(p_\mathrm{context}(j \mid x_i), \mathrm{floor})}

    A biased teacher's belief is a product of experts, of the object and of its context:
    :math:`P(j \mid o, c) \propto P(j \mid o) \, P(j \mid c) / P(j)` where the two are independent given the class. Its
    logits :math:`q_i + a_i` are those of the first alone. Weights say which samples count; of these, a teacher may
    still say the context's class.

    Args:
        context_belief: In each class, of a model that knows the context and not more, calibrated, and that has not seen
            the sample; shape (N, C), from 0 to 1.
        target: Labels, int64, shape (N,), whose shares of the samples are :math:`P(j)`.
        power: :math:`\lambda`, from 0, which is no intervention, to 1; that of the weights.
        floor: The smallest context belief that counts, above 0, at most 1.

    Returns:
        a, shape (N, C), without gradient; float32 for half-precision beliefs. 0 for a class of no samples.

    Raises:
        TypeError: An argument has a wrong type or dtype.
        ValueError: An argument has a wrong shape, device or value, or there are no samples.

    Example:
        >>> import torch
        >>> logit_adjustment(torch.tensor([[0.8, 0.2], [0.5, 0.5]]), torch.tensor([0, 1]))
        tensor([[-0.4700,  0.9163],
                [ 0.0000,  0.0000]])

    Source: products of experts are Hinton 2002, against a model that knows only the bias Clark et al. 2019, "Don't Take
    the Easy Way Out"; there they adjust the student's logits in training.
    """
    check.number("power", power, low=0, high=1)
    check.number("floor", floor, low=0, high=1, open_low=True)
    check.beside("context_belief", context_belief, context_belief=context_belief)
    check.shape("context_belief", context_belief, ("N", "C"))
    check.classes("context_belief", context_belief)
    check.not_empty("context_belief", context_belief, "mean")
    classes = context_belief.shape[1]
    _checks.labels(target, "context_belief", context_belief, classes)
    belief = _checks.beliefs("context_belief", context_belief.detach().double())
    share = target.bincount(minlength=classes).double() / len(target)
    # A class of no samples has no share to compare with.
    adjustment = torch.where(share > 0, power * (share / belief.clamp_min(floor)).log(), 0.0)
    return adjustment.to(torch.promote_types(context_belief.dtype, torch.float32))
