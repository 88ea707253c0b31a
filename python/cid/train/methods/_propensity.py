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
    """`full / context`, as `cid.propensity` has it.

    The networks of the numerator have the teacher's architecture and are trained with the weights so far, which at
    first are `1 / context`: a numerator that is as biased as the teacher takes what goes against the context for wrong
    labels.

    Attributes:
        folds: into how many parts the training samples are cut.
        context: the network that is to know the context alone.
        context_epochs: how long that is trained: shortcuts are learned first.
        clip: the largest weight.
        numerator: "full" or "one".
        epochs: how long the networks of the numerator are trained.
        rounds: how many times the numerator is computed.
    """

    name = "ipw"

    folds: int
    context: str
    context_epochs: int
    clip: float
    numerator: str
    epochs: int
    rounds: int

    def models(self) -> tuple[str, ...]:
        """That of the context."""
        return (self.context,)

    def compute(self, lab: Lab) -> SampleWeights:
        """The weights, and what they are made of."""
        from cid.propensity import overlap_warnings

        context = self._beliefs(lab, "context", self.context, self.context_epochs, None)
        found, (train, validation) = {"context": context}, self._weights(context, None)
        for number in range(self.rounds if self.numerator == "full" else 0):
            full = self._beliefs(lab, f"full{number + 1}", lab.models.teacher, self.epochs, train)
            found["full"] = full
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

    def _beliefs(self, lab: Lab, name: str, model: str, epochs: int, weight: Tensor | None) -> Beliefs:
        """Of networks that are trained for so many epochs, the samples weighted if they are to be."""
        from torch import softmax

        from cid.functional import context_weights
        from cid.propensity import CrossFit, calibrate

        labels = lab.labels
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
    ipw_context: str = setting("patches-16", "network that is to know the context alone: named as the teacher is")
    ipw_context_epochs: int | None = setting(
        None, "epochs of the networks of the context (default: a tenth of the teacher's)", rule=at_least(1)
    )
    ipw_clip: float = setting(50.0, "largest weight, in means", rule=at_least(1))
    ipw_numerator: str = setting(
        "full", "full (stabilised by fully trained networks) or one (needs right labels)", rule=one_of("full", "one")
    )
    ipw_epochs: int | None = setting(
        None,
        "epochs of the networks of the numerator (default: as many as cost, all in all, no more than the teacher)",
        rule=at_least(1),
    )
    ipw_rounds: int = setting(
        1, "times that the numerator is computed, each with the weights of the one before", rule=at_least(1)
    )

    def completed(self, models: ModelsConfig, optim: OptimConfig) -> Self:
        """With a tenth of the teacher's epochs for the context, and for the numerator what is left of its cost.

        K folds of K - 1 parts each see K - 1 times the images.
        """
        budget = optim.teacher_epochs or optim.epochs
        context = self.ipw_context_epochs or max(1, round(budget / 10))
        left = (budget / (self.ipw_folds - 1) - context) / self.ipw_rounds
        epochs = self.ipw_epochs or max(1, int(left))
        return dataclasses.replace(super().completed(models, optim), ipw_context_epochs=context, ipw_epochs=epochs)

    def check(self, optim: OptimConfig) -> None:
        """Refuses rounds of a numerator that is not computed."""
        super().check(optim)
        if self.ipw_numerator == "one" and self.ipw_rounds > 1:
            raise ConfigError(f"--ipw-rounds: got {self.ipw_rounds}, accepted: 1 with --ipw-numerator one")

    def weighting(self) -> Weighting:
        """Inverse propensities."""
        if self.ipw_context_epochs is None or self.ipw_epochs is None:
            raise ValueError("ipw_context_epochs, ipw_epochs: got None, accepted: complete options")
        return InversePropensity(
            folds=self.ipw_folds,
            context=self.ipw_context,
            context_epochs=self.ipw_context_epochs,
            clip=self.ipw_clip,
            numerator=self.ipw_numerator,
            epochs=self.ipw_epochs,
            rounds=self.ipw_rounds,
        )
