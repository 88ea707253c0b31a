"""Images in folders, one for each class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cid._errors import DataError
from cid.train.data.dataset import RawData
from cid.train.data.images import Bytes, Preprocessing, Split
from cid.train.sections import DataConfig

# What torchvision's ImageFolder reads.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VALIDATION_FOLDERS = ("val", "valid", "validation")
GROUP_PREFIX = "test-"  # of the folder of a group's test images
# ImageNet's mean and deviation, as usual for photographs.
PREPROCESSING = Preprocessing(255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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
    reader = _FolderReader(base, config.resize)
    found = {}
    folders = {**parts, **dict(zip(groups, groups, strict=True))}
    for part, name in folders.items():
        there = set(_folders(base / name))
        if unknown := there - set(classes):
            raise DataError(f"--data: {base / name} has classes that train has not: {', '.join(sorted(unknown))}")
        found[part] = {label: reader.read(base / name / label) if label in there else [] for label in classes}
    if reader.unreadable and not config.skip_unreadable:
        raise reader.error()
    if empty := [label for label, images in found["train"].items() if not images]:
        raise DataError(f"--data: {base / 'train'} has no images ({' '.join(IMAGE_SUFFIXES)}) of {', '.join(empty)}")
    for part, name in folders.items():
        if not any(found[part].values()):
            raise DataError(f"--data: {base / name} has no images in the folders {', '.join(classes)}")
    splits = {part: _labelled(images) for part, images in found.items()}
    if groups:
        part = "groups" if "test" in splits else "test"
        splits[part], parts[part] = _grouped([splits[name] for name in groups]), ", ".join(groups)
    return RawData(
        train=splits["train"],
        test=splits["test"],
        classes=classes,
        preprocessing=PREPROCESSING,
        validation=splits.get("validation"),
        names=parts,
        unreadable=reader.unreadable,
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
    return sorted(each.name for each in path.iterdir() if each.is_dir() and not _hidden(each.name))


def _hidden(name: str) -> bool:
    """Whether a file or folder is a system's or a program's own: `._a.png`, `.ipynb_checkpoints`."""
    return name.startswith(".")


def _labelled(images: Mapping[str, list[Bytes]]) -> Split:
    stacked = np.stack([image for each in images.values() for image in each])
    labels = torch.arange(len(images)).repeat_interleave(torch.tensor([len(each) for each in images.values()]))
    return Split(torch.from_numpy(stacked), labels)


def _grouped(splits: Sequence[Split]) -> Split:
    """The images of several splits, each a group."""
    counts = torch.tensor([len(split) for split in splits])
    return Split(
        torch.cat([split.images for split in splits]),
        torch.cat([split.labels for split in splits]),
        torch.arange(len(splits)).repeat_interleave(counts),
    )


class _FolderReader:
    """Reads images of one size, and remembers which it could not.

    Args:
        base: the folder of the data set.
        resize: side of the square to resize to.

    Attributes:
        unreadable: path below `base`, and why.
    """

    NAMED = 10

    def __init__(self, base: Path, resize: int | None) -> None:
        self._base = base
        self._resize = resize
        self._first: tuple[Path, tuple[int, ...]] | None = None
        self.unreadable: dict[str, str] = {}

    def read(self, folder: Path) -> list[Bytes]:
        """The images of a class, in order of name.

        Raises:
            DataError: one has another size than those before.
        """
        images = []
        for path in image_files(folder):
            image = self._read(path)
            if image is None:
                continue
            size = image.shape[1:]
            first, expected = self._first = self._first or (path, size)
            if size != expected:
                raise DataError(f"{path}: is {size}, {first} is {expected}: give --resize")
            images.append(image)
        return images

    def _read(self, path: Path) -> Bytes | None:
        try:
            return read_image(path, None if self._resize is None else (self._resize, self._resize))
        except ValueError as error:
            self.unreadable[path.relative_to(self._base).as_posix()] = str(error)
            return None

    def error(self) -> DataError:
        """Names the images that could not be read."""
        names, count = list(self.unreadable), len(self.unreadable)
        rest = f" and {count - self.NAMED} more" if count > self.NAMED else ""
        return DataError(
            f"--data: {self._base} has {count} image{'s' * (count > 1)} that cannot be read: "
            f"{', '.join(names[: self.NAMED])}{rest} ({self.unreadable[names[0]]}); "
            "mend or remove them, or leave them out by --skip-unreadable"
        )


def read_image(path: Path, size: tuple[int, int] | None = None, channels: int = 3) -> Bytes:
    """An image of any kind, (channels, height, width), resized where a size (height, width) is given.

    Raises:
        ValueError: it can't be read; the message says why.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = _of_bytes(file)
    # Of a damaged file Pillow's decoders raise whatever they stumble over.
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if channels == 1:
        image = image.convert("L")
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    pixels: Bytes = np.asarray(image).reshape(*image.size[::-1], channels).transpose(2, 0, 1)
    return pixels


def image_files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The images in a folder and in those below it, in order of name."""
    here = folder.resolve()
    if here in above:  # by a link, which would lead around for ever
        return
    for path in sorted(folder.iterdir()):
        if _hidden(path.name):
            continue
        if path.is_dir():
            yield from image_files(path, above | {here})
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            yield path


def _of_bytes(image: Any) -> Any:
    """A Pillow image of any kind in three channels of bytes; transparency is dropped.

    Raises:
        ValueError: its pixels are numbers whose range nobody knows.
    """
    from PIL import Image

    if image.mode[0] in "IF":  # one channel of numbers, which `convert` would cut off at 255
        # Where Pillow reads 16 bits as 32: these formats have no more.
        if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
            raise ValueError(f"its pixels are of Pillow's mode {image.mode}, expected at most 16 bits")
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":  # by a way on which Pillow does not warn of transparency
        image = image.convert("RGBA")
    return image.convert("RGB")
