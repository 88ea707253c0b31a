"""The teacher's side of distillation: its features and logits of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import cid._checks as check
from cid.capture import Classifier


@torch.no_grad()
def ask_teacher(classifier: Classifier, teacher: nn.Module, x: Any) -> tuple[Tensor, Tensor]:
    """The teacher's features and logits, in eval mode."""
    # Also where somebody called train() on the teacher, or on a part of it, behind our back.
    if any(module.training for module in teacher.modules()):
        teacher.eval()
    return classifier.read(teacher, _in_type_of(teacher, x))


def _in_type_of(model: nn.Module, x: Any) -> Any:
    """A batch in the type of a model's parameters, if none of them has its own: a teacher may be kept in another."""
    if isinstance(x, Mapping):
        return {name: _in_type_of(model, value) for name, value in x.items()}
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        return x
    first = None
    for parameter in model.parameters():
        if parameter.dtype == x.dtype:
            return x
        if first is None and parameter.dtype in check.FLOATS:
            first = parameter.dtype
    return x if first is None else x.to(first)


def teacher_outputs(
    teacher: nn.Module, x: Any, *, num_classes: int, teacher_layer: str | Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """What a `Distiller` reads off a teacher: the features (B, Dt) and the logits (B, C) of a batch.

    The teacher runs, and stays, in eval mode, without gradients. See `cid.cache` for keeping what this yields.

    Args:
        teacher: A classifier.
        x: The batch that it takes.
        num_classes: C.
        teacher_layer: Name of its classifying layer, where it is not the last fitting one, or a tuple of names; see
            `Distiller`.

    Raises:
        ValueError: The teacher has no fitting layer, or not one that reads rows; the message lists what was found.

    Example:
        >>> teacher = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
        >>> [value.shape for value in teacher_outputs(teacher, torch.randn(8, 20), num_classes=5)]
        [torch.Size([8, 64]), torch.Size([8, 5])]
    """
    return ask_teacher(Classifier(teacher, num_classes, teacher_layer, role="teacher"), teacher, x)
