"""What a method is: its options, and what it does in a step, in scoring and at the end of an epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup

    from cid.train.data import Batch
    from cid.train.methods._training import Training
    from cid.train.methods._weighting import Weighting
    from cid.train.models import InputSpec
    from cid.train.sections import ModelsConfig, OptimConfig


class StepOutput(NamedTuple):
    """What a step yields: the loss, its terms (detached) by name, and the logits, if the method has them by now."""

    loss: Tensor
    terms: dict[str, Tensor]
    logits: Tensor | None


@dataclass(frozen=True)
class Ingredients:
    """What a method makes its networks of.

    Attributes:
        student: to train; maps a batch to logits.
        teacher: trained; None where there is none, or each batch has its outputs.
        spec: what both read and yield.
        labels: of the training samples, (N,) int64, on the CPU; a batch's `indices` are places in it.
        teacher_dim: the size of the teacher's features, where its outputs are cached.
        fresh_student: makes another student, with weights of its own from the global random state.
        process_group: the ranks whose batches are parts of one; None where there is one.
        pairs: which pairs of a class are compared, of all ranks or of each; see `cid.CIDLoss`.
        longest: the most samples that a rank has of a batch, or more.
    """

    student: nn.Module
    teacher: nn.Module | None
    spec: InputSpec
    labels: Tensor
    teacher_dim: int | None = None
    fresh_student: Callable[[], nn.Module] | None = None
    process_group: ProcessGroup | None = None
    pairs: str = "all"
    longest: int = 0


@dataclass(frozen=True)
class Method:
    """A way to train a student. Fields are its options, each by `cid.train.settings.setting`.

    It has no state. What is trained is in the `Training` that its functions get, under the names of `networks`.

    Attributes:
        name: what the command line, tables and folders call it.
        terms: the names of its loss's terms, as `StepOutput.terms` has them (or of these the ones that its options
            ask for), in the order of charts.
        asks_teacher: whether it needs the teacher itself, also where the batches have its outputs.
        knows_ranks: whether its loss counts what the other ranks have, of whose batches its own is a part. Else the
            losses of the ranks are weighed by their samples, which is right for what is a mean over samples.
        keeps: what it keeps of each sample that it has seen, in words, which other ranks do not see; else empty.
        takes_shares: whether a batch's target may be the share of each class, as that of mixed samples is.
    """

    name: ClassVar[str]
    terms: ClassVar[tuple[str, ...]]
    asks_teacher: ClassVar[bool] = False
    knows_ranks: ClassVar[bool] = False
    keeps: ClassVar[str] = ""
    takes_shares: ClassVar[bool] = False

    # --- options: what is not given, and what contradicts other settings

    @classmethod
    def implied(cls, names: Collection[str]) -> dict[str, Any]:
        """Options that follow from a user's setting those of these names, where the user does not set them too."""
        return {}

    def completed(self, models: ModelsConfig, optim: OptimConfig) -> Self:
        """The same with every option that is not given (None) set."""
        return self

    def check(self, optim: OptimConfig) -> None:
        """Checks complete options, where a run uses this method.

        Raises:
            ConfigError: an option contradicts another setting.
        """

    def decisive(self) -> dict[str, Any]:
        """The options that decide what becomes of a network, by name: those that others make void are left out."""
        return dataclasses.asdict(self)

    def chooses_weights(self) -> bool:
        """Whether, of complete options, some are chosen by the gradients of the first batches, of whole parameters."""
        return False

    def note(self) -> str:
        """What a reader of the training curves has to know, in a sentence; else empty."""
        return ""

    def weighting(self) -> Weighting | None:
        """How the samples are weighed, of complete options; None where each counts once.

        Batches then have `weight`, for the loss to use, and the epoch is chosen by the weighted validation data.
        """
        return None

    # --- training

    def networks(self, given: Ingredients) -> dict[str, nn.Module | None]:
        """The networks, by the names under which the other functions find them.

        A teacher that is asked is among them, itself or within another; it is neither trained nor saved.
        """
        return {"student": given.student, "teacher": given.teacher}

    def step(self, training: Training, batch: Batch) -> StepOutput:
        """The loss of a batch."""
        raise NotImplementedError

    def compilable(self, training: Training) -> bool:
        """Whether the next step may be compiled, and is worth it: others will be computed as it is."""
        return True

    def found(self, training: Training) -> dict[str, float]:
        """Options that training chose by itself, for the metrics."""
        return {}

    def predict(self, training: Training, inputs: Tensor) -> Tensor:
        """Logits to score the current epoch with."""
        logits: Tensor = training.student(inputs)
        return logits

    def predictor(self, training: Training) -> nn.Module:
        """The module to use after training."""
        student: nn.Module = training.student
        return student

    def scorable(self, training: Training) -> bool:
        """Whether the weights of the current epoch may be kept as the best."""
        return True

    def epoch_end(self, training: Training) -> None:
        """Goes to the next epoch; called after the epoch was scored."""

    def param_groups(self, training: Training, weight_decay: float) -> list[dict[str, Any]]:
        """What an optimizer trains."""
        return [{"params": [p for p in training.parameters() if p.requires_grad], "weight_decay": weight_decay}]


class LogitsMethod(Method):
    """A method whose loss is a function of labels and logits: only `loss` is its own."""

    def loss(
        self, logits: Tensor, teacher: Tensor, target: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its terms by name.

        Args:
            logits: the student's, (B, C).
            teacher: the teacher's, (B, C), without gradient.
            target: the labels, (B,) int64.
            weight: how often each sample counts, (B,), where `weighting` asked for it; else None.
        """
        raise NotImplementedError

    def step(self, training: Training, batch: Batch) -> StepOutput:
        """The loss of a batch."""
        teacher = training.teacher_logits(batch)
        logits = training.student(batch.inputs)
        loss, terms = self.loss(logits, teacher, batch.target, batch.weight)
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()}, logits.detach())


REGISTERED: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register(method: M) -> M:
    """Makes a method one of those that `cid distill --methods` takes; a decorator.

    Raises:
        TypeError: another one has its name.
    """
    other = REGISTERED.setdefault(method.name, method)
    if other is not method:
        raise TypeError(f"{method.__module__}: method {method.name!r} is in {other.__module__}, too")
    return method
