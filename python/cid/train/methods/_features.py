"""Methods whose loss is the cross-entropy and what the networks' features have in common."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from cid.train.methods import _shared
from cid.train.methods._base import Ingredients, Method, StepOutput
from cid.train.methods._losses import cross_entropy, full

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cid.train.data import Batch
    from cid.train.methods._maps import Pair
    from cid.train.methods._training import Training


P = TypeVar("P")
_OF_KD = {"kd_weight", "temperature"}


def middle(pairs: Sequence[P]) -> P:
    """The one in the middle, of an even number the first of the two."""
    return pairs[(len(pairs) - 1) // 2]


def _exact(x: Tensor) -> AbstractContextManager[Any]:
    """Within it products are in the type of what is multiplied, also where the networks' are not."""
    from torch import autocast

    return autocast(x.device.type, enabled=False)


@dataclass(frozen=True)
class FeaturesMethod(Method):
    """`ce + kd_weight * kd` and what a method adds to it; the papers that compare features do without `kd`."""

    kd_weight: float = _shared.kd_weight()
    temperature: float = _shared.temperature()

    def decisive(self) -> dict[str, Any]:
        """Without the softened logits' options, where these are no part of the loss."""
        options = super().decisive()
        return options if self.kd_weight else {name: options[name] for name in options.keys() - _OF_KD}

    def _output(
        self, batch: Batch, logits: Tensor, teacher: Tensor, added: Tensor, terms: dict[str, Tensor]
    ) -> StepOutput:
        """The whole loss of a batch, of both networks' logits and what the features add."""
        ce = cross_entropy(logits, batch.target, batch.weight)
        loss, named = ce + added, {"ce": ce}
        if self.kd_weight:
            from cid.functional import kd_loss

            named["kd"] = kd_loss(logits, teacher, weight=batch.weight, temperature=self.temperature)
            loss = loss + self.kd_weight * named["kd"]
        return StepOutput(loss, {name: term.detach() for name, term in (named | terms).items()}, logits.detach())


@dataclass(frozen=True)
class MapsMethod(FeaturesMethod):
    """A method whose loss compares maps within the networks: only `compare` is its own, and the layers to choose."""

    asks_teacher = True

    student_layers: tuple[str, ...] = _shared.layers("student")
    teacher_layers: tuple[str, ...] = _shared.layers("teacher")

    def networks(self, given: Ingredients) -> dict[str, nn.Module | None]:
        """Both networks, and where the maps are found."""
        from cid.train.methods._maps import Maps

        return {**super().networks(given), "maps": Maps(given, self.student_layers, self.teacher_layers)}

    def compare(self, training: Training, pairs: list[Pair]) -> tuple[Tensor, dict[str, Tensor]]:
        """What is added, weighted, and its terms by name. The maps are in float32 at least."""
        raise NotImplementedError

    def step(self, training: Training, batch: Batch) -> StepOutput:
        """The loss of a batch."""
        logits, teacher, pairs = training.maps(training.student, training.teacher, batch.inputs)
        with _exact(logits):
            added, terms = self.compare(training, pairs)
        return self._output(batch, logits, batch.adjusted(teacher), added, terms)


@dataclass(frozen=True)
class RepresentationMethod(FeaturesMethod):
    """A method whose loss compares the representations that the classifying layers read: only `compare` is its own."""

    def networks(self, given: Ingredients) -> dict[str, nn.Module | None]:
        """Both networks, and where the representations are found."""
        from cid.train.methods._representations import Representations

        return {**super().networks(given), "representations": Representations(given)}

    def compare(
        self, training: Training, batch: Batch, ours: Tensor, theirs: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is added, weighted, and its terms by name.

        Args:
            training: the networks.
            batch: which samples they are.
            ours: the student's, (B, Ds), in float32 at least.
            theirs: the teacher's, (B, Dt), without gradient, likewise.
        """
        raise NotImplementedError

    def step(self, training: Training, batch: Batch) -> StepOutput:
        """The loss of a batch."""
        (ours, logits), (theirs, teacher) = training.representations(training.student, training.teacher, batch)
        with _exact(logits):
            added, terms = self.compare(training, batch, full(ours), full(theirs))
        return self._output(batch, logits, teacher, added, terms)
