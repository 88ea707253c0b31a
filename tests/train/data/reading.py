"""What the tests of several readers share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cid._errors import DataError
from cid.train.data import load_dataset
from cid.train.sections import DataConfig

# Writes the files of a data set into a folder; returns its training images and their labels.
Write = Callable[[Path], tuple[np.ndarray, np.ndarray]]
Damage = Callable[[Path], None]


def config(name: str, folder: Path | None = None, **options: Any) -> DataConfig:
    return DataConfig(name=name, dir=str(folder) if folder else None, validation=0.2, **options)


def _pairs(images: Any, labels: Any) -> list[tuple[int, bytes]]:
    """Label and pixels of each image, in a canonical order."""
    return sorted((int(label), np.asarray(image).tobytes()) for image, label in zip(images, labels, strict=True))


def check_images(base: Path, name: str, write: Write, shape: tuple[int, ...]) -> None:
    """Each image that is written is read with its label, in training or validation."""
    images, labels = write(base)
    dataset = load_dataset(config(name, base))
    own = (dataset.train, dataset.validation)
    read = _pairs(torch.cat([split.images for split in own]), torch.cat([split.labels for split in own]))
    assert read == _pairs(images, labels)
    assert dataset.train.images.shape[1:] == shape
    assert dataset.test.images.dtype == torch.uint8
    assert dataset.test.labels.dtype == torch.int64
    assert len(dataset.validation) == round(0.2 * len(labels))


def damage_size(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_start(path: Path) -> None:
    path.write_bytes(b"\x01\x02\x03\x04" + path.read_bytes()[4:])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def check_damage(base: Path, name: str, write: Write, file: str, damage: Damage, message: str) -> None:
    """The error about a damaged file names it."""
    write(base)
    damage(base / file)
    with pytest.raises(DataError, match=message) as error:
        load_dataset(config(name, base))
    assert Path(file).name.removesuffix(".gz") in str(error.value)
