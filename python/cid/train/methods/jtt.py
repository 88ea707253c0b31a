"""Just train twice, a peer that removes biases without labels of them: Liu et al. 2021."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cid.train.methods import Lab, SampleWeights, Weighting, register
from cid.train.methods.labels import Labels
from cid.train.settings import at_least, setting

if TYPE_CHECKING:
    from cid.train.sections import ModelsConfig, OptimConfig


@dataclass(frozen=True)
class ErrorWeighting(Weighting):
    """What a network of the student's architecture gets wrong counts `factor` times as much as what it gets right.

    Args:
        epochs: how long that network is trained, from the labels.
        factor: how much an error counts.
    """

    name = "jtt"

    epochs: int
    factor: float

    def compute(self, lab: Lab) -> SampleWeights:
        """The weights, of mean 1, by the training samples as they are, not augmented."""
        network = lab.train("identification", lab.models.student, self.epochs)
        wrong = lab.logits(network).argmax(1) != lab.labels
        counts = 1 + (self.factor - 1) * wrong.double()
        errors, samples = int(wrong.sum()), len(wrong)
        doubt = f"{errors} of {samples} training samples are wrong after {self.epochs} epochs: all count alike"
        warnings = (doubt,) if errors in (0, samples) else ()
        weights = (counts / counts.mean()).float()
        return SampleWeights(weights, kept={"wrong": wrong}, notes={"errors": errors}, warnings=warnings)


@register
@dataclass(frozen=True)
class JTT(Labels):
    """The student learns twice: for a few epochs, then anew, and what it got wrong at first counts more.

    The first, the identification model, has learned what is easy, so its errors on the training data are where that
    fails. The loss is `ce = mean_i w_i CE_i`, with w of mean 1, `jtt_factor` to 1 where it erred. There is no teacher.

    Where the paper differs: it copies the errors into a longer epoch; here they are weighed. The loss is the same in
    the mean, and an epoch has as many steps as by any other method; but a batch with an error takes a larger one. (The
    published code adds `jtt_factor` copies to the sample itself, once more than the paper says; not taken.) The paper
    chooses the epochs of both networks by validation data with labels of the bias; here an option says the first, and
    the run's validation data choose the second. Seeds share one identification model. The paper's `jtt_epochs` and
    `jtt_factor`: 1 of 50 epochs and 50 on CelebA, 60 of 300 and 100 on Waterbirds.

    Source: E. Z. Liu, B. Haghgoo, A. S. Chen, A. Raghunathan, P. W. Koh, S. Sagawa, P. Liang and C. Finn, "Just Train
    Twice: Improving Group Robustness without Training Group Information", ICML 2021.
    """

    name = "jtt"

    jtt_epochs: int | None = setting(
        None, "epochs of the network whose errors count more (default: a tenth)", rule=at_least(1)
    )
    jtt_factor: float = setting(50.0, "how much more an error counts", rule=at_least(1))

    def completed(self, models: ModelsConfig, optim: OptimConfig) -> Self:
        """With a tenth of the student's epochs, and at least one."""
        if self.jtt_epochs is not None:
            return self
        return dataclasses.replace(self, jtt_epochs=max(1, round(optim.epochs / 10)))

    def weighting(self) -> Weighting:
        """By the errors of the identification model."""
        if self.jtt_epochs is None:
            raise ValueError("jtt_epochs: got None, accepted: complete options")
        return ErrorWeighting(self.jtt_epochs, self.jtt_factor)
