"""The maps that two networks make of an image on the way, in pairs: what hints and attention are of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from cid._errors import ConfigError
from cid.capture import capture
from cid.capture.calls import run
from cid.train.methods._base import Ingredients
from cid.train.methods._losses import full
from cid.train.models import InputSpec


class Maps(nn.Module):
    """Layers of the student and of the teacher, each of one with each of the other, and the channels of their maps.

    Where no layers are named they are the last of each size of map, of those that are nested least: the stages of a
    convolutional network. Of two networks with different numbers of these, the last are compared.

    Args:
        given: both networks.
        student_layers: names, or none.
        teacher_layers: as many, or none.

    Raises:
        ConfigError: there is no teacher, a layer is unknown or yields no maps, or the numbers differ.
    """

    def __init__(self, given: Ingredients, student_layers: Sequence[str], teacher_layers: Sequence[str]) -> None:
        super().__init__()
        if given.teacher is None:
            raise ConfigError("--teacher-cache: got one, accepted: none, as this method compares maps within networks")
        ours = _channels(given.student, given.spec, student_layers, "--student-layers")
        theirs = _channels(given.teacher, given.spec, teacher_layers, "--teacher-layers")
        if student_layers and teacher_layers and len(ours) != len(theirs):
            raise ConfigError(
                f"--teacher-layers: got {len(theirs)}, accepted: as many as --student-layers, {len(ours)}"
            )
        pairs = min(len(ours), len(theirs))
        self.student_layers, self.teacher_layers = ([*each][-pairs:] for each in (ours, theirs))
        self.channels = [*zip([*ours.values()][-pairs:], [*theirs.values()][-pairs:], strict=True)]

    def forward(self, student: nn.Module, teacher: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor, list[Pair]]:
        """Both networks' logits, and all pairs, of which the larger map is averaged to the size of the smaller."""
        with torch.no_grad():
            teacher_logits, theirs = capture(teacher, inputs, self.teacher_layers)
        logits, ours = capture(student, inputs, self.student_layers)
        maps = zip(ours.values(), theirs.values(), strict=True)
        return logits, teacher_logits, [_of_one_size(mine.output, given.output) for mine, given in maps]


class Pair(NamedTuple):
    """Maps of one size, (B, channels, H, W), in float32 at least, the teacher's without gradient."""

    student: Tensor
    teacher: Tensor


def _of_one_size(ours: Tensor, theirs: Tensor) -> Pair:
    height, width = map(min, ours.shape[2:], theirs.shape[2:])
    return Pair(*(adaptive_avg_pool2d(full(each), (height, width)) for each in (ours, theirs)))


def _channels(model: nn.Module, spec: InputSpec, names: Sequence[str], argument: str) -> dict[str, int]:
    """The channels of the maps that layers yield, by name: of those named, else of the last of each size of map."""
    shapes = map_shapes(model, spec)
    for name in names:
        if name not in shapes:
            raise ConfigError(f"{argument}: got {name!r}, accepted: layers that yield maps: {', '.join(shapes)}")
    if not names:
        # What is nested less, and of that the later, takes the place of the others of its size.
        order = sorted(shapes, key=lambda name: -name.count("."))
        last = {shapes[name][2:]: name for name in order}.values()
        names = [name for name in shapes if name in last]
    if not names:
        raise ConfigError(f"{argument}: found no layer that yields maps of shape (B, channels, H, W)")
    return {name: shapes[name][1] for name in names}


@torch.no_grad()
def map_shapes(model: nn.Module, spec: InputSpec) -> dict[str, torch.Size]:
    """The shape of what each layer yields, where that is maps of more than one pixel, in the order of their ends."""
    names, modules = zip(*model.named_modules(), strict=True)
    place, parameter = count(), next(model.parameters(), torch.zeros(()))
    image = torch.zeros(1, spec.channels, *spec.size, device=parameter.device, dtype=parameter.dtype)
    training = [module for module in modules if module.training]

    def keep(_: Any, output: Any) -> tuple[int, torch.Size] | None:
        is_map = isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1
        return (next(place), output.shape) if is_map else None

    model.eval()
    try:
        calls = dict(zip(names, run(model, image, modules, keep)[1], strict=True))
    finally:
        for module in training:
            module.training = True
    found = {name: call for name, call in calls.items() if call is not None}
    return {name: found[name][1] for name in sorted(found, key=lambda name: found[name][0])}
