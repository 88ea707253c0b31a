"""Comprehensive, interventional distillation: Deng and Zhang 2021."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from cid._errors import ConfigError
from cid.train.methods import Ingredients, StepOutput, register
from cid.train.methods._pair import PairWeighted
from cid.train.settings import at_least, setting, within

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cid.balance import Balance
    from cid.train.data import Batch
    from cid.train.methods import Training
    from cid.train.sections import ModelsConfig, OptimConfig


@register
@dataclass(frozen=True)
class CID(PairWeighted):
    """`cid.Distiller`: `alpha * (ce + kd) + beta * sample + gamma * class`, by the intervention's logits.

    In the warm-up the head is untrained: the student's own logits are scored then, and no epoch is kept.
    """

    name = "cid"
    terms: ClassVar[tuple[str, ...]] = ("ce", "kd", "sample", "class")
    knows_ranks = True
    takes_shares = True

    warmup_epochs: int | None = setting(None, "epochs without the intervention (default: a twelfth)", rule=at_least(0))
    context_momentum: float = setting(0.0, "how much of the old context bank stays", rule=within(0, 1))

    def completed(self, models: ModelsConfig, optim: OptimConfig) -> Self:
        """With the weights of the pair of models, and the paper's warm-up: 20 of 240 epochs, and never all."""
        warmup = self.warmup_epochs
        if warmup is None:
            warmup = min(max(1, round(optim.epochs / 12)), optim.epochs - 1)
        return dataclasses.replace(super().completed(models, optim), warmup_epochs=warmup)

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

        if self.warmup_epochs is None:
            raise ValueError("warmup_epochs: got None, accepted: complete options")
        beta, gamma = self.weights()
        distiller = Distiller(
            given.student,
            given.teacher,
            num_classes=given.spec.classes,
            teacher_dim=given.teacher_dim,
            alpha=self.alpha,
            beta=beta,
            gamma=gamma,
            temperature=self.temperature,
            warmup_epochs=self.warmup_epochs,
            context_momentum=self.context_momentum,
            process_group=given.process_group,
            pairs=given.pairs,
        )
        if distiller.criterion.across is not None:
            distiller.criterion.across.reserve(given.longest)
        return {"distiller": distiller}

    def balance(self, training: Training) -> Balance | None:
        """That of the distiller."""
        balance: Balance | None = training.distiller.balance
        return balance

    def step(self, training: Training, batch: Batch) -> StepOutput:
        """The loss of a batch."""
        loss, ce, kd, sample, class_, logits = training.distiller(
            batch.inputs, batch.target, self._teacher(training, batch), batch.weight
        )
        terms = {"ce": ce, "kd": kd, "sample": sample, "class": class_}
        if logits is None:  # the warm-up has no cross-entropy; a curve of zeros would show one that is perfect
            del terms["ce"]
        return StepOutput(loss, {name: term for name, term in terms.items() if name in self.terms}, logits)

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
