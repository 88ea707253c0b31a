"""A saved student as a module that predicts, and what it says of image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cid._errors import DataError
from cid.train.data import Normalize
from cid.train.data.decoding import image_files, read_image
from cid.train.networks import Description, read_network


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
    return _load(Path(path))[1]


def _load(path: Path) -> tuple[Description, nn.Module]:
    description, network = read_network(path / "student.safetensors" if path.is_dir() else path)
    return description, nn.Sequential(Normalize(description.preprocessing), network).eval()


@dataclass(frozen=True)
class Prediction:
    """What a student says of an image.

    Attributes:
        path: of the image.
        classes: names and probabilities, the most likely first.
        error: why the image can't be read; empty where it can. Then there are no classes.
    """

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    error: str = ""


BATCH = 64


def predict_images(student: Path, images: Sequence[Path], top: int) -> Iterator[Prediction]:
    """The most likely classes of image files, in their order; those of a folder by name, at any depth.

    An image is brought to the size and the channels that the student was trained for; it is not cropped.

    Args:
        student: as `load_student` takes it.
        images: files and folders.
        top: how many classes, or all there are.

    Raises:
        CheckpointError: the student's file is missing, damaged, or does not fit.
        DataError: there is no such file or folder, or no image in a folder.
    """
    description, network = _load(student)
    files = [file for path in images for file in _files(path)]
    for some in (files[start : start + BATCH] for start in range(0, len(files), BATCH)):
        found: dict[Path, torch.Tensor] = {}
        errors: dict[Path, str] = {}
        for path in some:
            try:
                pixels = read_image(path, description.size, description.channels)
                found[path] = torch.from_numpy(pixels.astype(np.float32)) / 255
            except ValueError as error:
                errors[path] = str(error)
        said = {}
        if found:
            with torch.inference_mode():
                likely = network(torch.stack([*found.values()])).softmax(1).topk(min(top, len(description.classes)))
            said = dict(zip(found, zip(likely.values.tolist(), likely.indices.tolist(), strict=True), strict=True))
        for path in some:
            if path in errors:
                yield Prediction(path, error=errors[path])
            else:
                values, places = said[path]
                names = (description.classes[place] for place in places)
                yield Prediction(path, tuple(zip(names, values, strict=True)))


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise DataError(f"{path}: is not there, accepted: an image file, or a folder of such")
    files = [*image_files(path)] if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: has no images")
    return files
