"""The parts of a data set in memory where they fit, and else as images to be read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cid._errors import ConfigError, DataError
from cid.train.data.dataset import Dataset
from cid.train.data.images import Split
from cid.train.data.stored.images import Storage
from cid.train.data.stored.readers import default_workers
from cid.train.data.stored.source import InMemory, Source
from cid.train.data.stored.views import Views
from cid.train.sections import DataConfig

NAMED = 10  # of unreadable images in a message


@dataclass(frozen=True)
class Part:
    """Images, their labels, and their groups if these are known."""

    source: Source
    labels: Tensor
    groups: Tensor | None = None


@dataclass(frozen=True)
class Opened:
    """The parts of a data set as splits.

    Attributes:
        splits: by the name of the part.
        unreadable: images that were left out, and why.
    """

    splits: dict[str, Split]
    unreadable: dict[str, str]


def open_parts(parts: Mapping[str, Part], config: DataConfig) -> Opened:
    """Reads what fits into `--memory` and shows the same at every look; the rest is read as it is needed.

    Args:
        parts: the training part first.
        config: how images become pixels.

    Raises:
        DataError: an image can't be read, or has another size than the first one.
    """
    views, count = Views.of(config), sum(len(part.source) for part in parts.values())
    first = _first(next(iter(parts.values())).source, views)
    if first is None or not (views.random or count * math.prod(first[1]) > config.memory * 2**30):
        return _read(parts, config, views, first or ("", (3, 1, 1)))
    storage = _storage([part.source for part in parts.values()], views, first[1], config)
    return Opened(
        {
            name: Split(storage.images(number), part.labels, part.groups)
            for number, (name, part) in enumerate(parts.items())
        },
        {},
    )


def viewed(data: Dataset, config: DataConfig) -> Dataset:
    """A data set in memory, looked at by worker processes.

    Raises:
        ConfigError: RandAugment is not made for these images.
    """
    if config.randaugment and data.preprocessing.scale != 255:
        raise ConfigError(
            f"--randaugment: got images with values up to {data.preprocessing.scale:.0f}, accepted: such up to 255"
        )
    views = Views(config.resize if config.crop else None, config.crop, config.randaugment)
    splits = {"train": data.train, "validation": data.validation, **data.every_test}
    sources: list[Source] = [InMemory(split.images) for split in splits.values()]
    size = data.size if config.crop is None else (config.crop, config.crop)
    storage = _storage(sources, views, (data.channels, *size), config)
    stored = {name: replace(split, kept=storage.images(number)) for number, (name, split) in enumerate(splits.items())}
    return replace(
        data,
        train=stored["train"],
        validation=stored["validation"],
        test=stored["test"],
        tests={name: stored[name] for name in data.tests},
    )


def _storage(sources: list[Source], views: Views, shape: tuple[int, int, int], config: DataConfig) -> Storage:
    workers = default_workers() if config.workers is None else config.workers
    return Storage.open(sources, views, shape, workers=workers, replaces=config.skip_unreadable)


def _first(source: Source, views: Views) -> tuple[str, tuple[int, int, int]] | None:
    """The name of the first image that can be read, and the shape of its pixels."""
    for index in range(len(source)):
        try:
            shape = views.score(source[index]).shape
        except ValueError:
            continue
        return source.name(index), (shape[0], shape[1], shape[2])
    return None


def _read(
    parts: Mapping[str, Part], config: DataConfig, views: Views, first: tuple[str, tuple[int, int, int]]
) -> Opened:
    """Everything into memory, but for what can't be read."""
    found: dict[str, Split] = {}
    unreadable: dict[str, str] = {}
    name_of_first, shape = first
    for name, part in parts.items():
        images = np.empty((len(part.source), *shape), np.uint8)
        kept: list[int] = []
        for index in range(len(part.source)):
            try:
                pixels = views.score(part.source[index])
            except ValueError as error:
                unreadable[part.source.name(index)] = str(error)
                continue
            if pixels.shape != shape:
                raise DataError(
                    f"--data: {part.source.name(index)}: is {pixels.shape[1:]}, {name_of_first} is {shape[1:]}: "
                    "give --resize"
                )
            images[len(kept)] = pixels
            kept.append(index)
        here = torch.tensor(kept, dtype=torch.int64)
        groups = None if part.groups is None else part.groups[here]
        found[name] = Split(torch.from_numpy(images[: len(kept)]), part.labels[here], groups)
    if unreadable and not config.skip_unreadable:
        names, count = list(unreadable), len(unreadable)
        rest = f" and {count - NAMED} more" if count > NAMED else ""
        raise DataError(
            f"--data: {config.name} has {count} image{'s' * (count > 1)} that cannot be read: "
            f"{', '.join(names[:NAMED])}{rest} ({unreadable[names[0]]}); "
            "mend or remove them, or leave them out by --skip-unreadable"
        )
    return Opened(found, unreadable)
