"""A saved student as a module that predicts."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from cid.train.data import Normalize
from cid.train.networks import read_network


def load_student(path: str | Path) -> nn.Module:
    """A trained student, ready to predict: one in a run folder's `METHOD-seedN`, or what `cid export` wrote of it.

    The module, in eval mode on the CPU, maps images (B, channels, height, width), float with values in 0..1 (bytes
    divided by `preprocessing.scale` of the JSON: 255, or 16 for the digits), to the logits that the student predicts
    with: the interventional ones where CID trained it. It normalises by itself, as in training.

    Args:
        path: a `student.safetensors`, the folder that has one, or a file of `cid export --to safetensors`.

    Raises:
        CheckpointError: the file or the JSON beside it is missing, damaged, or does not fit.
        ConfigError: the network's name is unknown, or timm is missing.

    Example:
        >>> from cid.train import load_student
        >>> student = load_student("runs/demo/cid-seed0")  # doctest: +SKIP
        >>> student(images).softmax(1)  # doctest: +SKIP
    """
    path = Path(path)
    description, network = read_network(path / "student.safetensors" if path.is_dir() else path)
    return nn.Sequential(Normalize(description.preprocessing), network).eval()
