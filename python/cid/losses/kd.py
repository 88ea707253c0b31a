"""The divergence of the softened logits as a module."""

from torch import Tensor, nn

import cid._checks as check
import cid.functional as F


class KDLoss(nn.Module):
    """`cid.functional.kd_loss` as a module.

    Args:
        temperature: T, from 1e-30 to 1e30.
        divergence: `"forward"`, `"reverse"` or `"js"`.
        beta: The teacher's share in `"js"`, above 0 and below 1.
        ignore_index: The label of samples that count nothing.
        reduction: `"batchmean"`, `"mean"`, `"sum"` or `"none"`.
        backend: See `cid.functional`.

    Example:
        >>> import torch
        >>> KDLoss(temperature=2.0)(torch.zeros(3, 5), torch.zeros(3, 5))
        tensor(0.)
    """

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        divergence: str = "forward",
        beta: float = 0.5,
        ignore_index: int = -100,
        reduction: str = "batchmean",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check.temperature(temperature)
        check.choice("divergence", divergence, F.DIVERGENCES)
        check.number("beta", beta, low=0.0, high=1.0, open_low=True, open_high=True)
        check.integer("ignore_index", ignore_index)
        check.choice("reduction", reduction, F.DIVERGENCE_REDUCTIONS)
        self.temperature = temperature
        self.divergence = divergence
        self.beta = beta
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.backend = backend

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The divergence of the softened logits; with labels, of the samples that they do not leave out.

        With a weight each sample counts so many times; see `cid.functional`.
        """
        return F.kd_loss(
            student_logits,
            teacher_logits,
            target=target,
            weight=weight,
            temperature=self.temperature,
            divergence=self.divergence,
            beta=self.beta,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The options."""
        text = f"temperature={self.temperature}, divergence={self.divergence!r}, reduction={self.reduction!r}"
        return text + (f", beta={self.beta}" if self.divergence == "js" else "")
