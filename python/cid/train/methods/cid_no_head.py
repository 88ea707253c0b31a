"""CID without its intervention."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cid.train.methods import Ingredients, StepOutput, register
from cid.train.methods._losses import cross_entropy
from cid.train.methods._pair import AUTO, PairWeighted

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cid.balance import Balance
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
    takes_shares = True

    def networks(self, given: Ingredients) -> dict[str, nn.Module | None]:
        """Both networks, where their representations are found, the adapter, and what chooses the weights, if any."""
        from torch import nn

        from cid.balance import Balance
        from cid.train.methods._representations import Representations

        found = Representations(given)
        adapter = nn.Linear(found.student_dim, found.teacher_dim)
        balance = Balance(self.alpha, *self.weights()) if AUTO in self.weights() else None
        return {**super().networks(given), "representations": found, "adapter": adapter, "balance": balance}

    def balance(self, training: Training) -> Balance | None:
        """One of the networks."""
        balance: Balance | None = training.balance
        return balance

    def step(self, training: Training, batch: Batch) -> StepOutput:
        """The loss of a batch."""
        balance = self.balance(training)
        if balance is not None and not balance.settled:
            balance.observe(training.student, partial(self._observed, training, batch))
        _, logits, terms = self._terms(training, batch)
        ce, kd, sample, class_ = terms.values()
        beta, gamma = map(float, self.weights() if balance is None else balance.weights)
        loss = self.alpha * (ce + kd) + beta * sample + gamma * class_
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()}, logits.detach())

    def _observed(self, training: Training, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        features, _, terms = self._terms(training, batch)
        return features, [terms[name] for name in ("kd", "sample", "class")]

    def _terms(self, training: Training, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The student's representation and logits, and the terms of a batch, in the order of their names."""
        from cid.functional import class_loss, kd_loss, sample_loss

        (f, s), (t, q) = training.representations(training.student, training.teacher, batch)
        target, weight = batch.target, batch.weight
        ce = cross_entropy(s, target, weight)
        kd = kd_loss(s, q, weight=weight, temperature=self.temperature)
        sample = sample_loss(training.adapter(f), t, weight=weight)
        return f, s, {"ce": ce, "kd": kd, "sample": sample, "class": class_loss(f, t, target)}

    def param_groups(self, training: Training, weight_decay: float) -> list[dict[str, Any]]:
        """The student, and the adapter without decay."""
        return [
            {"params": [p for p in training.student.parameters() if p.requires_grad], "weight_decay": weight_decay},
            {"params": list(training.adapter.parameters()), "weight_decay": 0.0},
        ]
