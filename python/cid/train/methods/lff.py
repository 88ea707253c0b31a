"""Learning from failure, a peer that removes biases without labels of them: Nam et al. 2020."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cid.train.methods import Ingredients, Method, StepOutput, register
from cid.train.settings import above, setting, within

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cid.train.data import Batch
    from cid.train.methods import Training


@register
@dataclass(frozen=True)
class LfF(Method):
    """Two networks of the student's architecture, each with weights of its own, trained together from the labels.

    The biased one by `gce = mean_i (1 - p_i^q) / q`, p its belief in the true class: what it believes already counts
    most, so it learns what is easy, a shortcut. The student learns from where that fails: `ce = mean_i W_i CE_i` of its
    own cross-entropies, with W of `RelativeDifficulty`. The loss is `ce + gce`; no gradient passes from one network to
    the other. There is no teacher.

    Where the paper and its published code differ: the averages over time and the division by a class's largest, which
    the paper's formula of W does not have, are the code's, and taken. The code gives the biased network q times the
    gradient of the paper's `gce`: not taken. The code adds 1e-8 to the denominator of W; here 0/0, of a sample or
    a class on which neither network has any loss, is 0. Optimizer, schedule and the choice of the epoch are the run's.

    Source: J. Nam, H. Cha, S. Ahn, J. Lee and J. Shin, "Learning from Failure: Training Debiased Classifier from Biased
    Classifier", NeurIPS 2020.
    """

    name = "lff"
    terms = ("ce", "gce")
    keeps = "the losses of both networks"

    lff_q: float = setting(0.7, "q of the biased network's generalised cross-entropy", rule=above(0, up_to=1))
    lff_ema: float = setting(0.7, "how much of a sample's average loss stays", rule=within(0, 1))

    def networks(self, given: Ingredients) -> dict[str, nn.Module | None]:
        """The student, the biased network, and the averages of their losses."""
        from cid.train.methods._difficulty import RelativeDifficulty

        if given.fresh_student is None:
            raise ValueError("fresh_student: got None, accepted: a function that makes the biased network")
        return {
            "student": given.student,
            "biased": given.fresh_student(),
            "difficulty": RelativeDifficulty(given.labels, given.spec.classes, self.lff_ema),
        }

    def step(self, training: Training, batch: Batch) -> StepOutput:
        """The loss of a batch."""
        import torch
        from torch.nn.functional import cross_entropy

        logits = training.student(batch.inputs)
        biased = cross_entropy(training.biased(batch.inputs), batch.target, reduction="none")
        debiased = cross_entropy(logits, batch.target, reduction="none")
        weight = training.difficulty(batch.indices, torch.stack((biased, debiased)))
        ce, gce = (weight * debiased).mean(), self._generalised(biased).mean()
        return StepOutput(ce + gce, {"ce": ce.detach(), "gce": gce.detach()}, logits.detach())

    def _generalised(self, ce: Tensor) -> Tensor:
        """`(1 - p^q) / q` of `ce = -log p`, exact also where p is near 1 or q near 0."""
        return -(-self.lff_q * ce).expm1() / self.lff_q
