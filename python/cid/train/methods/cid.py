"""Comprehensive, interventional distillation: Deng and Zhang 2021."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from cid._errors import ConfigError
from cid.train.methods import Ingredients, Method, StepOutput, _shared, register
from cid.train.settings import at_least, setting, within

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cid.train.data import Batch
    from cid.train.methods import Training
    from cid.train.sections import ModelsConfig, OptimConfig

# (beta, gamma) of the paper, which were chosen for CIFAR-100. They depend on the widths of the two representations,
# so they serve the same pair on CIFAR-10 too.
PAIR_WEIGHTS: dict[tuple[str, str], tuple[float, float]] = {
    ("wrn-40-4", "wrn-16-2"): (55.0, 0.1),
    ("wrn-40-2", "wrn-16-2"): (65.0, 1.0),
    ("resnet56", "resnet20"): (10.0, 1.0),
}
# For any other pair: the middle of the paper's ranges (8 to 65, 0.1 to 2), to be tuned on validation data.
GENERIC_WEIGHTS = (10.0, 1.0)


@register
@dataclass(frozen=True)
class CID(Method):
    """`cid.Distiller`: `alpha * (ce + kd) + beta * sample + gamma * class`, by the intervention's logits.

    In the warm-up the head is untrained: the student's own logits are scored then, and no epoch is kept.
    """

    name = "cid"
    terms = ("ce", "kd", "sample", "class")

    alpha: float = _shared.alpha()
    beta: float | None = setting(None, "weight of the sample representation", rule=at_least(0))
    gamma: float | None = setting(None, "weight of the class representation", rule=at_least(0))
    weights_from: str = setting("given", "where beta and gamma come from (for the record)", flag="")
    temperature: float = _shared.temperature()
    warmup_epochs: int | None = setting(None, "epochs without the intervention (default: a twelfth)", rule=at_least(0))
    context_momentum: float = setting(0.0, "how much of the old context bank stays", rule=within(0, 1))

    @classmethod
    def implied(cls, names: Collection[str]) -> dict[str, Any]:
        """`weights_from`, where a user gives beta or gamma; a resolved file says where its own come from."""
        return {"weights_from": "given"} if {"beta", "gamma"} & set(names) else {}

    def completed(self, models: ModelsConfig, optim: OptimConfig) -> Self:
        """With the weights of the pair of models, and the paper's warm-up: 20 of 240 epochs, and never all."""
        warmup = self.warmup_epochs
        if warmup is None:
            warmup = min(max(1, round(optim.epochs / 12)), optim.epochs - 1)
        complete = dataclasses.replace(self, warmup_epochs=warmup)
        if self.beta is not None and self.gamma is not None:
            return complete
        pair = (models.teacher, models.student)
        beta, gamma = PAIR_WEIGHTS.get(pair, GENERIC_WEIGHTS)
        source = f"the paper's for {pair[0]} to {pair[1]}" if pair in PAIR_WEIGHTS else "generic, to be tuned"
        if self.beta is not None or self.gamma is not None:
            source = f"one given, the other {source}"
        return dataclasses.replace(
            complete,
            beta=beta if self.beta is None else self.beta,
            gamma=gamma if self.gamma is None else self.gamma,
            weights_from=source,
        )

    def check(self, optim: OptimConfig) -> None:
        """Refuses a warm-up that leaves no epochs."""
        if self.warmup_epochs is not None and self.warmup_epochs >= optim.epochs:
            raise ConfigError(
                f"--warmup-epochs: got {self.warmup_epochs}, accepted: less than --epochs, here {optim.epochs} "
                "(the head trains only after the warm-up)"
            )

    def note(self) -> str:
        """What the warm-up's scores are of."""
        return f"During {self.name}'s warm-up (epochs: {self.warmup_epochs}) the student's own logits are scored."

    def networks(self, given: Ingredients) -> dict[str, nn.Module | None]:
        """The distiller, which holds them all."""
        from cid.distiller import Distiller

        if self.beta is None or self.gamma is None or self.warmup_epochs is None:
            raise ValueError("beta, gamma, warmup_epochs: got None, accepted: complete options")
        return {
            "distiller": Distiller(
                given.student,
                given.teacher,
                num_classes=given.spec.classes,
                teacher_dim=given.teacher_dim,
                alpha=self.alpha,
                beta=self.beta,
                gamma=self.gamma,
                temperature=self.temperature,
                warmup_epochs=self.warmup_epochs,
                context_momentum=self.context_momentum,
            )
        }

    def step(self, training: Training, batch: Batch) -> StepOutput:
        """The loss of a batch."""
        loss, ce, kd, sample, class_, logits = training.distiller(
            batch.inputs, batch.target, self._teacher(training, batch), batch.weight
        )
        terms = {"kd": kd, "sample": sample, "class": class_}
        # The warm-up has no cross-entropy; a curve of zeros would show one that is perfect.
        return StepOutput(loss, terms if logits is None else {"ce": ce, **terms}, logits)

    def _teacher(self, training: Training, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """The teacher's features and logits where they are cached or adjusted; else the distiller asks it."""
        if batch.logit_adjustment is None:
            return batch.teacher
        features, logits = batch.teacher or training.distiller.ask_teacher(batch.inputs)
        return features, batch.adjusted(logits)

    def predict(self, training: Training, inputs: Tensor) -> Tensor:
        """The interventional logits, after the warm-up."""
        logits: Tensor = training.distiller.predict(inputs)
        return logits

    def predictor(self, training: Training) -> nn.Module:
        """The student with its head and contexts."""
        student: nn.Module = training.distiller.student(fold=False)
        return student

    def scorable(self, training: Training) -> bool:
        """False in the warm-up."""
        return not training.distiller.warming_up

    def epoch_end(self, training: Training) -> None:
        """Turns the bank of contexts."""
        training.distiller.epoch_end()

    def param_groups(self, training: Training, weight_decay: float) -> list[dict[str, Any]]:
        """The student and the head, and the adapter without decay."""
        groups: list[dict[str, Any]] = training.distiller.param_groups(weight_decay)
        return groups
