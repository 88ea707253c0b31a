"""A data set as it is published, and as a run uses it: in three splits and, sometimes, further tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from cid._errors import ConfigError, DataError
from cid.train.data.images import Preprocessing, Split

T = TypeVar("T")
MOST_CLASSES = 2**20  # beyond what anyone tells apart: such labels are none


def by_part(found: Mapping[str, T], has_no: str, expected: str) -> dict[str, T]:
    """The parts of a data set by what they are for: without a test part, that for validation is it.

    Args:
        found: what there is of "train", "test" and "validation".
        has_no: how the message begins where something is missing.
        expected: what should be there.

    Raises:
        DataError: there is nothing to train on, or nothing to test on.
    """
    test = found.get("test", found.get("validation"))
    if "train" not in found or test is None:
        raise DataError(f"{has_no} {'to test on' if 'train' in found else 'to train on'}, expected {expected}")
    validation = {"validation": found["validation"]} if {"test", "validation"} <= found.keys() else {}
    return {"train": found["train"], "test": test, **validation}


def numbered(labels: Sequence[Tensor], where: str) -> tuple[str, ...]:
    """Classes that are called by their numbers, up to the highest label.

    Raises:
        DataError: a label is absurdly high.
    """
    highest = max(int(each.max()) if len(each) else 0 for each in labels)
    if highest >= MOST_CLASSES:
        raise DataError(f"--data: {where}: has the label {highest}, expected numbers below {MOST_CLASSES:,}")
    return tuple(map(str, range(1 + highest)))


def check_classes(classes: Sequence[str], labels: Tensor, where: str) -> None:
    """Checks that there are classes to tell apart, and images to learn each from.

    Raises:
        DataError: there are fewer than two, or one has no training image.
    """
    if len(classes) < 2:
        raise DataError(f"--data: {where} has {len(classes)} classes, expected 2 or more")
    count = torch.bincount(labels, minlength=len(classes))[: len(classes)].tolist()
    if empty := [name for name, images in zip(classes, count, strict=True) if not images]:
        more = f" and {len(empty) - 8} more" if len(empty) > 8 else ""
        raise DataError(f"--data: {where} has no images to train on of {', '.join(empty[:8])}{more}")


def as_published(split: Split, _: torch.Generator) -> Split:
    """The split itself."""
    return split


@dataclass(frozen=True)
class RawData:
    """A data set as published: a training and a test part, and sometimes one to choose the epoch by.

    Attributes:
        train: to train on and, if there is no validation part, to choose the epoch by.
        test: to score.
        classes: by label.
        preprocessing: of every image.
        scored: what is scored of a validation or test split, drawn from the generator; unless a data set says
            otherwise, the split itself.
        validation: to choose the epoch by.
        names: what the data set calls the parts, where that is not our name.
        unreadable: images that were left out, and why.
        tests: further test parts, by name.
        groups: what the groups of the splits that have them are called, by their number.

    Raises:
        DataError: a part has no images, or a label that no class has.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    scored: Callable[[Split, torch.Generator], Split] = as_published
    validation: Split | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    tests: Mapping[str, Split] = field(default_factory=dict)
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        chosen_by = {} if self.validation is None else {"validation": self.validation}
        for name, split in {"training": self.train, **chosen_by, "test": self.test, **self.tests}.items():
            if not len(split):
                raise DataError(f"the {name} part has no images")
            highest = int(split.labels.max())
            if highest >= len(self.classes):
                raise DataError(f"the {name} part has the label {highest}, but there are {len(self.classes)} classes")

    def of_classes(self, names: Sequence[str]) -> RawData:
        """The images of some classes alone, whose labels are their places among these, in the order of the data set.

        Raises:
            ConfigError: fewer than two are named, one twice, or one that the data does not have.
            DataError: a part has no image of them.
        """
        if len(set(names)) != len(names) or len(names) < 2 or not set(names) <= set(self.classes):
            raise ConfigError(
                f"--classes: got {' '.join(names)}, accepted: two or more, each once, of {', '.join(self.classes)}"
            )
        chosen = [label for label, name in enumerate(self.classes) if name in names]
        place = torch.full((len(self.classes),), -1)
        place[chosen] = torch.arange(len(chosen))

        def of(split: Split) -> Split:
            kept = split.take((place[split.labels] >= 0).nonzero()[:, 0])
            return replace(kept, labels=place[kept.labels])

        return replace(
            self,
            train=of(self.train),
            test=of(self.test),
            classes=tuple(self.classes[label] for label in chosen),
            validation=None if self.validation is None else of(self.validation),
            tests={name: of(split) for name, split in self.tests.items()},
        )


@dataclass(frozen=True)
class Dataset:
    """The three splits, what the classes are called, and how to feed a network.

    Attributes:
        train: to train on.
        validation: to choose the epoch by.
        test: to score, once.
        classes: by label.
        preprocessing: of every image.
        summary: for the run's folder: how many images each split has, of which part of the data, the classes, and the
            images that could not be read; where there are, further tests and labels that were drawn at random.
        tests: further splits to score, once each, by name.
        groups: what the groups of the splits that have them are called, by their number.
    """

    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    summary: dict[str, Any]
    tests: Mapping[str, Split] = field(default_factory=dict)
    groups: tuple[str, ...] = ()

    @property
    def every_test(self) -> dict[str, Split]:
        """All splits to score, by name: "test" and the further ones."""
        return {"test": self.test, **self.tests}

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.train.shape[1:]

    def to(self, device: torch.device) -> Dataset:
        """The data set on a device."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
            tests={name: split.to(device) for name, split in self.tests.items()},
        )
