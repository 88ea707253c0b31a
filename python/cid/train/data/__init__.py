"""Data sets as tensors in memory, and batches of them, augmented on the device.

A new data set is a file here, whose reader makes `RawData` of the configuration, a line of `READERS`, and a preset in
`cid.train.presets`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from cid._errors import ConfigError
from cid.train.data.batches import Batch, Batches
from cid.train.data.cifar import read_cifar10, read_cifar100
from cid.train.data.dataset import Dataset, RawData
from cid.train.data.digits import read_digits
from cid.train.data.folder import read_folder
from cid.train.data.images import Normalize, Preprocessing, Split
from cid.train.data.mnist import read_mnist
from cid.train.data.seeds import mix_seed
from cid.train.sections import DataConfig

__all__ = [
    "READERS",
    "Batch",
    "Batches",
    "Dataset",
    "Normalize",
    "Preprocessing",
    "Split",
    "load_dataset",
    "mix_seed",
]

READERS: dict[str, Callable[[DataConfig], RawData]] = {
    "digits": read_digits,
    "mnist": read_mnist,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
}
HELD_OUT = 0.1


def load_dataset(config: DataConfig) -> Dataset:
    """Reads a data set and splits it.

    Raises:
        ConfigError: no such data set, or limits that leave nothing.
        DataError: files are missing or damaged.
    """
    reader = READERS.get(config.name)
    if reader is None:
        if not Path(config.name).is_dir():
            raise ConfigError(f"--data: got {config.name!r}, accepted: {', '.join(READERS)} or a folder of images")
        reader = read_folder
    raw = reader(config)
    generator = torch.Generator().manual_seed(mix_seed(config.split_seed))
    order = torch.randperm(len(raw.train), generator=generator)[: config.limit]
    held_out = _held_out(raw, config, len(order))
    test_order = torch.randperm(len(raw.test), generator=generator)[: config.limit_test]
    # Sorted: nothing depends on this order, and memory is read forwards.
    train = raw.train.take(order[held_out:].sort().values)
    validation = raw.train.take(order[:held_out].sort().values) if raw.validation is None else raw.validation
    test = raw.test.take(test_order.sort().values)
    names = {"train": "train", "validation": "train", "test": "test", **raw.names}
    splits = {"train": train, "validation": validation, "test": test}
    return Dataset(
        train=train,
        validation=raw.scored(validation, generator),
        test=raw.scored(test, generator),
        classes=raw.classes,
        preprocessing=raw.preprocessing,
        summary={
            **{split: {"images": len(part), "from": names[split]} for split, part in splits.items()},
            "classes": list(raw.classes),
            "unreadable": {"count": len(raw.unreadable), "images": dict(raw.unreadable)},
        },
    )


def _held_out(raw: RawData, config: DataConfig, count: int) -> int:
    """How many of so many training images choose the epoch."""
    if raw.validation is not None:
        if config.validation is not None:
            raise ConfigError(
                f"--validation: got {config.validation}, accepted: none, as {raw.names['validation']}/ is for that"
            )
        return 0
    part = HELD_OUT if config.validation is None else config.validation
    held_out = round(part * count)
    if not 0 < held_out < count - 1:
        raise ConfigError(
            f"--validation: got {part}, accepted: a part that leaves images to train with and to validate with, of "
            f"{count} here"
        )
    return held_out
