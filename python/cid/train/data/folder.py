"""Images in folders, one for each class."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cid._errors import DataError
from cid.train.data.dataset import RawData
from cid.train.data.decoding import IMAGE_SUFFIXES, decode, hidden, image_files
from cid.train.data.images import PHOTOGRAPHS
from cid.train.data.stored.opening import Part, open_parts
from cid.train.data.stored.source import Names, digest_of
from cid.train.sections import DataConfig

if TYPE_CHECKING:
    from PIL.Image import Image

VALIDATION_FOLDERS = ("val", "valid", "validation")
GROUP_PREFIX = "test-"  # of the folder of a group's test images


def read_folder(config: DataConfig) -> RawData:
    """Images in `train/CLASS/`, in `test/CLASS/` or `val/CLASS/`, or in all three, at any depth.

    The classes are the folders of `train`, in order of name. With `test/`, `val/` chooses the epoch; without, it is the
    test data, and a part of `train/` chooses: no image does both.

    `test-GROUP/CLASS/` holds test images of one group (of a context, say), of which accuracy is told by itself. Without
    `test/` these are the test data; beside it they are a further test, `groups`.
    """
    base = Path(config.name)
    groups = [name for name in _folders(base) if name.startswith(GROUP_PREFIX)]
    parts = _parts(base, groups)
    classes = tuple(_folders(base / "train"))
    if len(classes) < 2:
        raise DataError(f"--data: {base / 'train'} has {len(classes)} folders, expected one for each class, 2 or more")
    folders = {part: [name] for part, name in parts.items()}
    if groups:
        part = "groups" if "test" in parts else "test"
        folders[part], parts[part] = groups, ", ".join(groups)
    for name in (each for names in folders.values() for each in names):
        if unknown := set(_folders(base / name)) - set(classes):
            raise DataError(f"--data: {base / name} has classes that train has not: {', '.join(sorted(unknown))}")
    opened = open_parts({part: _listed(base, names, classes) for part, names in folders.items()}, config)
    splits = opened.splits
    count = torch.bincount(splits["train"].labels, minlength=len(classes)).tolist()
    if empty := [name for name, images in zip(classes, count, strict=True) if not images]:
        raise DataError(f"--data: {base / 'train'} has no images ({' '.join(IMAGE_SUFFIXES)}) of {', '.join(empty)}")
    for part, names in folders.items():
        groups_of = splits[part].groups
        each = [splits[part].labels] if groups_of is None else [groups_of == number for number in range(len(names))]
        for name, found in zip(names, each, strict=True):
            if not (len(found) if groups_of is None else bool(found.any())):
                raise DataError(f"--data: {base / name} has no images in the folders {', '.join(classes)}")
    return RawData(
        train=splits["train"],
        test=splits["test"],
        classes=classes,
        preprocessing=PHOTOGRAPHS,
        validation=splits.get("validation"),
        names=parts,
        unreadable=opened.unreadable,
        tests={"groups": splits["groups"]} if "groups" in splits else {},
        groups=tuple(name.removeprefix(GROUP_PREFIX) for name in groups),
    )


def _parts(base: Path, groups: Sequence[str]) -> dict[str, str]:
    """The folder of each part of the data that has one; the test data has none where only folders of groups are it."""
    own = [name for name in VALIDATION_FOLDERS if (base / name).is_dir()]
    has_test = (base / "test").is_dir()
    for name, there in (("train", (base / "train").is_dir()), ("test", has_test or own or groups)):
        if not there:
            raise DataError(
                f"--data: {base} has no folder {name!r}, expected train/CLASS/, and test/CLASS/ or val/CLASS/"
            )
    if len(own) > 1:
        raise DataError(f"--data: {base} has the folders {' and '.join(own)}, expected one of them")
    if not has_test and not groups:
        return {"train": "train", "test": own[0]}
    test = {"test": "test"} if has_test else {}
    return {"train": "train", **test, **({"validation": own[0]} if own else {})}


def _folders(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir() if each.is_dir() and not hidden(each.name))


def _listed(base: Path, folders: Sequence[str], classes: Sequence[str]) -> Part:
    """The images of a part, by class and name; those of several folders are groups."""
    labels, groups = array("q"), array("q")

    def names() -> Iterator[bytes]:
        for group, folder in enumerate(folders):
            for label, class_name in enumerate(classes):
                path = base / folder / class_name
                for file in image_files(path) if path.is_dir() else ():
                    labels.append(label)
                    groups.append(group)
                    yield os.fsencode(file.relative_to(base))

    source = Files(base, Names(names()))
    grouped = folders[0].startswith(GROUP_PREFIX)
    return Part(source, _tensor(labels), _tensor(groups) if grouped else None)


def _tensor(values: array[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


class Files:
    """Images that are files of their own.

    Args:
        base: a folder.
        names: their paths in it.
    """

    def __init__(self, base: Path, names: Names) -> None:
        self._base, self._names = base, names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Image:
        return decode(self._path(index))

    def _path(self, index: int) -> Path:
        return self._base / self.name(index)

    def name(self, index: int) -> str:
        """Its path below the folder."""
        return Path(os.fsdecode(self._names[index])).as_posix()

    def fingerprint(self) -> str:
        """Of the paths, and of how large the files are."""
        sizes = torch.tensor([self._path(index).stat().st_size for index in range(len(self))])
        return self._names.digest() + digest_of(sizes)
