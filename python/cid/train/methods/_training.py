"""The ways to train a student. A method is a loss object, nothing more: the loop knows none of them by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cid import Distiller
from cid.functional import kd_loss
from cid.losses import ignored_by_ddp
from cid.train.config import MethodConfig


class StepOutput(NamedTuple):
    """What a step yields: the loss, its terms (detached) by name, and the logits, if the method has them by now."""

    loss: Tensor
    terms: dict[str, Tensor]
    logits: Tensor | None


TeacherOutputs = tuple[Tensor, Tensor]  # features and logits


class Method(nn.Module):
    """A network in training together with its loss."""

    teacher_prefix = "teacher."

    def forward(self, x: Tensor, target: Tensor, teacher: TeacherOutputs | None = None) -> StepOutput:
        """The loss of a batch; with the teacher's outputs for it, where it is not to be run."""
        raise NotImplementedError

    def predict(self, x: Tensor) -> Tensor:
        """Logits to score the current epoch with."""
        raise NotImplementedError

    def predictor(self) -> nn.Module:
        """The module to use after training."""
        raise NotImplementedError

    @property
    def scorable(self) -> bool:
        """Whether the weights of the current epoch may be kept as the best."""
        return True

    def epoch_end(self) -> None:
        """Goes to the next epoch; called after the epoch was scored."""

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """What an optimizer trains."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "weight_decay": weight_decay}]

    def trained_state(self) -> dict[str, Tensor]:
        """All state but the teacher's: it is fixed, and saved once for the whole run."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith(self.teacher_prefix)}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `trained_state` gave.

        Raises:
            RuntimeError: a tensor is missing, unknown or of another shape.
        """
        teacher = {key: value for key, value in self.state_dict().items() if key.startswith(self.teacher_prefix)}
        self.load_state_dict({**teacher, **state})


class _PlainStudent(Method):
    """A method that predicts with the student alone.

    Args:
        student: the network to train; maps a batch to logits.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def predict(self, x: Tensor) -> Tensor:
        """The student's logits."""
        logits: Tensor = self.student(x)
        return logits

    def predictor(self) -> nn.Module:
        """The student."""
        return self.student


class Labels(_PlainStudent):
    """Cross-entropy with the labels alone; teachers are trained so too."""

    def forward(self, x: Tensor, target: Tensor, teacher: TeacherOutputs | None = None) -> StepOutput:
        """The loss of a batch."""
        logits = self.student(x)
        loss = nn.functional.cross_entropy(logits, target)
        return StepOutput(loss, {"ce": loss.detach()}, logits.detach())


class KD(_PlainStudent):
    """Plain distillation (Hinton et al. 2015): `alpha * (ce + kd)`, which is CID's loss without what is new in CID.

    Args:
        student: the network to train.
        teacher: a trained one; its parameters stop requiring gradients. None where each batch has its outputs.
        alpha: weight of the sum.
        temperature: softens both logits.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None, *, alpha: float, temperature: float) -> None:
        super().__init__(student)
        self.teacher = None if teacher is None else teacher.requires_grad_(False).eval()
        self.alpha = alpha
        self.temperature = temperature

    def train(self, mode: bool = True) -> KD:
        """Sets the mode of the student; the teacher stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, x: Tensor, target: Tensor, teacher: TeacherOutputs | None = None) -> StepOutput:
        """The loss of a batch."""
        teacher_logits = self._teacher_logits(x) if teacher is None else teacher[1]
        logits = self.student(x)
        ce = nn.functional.cross_entropy(logits, target)
        kd = kd_loss(logits, teacher_logits, temperature=self.temperature)
        return StepOutput(self.alpha * (ce + kd), {"ce": ce.detach(), "kd": kd.detach()}, logits.detach())

    @torch.no_grad()
    def _teacher_logits(self, x: Tensor) -> Tensor:
        if self.teacher is None:
            raise ValueError("teacher: not given, accepted: (features, logits), as the method has no teacher")
        logits: Tensor = self.teacher(x)
        return logits


class CID(Method):
    """Comprehensive, interventional distillation: `cid.Distiller`.

    In the warm-up the head is untrained: the student's own logits are scored then, and no epoch is kept.

    Args:
        distiller: the two networks and their loss.
    """

    teacher_prefix = "distiller.teacher_model."
    # DistributedDataParallel asks the module that it wraps.
    _ddp_params_and_buffers_to_ignore = ignored_by_ddp("distiller", Distiller._ddp_params_and_buffers_to_ignore)

    def __init__(self, distiller: Distiller) -> None:
        super().__init__()
        self.distiller = distiller

    def forward(self, x: Tensor, target: Tensor, teacher: TeacherOutputs | None = None) -> StepOutput:
        """The loss of a batch."""
        loss, ce, kd, sample, class_, logits = self.distiller(x, target, teacher)
        terms = {"kd": kd, "sample": sample, "class": class_}
        # The warm-up has no cross-entropy; a curve of zeros would show one that is perfect.
        return StepOutput(loss, terms if logits is None else {"ce": ce, **terms}, logits)

    def predict(self, x: Tensor) -> Tensor:
        """The interventional logits, after the warm-up."""
        return self.distiller.predict(x)

    @property
    def scorable(self) -> bool:
        """False in the warm-up."""
        return not self.distiller.warming_up

    def epoch_end(self) -> None:
        """Turns the bank of contexts."""
        self.distiller.epoch_end()

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The student and the head, and the adapter without decay."""
        return self.distiller.param_groups(weight_decay)

    def predictor(self) -> nn.Module:
        """The student with its head and contexts."""
        return self.distiller.student(fold=False)


@dataclass(frozen=True)
class Ingredients:
    """What a method is made of; in place of the teacher the size of its features, where its outputs are cached."""

    student: nn.Module
    teacher: nn.Module | None
    classes: int
    config: MethodConfig
    teacher_dim: int | None = None


def _make_cid(given: Ingredients) -> Method:
    config = given.config
    if config.beta is None or config.gamma is None or config.warmup_epochs is None:
        raise ValueError("config: not resolved")
    return CID(
        Distiller(
            given.student,
            given.teacher,
            num_classes=given.classes,
            teacher_dim=given.teacher_dim,
            alpha=config.alpha,
            beta=config.beta,
            gamma=config.gamma,
            temperature=config.temperature,
            warmup_epochs=config.warmup_epochs,
            context_momentum=config.context_momentum,
        )
    )


METHODS: dict[str, Callable[[Ingredients], Method]] = {
    "labels": lambda given: Labels(given.student),
    "kd": lambda given: KD(
        given.student, given.teacher, alpha=given.config.alpha, temperature=given.config.temperature
    ),
    "cid": _make_cid,
}
