"""Decoupled distillation: Zhao et al. 2022."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cid.train.methods import Method, StepOutput, _shared, register
from cid.train.methods._losses import cross_entropy, full
from cid.train.settings import at_least, setting

if TYPE_CHECKING:
    from torch import Tensor

    from cid.train.data import Batch
    from cid.train.methods import Training
    from cid.train.sections import ModelsConfig, OptimConfig


@register
@dataclass(frozen=True)
class DKD(Method):
    """`ce + u (dkd_alpha * tckd + dkd_beta * nckd)`: the divergence of the softened logits in its two parts.

    `tckd` is that of two classes, the label's and all others together; `nckd` that among the others alone, which plain
    distillation weighs by how much the teacher gives to them. Both are `kd_loss`, so they have its factor T^2. u grows
    from 0 to 1 over the first epochs, as `nckd` is large at first: epoch e of W has (e + 1) / W.

    Source: B. Zhao, Q. Cui, R. Song, Y. Qiu and J. Liang, "Decoupled Knowledge Distillation", CVPR 2022. Defaults are
    those of its code for CIFAR-100, where the second weight is 1 to 8 by pair.
    """

    name = "dkd"
    terms = ("ce", "tckd", "nckd")

    temperature: float = _shared.temperature()
    dkd_alpha: float = setting(1.0, "weight of what the teacher gives to the label's class", rule=at_least(0))
    dkd_beta: float = setting(8.0, "weight of how it divides the rest among the others", rule=at_least(0))
    dkd_warmup: int | None = setting(None, "epochs in which both grow (default: a twelfth)", rule=at_least(0))

    def completed(self, models: ModelsConfig, optim: OptimConfig) -> Self:
        """With the code's warm-up: 20 of 240 epochs."""
        warmup = max(1, round(optim.epochs / 12)) if self.dkd_warmup is None else self.dkd_warmup
        return dataclasses.replace(super().completed(models, optim), dkd_warmup=warmup)

    def step(self, training: Training, batch: Batch) -> StepOutput:
        """The loss of a batch."""
        from cid.functional import kd_loss

        teacher = training.teacher_logits(batch)
        logits = training.student(batch.inputs)
        ce = cross_entropy(logits, batch.target, batch.weight)
        ours, theirs = (_decoupled(each, batch.target, self.temperature) for each in (logits, teacher))
        tckd, nckd = (
            kd_loss(mine, given, weight=batch.weight, temperature=self.temperature)
            for mine, given in zip(ours, theirs, strict=True)
        )
        grown = ((training.epoch + 1) / self.dkd_warmup).clamp(max=1) if self.dkd_warmup else 1.0
        loss = ce + grown * (self.dkd_alpha * tckd + self.dkd_beta * nckd)
        return StepOutput(loss, {"ce": ce.detach(), "tckd": tckd.detach(), "nckd": nckd.detach()}, logits.detach())


def _decoupled(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits, softened by T as these are, of the label's class against all others (B, 2), and of these (B, C - 1)."""
    from torch import arange, cat

    logits, own = full(logits), target[:, None]
    # The classes without one: the places from it on are one further. No mask, whose count of values would be looked at.
    places = arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, places + (places >= own))
    together = temperature * (others / temperature).logsumexp(1, keepdim=True)
    return cat((logits.gather(1, own), together), 1), others
