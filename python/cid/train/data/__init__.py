"""Data sets in memory, or read as they are needed, and batches of them, augmented on the device.

A new data set is a file here, whose reader makes `RawData` of the configuration, a line of `READERS`, and a preset in
`cid.train.presets`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cid._errors import ConfigError
from cid.train.data.batches import Batch, Batches
from cid.train.data.cifar import read_cifar10, read_cifar100, read_corrupted_cifar10
from cid.train.data.dataset import Dataset, RawData
from cid.train.data.digits import read_coloured_digits, read_digits
from cid.train.data.folder import read_folder
from cid.train.data.hugging_face import read_hugging_face
from cid.train.data.images import Normalize, Preprocessing, Split
from cid.train.data.mixing import Mixing
from cid.train.data.mnist import read_colored_mnist, read_mnist
from cid.train.data.noise import with_wrong_labels
from cid.train.data.seeds import mix_seed
from cid.train.data.shards import read_shards
from cid.train.data.stored.opening import viewed
from cid.train.data.stored.views import Views
from cid.train.sections import DataConfig

__all__ = [
    "PREFIXES",
    "READERS",
    "Batch",
    "Batches",
    "Dataset",
    "Mixing",
    "Normalize",
    "Preprocessing",
    "Split",
    "load_dataset",
    "mix_seed",
]

READERS: dict[str, Callable[[DataConfig], RawData]] = {
    "digits": read_digits,
    "coloured-digits": read_coloured_digits,
    "mnist": read_mnist,
    "colored-mnist": read_colored_mnist,
    "cifar10": read_cifar10,
    "corrupted-cifar10": read_corrupted_cifar10,
    "cifar100": read_cifar100,
}
# Of folders that hold a data set, by what their path is prefixed with.
FOLDERS: dict[str, Callable[[DataConfig], RawData]] = {
    "wds:": read_shards,
    "hf:": read_hugging_face,
    "": read_folder,
}
PREFIXES = tuple(prefix for prefix in FOLDERS if prefix)
# Those with a bias of known strength.
BIASED = ("coloured-digits", "colored-mnist", "corrupted-cifar10")
HELD_OUT = 0.1


def load_dataset(config: DataConfig) -> Dataset:
    """Reads a data set and splits it.

    Raises:
        ConfigError: no such data set or class, a bias where there is none to set, or limits that leave nothing.
        DataError: files are missing or damaged.
    """
    if Views.of(config).random:
        import torchvision  # noqa: F401  # where it is missing, that is to be said before workers start
    reader = _reader(config.name)
    if (config.rho is not None) != (config.name in BIASED):
        accepted = "a number from 0 to 1" if config.name in BIASED else f"none, but for {', '.join(BIASED)}"
        raise ConfigError(f"--rho: got {config.rho}, accepted: {accepted}")
    raw = reader(config)
    if config.classes:
        raw = raw.of_classes(config.classes)
    raw, wrong = _with_noise(raw, config)
    generator = torch.Generator().manual_seed(mix_seed(config.split_seed))
    order = torch.randperm(len(raw.train), generator=generator)[: config.limit]
    held_out = _held_out(raw, config, len(order))
    test_order = torch.randperm(len(raw.test), generator=generator)[: config.limit_test]
    # Sorted: nothing depends on this order, and memory is read forwards.
    trained_on, chosen_by = order[held_out:].sort().values, order[:held_out].sort().values
    train = raw.train.take(trained_on)
    validation = raw.train.take(chosen_by) if raw.validation is None else raw.validation
    test = raw.test.take(test_order.sort().values)
    scored = {"validation": raw.scored(validation, generator), "test": raw.scored(test, generator)}
    tests = {}
    for name, split in raw.tests.items():
        chosen = torch.randperm(len(split), generator=generator)[: config.limit_test]
        tests[name] = split.take(chosen.sort().values)
    names = {"train": "train", "validation": "train", "test": "test", **raw.names}
    splits = {"train": train, "validation": validation, "test": test}
    summary: dict[str, Any] = {
        **{split: {"images": len(part), "from": names[split]} for split, part in splits.items()},
        "classes": list(raw.classes),
        "unreadable": {"count": len(raw.unreadable), "images": dict(raw.unreadable)},
    }
    if tests:
        summary["tests"] = {
            name: {"images": len(split), "from": names.get(name, names["test"])} for name, split in tests.items()
        }
    if config.label_noise:
        of_validation = wrong["train"][chosen_by] if raw.validation is None else wrong["validation"]
        summary["wrong_labels"] = {
            "train": int(wrong["train"][trained_on].sum()),
            "validation": int(of_validation.sum()),
        }
    data = Dataset(
        train=train,
        validation=scored["validation"],
        test=scored["test"],
        classes=raw.classes,
        preprocessing=raw.preprocessing,
        summary=summary,
        tests={name: raw.scored(split, generator) for name, split in tests.items()},
        groups=raw.groups,
    )
    if not data.train.in_memory:
        summary["read"] = "as needed"
    elif Views.of(config).random:
        return viewed(data, config)
    return data


def _reader(name: str) -> Callable[[DataConfig], RawData]:
    """What reads the data set of a name."""
    if name in READERS:
        return READERS[name]
    kind = next((prefix for prefix in FOLDERS if name.startswith(prefix)), "")
    if not Path(name.removeprefix(kind)).is_dir():
        accepted = ", ".join((*READERS, *(f"{prefix}FOLDER" for prefix in PREFIXES)))
        raise ConfigError(f"--data: got {name!r}, accepted: {accepted} or a folder of images")
    return FOLDERS[kind]


def _with_noise(raw: RawData, config: DataConfig) -> tuple[RawData, dict[str, Tensor]]:
    """The data set with the label noise that is asked for, and which labels of each part are wrong by it.

    What chooses the epoch is as wrong as what is trained on, as in life; what is tested on is right.
    """
    if not config.label_noise:
        return raw, {}
    wrong: dict[str, Tensor] = {}

    def noisy(name: str, split: Split) -> Split:
        # Of three parts, so that it comes from other numbers than a bias.
        seed = (config.data_seed, len(wrong), 1)
        found = with_wrong_labels(split, config.label_noise, len(raw.classes), seed)
        wrong[name] = found.labels != split.labels
        return found

    train = noisy("train", raw.train)
    validation = None if raw.validation is None else noisy("validation", raw.validation)
    return replace(raw, train=train, validation=validation), wrong


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
