"""Weights by inverse propensities, as a stage of a run, and the options of the methods that ask for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

from cid._errors import ConfigError
from cid.train.methods import Lab, Method, SampleWeights, Weighting
from cid.train.settings import at_least, between, one_of, setting

if TYPE_CHECKING:
    from torch import Tensor

    from cid.propensity import OutOfFold
    from cid.train.sections import ModelsConfig, OptimConfig


class Beliefs(NamedTuple):
    """Of networks that have not seen the sample.

    Attributes:
        train: of the training samples, (N,).
        validation: of the validation samples, (M,): the mean over all folds.
    """

    train: Tensor
    validation: Tensor


@dataclass(frozen=True)
class InversePropensity(Weighting):
    """`full / context^power`, as `cid.propensity` has it.

    The denominator is the belief in the label of networks that see the context alone. The numerator is that it is
    right, and not one at random, by networks that are trained with the weights so far, at first `1 / context`: ones as
    biased as the teacher would take what goes against the context for wrong labels. The power is how much the context
    tells of the labels.

    Attributes:
        folds: into how many parts the training samples are cut.
        context: the network that is to know the context alone.
        context_epochs: how long it is trained.
        power: of the denominator; None for what the context tells.
        clip: the largest weight.
        numerator: "full" or "one".
        epochs: how long the networks of the numerator are trained, which are of the teacher's architecture.
        rounds: how many times the numerator is computed.
        adjusts: whether the teacher's logits are adjusted to say nothing of the context.
    """

    name = "ipw"

    folds: int
    context: str
    context_epochs: int
    power: float | None
    clip: float
    numerator: str
    epochs: int
    rounds: int
    adjusts: bool

    def models(self) -> tuple[str, ...]:
        """That of the context."""
        return (self.context,)

    def compute(self, lab: Lab) -> SampleWeights:
        """The weights, and what they are made of."""
        from cid.propensity import context_power, logit_adjustment, overlap_warnings

        notes, context, of_classes = self._context(lab)
        notes["power"] = power = context_power(context.train, lab.labels) if self.power is None else self.power
        beliefs, (train, validation) = {"context": context}, self._weights(lab, power, context, None)
        for number in range(self.rounds if self.numerator == "full" else 0):
            found, beliefs["full"] = self._full(lab, f"full{number + 1}", train)
            notes |= found
            train, validation = self._weights(lab, power, context, beliefs["full"])
        return SampleWeights(
            train,
            validation,
            logit_adjustment(of_classes, lab.labels, power=power) if self.adjusts else None,
            kept={f"{name}_belief": belief.train for name, belief in beliefs.items()},
            notes=notes,
            warnings=tuple(overlap_warnings(train, context.train, lab.classes)),
        )

    def _weights(self, lab: Lab, power: float, context: Beliefs, full: Beliefs | None) -> tuple[Tensor, Tensor]:
        """Of the training and of the validation samples."""
        from cid.propensity import propensity_weights

        numerators, targets = (None, None) if full is None else full, (lab.labels, lab.validation_labels)
        train, validation = (
            propensity_weights(belief, numerator, target=target, power=power, clip=self.clip)
            for belief, numerator, target in zip(context, numerators, targets, strict=True)
        )
        return train, validation

    def _context(self, lab: Lab) -> tuple[dict[str, float], Beliefs, Tensor]:
        """What networks that see the context alone believe: in the label, and, (N, C), in each class.

        Before that, what calibrates it.
        """
        from cid.propensity import calibrate_with_noise, label_belief

        found = self._out_of_fold(lab, "context", self.context, self.context_epochs, None)
        calibration = calibrate_with_noise(found.logits, lab.labels)

        def belief(logits: Tensor, target: Tensor) -> Tensor:
            return label_belief(logits, calibration).gather(1, target[:, None])[:, 0]

        notes = {"context_temperature": calibration.temperature, "context_noise": calibration.noise}
        return notes, _of_all(belief, lab, found), label_belief(found.logits, calibration)

    def _full(self, lab: Lab, name: str, weight: Tensor) -> tuple[dict[str, float], Beliefs]:
        """The belief that the label is right, of networks trained with these weights, and what calibrates it."""
        from cid.propensity import calibrate_with_noise, right_label_belief

        found = self._out_of_fold(lab, name, lab.models.teacher, self.epochs, weight)
        calibration = calibrate_with_noise(found.logits, lab.labels, weight=weight)
        notes = {"full_temperature": calibration.temperature, "full_noise": calibration.noise}
        return notes, _of_all(lambda logits, target: right_label_belief(logits, target, calibration), lab, found)

    def _out_of_fold(self, lab: Lab, name: str, model: str, epochs: int, weight: Tensor | None) -> OutOfFold:
        """The logits of networks that are trained for so many epochs, the samples weighted if they are to be."""
        from cid.propensity import CrossFit

        count = len(lab.labels)
        if self.folds > count:
            raise ConfigError(f"--ipw-folds: got {self.folds}, accepted: up to the training images, here {count}")
        folds = CrossFit(count, self.folds, lab.seed, lab.folder / name, f"{model}, {epochs} epochs")
        return folds.fit(
            lambda index, fold: lab.train(f"{name}-fold{fold}", model, epochs, index=index, weight=weight),
            lab.logits,
            lab.validation_logits,
        )


def _of_all(belief: Callable[[Tensor, Tensor], Tensor], lab: Lab, found: OutOfFold) -> Beliefs:
    """What the logits of all samples say of their labels."""
    from torch import stack

    assert found.unseen is not None
    unseen = stack([belief(logits, lab.validation_labels) for logits in found.unseen])
    return Beliefs(belief(found.logits, lab.labels), unseen.mean(0))


@dataclass(frozen=True)
class PropensityWeighted(Method):
    """The options of a method whose samples are weighted by inverse propensities: before it among a method's bases."""

    ipw_folds: int = setting(
        3, "parts of the training images, each weighed by networks of the others", rule=at_least(2)
    )
    ipw_context: str = setting("patches-16", "network that is to know the context alone: named as the teacher is")
    ipw_context_epochs: int | None = setting(
        None,
        "epochs of the networks of the context (default: a third of what costs as much as the teacher)",
        rule=at_least(1),
    )
    ipw_power: float | None = setting(
        None,
        "power of the inverse propensity (default: by how much of the labels' entropy the context tells)",
        rule=between(0, 1),
    )
    ipw_clip: float = setting(50.0, "largest weight, in means", rule=at_least(1))
    ipw_numerator: str = setting(
        "full", "full (stabilised by fully trained networks) or one (needs right labels)", rule=one_of("full", "one")
    )
    ipw_epochs: int | None = setting(
        None,
        "epochs of the networks of the numerator (default: the rest of what costs as much as the teacher)",
        rule=at_least(1),
    )
    ipw_rounds: int = setting(
        1, "times that the numerator is computed, each with the weights of the one before", rule=at_least(1)
    )

    ipw_teacher: str = setting(
        "adjusted",
        "adjusted (the teacher's logits without what the context says) or given (as they are)",
        rule=one_of("adjusted", "given"),
    )

    def completed(self, models: ModelsConfig, optim: OptimConfig) -> Self:
        """With as many epochs as cost, all in all, no more than the teacher: a third of them for the context.

        K networks of K - 1 parts each see the images K - 1 times in an epoch.
        """
        budget = (optim.teacher_epochs or optim.epochs) / (self.ipw_folds - 1)
        context = self.ipw_context_epochs or max(1, round(budget / 3))
        epochs = self.ipw_epochs or max(1, int((budget - context) / self.ipw_rounds))
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
            power=self.ipw_power,
            clip=self.ipw_clip,
            numerator=self.ipw_numerator,
            epochs=self.ipw_epochs,
            rounds=self.ipw_rounds,
            adjusts=self.ipw_teacher == "adjusted",
        )
