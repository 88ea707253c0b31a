"""Data sets as tensors in memory, and batches of them, augmented on the device.

Images stay bytes (uint8, channels first) until a batch is made of them: then they are cropped and flipped, scaled to
0..1 and normalised by fixed numbers of the data set, so that every network of a run, and a teacher of an earlier one,
sees the same inputs. What is random in an epoch is a function of (seed, epoch) alone: a resumed run draws it again.
With fixed views the augmentation is a function of (view seed, view, sample), and epoch e shows view e mod V: what a
teacher said of a view once is right in every run.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cid._errors import ConfigError, DataError
from cid.cache import TeacherCache
from cid.train.config import DataConfig
from cid.train.data.unpickle import load_batch

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Split:
    """Images (N, channels, height, width), uint8, and labels (N,), int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        """The split on a device."""
        return Split(self.images.to(device), self.labels.to(device))

    def take(self, index: Tensor) -> Split:
        """The samples at `index`."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Preprocessing:
    """How bytes become a network's input: `(bytes / scale - mean) / std`, by channel."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Normalize(nn.Module):
    """Maps images with values in 0..1, (B, channels, height, width), to a network's input."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalises by channel."""
        return (images - self.mean) / self.std


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
            images that could not be read.
    """

    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    summary: dict[str, Any]

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train.images.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = self.train.images.shape[2:]
        return height, width

    def to(self, device: torch.device) -> Dataset:
        """The data set on a device."""
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device)
        )


# --- batches -------------------------------------------------------------------------------------------------------


def mix_seed(*parts: int) -> int:
    """One seed from several numbers, so that neighbouring ones share nothing."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def shift_and_flip(images: Tensor, pad: int, rows: Tensor, columns: Tensor, flips: Tensor) -> Tensor:
    """Crops of the images, each padded by `pad` black pixels, some of them mirrored.

    Args:
        images: (B, channels, H, W).
        pad: pixels of padding on each side.
        rows: (B,) int64, first row of each crop, 0 to 2 pad.
        columns: (B,) int64, first column of each crop.
        flips: (B,) bool, whether to mirror left and right.
    """
    batch, channels, height, width = images.shape
    device = images.device
    padded = nn.functional.pad(images, (pad,) * 4)
    row = rows[:, None] + torch.arange(height, device=device)
    column = torch.arange(width, device=device).expand(batch, width)
    column = columns[:, None] + torch.where(flips[:, None], width - 1 - column, column)
    # One gather for all: the four index tensors broadcast to the output's shape.
    sample = torch.arange(batch, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return padded[sample, channel, row[:, None, :, None], column[:, None, None, :]]


class Augmentation(NamedTuple):
    """Where each of some images is cropped, and whether it is mirrored; see `shift_and_flip`."""

    rows: Tensor
    columns: Tensor
    flips: Tensor

    def at(self, index: Tensor | slice) -> Augmentation:
        """That of the images at `index`."""
        return Augmentation(*(each[index] for each in self))

    def to(self, device: torch.device) -> Augmentation:
        """The same on a device."""
        return Augmentation(*(each.to(device) for each in self))


@dataclass(frozen=True)
class EpochPlan:
    """Everything random about the batches of one epoch, drawn at once.

    Attributes:
        order: the samples, on the device of the images.
        samples: the same on the CPU, where a cache of the teacher's outputs is read.
        augmentation: of the samples in this order.
        view: which of the fixed views this is; None where views are not fixed.
    """

    order: Tensor
    samples: Tensor
    augmentation: Augmentation
    view: int | None


class Batch(NamedTuple):
    """What a method takes: inputs, labels, and the teacher's features and logits, if they are cached."""

    inputs: Tensor
    target: Tensor
    teacher: tuple[Tensor, Tensor] | None = None


class Batches:
    """Training batches of one split.

    A last batch of one sample is left out (batch normalisation has no variance of it); a shorter one is used.

    Args:
        split: the images, on the device that computes.
        preprocessing: how to feed a network.
        batch_size: samples in a batch.
        pad: padding of the random crop, 0 for none.
        flip: whether to mirror at random.
        seed: of the order and the augmentation.
        views: how many fixed views there are of each image; None draws new ones in each epoch.
        view_seed: of the fixed views.
        cache: the teacher's outputs on these views, which batches then have.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        pad: int,
        flip: bool,
        seed: int,
        views: int | None = None,
        view_seed: int = 0,
        cache: TeacherCache | None = None,
    ) -> None:
        self._split = split
        self._scale = preprocessing.scale
        self._normalize = Normalize(preprocessing).to(split.images.device)
        self._batch_size = batch_size
        self._pad = pad
        self._flip = flip
        self._seed = seed
        self._views = views
        self._view_seed = view_seed
        self._cache = cache

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(len(self._split), self._batch_size)
        return full + (rest > 1)

    def plan(self, epoch: int) -> EpochPlan:
        """Draws an epoch. On the CPU, so that every device sees the same batches."""
        generator = torch.Generator().manual_seed(mix_seed(self._seed, epoch))
        order = torch.randperm(len(self._split), generator=generator)
        if self._views is None:
            view, augmentation = None, self._draw(generator)
        else:
            view = epoch % self._views
            augmentation = self.view(view).at(order)
        device = self._split.images.device
        return EpochPlan(order.to(device), order, augmentation.to(device), view)

    def view(self, number: int) -> Augmentation:
        """Draws a fixed view of every sample, in their own order."""
        # Of three parts, so that no order of an epoch comes from the same numbers.
        return self._draw(torch.Generator().manual_seed(mix_seed(self._view_seed, number, 1)))

    def _draw(self, generator: torch.Generator) -> Augmentation:
        count = len(self._split)
        rows, columns = torch.randint(2 * self._pad + 1, (2, count), generator=generator)
        return Augmentation(rows, columns, torch.rand(count, generator=generator) < (0.5 if self._flip else 0.0))

    def batch(self, plan: EpochPlan, step: int) -> Batch:
        """One step of a plan."""
        part = slice(step * self._batch_size, (step + 1) * self._batch_size)
        chosen = self._split.take(plan.order[part])
        inputs = self._inputs(chosen.images, plan.augmentation.at(part))
        if self._cache is None or plan.view is None:
            return Batch(inputs, chosen.labels)
        features, logits = self._cache[plan.samples[part], plan.view]
        device, on_gpu = inputs.device, inputs.is_cuda  # where a blocking copy would wait for the steps before
        return Batch(
            inputs, chosen.labels, (features.to(device, non_blocking=on_gpu), logits.to(device, non_blocking=on_gpu))
        )

    def in_view(self, number: int, samples: range) -> Iterator[Tensor]:
        """The inputs of a range of samples, in order, in one of the fixed views."""
        augmentation = self.view(number).to(self._split.images.device)
        for start in range(samples.start, samples.stop, self._batch_size):
            part = slice(start, min(start + self._batch_size, samples.stop))
            yield self._inputs(self._split.images[part], augmentation.at(part))

    def _inputs(self, images: Tensor, augmentation: Augmentation) -> Tensor:
        if self._pad or self._flip:
            images = shift_and_flip(images, self._pad, *augmentation)
        return self._normalized(images)

    def _normalized(self, images: Tensor) -> Tensor:
        inputs: Tensor = self._normalize(images.float() / self._scale)
        return inputs

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples once, in order, not augmented: for scoring."""
        for start in range(0, len(self._split), self._batch_size):
            part = slice(start, start + self._batch_size)
            yield self._normalized(self._split.images[part]), self._split.labels[part]


# --- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RawData:
    """A data set as published: a training and a test part, and sometimes one to choose the epoch by.

    Attributes:
        train: to train on and, if there is no validation part, to choose the epoch by.
        test: to score.
        classes: by label.
        preprocessing: of every image.
        scored_shift: if not 0, each image that is scored (validation and test) is so at `SCORED_PLACES` places, which
            are drawn once and for all from up to so many pixels each way.
        validation: to choose the epoch by.
        names: what the data set calls the parts, where that is not our name.
        unreadable: images that were left out, and why.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    scored_shift: int = 0
    validation: Split | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)


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
    _check_labels(raw)
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
        validation=_moved(validation, raw.scored_shift, generator),
        test=_moved(test, raw.scored_shift, generator),
        classes=raw.classes,
        preprocessing=raw.preprocessing,
        summary={
            **{split: {"images": len(part), "from": names[split]} for split, part in splits.items()},
            "classes": list(raw.classes),
            "unreadable": {"count": len(raw.unreadable), "images": dict(raw.unreadable)},
        },
    )


HELD_OUT = 0.1


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


SCORED_PLACES = 4


def _moved(split: Split, shift: int, generator: torch.Generator) -> Split:
    """The split with each image at several places."""
    if not shift:
        return split
    split = split.take(torch.arange(len(split)).repeat_interleave(SCORED_PLACES))
    rows, columns = torch.randint(2 * shift + 1, (2, len(split)), generator=generator)
    still = torch.zeros(len(split), dtype=torch.bool)
    return Split(shift_and_flip(split.images, shift, rows, columns, still), split.labels)


def _check_labels(raw: RawData) -> None:
    for name, split in (("training", raw.train), ("test", raw.test)):
        if not len(split):
            raise DataError(f"the {name} part has no images")
        highest = int(split.labels.max())
        if highest >= len(raw.classes):
            raise DataError(f"the {name} part has the label {highest}, but there are {len(raw.classes)} classes")


def _split(images: Bytes, labels: NDArray[np.integer]) -> Split:
    return Split(torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)))


DIGITS_MARGIN = 2
DIGITS_TEST_PART = 1 / 3


def read_digits(config: DataConfig) -> RawData:
    """Scikit-learn's 1,797 handwritten digits of 8 x 8, each on a canvas of 12 x 12; a fixed third is for the test.

    The images that are scored lie anywhere on their canvas, at four places each, so that a network has to ignore the
    place; training images lie in the middle, and the augmentation moves them.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    margin = (DIGITS_MARGIN, DIGITS_MARGIN)
    images = np.pad(digits.images.astype(np.uint8), ((0, 0), margin, margin))[:, None]
    everything = _split(images, digits.target)
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(mix_seed(len(everything))))
    held_out = round(DIGITS_TEST_PART * len(order))
    return RawData(
        train=everything.take(order[held_out:]),
        test=everything.take(order[:held_out]),
        classes=tuple(map(str, range(10))),
        preprocessing=Preprocessing(scale=16.0, mean=(0.136,), std=(0.293,)),
        scored_shift=DIGITS_MARGIN,
    )


@dataclass(frozen=True)
class Published:
    """Where a data set's files are to be: for finding them, and for telling what is missing."""

    title: str
    home: str
    layouts: tuple[tuple[str, tuple[str, ...]], ...]

    def find(self, config: DataConfig) -> Path:
        """The first of the layouts' folders whose files are all there, under `--data-dir` or that folder itself.

        Raises:
            DataError: none of them; names the folder, the files and the data set's home.
        """
        if config.dir is None:
            raise DataError(f"--data-dir: not given, accepted: the folder that holds {self._expected()}")
        base = Path(config.dir)
        for name, files in self.layouts:
            for folder in (base / name, base):
                if all(_exists(folder / file) for file in files):
                    return folder
        raise DataError(f"--data-dir: {base} has no {self.title}; expected {self._expected()}")

    def _expected(self) -> str:
        layouts = " or ".join(f"{name}/ with {', '.join(files)}" for name, files in self.layouts)
        return f"{layouts} (published at {self.home})"


def _exists(path: Path) -> bool:
    """Whether the file is there, gzipped or not."""
    return path.is_file() or path.with_name(path.name + ".gz").is_file()


def _read(path: Path) -> bytes:
    try:
        if path.is_file():
            return path.read_bytes()
        return gzip.decompress(path.with_name(path.name + ".gz").read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


_CIFAR10_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
CIFAR10 = Published(
    "CIFAR-10",
    "https://www.cs.toronto.edu/~kriz/cifar.html",
    (
        ("cifar-10-batches-bin", (*(f"{name}.bin" for name in _CIFAR10_TRAIN), "test_batch.bin")),
        ("cifar-10-batches-py", (*_CIFAR10_TRAIN, "test_batch")),
    ),
)
CIFAR100 = Published(
    "CIFAR-100",
    CIFAR10.home,
    (("cifar-100-binary", ("train.bin", "test.bin")), ("cifar-100-python", ("train", "test"))),
)
MNIST = Published(
    "MNIST",
    "http://yann.lecun.com/exdb/mnist/",
    (
        (
            "MNIST/raw",
            ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        ),
    ),
)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_PREPROCESSING = Preprocessing(255.0, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100_PREPROCESSING = Preprocessing(255.0, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
MNIST_PREPROCESSING = Preprocessing(255.0, (0.1307,), (0.3081,))
PIXELS = 3 * 32 * 32


def read_cifar10(config: DataConfig) -> RawData:
    """CIFAR-10, the binary version if it is there, else the python version."""
    folder = CIFAR10.find(config)
    binary = _exists(folder / "test_batch.bin")

    def part(names: tuple[str, ...]) -> Split:
        if binary:
            return _join([_read_records(folder / f"{name}.bin", label_bytes=1) for name in names])
        return _join([_read_pickle(folder / name, "labels") for name in names])

    return RawData(part(_CIFAR10_TRAIN), part(("test_batch",)), CIFAR10_CLASSES, CIFAR10_PREPROCESSING)


def read_cifar100(config: DataConfig) -> RawData:
    """CIFAR-100 with its fine labels, the binary version if it is there, else the python version."""
    folder = CIFAR100.find(config)
    binary = _exists(folder / "test.bin")

    def part(name: str) -> Split:
        if binary:
            return _join([_read_records(folder / f"{name}.bin", label_bytes=2)])
        return _join([_read_pickle(folder / name, "fine_labels")])

    names = folder / "fine_label_names.txt"
    classes = tuple(names.read_text(encoding="utf-8").split()) if names.is_file() else tuple(map(str, range(100)))
    return RawData(part("train"), part("test"), classes, CIFAR100_PREPROCESSING)


def _join(parts: list[tuple[Bytes, Bytes]]) -> Split:
    images, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    return _split(images.reshape(-1, 3, 32, 32), labels)


def _read_records(path: Path, label_bytes: int) -> tuple[Bytes, Bytes]:
    """Records of label bytes, the last of which counts, and pixels."""
    raw = np.frombuffer(_read(path), np.uint8)
    length = label_bytes + PIXELS
    if not raw.size or raw.size % length:
        raise DataError(f"{path}: has {raw.size} bytes, expected a multiple of {length}: the file is damaged")
    records = raw.reshape(-1, length)
    return records[:, label_bytes:], records[:, label_bytes - 1]


def _read_pickle(path: Path, label_key: str) -> tuple[Bytes, Bytes]:
    try:
        batch = load_batch(_read(path))
        images = batch["data"]
        labels = np.array(batch[label_key], dtype=np.uint8)
        if not isinstance(images, np.ndarray) or images.shape != (len(labels), PIXELS):
            raise ValueError("data and labels do not fit together")
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: is no CIFAR batch: {error}") from error
    except KeyError as error:
        raise DataError(f"{path}: is no CIFAR batch: it has no {error}") from error
    return images, labels


def read_mnist(config: DataConfig) -> RawData:
    """MNIST's four IDX files, gzipped or not."""
    folder = MNIST.find(config)
    train_images, train_labels, test_images, test_labels = (folder / name for name in MNIST.layouts[0][1])

    def part(images: Path, labels: Path) -> Split:
        pixels, classes = _read_idx(images, 3), _read_idx(labels, 1)
        if len(pixels) != len(classes):
            raise DataError(f"{images}: has {len(pixels)} images, but {labels.name} has {len(classes)} labels")
        return _split(pixels[:, None], classes)

    return RawData(
        part(train_images, train_labels),
        part(test_images, test_labels),
        tuple(map(str, range(10))),
        MNIST_PREPROCESSING,
    )


def _read_idx(path: Path, rank: int) -> Bytes:
    """An IDX file of bytes: two zeros, the type (8), the rank, the sizes (big-endian), the values."""
    raw = _read(path)
    header = 4 + 4 * rank
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, rank)):
        raise DataError(f"{path}: starts with {raw[:4].hex()!r}, expected 000008{rank:02x}: no IDX file of bytes")
    shape = struct.unpack(f">{rank}I", raw[4:header])
    values = np.frombuffer(raw, np.uint8, offset=header)
    if values.size != int(np.prod(shape, dtype=object)):
        raise DataError(f"{path}: has {values.size} values, its header says {shape}: the file is damaged")
    return values.reshape(shape)


# Those of torchvision's ImageFolder.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VALIDATION_FOLDERS = ("val", "valid", "validation")
# Those of ImageNet, as usual for photographs.
FOLDER_PREPROCESSING = Preprocessing(255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def read_folder(config: DataConfig) -> RawData:
    """Images in `train/CLASS/`, in `test/CLASS/` or `val/CLASS/`, or in all three, at any depth.

    The classes are the folders of `train`, in order of name. With `test/`, `val/` chooses the epoch; without, it is the
    test data, and a part of `train/` chooses: no image does both.
    """
    base = Path(config.name)
    parts = _parts(base)
    classes = tuple(_folders(base / "train"))
    if len(classes) < 2:
        raise DataError(f"--data: {base / 'train'} has {len(classes)} folders, expected one for each class, 2 or more")
    reader = _FolderReader(base, config.resize)
    found = {}
    for part, name in parts.items():
        there = set(_folders(base / name))
        if unknown := there - set(classes):
            raise DataError(f"--data: {base / name} has classes that train has not: {', '.join(sorted(unknown))}")
        found[part] = {label: reader.read(base / name / label) if label in there else [] for label in classes}
    if reader.unreadable and not config.skip_unreadable:
        raise reader.error()
    if empty := [label for label, images in found["train"].items() if not images]:
        raise DataError(f"--data: {base / 'train'} has no images ({' '.join(IMAGE_SUFFIXES)}) of {', '.join(empty)}")
    for part, name in parts.items():
        if not any(found[part].values()):
            raise DataError(f"--data: {base / name} has no images in the folders {', '.join(classes)}")
    splits = {part: _labelled(images) for part, images in found.items()}
    return RawData(
        train=splits["train"],
        test=splits["test"],
        classes=classes,
        preprocessing=FOLDER_PREPROCESSING,
        validation=splits.get("validation"),
        names=parts,
        unreadable=reader.unreadable,
    )


def _parts(base: Path) -> dict[str, str]:
    """The folder of each part of the data that has one."""
    own = [name for name in VALIDATION_FOLDERS if (base / name).is_dir()]
    has_test = (base / "test").is_dir()
    for name, there in (("train", (base / "train").is_dir()), ("test", has_test or own)):
        if not there:
            raise DataError(
                f"--data: {base} has no folder {name!r}, expected train/CLASS/, and test/CLASS/ or val/CLASS/"
            )
    if len(own) > 1:
        raise DataError(f"--data: {base} has the folders {' and '.join(own)}, expected one of them")
    if not has_test:
        return {"train": "train", "test": own[0]}
    return {"train": "train", "test": "test", **({"validation": own[0]} if own else {})}


def _folders(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir() if each.is_dir() and not _hidden(each.name))


def _hidden(name: str) -> bool:
    """Whether a file or folder is a system's or a program's own: `._a.png`, `.ipynb_checkpoints`."""
    return name.startswith(".")


def _labelled(images: Mapping[str, list[Bytes]]) -> Split:
    stacked = np.stack([image for each in images.values() for image in each])
    labels = torch.arange(len(images)).repeat_interleave(torch.tensor([len(each) for each in images.values()]))
    return Split(torch.from_numpy(stacked), labels)


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
        for path in _image_files(folder):
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
        from PIL import Image

        try:
            with Image.open(path) as file:
                image = _of_bytes(file)
        # Of a damaged file Pillow's decoders raise whatever they stumble over.
        except Exception as error:
            self.unreadable[path.relative_to(self._base).as_posix()] = str(error) or type(error).__name__
            return None
        if self._resize is not None:
            image = image.resize((self._resize, self._resize), Image.Resampling.BILINEAR)
        return np.asarray(image).transpose(2, 0, 1)

    def error(self) -> DataError:
        """Names the images that could not be read."""
        names, count = list(self.unreadable), len(self.unreadable)
        rest = f" and {count - self.NAMED} more" if count > self.NAMED else ""
        return DataError(
            f"--data: {self._base} has {count} image{'s' * (count > 1)} that cannot be read: "
            f"{', '.join(names[: self.NAMED])}{rest} ({self.unreadable[names[0]]}); "
            "mend or remove them, or leave them out by --skip-unreadable"
        )


def _image_files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The images in a folder and in those below it, in order of name."""
    here = folder.resolve()
    if here in above:  # by a link, which would lead around for ever
        return
    for path in sorted(folder.iterdir()):
        if _hidden(path.name):
            continue
        if path.is_dir():
            yield from _image_files(path, above | {here})
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


READERS: dict[str, Callable[[DataConfig], RawData]] = {
    "digits": read_digits,
    "mnist": read_mnist,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
}
