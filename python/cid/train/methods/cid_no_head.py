"""CID without its intervention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cid.train.methods import Ingredients, StepOutput, register
from cid.train.methods._losses import cross_entropy
from cid.train.methods._pair import PairWeighted

if TYPE_CHECKING:
    from torch import nn

    from cid.train.data import Batch
    from cid.train.methods import Training


@register
@dataclass(frozen=True)
class CIDWithoutHead(PairWeighted):
    """`alpha * (ce + kd) + beta * sample + gamma * class`, with ce of the student's own logits, from the first epoch.

    No head, no contexts, no warm-up: what the intervention adds is the difference to `cid`.
    """

    name = "cid-no-head"
    terms = ("ce", "kd", "sample", "class")

    def networks(self, given: Ingredients) -> dict[str, nn.Module | None]:
        """Both networks, where their representations are found, and the adapter from one to the other."""
        from torch import nn

        from cid.train.methods._representations import Representations

        found = Representations(given)
        adapter = nn.Linear(found.student_dim, found.teacher_dim)
        return {**super().networks(given), "representations": found, "adapter": adapter}

    def step(self, training: Training, batch: Batch) -> StepOutput:
        """The loss of a batch."""
        from cid.functional import class_loss, kd_loss, sample_loss

        (f, s), (t, q) = training.representations(training.student, training.teacher, batch)
        target, weight = batch.target, batch.weight
        beta, gamma = self.weights()
        ce = cross_entropy(s, target, weight)
        kd = kd_loss(s, q, weight=weight, temperature=self.temperature)
        sample = sample_loss(training.adapter(f), t, weight=weight)
        class_ = class_loss(f, t, target)
        loss = self.alpha * (ce + kd) + beta * sample + gamma * class_
        terms = {"ce": ce, "kd": kd, "sample": sample, "class": class_}
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()}, s.detach())

    def param_groups(self, training: Training, weight_decay: float) -> list[dict[str, Any]]:
        """The student, and the adapter without decay."""
        return [
            {"params": [p for p in training.student.parameters() if p.requires_grad], "weight_decay": weight_decay},
            {"params": list(training.adapter.parameters()), "weight_decay": 0.0},
        ]
