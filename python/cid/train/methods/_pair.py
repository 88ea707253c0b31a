"""The weights of CID's terms, which depend on the pair of networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from cid.train.methods import Method, _shared
from cid.train.settings import at_least, setting

if TYPE_CHECKING:
    from cid.balance import Balance
    from cid.train.methods import Training
    from cid.train.sections import ModelsConfig, OptimConfig

AUTO = "auto"  # as `cid.Distiller` takes it
# (beta, gamma) of the paper, which were chosen for CIFAR-100. They depend on the widths of the two representations,
# so they serve the same pair on CIFAR-10 too.
PAIR_WEIGHTS: dict[tuple[str, str], tuple[float, float]] = {
    ("wrn-40-4", "wrn-16-2"): (55.0, 0.1),
    ("wrn-40-2", "wrn-16-2"): (65.0, 1.0),
    ("resnet56", "resnet20"): (10.0, 1.0),
}
# For any other pair: the middle of the paper's ranges (8 to 65, 0.1 to 2), to be tuned on validation data.
GENERIC_WEIGHTS = (10.0, 1.0)


@dataclass(frozen=True)
class PairWeighted(Method):
    """The options of a method whose loss is made of CID's terms."""

    alpha: float = _shared.alpha()
    beta: float | str | None = setting(
        None,
        "weight of the sample representation, where the loss has it; auto: by the gradients of the first batches",
        rule=at_least(0),
        word=AUTO,
    )
    gamma: float | str | None = setting(
        None, "weight of the class representation, as --beta", rule=at_least(0), word=AUTO
    )
    weights_from: str = setting("given", "where beta and gamma come from (for the record)", flag="")
    temperature: float = _shared.temperature()

    @classmethod
    def implied(cls, names: Collection[str]) -> dict[str, Any]:
        """`weights_from`, where a user gives beta or gamma; a resolved file says where its own come from."""
        return {"weights_from": "given"} if {"beta", "gamma"} & set(names) else {}

    def completed(self, models: ModelsConfig, optim: OptimConfig) -> Self:
        """With the weights of the pair of models."""
        complete = super().completed(models, optim)
        if AUTO in (self.beta, self.gamma):
            complete = dataclasses.replace(complete, weights_from="the gradients of the first batches")
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

    def weights(self) -> tuple[float | str, float | str]:
        """Beta and gamma, each a number or "auto"; 0 where the method's loss has no such term."""
        if self.beta is None or self.gamma is None:
            raise ValueError("beta, gamma: got None, accepted: complete options")
        return self.beta if "sample" in self.terms else 0.0, self.gamma if "class" in self.terms else 0.0

    def chooses_weights(self) -> bool:
        """Where a weight that its loss has is "auto"."""
        return AUTO in self.weights()

    def balance(self, training: Training) -> Balance | None:
        """What chooses the weights that are "auto"; None where both are given."""
        raise NotImplementedError

    def compilable(self, training: Training) -> bool:
        """Not the batches that choose the weights."""
        balance = self.balance(training)
        return balance is None or balance.settled

    def found(self, training: Training) -> dict[str, float]:
        """The weights, where they were not given."""
        balance = self.balance(training)
        return {} if balance is None else dict(zip(("beta", "gamma"), balance.weights, strict=True))
