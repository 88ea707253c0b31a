"""Weights by inverse propensities, as a stage of a run, and the options of the methods that ask for them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

from cid._errors import ConfigError
from cid.train.methods import Lab, Method, SampleWeights, Weighting
from cid.train.settings import at_least, one_of, setting

if TYPE_CHECKING:
    from torch import Tensor

    from cid.train.sections import ModelsConfig, OptimConfig


class Beliefs(NamedTuple):
    """Calibrated beliefs in the true class, by networks that have not seen the sample.

    Attributes:
        train: of the training samples, (N,).
        validation: of the validation samples, (M,): the mean of all folds' beliefs.
        temperature: that calibrates them.
    """

    train: Tensor
    validation: Tensor
    temperature: float


@dataclass(frozen=True)
class InversePropensity(Weighting):
    """`full / context`, as `cid.propensity` has it; both are networks of the teacher's architecture.

    Attributes:
        folds: into how many parts the training samples are cut.
        context_epochs: how long the context model is trained: shortcuts are learned first.
        clip: the largest weight.
        numerator: "full", by networks trained as long as the teacher, or "one".
        rounds: how many times the numerator is computed, from the second on by networks trained with the last weights.
    """

    name = "ipw"

    folds: int
    context_epochs: int
    clip: float
    numerator: str
    rounds: int

    def compute(self, lab: Lab) -> SampleWeights:
        """The weights, and what they are made of."""
        from cid.propensity import overlap_warnings

        context = self._beliefs(lab, "context", self.context_epochs, None)
        found, (train, validation) = {"context": context}, self._weights(context, None)
        for number in range(self.rounds if self.numerator == "full" else 0):
            epochs = lab.optim.teacher_epochs or lab.optim.epochs
            full = found["full"] = self._beliefs(lab, f"full{number + 1}", epochs, train if number else None)
            train, validation = self._weights(context, full)
        return SampleWeights(
            train,
            validation,
            kept={f"{name}_belief": beliefs.train for name, beliefs in found.items()},
            notes={f"{name}_temperature": beliefs.temperature for name, beliefs in found.items()},
            warnings=tuple(overlap_warnings(train, context.train, lab.classes)),
        )

    def _weights(self, context: Beliefs, full: Beliefs | None) -> tuple[Tensor, Tensor]:
        """Of the training and of the validation samples."""
        from cid.propensity import propensity_weights

        numerators = (None, None) if full is None else full[:2]
        train, validation = (
            propensity_weights(belief, numerator, clip=self.clip)
            for belief, numerator in zip(context[:2], numerators, strict=True)
        )
        return train, validation

    def _beliefs(self, lab: Lab, name: str, epochs: int, weight: Tensor | None) -> Beliefs:
        """Of networks that are trained for so many epochs, the samples weighted if they are to be."""
        from torch import softmax

        from cid.functional import context_weights
        from cid.propensity import CrossFit, calibrate

        labels, model = lab.labels, lab.models.teacher
        if self.folds > len(labels):
            raise ConfigError(f"--ipw-folds: got {self.folds}, accepted: up to the training images, here {len(labels)}")
        folds = CrossFit(len(labels), self.folds, lab.seed, lab.folder / name, f"{model}, {epochs} epochs")
        logits, unseen = folds.fit(
            lambda index, fold: lab.train(f"{name}-fold{fold}", model, epochs, index=index, weight=weight),
            lab.logits,
            lab.validation_logits,
        )
        assert unseen is not None
        temperature = calibrate(logits, labels)
        validation = softmax(unseen / temperature, -1).mean(0).gather(1, lab.validation_labels[:, None])[:, 0]
        return Beliefs(context_weights(logits, labels, temperature=temperature), validation, temperature)


@dataclass(frozen=True)
class PropensityWeighted(Method):
    """The options of a method whose samples are weighted by inverse propensities: before it among a method's bases."""

    ipw_folds: int = setting(
        3, "parts of the training images, each weighed by networks of the others", rule=at_least(2)
    )
    ipw_context_epochs: int | None = setting(
        None,
        "epochs of the networks that are to know the context alone (default: a tenth of the teacher's)",
        rule=at_least(1),
    )
    ipw_clip: float = setting(50.0, "largest weight, in means", rule=at_least(1))
    ipw_numerator: str = setting(
        "full", "full (stabilised by fully trained networks) or one (needs right labels)", rule=one_of("full", "one")
    )
    ipw_rounds: int = setting(
        1, "times that the numerator is computed, each with the weights of the one before", rule=at_least(1)
    )

    def completed(self, models: ModelsConfig, optim: OptimConfig) -> Self:
        """With a tenth of the teacher's epochs, and at least one, for the context."""
        complete = super().completed(models, optim)
        if self.ipw_context_epochs is not None:
            return complete
        epochs = optim.teacher_epochs or optim.epochs
        return dataclasses.replace(complete, ipw_context_epochs=max(1, round(epochs / 10)))

    def check(self, optim: OptimConfig) -> None:
        """Refuses rounds of a numerator that is not computed."""
        super().check(optim)
        if self.ipw_numerator == "one" and self.ipw_rounds > 1:
            raise ConfigError(f"--ipw-rounds: got {self.ipw_rounds}, accepted: 1 with --ipw-numerator one")

    def weighting(self) -> Weighting:
        """Inverse propensities."""
        if self.ipw_context_epochs is None:
            raise ValueError("ipw_context_epochs: got None, accepted: complete options")
        return InversePropensity(
            self.ipw_folds, self.ipw_context_epochs, self.ipw_clip, self.ipw_numerator, self.ipw_rounds
        )
