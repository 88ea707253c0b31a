"""Weights of the samples that a method may ask for: computed once a run, before the students."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cid.train.sections import ModelsConfig, OptimConfig


@dataclass(frozen=True)
class SampleWeights:
    """How much each sample counts, and how that came about.

    Attributes:
        train: of the training samples, (N,), finite, from 0, of mean 1; a batch has its part as `weight`.
        validation: of the samples that the epoch is chosen by, (M,); None where all count alike.
        logit_adjustment: what is to be added to the teacher's logits of the training samples, (N, C), finite; a batch
            has its part under the same name. None where nothing is.
        kept: tensors for who reads the run, by name.
        notes: JSON for who reads the run.
        warnings: what makes the weights doubtful, each in a sentence.
    """

    train: Tensor
    validation: Tensor | None = None
    logit_adjustment: Tensor | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Lab(Protocol):
    """What weights may be computed from. Tensors are on the CPU.

    Attributes:
        seed: of the run's first student; whatever is drawn is to follow from it.
        folder: for files of the weighting's own.
        models: the names of teacher and student.
        optim: how networks are trained; complete.
        classes: how many there are.
    """

    @property
    def seed(self) -> int: ...
    @property
    def folder(self) -> Path: ...
    @property
    def models(self) -> ModelsConfig: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def classes(self) -> int: ...

    @property
    def labels(self) -> Tensor:
        """Of the training samples, (N,) int64."""

    @property
    def validation_labels(self) -> Tensor:
        """Of the validation samples, (M,) int64."""

    def train(
        self, name: str, model: str, epochs: int, *, index: Tensor | None = None, weight: Tensor | None = None
    ) -> nn.Module:
        """A network, trained from the labels with all of a run's settings; from where an earlier attempt stopped.

        The last epoch's weights are kept: to choose one by the validation data would let it see them.

        Args:
            name: of its folder and in messages; it decides what is drawn.
            model: its architecture, as `--student` takes it.
            epochs: how long.
            index: the training samples to train on; None for all.
            weight: of all training samples, (N,); None where all count alike.
        """

    def logits(self, network: nn.Module, index: Tensor | None = None) -> Tensor:
        """Of the training samples, not augmented, (n, C)."""

    def validation_logits(self, network: nn.Module) -> Tensor:
        """Of the validation samples, (M, C)."""


@dataclass(frozen=True)
class Weighting:
    """A way to weigh samples. Fields are its options; students whose weightings are equal share the weights.

    Attributes:
        name: what its folder is called.
    """

    name: ClassVar[str]

    def models(self) -> tuple[str, ...]:
        """The networks, by name, that `compute` trains beside the teacher's and the student's: tried before a run."""
        return ()

    def compute(self, lab: Lab) -> SampleWeights:
        """The weights: from the same data and options always the same, also after an interruption."""
        raise NotImplementedError
