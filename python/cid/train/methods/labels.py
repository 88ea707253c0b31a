"""Cross-entropy with the labels: no distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cid.train.methods import Ingredients, Method, StepOutput, register
from cid.train.methods._losses import cross_entropy

if TYPE_CHECKING:
    from torch import nn

    from cid.train.data import Batch
    from cid.train.methods import Training


@register
@dataclass(frozen=True)
class Labels(Method):
    """Cross-entropy with the labels alone; teachers are trained so too."""

    name = "labels"
    terms = ("ce",)
    takes_shares = True

    def networks(self, given: Ingredients) -> dict[str, nn.Module | None]:
        """The student."""
        return {"student": given.student}

    def step(self, training: Training, batch: Batch) -> StepOutput:
        """The loss of a batch."""
        logits = training.student(batch.inputs)
        loss = cross_entropy(logits, batch.target, batch.weight)
        return StepOutput(loss, {"ce": loss.detach()}, logits.detach())
